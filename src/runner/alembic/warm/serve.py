"""The warm process. It imports Alembic once, and nothing of the user's, ever: for each request it forks a child, which answers
and ends. So each tenant finds a process as clean as that of an `alembic` command, within milliseconds instead of a second. A child
whose files are all plain, which leaves it as clean as it was, goes on with the next tenants (see `plain`).

Runs on Python 3.8 and newer, with Alembic 1.8 and newer, SQLAlchemy 1.4 and newer.
"""

import gc
import os
import signal
import sys

from herder_warm.pipes import send, take_over_pipes

requests, answers = take_over_pipes()

try:
    import alembic  # noqa: F401 - first on its own, to tell what is missing
    import sqlalchemy  # noqa: F401
except ImportError as error:
    failure = {"kind": "internal", "message": "{}: {}".format(type(error).__name__, " ".join(str(error).split()))}
    send(answers, {"id": 0, "ok": False, "error": failure})
    sys.exit(0)

from herder_warm import codes, connections, halves, home, leftovers, own, within
from herder_warm.child import Legacy, answer_all
from herder_warm.project import versions


def end_like(status):
    """Ends as the child has: a migration that crashes or exits ends the process as it would end `alembic`."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


codes.install()
connections.listen()
home.listen()
leftovers.listen()
within.listen()
halves.listen()
send(answers, {"id": 0, "ok": True, "result": versions()})
legacy = Legacy()
while True:
    own.inherited = frozenset(sys.modules)
    # What is there by now stays: no child looks through it, and copies it by that.
    gc.freeze()
    child = os.fork()
    if child == 0:
        gc.enable()
        answer_all(requests, answers, legacy)
    _, status = os.waitpid(child, 0)
    # Whatever it left, it has not answered.
    if not legacy.take_over() or status != 0:
        end_like(status)
