"""What a proof's live migration does besides its own schema: found before it is committed, and kept from being so.

The proof gives what is said before a transaction's statements, to see what there is, and what fails behind them where they reach out.
What a driver's own connection does behind SQLAlchemy's back is not seen.
"""

import re
import sys

import sqlalchemy
from sqlalchemy import event

from herder_warm.errors import Failure, database_failure, describe_error
from herder_warm.run import Run
from herder_warm.words import NAME, REMARK, literal

# What the server does in no transaction block, or what ends one.
ALONE = re.compile(
    r"(?:create|drop)\s+(?:unique\s+)?index\s+concurrently\b|alter\s+table\b.*\bconcurrently\b|vacuum\b|reindex\b|cluster\b"
    r"|begin\b|start\b|commit\b|end\b|rollback\b|abort\b|(?:create|alter|drop)\s+(?:database|tablespace|system|subscription)\b",
    re.IGNORECASE | re.DOTALL,
)
# What such a statement is about to change.
TARGETS = re.compile(
    r"(?:create\s+(?:unique\s+)?index\s+concurrently\b.*?\bon\s+(?:only\s+)?|drop\s+index\s+concurrently\s+(?:if\s+exists\s+)?"
    r"|alter\s+table\s+(?:if\s+exists\s+)?(?:only\s+)?)"
    rf"({NAME}(?:\s*\.\s*{NAME})*)",
    re.IGNORECASE | re.DOTALL,
)
COMMITS = re.compile(r"(?:commit|end|prepare\s+transaction)\b", re.IGNORECASE)
# What comes before a transaction's first look at the database, if anything does, and changes nothing there.
SETS = re.compile(r"(?:set|reset|show|begin|start)\b[^;]*;?\s*\Z", re.IGNORECASE)
ROLLS_BACK = re.compile(r"(?:rollback(?!.*\bto\b)|abort)\b", re.IGNORECASE | re.DOTALL)
# What a connection is marked with whose transaction has been looked at before it does anything.
LOOKED = "herder_looked"
# And one whose transaction was ended in words.
ENDED = "herder_ended"
REMARKS = re.compile(REMARK + "*", re.DOTALL)


def listen():
    """Watches all engines of this process, whoever makes them."""
    event.listen(sqlalchemy.engine.Engine, "commit", check)
    event.listen(sqlalchemy.engine.Engine, "rollback", forget)
    event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", before_statement)
    event.listen(sqlalchemy.engine.Engine, "after_cursor_execute", after_statement)


def is_watched(connection):
    run = Run.current
    return run is not None and run.within is not None and connection.dialect.name == "postgresql"


def look_before(connection):
    """Before a statement. What was there is asked once for each transaction."""
    if is_over(connection):
        connection.info.pop(LOOKED, None)
    if LOOKED not in connection.info:
        say(connection, Run.current.within["before"])
        connection.info[LOOKED] = True


def check(connection):
    """Before a commit. What fails is remembered: whoever swallows the error has not done without it."""
    if not is_watched(connection) or LOOKED not in connection.info and stands_alone(connection):
        return
    try:
        look_before(connection)
        say(connection, Run.current.within["behind"])
    except Exception as error:
        failure = database_failure([error], Run.current) or Failure("database", describe_error(error))
        Run.current.reached_out = Run.current.reached_out or failure
        raise
    finally:
        forget(connection)


def forget(connection):
    """Where a transaction ends. A connection that is lost has nothing to forget."""
    if is_watched(connection) and not connection.invalidated:
        connection.info.pop(LOOKED, None)
        connection.info.pop(ENDED, None)


def stands_alone(connection):
    """Whether a statement is committed as it is done: without a transaction, or behind one that was ended in words. To some drivers
    that is still open; others begin the next one with whatever is said."""
    if is_alone(connection) or ENDED not in connection.info:
        return is_alone(connection)
    say(connection, "SHOW server_version")
    return is_over(connection)


def is_alone(connection):
    """Whether the driver begins no transactions."""
    return bool(getattr(connection.connection, "autocommit", False))


def is_over(connection):
    """Whether the driver has no transaction open: it has begun none, or somebody has ended it in words."""
    pooled = connection.connection
    driver = pooled.dbapi_connection if hasattr(pooled, "dbapi_connection") else pooled.connection  # Before SQLAlchemy 1.4.24.
    driver = getattr(driver, "_connection", driver)  # Within SQLAlchemy's own, where the driver is an async one.
    if hasattr(driver, "is_in_transaction"):
        return not driver.is_in_transaction()
    return getattr(getattr(driver, "info", None), "transaction_status", None) == 0


