"""What a revision has committed before it is done: behind an `autocommit_block()`, say. Until the ledger says that the revision is
applied, whoever tries again does that part a second time. The worker is told before it is committed, and again once it does not count
any more, because the ledger has moved: so it knows how much is left behind, whatever becomes of this process.
"""

import re

import sqlalchemy
from sqlalchemy import event

from herder_warm.run import Run
from herder_warm.within import COMMITS, REMARKS, asker

# What leaves nothing, or may be said again.
HARMLESS = re.compile(
    r"(?:select|show|explain|set|reset|lock|analyze|vacuum|reindex|refresh|comment|notify|listen|unlisten|discard|checkpoint"
    r"|begin|start|savepoint|release|rollback|abort)\b|(?:create|alter|drop)\b[^'$]*\bif\s+(?:not\s+)?exists\b|create\s+or\s+replace\b",
    re.IGNORECASE | re.DOTALL,
)
WRITES = re.compile(r"insert|update|delete", re.IGNORECASE)


class Halves:
    """The revisions of a run, as far as their parts are committed."""

    def __init__(self, tell):
        self.tell = tell
        self.begun = None  # The revision that has done something in the transaction that is open.
        self.half = None  # The one of which a part is committed.
        self.is_moving = False  # The open transaction moves the ledger past that one,
        self.is_past = False  # and is being committed.

    def does(self, revision, alone):
        """A statement of a revision's was done: in a transaction, or for good."""
        if alone:
            self.leaves(revision)
        else:
            self.begun = revision

    def moves(self, alone):
        """The ledger is written: the revision is done with whatever it did."""
        self.begun = None
        if alone:
            self.leaves(None)
        else:
            self.is_moving = True

    def commits(self):
        """Before a commit: from here on, nobody can tell whether it was done."""
        if self.begun is not None:
            self.leaves(self.begun)
        elif self.is_moving:
            self.is_past = True
        self.begun, self.is_moving = None, False

    def goes_on(self):
        """Something is said, so that what came before was answered."""
        if self.is_past:
            self.leaves(None)
        self.is_past = False

    def rolls_back(self):
        self.begun, self.is_moving = None, False

    def leaves(self, revision):
        if revision != self.half:
            self.half = revision
            self.tell(revision)


def listen():
    """Watches all engines of this process, whoever makes them."""
    event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", before_statement)
    event.listen(sqlalchemy.engine.Engine, "after_cursor_execute", after_statement)
    event.listen(sqlalchemy.engine.Engine, "commit", before_commit)
    event.listen(sqlalchemy.engine.Engine, "rollback", after_rollback)


def halves_of(connection):
    """What is known of the run, where the connection is one of a tenant's."""
    run = Run.current
    return run.halves if run is not None and run.started and run.is_tenants(connection) else None


def before_statement(connection, _cursor, statement, _parameters, _context, _many):
    halves = halves_of(connection)
    if halves is not None:
        halves.goes_on()
        if COMMITS.match(statement[REMARKS.match(statement).end() :]):
            halves.commits()


def after_statement(connection, _cursor, statement, _parameters, _context, _many):
    halves, run = halves_of(connection), Run.current
    if halves is None or run.step is None:
        return
    words = statement[REMARKS.match(statement).end() :]
    alone = bool(getattr(connection.connection, "autocommit", False))
    is_tools_own, asked = asker()
    if is_tools_own:
        if WRITES.match(words):
            halves.moves(alone)
    elif not asked and not HARMLESS.match(words) and not COMMITS.match(words):
        halves.does(run.step, alone)


def before_commit(connection):
    halves = halves_of(connection)
    if halves is not None:
        halves.commits()


def after_rollback(connection):
    halves = halves_of(connection)
    if halves is not None:
        halves.rolls_back()
