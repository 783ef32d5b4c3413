"""A tenant's tables belong into its schema. Where env.py works in another one, `CREATE TABLE t` goes there: all tenants share it
from then on, and with IF NOT EXISTS each of them is reported as migrated. And where a tenant lacks a table, `DROP TABLE t` means that of
another schema in the search_path."""

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
# The next one of `DROP TABLE a, b`.
ANOTHER = re.compile(r"{remark}*,{remark}*({name})(?![\w$\"]|{remark}*\.)".format(name=NAME, remark=REMARK))
# What leaves the search_path as it is.
HARMLESS = re.compile(
    r"{remark}*(?:create|alter|drop|insert|update|delete|truncate|comment|grant|revoke)\b(?!.*(?:search_path|set_config))".format(remark=REMARK),
    re.IGNORECASE | re.DOTALL,
)
# What such a name means right now: env.py and the revisions may set the search_path at any time.
ASKED = (
    "SELECT current_schema(), current_schemas(false) = ARRAY[{schema}]::name[],"
    " (SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass({name})"
    " AND relnamespace NOT IN (to_regnamespace(quote_ident({schema})), pg_my_temp_schema()))"
)
WORKS_THERE = (
    "env.py works in schema `{schema}`, not in the tenant's: {name} is meant there",
    "env.py must SET search_path to the schema of `-x schema=…` (in quotes), or pass it as version_table_schema and by"
    " schema_translate_map; and a revision must leave search_path as it is",
)
FOUND_THERE = (
    "the tenant has no {name}: by the search_path, that name means the one in schema `{schema}`, which belongs to all",
    "see why it is missing in the tenant's schema; a revision that means another schema's must say so: {schema}.{name}",
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
    while found is not None:
        be_home(run, connection, statement, found.group(1), makes is not None, is_harmless)
        found = ANOTHER.match(statement, found.end())


def be_home(run, connection, statement, name, makes, is_harmless):
    """Makes sure that a name means the tenant's."""
    # What is made goes into the first schema of the path. What is changed may be found in any of them.
    is_alone = run.at_home.get(id(connection.connection))
    if is_alone or (makes and is_alone is not None):
        return
    cursor = connection.connection.cursor()
    try:
        cursor.execute(ASKED.format(schema=literal(run.schema), name=literal(name)))
        works_in, is_alone, elsewhere = cursor.fetchone()
    finally:
        cursor.close()
    # No schema at all: then the server refuses it.
    at_home = works_in in (None, run.schema)
    if works_in == run.schema and is_harmless:
        run.at_home[id(connection.connection)] = is_alone
    if at_home if makes else elsewhere is None:
        return
    texts, schema = (FOUND_THERE, elsewhere) if at_home else (WORKS_THERE, works_in)
    message, hint = (text.format(name=name, schema=schema) for text in texts)
    run.reached_out = Failure("env", message, hint, statement=statement[:500], revision=run.step)
    raise run.reached_out
