"""What is the user's own, and what is installed beside it."""

import importlib
import os
import sys
import sysconfig

INSTALLED = tuple(
    os.path.join(sysconfig.get_paths()[name], "") for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
# What migrations run on. It is the same for all tenants, whenever it is imported.
TOOLS = frozenset(
    "alembic asyncpg greenlet mako markupsafe pg8000 psycopg psycopg2 psycopg_binary psycopg_c sqlalchemy typing_extensions".split()
)
# What many an env.py imports with its models, and what takes most of the time of that. Of these, too, it is known that they are the
# same whenever they are imported, and start nothing. An application that is installed is not: it may read what env.py has set.
LIBRARIES = frozenset(
    "annotated_doc annotated_types anyio attr attrs bcrypt certifi cffi charset_normalizer click cryptography dateutil dns dotenv"
    " email_validator fastapi h11 httpcore httpx idna itsdangerous jinja2 jose jwt orjson packaging passlib pydantic"
    " pydantic_core pydantic_settings pytz requests six sniffio sqlalchemy_utils sqlmodel starlette typing_inspection tzdata"
    " urllib3 yaml".split()
)

# What watches connections, and changes nothing that is said over them but comments.
OBSERVERS = frozenset("ddtrace newrelic opentelemetry sentry_sdk".split())

inherited = frozenset()  # What this process was forked with: nothing of the user's, and nothing to tell of.


def file_of(module):
    try:
        return str(getattr(module, "__file__", None) or "")
    except Exception:
        return ""  # One that is loaded when somebody looks at it, and cannot be.


def is_installed(file):
    parts = file.split(os.sep)
    return file.startswith(INSTALLED) or "site-packages" in parts or "dist-packages" in parts


def is_known(file):
    """Whether what a file does is known: Python's own library, `TOOLS`, `LIBRARIES` and `OBSERVERS`. Anything else that is installed
    is as good as the user's own, which an application may be as well."""
    for folder in ("site-packages", "dist-packages"):
        _, found, within = file.rpartition(os.sep + folder + os.sep)
        if found:
            return within.split(os.sep)[0].partition(".")[0] in TOOLS.union(LIBRARIES, OBSERVERS)
    return file.startswith(INSTALLED)


def modules():
    """The files of the user's modules that are there."""
    files = {file_of(module) for name, module in list(sys.modules.items()) if name not in inherited}
    return sorted(file for file in files if file.endswith(".py") and not is_installed(file))


def tools():
    """The names of the modules of `TOOLS` and `LIBRARIES` that were imported here, and of those of Python's own library."""
    known = TOOLS.union(LIBRARIES, getattr(sys, "stdlib_module_names", ()))
    new = [(name, module) for name, module in list(sys.modules.items()) if name not in inherited]
    return [name for name, module in new if name.partition(".")[0] in known and is_installed(file_of(module))]


def preload(names):
    """So that no child need import it again. What cannot be imported here may be to a child."""
    for name in names:
        if name not in sys.modules:
            try:
                importlib.import_module(name)
            except BaseException:
                pass
