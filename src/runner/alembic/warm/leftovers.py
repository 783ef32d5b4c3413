"""What a broken-off CREATE INDEX CONCURRENTLY leaves behind: an index that serves no query, and that the next try would stumble
over, or, with IF NOT EXISTS, take for a good one. A plan looks in the catalog before it builds one; so does this."""

import re

import sqlalchemy
from sqlalchemy import event

from herder_warm.run import Run
from herder_warm.words import NAME, REMARK, literal

BUILDS = re.compile(
    r"{remark}*create{remark}+(?:unique{remark}+)?index{remark}+concurrently{remark}+(?:if{remark}+not{remark}+exists{remark}+)?"
    r"({name}){remark}+on{remark}+(?:only{remark}+)?({name}(?:{remark}*\.{remark}*{name})?)".format(name=NAME, remark=REMARK),
    re.IGNORECASE | re.DOTALL,
)
# Not one that somebody builds right now.
LEFTOVER = """
    SELECT format('%I.%I', nspname, relname) FROM pg_index
    JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relname = {name} AND indrelid = to_regclass({table}) AND NOT indisvalid
    AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index WHERE index_relid = indexrelid)
"""


def listen():
    """Watches all engines of this process, whoever makes them."""
    event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", clear_the_way)


def clear_the_way(connection, _cursor, statement, _parameters, _context, _many):
    """Drops what is left of the index that is about to be built."""
    builds = BUILDS.match(statement)
    if builds is None or Run.current is None or not Run.current.is_tenants(connection):
        return
    name, table = builds.groups()
    name = name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
    cursor = connection.connection.cursor()
    try:
        cursor.execute(LEFTOVER.format(name=literal(name), table=literal(table)))
        for (leftover,) in cursor.fetchall():
            cursor.execute("DROP INDEX CONCURRENTLY " + leftover)
    finally:
        cursor.close()
