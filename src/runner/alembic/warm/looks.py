"""`checkfirst`: whoever creates with it looks along the whole search_path first, and makes nothing where such a thing is.

A plan cannot choose. It is for tenants that have no such thing, and says so ahead of the CREATE: where there is one, it fails as the
server does for one in the tenant's own schema, and that tenant is left to Alembic. It may find more than SQLAlchemy would (an index of a
table's name): Alembic is right about that, too.
"""

import functools
import sys

from herder_warm.words import literal

# What the server says where there is one, and how a plan finds it.
RELATION = ("42P07", "relation", "to_regclass")
TYPE = ("42710", "type", "to_regtype")
# What SQLAlchemy asks a dialect. An index is in its table's schema, so that its CREATE fails wherever it is.
QUESTIONS = {"has_table": RELATION, "has_multi_table": RELATION, "has_sequence": RELATION, "has_type": TYPE, "has_index": None}
# By this, a proof tells what is said here from what a revision says.
TAG = "$herder_checkfirst$"


def creates(visitor):
    """Whether it is one of SQLAlchemy's that create. Those that drop need no look: of what is not there, the server says so."""
    return visitor.__name__.endswith("Generator")


def answer(script, dialect):
    """Makes a dialect say that nothing is there, and the plan make sure of it."""
    for question in QUESTIONS:
        setattr(dialect, question, functools.partial(nothing, script, dialect, question))


def nothing(script, dialect, question, _connection, names, *_more, schema=None, **_options):
    if not sys._getframe(1).f_globals.get("__name__", "").startswith("sqlalchemy."):
        script.refuse("it asks the database (`{}`)".format(question))
    if question == "has_sequence" and not hasattr(dialect, "bind_typing"):
        script.refuse("SQLAlchemy 1.4 looks for its sequence where a connection begins, and a plan has none")
    several = question == "has_multi_table"
    names = list(names) if several else [names]
    kind = QUESTIONS[question]
    # In a schema that is named, the CREATE itself fails.
    if kind is not None and schema is None:
        script.add("sql", look(names, *kind))
    return {(schema, name): False for name in names}.items() if several else False


def look(names, code, what, find):
    """A statement that fails where one of them is there."""
    each = "".join(
        "  if pg_catalog.{}({}) is not null then\n    raise exception using errcode = '{}', message = {};\n  end if;\n".format(
            find, literal('"{}"'.format(name.replace('"', '""'))), code, literal('{} "{}" already exists'.format(what, name))
        )
        for name in names
    )
    return "-- checkfirst: where one is there, Alembic makes none, and this plan does not fit\ndo {} begin\n{}end {}".format(TAG, each, TAG)
