"""Where a plan and a live migration differ by the driver: in the values that it sends, and in the connections that it opens."""

import contextlib
import decimal
import enum
import functools
import re
import sys

import sqlalchemy

# What may be the same as a literal and as a driver's parameter, in any expression,
PLAIN = (bool, int, str, decimal.Decimal, enum.Enum, type(None))
# and is where SQLAlchemy's type for it is the value's own: as a literal of an Integer, 1999.5 is cut to 1999, and 'x' of a Numeric is a name.
OWN = (
    (sqlalchemy.Boolean, (bool,)),
    (sqlalchemy.Integer, (int,)),
    ((sqlalchemy.Numeric, sqlalchemy.Float), (int, decimal.Decimal)),
    (sqlalchemy.String, (str,)),
)

# What an INSERT of rows may call: it means the same for a literal.
CALLS = ("now", "current_timestamp", "current_date", "cast")
ROWS = re.compile(
    r"(?is)\s*insert\b(?!.*\b(?:select|table|on\s+conflict)\b)"
    r"(?!.*\bvalues\b.*(?:\b(?!(?:values|{})\s*\()[\w$]+|\")\s*\()".format("|".join(CALLS))
)


def drivers_business(construct, dialect):
    """A value that means something else as a literal than as a driver's parameter: `x * 0.5` rounds
    differently, an interval of 30 days becomes one of 720 hours. Rows that are only inserted are seen by the proof."""
    if isinstance(construct, sqlalchemy.schema.DDLElement):
        return None
    compiled = construct.compile(dialect=dialect)
    for name, bind in compiled.binds.items():
        if bind.required and bind.value is None and bind.callable is None:
            return "no value for `:{}`".format(name)
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
            kind = bind.type._unwrapped_dialect_impl(dialect)
            if not isinstance(value, PLAIN) or not isinstance(sent, PLAIN) or isinstance(kind, sqlalchemy.JSON):
                name = type(value).__name__ if value is not None else "JSON"
                return "a value ({}) that each driver sends in its own way".format(name)
            if not is_own(value, sent, kind, bind.type):
                name, of = type(value).__name__, type(bind.type).__name__
                return "a value ({}) that is written in another way than it is sent as {}".format(name, of)
    return None


def is_own(value, sent, kind, declared):
    """Whether a value is the same as a literal of its type as where a driver is given it."""
    if value is None or sent is None:
        return value is sent
    if isinstance(declared, sqlalchemy.types.TypeDecorator):
        if type(declared).process_literal_param is not sqlalchemy.types.TypeDecorator.process_literal_param:
            return False
    own = next((types for of, types in OWN if isinstance(kind, of)), ())
    return type(sent) in own and (not isinstance(sent, decimal.Decimal) or sent.is_finite())


def is_rows(construct):
    """Whether it is an INSERT of rows, and of nothing that a tenant's own rows have a part in."""
    if getattr(construct, "is_insert", False):
        reads = any(may_read(each) for each in sqlalchemy.sql.visitors.iterate(construct))
        # Rows that were given as a list are not visited.
        for rows in getattr(construct, "_multi_values", ()):
            values = (value for row in rows for value in (row.values() if isinstance(row, dict) else row))
            reads = reads or any(isinstance(value, sqlalchemy.sql.ClauseElement) for value in values)
        return not reads and construct.select is None and getattr(construct, "_post_values_clause", None) is None
    text = getattr(construct, "text", "")
    return isinstance(text, str) and ROWS.match(text) is not None


def may_read(element):
    """Whether it may have to do with what a tenant has: a function of the product's own may be called otherwise by a literal."""
    if element.__visit_name__ == "function":
        return element.name.lower() not in CALLS
    return element.__visit_name__ in ("select", "cte", "textclause") or getattr(element, "is_literal", False)


@contextlib.contextmanager
def literals(construct, dialect):
    """While it is rendered, each value is what it is where it is sent, whatever stands around it."""
    plain = dialect.statement_compiler
    casts = getattr(getattr(dialect, "bind_typing", None), "name", None) == "RENDER_CASTS"
    if not isinstance(construct, sqlalchemy.schema.DDLElement):
        dialect.statement_compiler = literal_compiler(plain, casts and not is_rows(construct))
    try:
        yield
    finally:
        dialect.statement_compiler = plain


@functools.lru_cache(maxsize=None)
def literal_compiler(compiler, casts):
    class Literal(compiler):
        def render_literal_value(self, value, type_):
            text = super().render_literal_value(value, type_)
            if text.startswith("-"):  # Behind another minus it would begin a comment.
                text = "({})".format(text)
            return self.with_type(text, value, type_) if casts and value is not None else text

        def with_type(self, text, value, type_):
            """With the type that the driver sends, if it does: without one, a literal takes that of what it is compared with, and
            `citext = 'A'` finds more than `citext = 'A'::VARCHAR`."""
            sent = type_._unwrapped_dialect_impl(self.dialect)
            if getattr(sent, "render_bind_cast", False):
                return self.render_bind_cast(type_, sent, text)
            # All drivers but psycopg2 send a decimal as one, also where it has no decimals.
            is_sent_as_one = isinstance(value, decimal.Decimal) and not self.dialect.driver.startswith("psycopg2")
            return text + "::NUMERIC" if is_sent_as_one else text

    return Literal


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
