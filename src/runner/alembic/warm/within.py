"""What a proof's live migration does besides its own schema: found before it is committed, and kept from being so.

The proof gives a statement that fails in such a transaction. What a driver's own connection does behind SQLAlchemy's
back is not seen.
"""

import re

import sqlalchemy
from sqlalchemy import event

from herder_warm.errors import Failure, database_failure, describe_error
from herder_warm.run import Run
from herder_warm.words import REMARK

# What the server does in no transaction block, or what ends one.
ALONE = re.compile(
    r"(?:create|drop)\s+(?:unique\s+)?index\s+concurrently\b|alter\s+table\b.*\bconcurrently\b|vacuum\b|reindex\b|cluster\b"
    r"|begin\b|start\b|commit\b|end\b|rollback\b|abort\b|(?:create|alter|drop)\s+(?:database|tablespace|system|subscription)\b",
    re.IGNORECASE | re.DOTALL,
)
COMMITS = re.compile(r"(?:commit|end|prepare\s+transaction)\b", re.IGNORECASE)
REMARKS = re.compile(REMARK + "*", re.DOTALL)


def listen():
    """Watches all engines of this process, whoever makes them."""
    event.listen(sqlalchemy.engine.Engine, "commit", check)
    event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", before_statement)
    event.listen(sqlalchemy.engine.Engine, "after_cursor_execute", after_statement)


def is_watched(connection):
    run = Run.current
    return run is not None and run.within is not None and connection.dialect.name == "postgresql"


def check(connection):
    """Before a commit. What fails is remembered: whoever swallows the error has not done without it."""
    if is_watched(connection):
        try:
            say(connection, Run.current.within)
        except Exception as error:
            failure = database_failure([error], Run.current) or Failure("database", describe_error(error))
            Run.current.reached_out = Run.current.reached_out or failure
            raise


# What env.py may say without changing what its revisions do: a plan has its own word for each of these, or needs none.
ASIDE = re.compile(
    r"(?:select|show|with|values|table)\b(?!.*\bset_config\b)|(?:begin|start|commit|end|rollback|abort|savepoint|release)\b"
    r"|create\s+schema\s+if\s+not\s+exists\b"
    r"|(?:set\s+(?:local\s+|session\s+)?|reset\s+|select\s+(?:pg_catalog\s*\.\s*)?set_config\s*\(\s*')"
    r"(?:search_path|application_name|\w+_timeout|timezone|time\s+zone|datestyle|client_encoding)\b",
    re.IGNORECASE | re.DOTALL,
)


def note_aside(connection, statement, words):
    """What is said to a scratch tenant outside all revisions. Alembic itself makes its ledger there."""
    run = Run.current
    if run.step is None and run.is_tenants(connection) and not ASIDE.match(words) and "version_num" not in words:
        run.besides.append(statement.strip())


def note_step(connection, statement, parameters, context):
    """What a revision says to a scratch tenant."""
    run = Run.current
    if run.step is None or not run.is_tenants(connection):
        return
    if context is not None and context.compiled is not None and connection.dialect.paramstyle in ("format", "pyformat"):
        statement = statement.replace("%%", "%")
    run.said.append(
        {
            "revision": run.step,
            "statement": statement,
            "has_values": bool(parameters),
            "autocommit": bool(getattr(connection.connection, "autocommit", False)),
        }
    )


def before_statement(connection, _cursor, statement, parameters, context, _many):
    """Whoever commits in words is checked as well. A statement that would commit itself gets a transaction around it."""
    if not is_watched(connection):
        return
    words = statement[REMARKS.match(statement).end() :]
    note_aside(connection, statement, words)
    note_step(connection, statement, parameters, context)
    if COMMITS.match(words):
        check(connection)
    elif getattr(connection.connection, "autocommit", False) and not ALONE.match(words):
        say(connection, "BEGIN")
        context.herder_began = True


def after_statement(connection, _cursor, _statement, _parameters, context, _many):
    if getattr(context, "herder_began", False):
        check(connection)
        say(connection, "COMMIT")


def say(connection, statement):
    """Says something to the server that no event tells of."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()
