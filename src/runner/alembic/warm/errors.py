"""What went wrong, in one line, classified, and without anybody's data."""

import configparser
import re
import traceback

from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

# How much of a statement or message travels back: enough to recognise it, too little to flood a table.
LONGEST_TEXT = 2048


# What Alembic says where its word in the ledger changes no row, or several.
LEDGER_MISSED = "expected to match one row"


class Failure(Exception):
    """A failure that is already classified. `kind` is one of `ToolErrorKind` in `process.rs`."""

    def __init__(self, kind, message, hint=None, sqlstate=None, statement=None, revision=None):
        super().__init__(message)
        self.fields = {
            "kind": kind,
            "message": message,
            "hint": hint,
            "sqlstate": sqlstate,
            "statement": statement,
            "revision": revision,
        }


def explain(error, project, run):
    """Classifies whatever came out of env.py."""
    if isinstance(error, Failure):
        return error
    chain = list(causes(error))
    found = database_failure(chain, run)
    if found is not None:
        return found
    phase = "migration" if run.step is not None else "env"
    if (isinstance(error, CommandError) and error.__cause__ is not None) or is_about_target(error):
        return Failure("target", one_line(error), command_hint(one_line(error), run.target), revision=run.step)
    if phase == "env" and any(isinstance(each, OSError) and passes_driver(each) for each in chain):
        return Failure("connect", describe_error(error))
    text = describe_error(error)
    message = "{} ({})".format(text, project.place(error))
    statement = getattr(error, "statement", None)
    return Failure(phase, message, env_hint(error, text), statement=cut(statement), revision=run.step)


def causes(error):
    """The exception and what it came from, the last one raised first."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        inner = getattr(error, "exceptions", None)
        if error.__cause__ is None and inner:
            error = inner[0]  # An exception group of asyncio's.
        else:
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def database_failure(chain, run):
    """The failure that the database itself reported, if there is one in the chain."""
    candidates = [error for error in chain if isinstance(error, DBAPIError) or sqlstate_of(error)]
    if not candidates:
        return None
    # 25P02 only says that an earlier statement failed: that one stands further down, or was noted when it happened.
    error = next((each for each in candidates if sqlstate_of(each) != "25P02"), None)
    if error is None and run.database_failure is not None:
        return run.database_failure
    error = error or candidates[-1]
    # Only what it was made from, not what the user's code was busy handling.
    below = [error]
    while below[-1].__cause__ is not None and below[-1].__cause__ not in below:
        below.append(below[-1].__cause__)
    statement = next((each.statement for each in below if getattr(each, "statement", None)), None)
    message = next(filter(None, map(primary_message, reversed(below))), None) or describe_error(error)
    sqlstate = next(filter(None, map(sqlstate_of, reversed(below))), None) or sqlstate_of_refusal(message)
    # asyncpg's own state machine stumbles where a connection breaks in the middle of an operation.
    stumbled = message.startswith("cannot switch to state")
    lost = sqlstate is None and (stumbled or isinstance(error, (OperationalError, InterfaceError)))
    kind = "connect" if lost else "database"
    hint = database_hint(message) or next(filter(None, map(server_hint, reversed(below))), None)
    return Failure(kind, message, hint, sqlstate, cut(statement), run.step)


def sqlstate_of(error):
    """The SQLSTATE that an exception carries itself: asyncpg's and psycopg's `sqlstate`, psycopg2's `pgcode`, pg8000's field `C`."""
    for holder in (error, getattr(error, "orig", None)):
        for value in (getattr(holder, "sqlstate", None), getattr(holder, "pgcode", None), fields_of(holder).get("C")):
            if isinstance(value, str) and len(value) == 5:
                return value
    return None


def fields_of(error):
    """The server's answer by the letters of its protocol, which is what pg8000 raises."""
    fields = next(iter(getattr(error, "args", ())), None)
    return fields if isinstance(fields, dict) else {}


def primary_message(error):
    """The server's primary message, without DETAIL (it quotes the rows' values) and without SQLAlchemy's additions."""
    if isinstance(error, DBAPIError):
        error = error.orig
    message = getattr(getattr(error, "diag", None), "message_primary", None)
    if message:
        return one_line(message)
    module = type(error).__module__
    if module.startswith("pg8000"):
        return one_line(fields_of(error)["M"]) if "M" in fields_of(error) else None
    if module.startswith("asyncpg"):
        return one_line(error.args[0]) if error.args else None
    if module.startswith("psycopg"):
        # A failed connection has no diagnosis, only libpq's text: one line per address that it tried.
        lines = [line for line in str(error).splitlines() if line.strip()]
        return one_line(next((line for line in lines if "FATAL" in line), lines[0])) if lines else None
    return None


