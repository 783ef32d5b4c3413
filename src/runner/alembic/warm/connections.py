"""Every connection that env.py opens: labelled, limited, counted, and closed in the end."""

import logging
import os
import re
import socket

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.pool import Pool

from herder_warm.errors import database_failure
from herder_warm.run import ELSEWHERE, Run
from herder_warm.urls import adapt_for_asyncpg, adapt_for_libpq


# As this process was started with it.
PGOPTIONS = os.environ.get("PGOPTIONS")


def listen():
    """Watches all engines of this process, whoever makes them."""
    event.listen(sqlalchemy.engine.Engine, "do_connect", limit_connection)
    event.listen(sqlalchemy.engine.Engine, "handle_error", note_error)
    event.listen(Pool, "connect", note_connection)


def limit_connection(dialect, record, _args, arguments):
    """Before any connection of any engine: label it and limit it, in the startup message, so that `RESET` keeps it."""
    run = Run.current
    if run is None or dialect.name != "postgresql":
        return
    if run.is_tenant(arguments):
        run.connections["tenant"] += 1
    else:
        run.connections["other"] += 1
    if (arguments.get("database") or arguments.get("dbname")) not in (None, run.url.database):
        record.info[ELSEWHERE] = True
    run.by_engine.add(id(record))
    # Those of its URL and of its process Herder's own connections have as well.
    given = options_of(arguments.get("options") or os.environ.get("PGOPTIONS"))
    given = given - options_of(run.url.query.get("options")) - options_of(PGOPTIONS)
    run.given.update(given, **(arguments.get("server_settings") or {}))
    if dialect.driver.startswith("asyncpg"):
        adapt_for_asyncpg(arguments, run.application_name, run.settings)
    elif dialect.driver.startswith("psycopg"):
        adapt_for_libpq(arguments, run.application_name, run.settings)
    else:
        return
    run.limited.add(id(record))


def options_of(text):
    """The settings in libpq's `options`."""
    return set(re.findall(r"(?:-c\s*|--)([\w.]+)=((?:\\.|\S)*)", str(text or "")))


def note_connection(connection, record):
    """After any connection: remember it, and limit those that `limit_connection` never saw (an engine's `creator=`)."""
    run = Run.current
    module = type(connection).__module__
    if run is None or not any(name in module for name in ("psycopg", "postgresql", "pg8000")):
        return
    run.opened.append(connection)
    run.has_creator = run.has_creator or id(record) not in run.by_engine
    if id(record) in run.limited:
        return
    cursor = connection.cursor()
    for name, value in dict(run.settings, application_name=run.application_name).items():
        cursor.execute("SET {} = '{}'".format(name, value.replace("'", "''")))
    cursor.close()
    connection.commit()


def close_left_open(run):
    """Closes what env.py left open (an engine that was never disposed of), and says how many there were.

    A pooled connection would otherwise live until this process ends: after the tenant's slot was given back, so above the
    budget.
    """
    left_open = 0
    logging.disable(logging.CRITICAL)
    try:
        for connection in run.opened:
            raw = getattr(connection, "driver_connection", None) or getattr(connection, "_connection", connection)
            # A driver that cannot tell is believed to have closed it.
            if raw.is_closed() if hasattr(raw, "is_closed") else getattr(raw, "closed", True):
                continue
            left_open += 1
            # An async connection's event loop is gone, so nothing can be awaited any more: the socket itself ends it.
            transport = getattr(raw, "_transport", None)
            finish = raw.pgconn.finish if hasattr(raw, "pgconn") else raw.close
            for close in (lambda: shut_down(transport), finish):
                try:
                    outcome = close()
                    if hasattr(outcome, "close"):
                        outcome.close()  # A coroutine of a driver that could not be awaited.
                except Exception:
                    pass
    finally:
        logging.disable(logging.NOTSET)
    run.opened.clear()
    return left_open


def shut_down(transport):
    """Ends an asyncio transport's connection without its event loop."""
    if transport is None:
        return
    descriptor = transport.get_extra_info("socket").fileno()
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        copy.shutdown(socket.SHUT_RDWR)


def note_error(context):
    """Remembers what the database said last, other than that the transaction is lost: 25P02 hides what lost it."""
    run, error = Run.current, context.sqlalchemy_exception
    failure = None if run is None or error is None else database_failure([error], run)
    if failure is not None and failure.fields["sqlstate"] != "25P02":
        run.database_failure = failure
