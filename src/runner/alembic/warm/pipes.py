"""The two pipes to the worker.

One JSON object a line: requests on what was standard input, answers on what was standard output. Both are moved to
private descriptors before anything else happens, because the user's code owns the usual ones: a `print()` in a
migration goes to standard error, and `input()` finds an empty file.
"""

import json
import os
import signal
import sys


def take_over_pipes():
    """Moves the protocol to private descriptors and gives the user's code harmless standard ones."""
    # `dup` makes descriptors that a migration's own subprocesses do not inherit.
    requests, answers = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    return requests, os.fdopen(answers, "wb")


def read_request(descriptor):
    """The next request. Nothing is read beyond its line: that may be another process's to answer."""
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(descriptor, 65536)
        if not chunk:
            end_at_once()
        line += chunk
    return json.loads(line)


def end_at_once():
    """Ends this process, the one that it was forked from, and whatever a migration started: no clean-up, so that every
    connection breaks now."""
    if os.getpgrp() in (os.getpid(), os.getppid()):
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def send(answers, answer):
    """Ends this request's part of standard error with a mark, so that the other side knows it has read it all."""
    for stream in (sys.stdout, sys.stderr):
        # The user's code may have closed them, or put something else there, or nothing.
        try:
            stream.flush()
        except Exception:
            pass
    try:
        os.write(2, b"\x1e%d\n" % answer["id"])
    except OSError:
        pass
    send_line(answers, answer)


def send_line(answers, answer):
    # Half a surrogate (from an odd file name, say) is no UTF-8, and the other side would refuse the line.
    answers.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    answers.flush()
