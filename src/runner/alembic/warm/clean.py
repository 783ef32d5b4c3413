"""How a process was before its first tenant: what the user's code may have changed shows, and what Alembic and `fileConfig` change is
put back."""

import logging
import os
import sys
import threading

import alembic.context
import alembic.op

from herder_warm import own


class Beginning:
    """To be made once everything of ours is up."""

    def __init__(self):
        self.environ = dict(os.environ)
        self.path = list(sys.path)
        self.streams = streams()
        self.threads = threading.active_count()
        self.loggers = {logger: state(logger) for logger in loggers()}

    def is_left(self):
        """Whether this is another process now than a fresh one would be."""
        try:
            return (
                dict(os.environ) != self.environ
                or streams() != self.streams
                or threading.active_count() != self.threads
                # A revision failed, and env.py went on as if it had not.
                or any(getattr(proxied, "_proxy", None) is not None for proxied in (alembic.op, alembic.context))
                or bool(own.modules())
                or any(not own.is_installed(code.co_filename) for code in analyzed_lambdas())
            )
        except Exception:
            return True  # A stream is gone, say.

    def restore(self):
        sys.path[:] = self.path  # Alembic puts the project in front, each time.
        new = [logger for logger in loggers() if logger not in self.loggers]
        for logger in new:
            set_state(logger, (logging.NOTSET, True, False, [], []))
        for logger, was in self.loggers.items():
            set_state(logger, was)
        parents = {logger.parent for logger in loggers()}
        for logger in new:
            # `fileConfig` disables those that are there already.
            if logger not in parents:
                del logging.root.manager.loggerDict[logger.name]


def streams():
    """Where the user's code reads and writes."""
    files = [os.fstat(number) for number in range(3)]
    return [(file.st_dev, file.st_ino) for file in files], [(stream, getattr(stream, "closed", None)) for stream in (sys.stdout, sys.stderr)]


def loggers():
    known = list(logging.root.manager.loggerDict.values())
    return [logging.root] + [logger for logger in known if isinstance(logger, logging.Logger)]


def state(logger):
    return logger.level, logger.propagate, logger.disabled, list(logger.handlers), list(logger.filters)


def set_state(logger, was):
    for handler in logger.handlers:
        if handler not in was[3]:
            handler.close()
    logger.setLevel(was[0])
    logger.propagate, logger.disabled, logger.handlers, logger.filters = was[1], was[2], list(was[3]), list(was[4])


def analyzed_lambdas():
    """The functions that SQLAlchemy has made statements of. It keeps those, with what the functions found around them."""
    lambdas = sys.modules.get("sqlalchemy.sql.lambdas")
    return list(lambdas.AnalyzedCode._fns) if lambdas else ()
