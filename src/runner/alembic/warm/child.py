"""The process of one request, or of many where the user's files leave nothing behind. It answers on its main thread, where
`asyncio.run` works and signal handlers may be set. A second thread watches: when the pipe ends, the worker is dead, and nothing
must go on migrating for nobody.
"""

import atexit
import functools
import json
import mmap
import os
import select
import threading

from herder_warm import codes, own
from herder_warm.clean import Beginning
from herder_warm.errors import Failure, describe_error
from herder_warm.migrate import look, migrate
from herder_warm.offline import render
from herder_warm.pipes import end_at_once, read_request, send, send_line
from herder_warm.plain import is_plain_ini
from herder_warm.project import describe
from herder_warm.session import session

HANDLERS = {"describe": describe, "look": look, "migrate": migrate, "render": render, "session": session}
# How many tenants one process migrates at most: whatever grows in Alembic or a driver ends with it.
LONGEST = 200


def answer_all(requests, answers, legacy):
    """Waits for requests and answers them, as long as the next one finds this process like a fresh one. Then it ends."""
    threading.Thread(target=watch, args=(requests,), daemon=True).start()
    beginning = Beginning()
    for _ in range(LONGEST):
        wait_for(requests, select.POLLIN)
        if not codes.are_as_used():
            break
        codes.forget()
        request = read_request(requests)
        request["tell"] = functools.partial(tell_halves, requests, answers, request["id"])
        legacy.withdraw()
        answer = answer_one(request)
        # Before the answer: behind it, there may be no time for anything.
        legacy.leave()
        send(answers, dict(answer, id=request["id"]))
        is_plain = request["do"] == "migrate" and answer["ok"] and not codes.doubtful and is_plain_ini(request["ini"])
        if not is_plain or beginning.is_left():
            break
        beginning.restore()
    end()


def tell_halves(requests, answers, request, halves):
    """Goes on when it is noted."""
    send_line(answers, {"id": request, "halves": halves})
    read_request(requests)


def answer_one(request):
    try:
        return {"ok": True, "result": HANDLERS[request["do"]](request)}
    except Failure as failure:
        return {"ok": False, "error": failure.fields}
    except BaseException as error:
        return {"ok": False, "error": Failure("internal", describe_error(error)).fields}


def end():
    """Runs what the user's code wants to be done at the end, but not what Python does there: it would go through all that it has."""
    try:
        atexit._run_exitfuncs()
    finally:
        os._exit(0)


def watch(requests):
    """Waits until the worker has closed the pipe or died."""
    wait_for(requests, 0)
    end_at_once()


def wait_for(requests, events):
    """Waits, without reading, for these events or the end of the pipe."""
    poll = select.poll()
    poll.register(requests, events)
    poll.poll()


class Legacy:
    """What a child leaves to those behind it: the names of what it has imported, in memory that it shares with the process that
    it was forked from. A child that ends otherwise than by answering leaves nothing."""

    SIZE = 1 << 20

    def __init__(self):
        self.memory = mmap.mmap(-1, self.SIZE)

    def withdraw(self):
        self.memory[:8] = bytes(8)

    def leave(self):
        left = {}
        if codes.doubtful:  # Else it has found all that it needed.
            left["tools"] = own.tools()
            left["files"] = [file for file in codes.doubtful if not own.is_installed(file)]
        left = json.dumps(left).encode()
        left = left if len(left) < self.SIZE - 8 else b"{}"
        self.memory[8 : 8 + len(left)] = left
        self.memory[:8] = len(left).to_bytes(8, "big")

    def take_over(self):
        """Makes ready for the next child what the last one has used. Whether that one has left anything."""
        size = int.from_bytes(self.memory[:8], "big")
        self.withdraw()
        if size:
            left = json.loads(self.memory[8 : 8 + size])
            own.preload(left.get("tools", ()))
            codes.compile_all(left.get("files", ()))
        return size > 0
