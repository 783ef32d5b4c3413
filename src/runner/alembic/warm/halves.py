"""What a revision has committed before it is done: behind an `autocommit_block()`, say. Until the ledger says that the revision is
applied, whoever tries again does that part a second time. The worker is told before it is committed, and again once it does not count
any more, because the server has refused it, or the ledger has moved; what it has not noted is not committed. So it is known what is left
behind, whatever becomes of this process, or of the worker.
"""

import re

import sqlalchemy
from sqlalchemy import event

from herder_warm.errors import sqlstate_of
from herder_warm.harmless import bare_of, is_harmless
from herder_warm.leftovers import BUILDS
from herder_warm.run import Run
from herder_warm.within import COMMITS, REMARKS, answer, asker, is_alone, is_over

WRITES = re.compile(r"insert|update|delete", re.IGNORECASE)
CALLS = re.compile(r"call\b", re.IGNORECASE)
# A block of code that may commit a part of itself.
BLOCKS = re.compile(r"do\b.*\b(?:call|commit)\b", re.IGNORECASE | re.DOTALL)
BESIDE = re.compile(r"\bconcurrently\b", re.IGNORECASE)
DROPS = re.compile(r"drop\s+index\s+concurrently\b", re.IGNORECASE)
# The server is about to go: whether it has still committed nobody knows.
GOING = ("08", "57P")


class Halves:
    """The revisions of a run of which a part is committed and their ledger's row is not, whatever connection did that."""

    def __init__(self, tell):
        self.tell = tell
        self.left = []  # In the order in which they were begun.
        self.passed = set()  # Those whose row is committed.

    def leaves(self, revision):
        """A part of it is about to be committed. Told each time: whoever has lost the tenant meanwhile is not answered."""
        if revision not in self.left:
            self.left = self.left + [revision]
        self.tell(self.left)

    def passes(self, revisions):
        """Their ledger's rows are committed."""
        self.passed.update(revisions)
        self.keeps([revision for revision in self.left if revision not in revisions])

    def keeps(self, left):
        if left != self.left:
            self.left = left
            self.tell(left)


class Open:
    """What is done over one connection, and not committed."""

    def __init__(self, run):
        self.run, self.halves = run, run.halves
        self.begun = None  # The revision that has done something in the transaction that is open.
        self.moved = []  # Those that the open transaction has moved the ledger past.
        self.before = {}  # The two at each savepoint.
        self.asked = None  # What is said and not answered: what was left before that, and whether a refusal undoes it.
        self.past = []  # What an unanswered commit moves the ledger past.

    def is_past(self, revision):
        """Whether its ledger's row is written: what comes behind that goes with it."""
        return revision in self.moved or revision in self.past or revision in self.halves.passed

    def does(self, revision):
        """A statement of a revision's was done in a transaction."""
        if not self.is_past(revision):
            self.begun = revision

    def does_alone(self, revision, is_undone):
        """Before a statement that is committed as it is done."""
        if not self.is_past(revision):
            self.asked = (self.halves.left, is_undone)
            self.halves.leaves(revision)

    def has_done_alone(self, revision):
        """Behind one that turned out to be committed as it was done. Most are told before."""
        if not self.is_past(revision) and revision not in self.halves.left:
            self.halves.leaves(revision)

    def moves(self, revision, alone):
        """The ledger is written: the revision is done with whatever it did."""
        self.begun = None
        if alone:
            self.halves.passes([revision])
        else:
            self.moved = self.moved + [revision]

    def commits(self, connection):
        """Before a commit."""
        self.asked = (self.halves.left, True)
        if self.begun is not None and not self.moved and has_written_nothing(connection):
            self.begun = None
        if self.begun is not None:
            self.halves.leaves(self.begun)
        past = self.moved
        self.rolls_back()
        self.past = past

    def goes_on(self):
        """What was said is done."""
        if self.past:
            self.halves.passes(self.past)
        self.asked, self.past = None, []

    def fails(self, sqlstate):
        """What was said is not done; or nobody knows, where its answer was lost."""
        asked, self.asked, self.past = self.asked, None, []
        if asked is not None and sqlstate is not None and not sqlstate.startswith(GOING):
            left, is_undone = asked
            if is_undone:
                self.halves.keeps(left)

    def rolls_back(self):
        self.begun, self.moved = None, []
        self.before.clear()


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


def open_of(connection):
    """What is known of a connection, where it is one of a tenant's."""
    run = Run.current
    if run is None or run.halves is None or not run.started or connection is None or not run.is_tenants(connection):
        return None
    known = connection.info.get("herder_open")
    if known is None or known.run is not run:
        known = connection.info["herder_open"] = Open(run)
    return known


def has_written_nothing(connection):
    """Whether a commit would leave nothing, whatever was said before."""
    try:
        return answer(connection, "select pg_catalog.txid_current_if_assigned() is null")
    except Exception:  # It has failed, and cannot be asked.
        return False


def commits_within(bare):
    """Whether one of several statements in a message ends a transaction."""
    return ";" in bare and any(COMMITS.match(piece.strip()) for piece in bare.split(";"))


def is_undone(words, bare, many):
    """Whether nothing of it is left where the server refuses it, and no transaction is around it."""
    return not (many or CALLS.match(bare) or BLOCKS.match(words) or BESIDE.search(bare) or commits_within(bare))


def heard(connection, statement):
    """What is known of a tenant's connection over which this is said, its words, those that count, and whether they are a commit."""
    known = open_of(connection)
    if known is None:
        return None
    known.goes_on()
    words = statement[REMARKS.match(statement).end() :]
    bare = bare_of(words)
    return known, words, bare, ";" not in bare and COMMITS.match(words)


def before_statement(connection, _cursor, statement, _parameters, _context, many):
    said = heard(connection, statement)
    if said is None:
        return
    known, words, bare, is_commit = said
    if is_commit:
        known.commits(connection)
        return
    # The next try looks for an index that it builds alongside, and drops what is left.
    is_repeated = ";" not in bare and (BUILDS.match(words) or DROPS.match(words))
    if known.run.step is None or is_repeated or not (is_alone(connection) or commits_within(bare)):
        return
    is_tools_own, asked = asker()
    if not is_tools_own and not asked and not is_harmless(connection, bare):
        known.does_alone(known.run.step, is_undone(words, bare, many))


def after_statement(connection, _cursor, statement, _parameters, _context, _many):
    said = heard(connection, statement)
    if said is None:
        return
    known, words, bare, is_commit = said
    if known.run.step is None or is_commit:
        return
    alone = is_alone(connection) or is_over(connection)
    is_tools_own, asked = asker()
    if is_tools_own and WRITES.match(words):
        known.moves(known.run.step, alone)
    elif not is_tools_own and not asked and not is_harmless(connection, bare):
        if alone:
            known.has_done_alone(known.run.step)
        else:
            known.does(known.run.step)


def before_commit(connection):
    known = open_of(connection)
    if known is not None:
        known.goes_on()
        known.commits(connection)


def after_rollback(connection):
    known = open_of(connection)
    if known is not None:
        known.rolls_back()


def before_savepoint(connection, name):
    known = open_of(connection)
    if known is not None:
        known.before[name] = known.begun, known.moved


def after_rollback_to(connection, name, _context):
    known = open_of(connection)
    if known is not None:
        known.begun, known.moved = known.before.get(name, (None, []))


def after_failure(context):
    known = open_of(context.connection)
    if known is not None:
        known.fails(sqlstate_of(context.sqlalchemy_exception or context.original_exception))
