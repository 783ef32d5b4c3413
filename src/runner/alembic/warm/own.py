"""The user's own modules: what env.py and the revisions import that is not installed. A process keeps them, and with them what
they made of the first tenant; `alembic` has a process for each."""

import os
import sys
import sysconfig

from herder_warm.errors import Failure

INSTALLED = tuple(
    os.path.join(sysconfig.get_paths()[name], "") for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def modules():
    """Those that are there, by their files."""
    found = {file_of(module): module for module in list(sys.modules.values())}
    return {file: module for file, module in found.items() if file.endswith(".py") and not is_installed(file)}


def file_of(module):
    try:
        return str(getattr(module, "__file__", None) or "")
    except Exception:
        return ""  # One that is loaded when somebody looks at it, and cannot be.


def is_installed(file):
    parts = file.split(os.sep)
    return file.startswith(INSTALLED) or "site-packages" in parts or "dist-packages" in parts


def stamp(path):
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


def spent(why):
    """Only another process can do this. It is started, and asked again."""
    return Failure("spent", "this process cannot do it: " + why)


class Memory:
    """What this process has imported so far, and what was so when it did."""

    stamps = {}  # The files of the user's own modules, as they were when they were first seen.
    environment = None  # What the first env.py made of the environment. None: none has run.
    is_virgin = True  # Nothing of the user's was imported before its first env.py.

    @classmethod
    def note_modules(cls):
        for file in modules():
            cls.stamps.setdefault(file, stamp(file))

    @classmethod
    def check_files(cls):
        """A module that was edited since goes on as it was, wherever it is imported."""
        if any(stamp(file) != then for file, then in cls.stamps.items()):
            raise spent("a module was edited")

    @classmethod
    def check_environment(cls, before):
        """Before the first revision: whatever the user's modules have read of the environment must be this tenant's."""
        changed = changes(before)
        if cls.environment is None:
            is_fit = cls.is_virgin or not changed
        else:
            is_fit = changed == cls.environment
        if not is_fit:
            raise spent("env.py sets other variables than before, and modules may have read those")

    @classmethod
    def note_run(cls, before):
        if cls.environment is None:
            cls.environment = changes(before)
        cls.is_virgin = False


def changes(before):
    now = dict(os.environ)
    return {name: now.get(name) for name in now.keys() | before.keys() if now.get(name) != before.get(name)}


def holds(words):
    """Whether a module has kept one of these words, in a variable or in what a variable holds."""
    return any(is_among(words, value, 2) for module in modules().values() for value in list(vars(module).values()))


def is_among(words, value, depth):
    try:
        if isinstance(value, str):
            return value in words
        if depth == 0 or isinstance(value, type(os)):
            return False
        inner = value if isinstance(value, dict) else getattr(value, "__dict__", None)
        return isinstance(inner, dict) and any(is_among(words, each, depth - 1) for each in list(inner.values()))
    except Exception:
        return False  # A proxy that has nothing to stand for right now.
