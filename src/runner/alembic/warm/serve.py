"""The loop of the warm process: imports Alembic once, then serves one request after another.

Alembic's context is global to a process, so requests wait for each other on the main thread, where `asyncio.run`
works and signal handlers may be set. A second thread only reads: when the pipe ends, the worker is dead, and this
process must not go on migrating for nobody.

Runs on Python 3.8 and newer, with Alembic 1.8 and newer, SQLAlchemy 1.4 and newer.
"""

import gc
import os
import queue
import sys
import threading

from herder_warm.pipes import read_requests, send, take_over_pipes

requests, answers = take_over_pipes()

try:
    import alembic  # noqa: F401 - first on its own, to tell what is missing
    import sqlalchemy  # noqa: F401
except ImportError as error:
    failure = {"kind": "internal", "message": "{}: {}".format(type(error).__name__, " ".join(str(error).split()))}
    send(answers, {"id": 0, "ok": False, "error": failure})
    sys.exit(0)

from herder_warm import connections, home, leftovers, within
from herder_warm.errors import Failure, describe_error
from herder_warm.migrate import look, migrate
from herder_warm.own import Memory, holds
from herder_warm.offline import render
from herder_warm.project import describe, versions
from herder_warm.scrub import Scrubber
from herder_warm.session import session

# What runs env.py.
RUNNING = ("look", "migrate", "render")
HANDLERS = {"describe": describe, "look": look, "migrate": migrate, "render": render, "session": session}


def words_of(request):
    """What a module might keep of a tenant."""
    url, name = request["url"], request["schema"]
    try:
        return {url, name or sqlalchemy.engine.make_url(url).database}
    except Exception:
        return {url}  # One that cannot be read was refused before env.py saw it.


def serve(inbox, answers):
    """Answers requests for ever; the reader thread ends the process."""
    environment = dict(os.environ)
    standard_streams = sys.stdin, sys.stdout, sys.stderr
    while True:
        request = inbox.get()
        url = request.get("url") or ""
        try:
            answer = {"ok": True, "result": HANDLERS[request["do"]](request)}
        except Failure as failure:
            answer = {"ok": False, "error": failure.fields}
        except BaseException as error:
            answer = {"ok": False, "error": Failure("internal", describe_error(error)).fields}
        if request["do"] in RUNNING:
            Memory.note_run(environment)
            # What was made of this tenant's name would meet the next one.
            if holds(words_of(request)):
                answer["spent"] = True
        Memory.note_modules()
        sys.stdin, sys.stdout, sys.stderr = standard_streams
        # What one tenant's env.py put into the environment is not there for the next.
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        # A plan goes as it is: its URL was made up, and a text that looks like somebody's URL belongs to the plan.
        if "events" not in (answer.get("result") or {}):
            answer = Scrubber(url)(answer)
        send(answers, dict(answer, id=request["id"]))


# What is there by now stays: nobody need look through it again and again.
gc.freeze()
gc.enable()
connections.listen()
home.listen()
leftovers.listen()
within.listen()
send(answers, {"id": 0, "ok": True, "result": versions()})
inbox = queue.Queue()
threading.Thread(target=read_requests, args=(requests, inbox), daemon=True).start()
serve(inbox, answers)
