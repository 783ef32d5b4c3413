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

inherited = frozenset()  # What this process was forked with: nothing of the user's, and nothing to tell of.


def file_of(module):
    try:
        return str(getattr(module, "__file__", None) or "")
    except Exception:
        return ""  # One that is loaded when somebody looks at it, and cannot be.


def is_installed(file):
    parts = file.split(os.sep)
    return file.startswith(INSTALLED) or "site-packages" in parts or "dist-packages" in parts


def modules():
    """The files of the user's modules that are there."""
    files = {file_of(module) for name, module in list(sys.modules.items()) if name not in inherited}
    return sorted(file for file in files if file.endswith(".py") and not is_installed(file))


def tools():
    """The names of the modules of `TOOLS` that were imported here, and of those of Python's own library."""
    known = TOOLS.union(getattr(sys, "stdlib_module_names", ()))
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
