"""Where a plan and a live migration differ by the driver: in the values that it sends, and in the connections that it opens."""

import contextlib
import decimal
import enum
import functools
import re
import sys

import sqlalchemy

# What is the same as a literal and as a driver's parameter, in any expression.
PLAIN = (bool, int, str, decimal.Decimal, enum.Enum, type(None))


def drivers_business(construct, dialect):
    """A value that means something else as a literal than as a driver's parameter: `x * 0.5` rounds
    differently, an interval of 30 days becomes one of 720 hours. Rows that are only inserted are seen by the proof."""
    if isinstance(construct, sqlalchemy.schema.DDLElement):
        return None
    compiled = construct.compile(dialect=dialect)
    # A column's own default or `onupdate`: it is computed when the statement is sent.
    if getattr(compiled, "insert_prefetch", None) or getattr(compiled, "update_prefetch", None):
        return "a value that a column's own default computes"
    if is_rows(construct):
        return None
    if compiled.binds and dialect.driver == "asyncpg" and not hasattr(dialect, "bind_typing"):
        return "a value that asyncpg sends with a type, under SQLAlchemy 1.4"
    for bind in compiled.binds.values():
        value = bind.effective_value
        process = bind.type._cached_bind_processor(dialect)
        values = value if bind.expanding and isinstance(value, (list, tuple)) else [value]
        for value in values:
            sent = process(value) if process is not None else value
            if not isinstance(value, PLAIN) or not isinstance(sent, PLAIN) or isinstance(bind.type, sqlalchemy.JSON):
                kind = type(value).__name__ if value is not None else "JSON"
                return "a value ({}) that each driver sends in its own way".format(kind)
    return None


def is_rows(construct):
    """Whether it is an INSERT of rows, and of nothing that a tenant's own rows have a part in."""
    if getattr(construct, "is_insert", False):
        reads = any(each.__visit_name__ in ("select", "cte") for each in sqlalchemy.sql.visitors.iterate(construct))
        # Rows that were given as a list are not visited.
        for rows in getattr(construct, "_multi_values", ()):
            values = (value for row in rows for value in (row.values() if isinstance(row, dict) else row))
            reads = reads or any(isinstance(value, sqlalchemy.sql.ClauseElement) for value in values)
        return not reads and construct.select is None and getattr(construct, "_post_values_clause", None) is None
    text = getattr(construct, "text", "")
    return isinstance(text, str) and re.match(r"(?is)\s*insert\b(?!.*\b(select|on\s+conflict)\b)", text) is not None


@contextlib.contextmanager
def with_casts(construct, dialect):
    """While it is rendered, values have the type that the driver sends with them, if it does: without one, a literal takes that of
    what it is compared with, and `citext = 'A'` finds more than `citext = 'A'::VARCHAR`."""
    plain = dialect.statement_compiler
    casts = getattr(getattr(dialect, "bind_typing", None), "name", None) == "RENDER_CASTS"
    if casts and not isinstance(construct, sqlalchemy.schema.DDLElement) and not is_rows(construct):
        dialect.statement_compiler = casting(plain)
    try:
        yield
    finally:
        dialect.statement_compiler = plain


@functools.lru_cache(maxsize=None)
def casting(compiler):
    class Casting(compiler):
        def render_literal_value(self, value, type_):
            text = super().render_literal_value(value, type_)
            sent = type_._unwrapped_dialect_impl(self.dialect)
            if value is not None and getattr(sent, "render_bind_cast", False):
                return self.render_bind_cast(type_, sent, text)
            return text

    return Casting


def guard_drivers(refuse):
    """libpq's sockets are seen by nobody: whoever connects by its drivers' own functions is refused there. Again before each
    revision: one of them may have been loaded since."""
    psycopg2, psycopg = sys.modules.get("psycopg2"), sys.modules.get("psycopg")
    for owner, name in ((psycopg2, "_connect"), (psycopg, "connect")):
        connect = getattr(owner, name, None)
        if connect is not None and not hasattr(connect, "guarded"):
            setattr(owner, name, guarded(connect, refuse))
    for kind in (getattr(psycopg, "Connection", None), getattr(psycopg, "AsyncConnection", None)):
        connect = vars(kind).get("connect") if kind is not None else None
        if connect is not None and not hasattr(connect.__func__, "guarded"):
            kind.connect = classmethod(guarded(connect.__func__, refuse))


def guarded(connect, refuse):
    @functools.wraps(connect)
    def refusing(*args, **kwargs):
        refuse()
        return connect(*args, **kwargs)

    refusing.guarded = True
    return refusing
