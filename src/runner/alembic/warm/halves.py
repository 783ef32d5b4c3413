"""What a revision has committed before it is done: behind an `autocommit_block()`, say. Until the ledger says that the revision is
applied, whoever tries again does that part a second time. The worker is told before it is committed, and again once it does not count
any more, because the server has refused it, or the ledger has moved; what it has not noted is not committed. So it is known what is left
behind, whatever becomes of this process, or of the worker.
"""

import re

import sqlalchemy
from sqlalchemy import event

from herder_warm.errors import sqlstate_of
from herder_warm.harmless import is_harmless
from herder_warm.run import Run
from herder_warm.within import COMMITS, REMARKS, asker

WRITES = re.compile(r"insert|update|delete", re.IGNORECASE)
# What may have committed a part of itself where it fails. An index that is built alongside is looked for by the next try.
MAY_COMMIT = re.compile(r"call\b|.*\bcommit\b", re.IGNORECASE | re.DOTALL)
BESIDE = re.compile(r".*\bconcurrently\b", re.IGNORECASE | re.DOTALL)
# The server is about to go: whether it has still committed nobody knows.
GOING = ("08", "57P")


class Halves:
    """The revisions of a run, as far as their parts are committed."""

    def __init__(self, tell):
        self.tell = tell
        self.begun = None  # The revision that has done something in the transaction that is open.
        self.half = None  # The one of which a part is committed.
        self.moved = None  # The one that the open transaction has moved the ledger past.
        self.before = {}  # `begun` at each savepoint.
        self.asked = None  # What is said and not answered: `half` as it was, and whether a refusal undoes it.
        self.is_past = False  # An unanswered commit moves the ledger past `half`.

    def does(self, revision):
        """A statement of a revision's was done in a transaction. What comes behind its ledger's row goes with that."""
        if revision != self.moved:
            self.begun = revision

    def does_alone(self, revision, is_undone):
        """Before a statement that is committed as it is done."""
        if revision != self.moved:
            self.asked = (self.half, is_undone)
            self.leaves(revision)

    def moves(self, revision, alone):
        """The ledger is written: the revision is done with whatever it did."""
        self.begun, self.moved = None, revision
        if alone:
            self.leaves(None)

    def commits(self):
        """Before a commit."""
        self.asked = (self.half, True)
        if self.begun is not None:
            self.leaves(self.begun)
        else:
            self.is_past = self.moved is not None
        self.begun = self.moved = None
        self.before.clear()

    def goes_on(self):
        """What was said is done."""
        if self.is_past:
            self.leaves(None)
        self.asked, self.is_past = None, False

    def fails(self, sqlstate):
        """What was said is not done; or nobody knows, where its answer was lost."""
        asked, self.asked, self.is_past = self.asked, None, False
        if asked is not None and sqlstate is not None and not sqlstate.startswith(GOING):
            half, is_undone = asked
            if is_undone:
                self.leaves(half)

    def rolls_back(self):
        self.begun = self.moved = None
        self.before.clear()

    def leaves(self, revision):
        if revision != self.half:
            self.half = revision
            self.tell(revision)


def listen():
    """Watches all engines of this process, whoever makes them."""
    for name, function in (
        ("before_cursor_execute", before_statement),
        ("after_cursor_execute", after_statement),
        ("commit", before_commit),
        ("rollback", after_rollback),
        ("savepoint", before_savepoint),
        ("rollback_savepoint", after_rollback_to),
        ("handle_error", after_failure),
    ):
        event.listen(sqlalchemy.engine.Engine, name, function)


def halves_of(connection):
    """What is known of the run, where the connection is one of a tenant's."""
    run = Run.current
    is_known = run is not None and run.started and connection is not None and run.is_tenants(connection)
    return run.halves if is_known else None


def is_alone(connection):
    return bool(getattr(connection.connection, "autocommit", False))


def words_of(statement):
    return statement[REMARKS.match(statement).end() :]


def before_statement(connection, _cursor, statement, _parameters, _context, _many):
    halves, run = halves_of(connection), Run.current
    if halves is None:
        return
    halves.goes_on()
    words = words_of(statement)
    if COMMITS.match(words):
        halves.commits()
    elif run.step is not None and is_alone(connection) and not BESIDE.match(words):
        is_tools_own, asked = asker()
        if not is_tools_own and not asked and not is_harmless(connection, words):
            halves.does_alone(run.step, is_undone=MAY_COMMIT.match(words) is None)


def after_statement(connection, _cursor, statement, _parameters, _context, _many):
    halves, run = halves_of(connection), Run.current
    if halves is None:
        return
    halves.goes_on()
    words, alone = words_of(statement), is_alone(connection)
    if run.step is None or COMMITS.match(words):
        return
    is_tools_own, asked = asker()
    if is_tools_own and WRITES.match(words):
        halves.moves(run.step, alone)
    elif not is_tools_own and not asked and not is_harmless(connection, words):
        if alone:
            halves.does_alone(run.step, is_undone=False)
        else:
            halves.does(run.step)


def before_commit(connection):
    halves = halves_of(connection)
    if halves is not None:
        halves.goes_on()
        halves.commits()


def after_rollback(connection):
    halves = halves_of(connection)
    if halves is not None:
        halves.rolls_back()


def before_savepoint(connection, name):
    halves = halves_of(connection)
    if halves is not None:
        halves.before[name] = halves.begun


def after_rollback_to(connection, name, _context):
    halves = halves_of(connection)
    if halves is not None:
        halves.begun = halves.before.get(name)


def after_failure(context):
    halves = halves_of(context.connection)
    if halves is not None:
        halves.fails(sqlstate_of(context.sqlalchemy_exception or context.original_exception))