# The functions of Alembic's by which it keeps its ledger. A plan has its own, and the proof compares the two.
LEDGERS = frozenset("_ensure_version_table get_current_heads _insert_version _delete_version _update_version".split())
TOOLS = ("alembic.", "sqlalchemy.", "herder_warm.")


def asker():
    """Who says it, as far as Alembic's, SQLAlchemy's and Herder's own code goes: whether it is one of Alembic's to keep its ledger, or
    Herder; and the questions of a dialect's that it belongs to, the innermost first. Who calls can tell; the words could be anybody's."""
    frame, asked = sys._getframe(1), []
    while frame is not None:
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if not module.startswith(TOOLS):
            break
        if module == "herder_warm.run" or module == "alembic.runtime.migration" and name in LEDGERS:
            return True, asked
        if module.startswith("sqlalchemy.") and isinstance(frame.f_locals.get("self"), sqlalchemy.engine.Dialect):
            asked.append((name, frame.f_locals.get("schema")))
        frame = frame.f_back
    return False, asked


def is_same_everywhere(run, question):
    """Whether all tenants give a dialect the same answer: about the server, and about their own schema's existence."""
    name, schema = question
    about_schema = name == "has_schema" and schema == run.schema or name == "get_schema_names"
    return name == "initialize" or about_schema and run.schema is not None


def note(connection, statement, parameters, context):
    """What the user's own code says to a scratch tenant: in a revision, or outside all of them."""
    run = Run.current
    is_tools_own, asked = asker()
    if is_tools_own or any(is_same_everywhere(run, question) for question in asked):
        return
    is_sent_as_it_is = not parameters and getattr(context, "no_parameters", False)
    if context is not None and context.compiled is not None and connection.dialect.paramstyle in ("format", "pyformat"):
        statement = statement if is_sent_as_it_is else statement.replace("%%", "%")
    if run.step is None:
        # What SQLAlchemy asks for env.py's sake is env.py's question. In a revision, a rendering refuses to answer.
        question = asked[-1][0] if asked else None
        run.besides.append({"statement": statement, "texts": list(texts(parameters)), "question": question})
        return
    if asked or not run.is_tenants(connection):
        return
    run.said.append(
        {
            "revision": run.step,
            "statement": statement,
            "has_values": bool(parameters),
            "autocommit": is_alone(connection),
        }
    )


def texts(parameters):
    """The texts among a statement's parameters."""
    if isinstance(parameters, str):
        yield parameters
    elif isinstance(parameters, (dict, list, tuple)):
        for each in parameters.values() if isinstance(parameters, dict) else parameters:
            yield from texts(each)


def before_statement(connection, _cursor, statement, parameters, context, _many):
    """Whoever commits in words is checked as well. A statement that would commit itself gets a transaction around it."""
    if not is_watched(connection):
        return
    words = statement[REMARKS.match(statement).end() :]
    note(connection, statement, parameters, context)
    if COMMITS.match(words):
        check(connection)
        connection.info[ENDED] = True
    elif ROLLS_BACK.match(words):
        forget(connection)
        connection.info[ENDED] = True
    elif not stands_alone(connection):
        if not SETS.match(words):
            look_before(connection)
    elif not ALONE.match(words):
        begin(connection)
        context.herder_began = True
    elif target := TARGETS.match(words):
        begin(connection)
        say(connection, "SET LOCAL herder.target = {}".format(literal(target[1])))
        commit(connection)


def begin(connection):
    """A transaction around one statement."""
    say(connection, "BEGIN")
    say(connection, Run.current.within["before"])
    connection.info[LOOKED] = True


def after_statement(connection, _cursor, _statement, _parameters, context, _many):
    if getattr(context, "herder_began", False):
        commit(connection)


def commit(connection):
    """Ends what `begin` has begun. Whatever stood alone before still does."""
    has_ended = ENDED in connection.info
    check(connection)
    say(connection, "COMMIT")
    if has_ended:
        connection.info[ENDED] = True


def say(connection, statement):
    """Says something to the server that no event tells of."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()


def answer(connection, question):
    """The one value that the server answers with to what no event tells of."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(question)
        return cursor.fetchone()[0]
    finally:
        cursor.close()
