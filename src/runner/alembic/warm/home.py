"""A tenant's tables belong into its schema. Where env.py works in another one, `CREATE TABLE t` goes there: all tenants share it
from then on, and with IF NOT EXISTS each of them is reported as migrated."""

import re

import sqlalchemy
from sqlalchemy import event

from herder_warm.errors import Failure
from herder_warm.run import Run
from herder_warm.words import NAME, REMARK, literal

KINDS = r"(?:table|(?:materialized{remark}+)?view|sequence)".format(remark=REMARK)
# With a name that has no schema. What is temporary has one of its own.
MAKES = re.compile(
    r"{remark}*create{remark}+(?:or{remark}+replace{remark}+)?(?:unlogged{remark}+)?{kinds}{remark}+(?:if{remark}+not{remark}+exists{remark}+)?"
    r"(?!(?:if|only)\b)({name})(?![\w$\"]|{remark}*\.)".format(kinds=KINDS, name=NAME, remark=REMARK),
    re.IGNORECASE | re.DOTALL,
)
CHANGES = re.compile(
    r"{remark}*(?:alter|drop){remark}+{kinds}{remark}+(?:if{remark}+exists{remark}+)?(?:only{remark}+)?"
    r"(?!(?:if|only)\b)({name})(?![\w$\"]|{remark}*\.)".format(kinds=KINDS, name=NAME, remark=REMARK),
    re.IGNORECASE | re.DOTALL,
)
# What leaves the search_path as it is.
HARMLESS = re.compile(
    r"{remark}*(?:create|alter|drop|insert|update|delete|truncate|comment|grant|revoke)\b(?!.*(?:search_path|set_config))".format(remark=REMARK),
    re.IGNORECASE | re.DOTALL,
)
# What such a name means right now: env.py and the revisions may set the search_path at any time.
HOME = "SELECT current_schema(), coalesce(current_schema() = {schema}, true)"
FOUND = (
    " OR coalesce((SELECT relnamespace IN (to_regnamespace(quote_ident({schema})), pg_my_temp_schema())"
    " FROM pg_class WHERE oid = to_regclass({name})), true)"
)


def listen():
    """Watches all engines of this process, whoever makes them."""
    event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", stay_home)
    event.listen(sqlalchemy.engine.Engine, "commit", stand_by_it)
    for name in ("engine_connect", "commit", "rollback", "rollback_savepoint"):
        event.listen(sqlalchemy.engine.Engine, name, leave)


def leave(_connection, *_):
    """What was set for a transaction ends with it, and what was known of a connection with that."""
    if Run.current is not None:
        Run.current.at_home.clear()


def stand_by_it(_connection):
    """What was refused stays so: whoever swallows it has not done without it, and the ledger must not say so."""
    if Run.current is not None and Run.current.reached_out is not None:
        raise Run.current.reached_out


def stay_home(connection, _cursor, statement, _parameters, _context, _many):
    """Refuses what would be made, changed or dropped in another schema because nobody said which."""
    run = Run.current
    if run is None or run.schema is None or not run.is_tenants(connection):
        return
    stand_by_it(connection)
    is_harmless = HARMLESS.match(statement)
    if not is_harmless:
        run.at_home.clear()
    makes = MAKES.match(statement)
    found = makes or CHANGES.match(statement)
    if found is None or id(connection.connection) in run.at_home:
        return
    asked = HOME if makes else HOME + FOUND
    cursor = connection.connection.cursor()
    try:
        cursor.execute(asked.format(schema=literal(run.schema), name=literal(found.group(1))))
        elsewhere, is_home = cursor.fetchone()
    finally:
        cursor.close()
    if elsewhere == run.schema and is_harmless:
        run.at_home.add(id(connection.connection))
    if not is_home:
        message = "env.py works in schema `{}`, not in the tenant's: {} is meant there".format(elsewhere, found.group(1))
        hint = "env.py must SET search_path to the schema of `-x schema=…` (in quotes), or pass it as version_table_schema and by schema_translate_map"
        run.reached_out = Failure("env", message, hint, statement=statement[:500], revision=run.step)
        raise run.reached_out
