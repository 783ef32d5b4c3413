"""What a session begins with where env.py's driver opens it: the server's, the database's and the role's own settings."""

import sqlalchemy

from herder_warm.connections import close_left_open
from herder_warm.errors import explain
from herder_warm.project import Project
from herder_warm.run import Run, session_of
from herder_warm.urls import sqlalchemy_url


def session(request):
    """Asks a connection that env.py has no part in."""
    project = Project.open(request["ini"], request["section"])
    url = sqlalchemy_url(request["url"], request["scheme"] or project.url_scheme() or "postgresql")
    run = Run.current = Run(request, url)
    try:
        return ask_by_any(sqlalchemy.engine.make_url(url), request["defaults"])
    except BaseException as error:
        raise explain(error, project, run) from None
    finally:
        Run.current = None
        close_left_open(run)


def ask_by_any(url, defaults):
    """By the project's driver, or by another where env.py brings its own: the server says the same to all of them."""
    for driver in (url.drivername, "postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2"):
        try:
            return ask(url.set(drivername=driver), defaults)
        except (ImportError, sqlalchemy.exc.NoSuchModuleError):
            pass
    raise LookupError("no driver")


def ask(url, defaults):
    def begun(connection):
        return {"settings": session_of(connection), "defaults": connection.exec_driver_sql(defaults).scalar()}

    if not url.get_dialect().is_async:
        with sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool).connect() as connection:
            return begun(connection)
    import asyncio

    from sqlalchemy.ext.asyncio import create_async_engine

    async def ask_async():
        engine = create_async_engine(url, poolclass=sqlalchemy.pool.NullPool)
        async with engine.connect() as connection:
            return await connection.run_sync(begun)

    return asyncio.run(ask_async())