def server_hint(error):
    """What the server says to do about it. Drivers keep that apart, as they do the message."""
    orig = getattr(error, "orig", None) or error
    said = getattr(getattr(orig, "diag", None), "message_hint", None) or fields_of(orig).get("H")
    if type(orig).__module__.startswith("asyncpg"):
        said = getattr(orig, "hint", None)
    return one_line(said).rstrip(".") if isinstance(said, str) else None


# libpq hands a refused connection over as text only. Clients and servers that speak another language stay `connect`.
REFUSALS = (
    ("password authentication failed", "28P01"),
    ("no pg_hba.conf entry", "28000"),
    ("role \".*\" does not exist", "28000"),
    ("role \".*\" is not permitted to log in", "28000"),
    ("database \".*\" does not exist", "3D000"),
    ("permission denied for database", "42501"),
    ("too many (clients|connections)|connection slots are reserved", "53300"),
    ("the database system is (starting up|shutting down|in recovery|not accepting)", "57P03"),
    ("terminating connection due to administrator command", "57P01"),
)


def sqlstate_of_refusal(message):
    return next((sqlstate for pattern, sqlstate in REFUSALS if re.search(pattern, message)), None)


def passes_driver(error):
    """Whether an error came out of a database driver, rather than from a file or service that env.py reads."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").startswith(("asyncpg", "psycopg", "pg8000")) for frame, _ in frames)


def is_about_target(error):
    words = ("revision", "head", "target", "branch", LEDGER_MISSED)
    return isinstance(error, (CommandError, RevisionError)) and any(word in str(error).lower() for word in words)


def command_hint(message, target):
    if "Multiple head" in message:
        return "`alembic merge heads` joins them; or name one revision as the target"
    match = re.search(r"locate revision identified by '([^']*)'", message)
    if match and match.group(1) != target:
        return "the tenant stands at a revision that this project does not have: deploy the version that has it"
    if match:
        return "`alembic history` lists the revisions of this project"
    missed = re.search(LEDGER_MISSED + r".*; (\d+) found", message)
    if missed and missed.group(1) == "0":
        return "the ledger was changed by somebody else during the migration"
    if missed:
        return "the ledger has the same row more than once: delete all of them but one"
    if "not up to date" in message:
        return "the tenant's ledger is behind what the command needs"
    return None


def config_hint(error):
    text = str(error)
    if "script_location" in text or "section" in text and "section headers" not in text:
        return "the ini needs a section [alembic] that has a script_location"
    if isinstance(error, configparser.InterpolationError):
        return "a `%` in an ini is written `%%`"
    return None


def database_hint(message):
    if "unsupported startup parameter" in message:
        return "PgBouncer refuses session limits: connect past it, or set ignore_startup_parameters"
    return None


def env_hint(error, text):
    if "invalid interpolation syntax" in text:
        return (
            "an ini writes `%` as `%%`: in env.py, config.set_main_option(\"sqlalchemy.url\","
            " url.replace(\"%\", \"%%\"))"
        )
    if isinstance(error, ImportError) and getattr(error, "name", None) in ("asyncpg", "psycopg", "psycopg2"):
        return "pip install {}, or set [runner] url_scheme to a driver that is there".format(error.name)
    if "MissingGreenlet" in text:
        return "env.py is synchronous, the URL's driver is not: set [runner] url_scheme, as in \"postgresql+psycopg\""
    if "requires an async driver" in text:
        return "env.py is asynchronous, the URL's driver is not: set [runner] url_scheme = \"postgresql+asyncpg\""
    if isinstance(error, ModuleNotFoundError):
        return (
            "install it where Alembic is; or, if it is the project's own, `prepend_sys_path = .` in the ini puts its folder on"
            " Python's path, as the alembic command does"
        )
    return None


def describe_error(error):
    """`Type: message` in one line, without SQL parameters."""
    if isinstance(error, SystemExit):
        return "sys.exit({})".format("" if error.code is None else one_line(error.code))
    if isinstance(error, SyntaxError):
        return "{}: {}".format(type(error).__name__, one_line(error.msg))
    if isinstance(error, SQLAlchemyError) and error.args:
        # `str()` would add the parameters and a link.
        return "{}: {}".format(type(error).__name__, one_line(error.args[0]))
    text = one_line(error)
    return "{}: {}".format(type(error).__name__, text) if text else type(error).__name__


def one_line(value):
    try:
        return cut(" ".join(str(value).split()))
    except Exception:
        return type(value).__name__


def cut(text):
    if text is None or len(text) <= LONGEST_TEXT:
        return text
    return text[:LONGEST_TEXT] + " …"
