"""The migration in progress."""

import json

import sqlalchemy
from sqlalchemy.events import ConnectionEvents, DialectEvents, PoolEvents

from herder_warm.errors import Failure
from herder_warm.own import is_known

# What a connection is marked with that goes elsewhere than to the tenant: to another database of the product's, say.
ELSEWHERE = "herder_elsewhere"


# Where a connection is, and what env.py or its engine has set there, beside what Herder sets for each.
PLACE = """
    SELECT current_database(), current_schema(), array_to_json(current_schemas(false))::text,
           (SELECT json_object_agg(name, setting)::text FROM pg_settings
            WHERE source IN ('client', 'session') AND name NOT IN ('application_name', 'search_path', 'lock_timeout',
                  'statement_timeout', 'client_connection_check_interval', 'client_encoding', 'extra_float_digits')
              -- A transaction that says what it would be anyway.
              AND (name, setting) <> ('transaction_isolation', current_setting('default_transaction_isolation'))),
           nullif(current_user, session_user), session_user
"""


class Run:
    """What is known about the migration in progress. There is one at a time: `Run.current`."""

    current = None

    def __init__(self, request, url):
        self.application_name = request["application_name"]
        self.settings = request["settings"]
        self.target = request["target"]
        self.schema = request["schema"]
        try:
            self.url = sqlalchemy.engine.make_url(url)
        except Exception:
            # Its own words would quote the URL.
            raise Failure("config", "the tenant's URL cannot be read", "a URL is postgresql://user:password@host:5432/database") from None
        self.place = None
        self.offline = None  # The script, while a plan is rendered.
        self.started = False
        self.step = None  # The revision being applied or undone right now.
        self.steps = []  # All that were begun.
        self.heads_before = []
        self.ledger = None
        self.outer_transaction = False
        self.within = request.get("within")  # What is said before a transaction's statements and before its commit, where it is a proof's.
        self.besides = []  # What env.py says besides, where it is a proof's.
        self.said = []  # What its revisions say, where it is a proof's.
        self.halves = None  # What is committed of a revision that is not done, where anybody wants to know.
        self.reached_out = None  # The failure of that, or of what is done elsewhere than in the tenant.
        self.database_failure = None  # What the database said last, other than 25P02.
        # The connections whose search_path is known to begin with the tenant's schema, and whether it ends with it, too.
        self.at_home = {}
        self.given = {}  # Settings that the user's engine asks for when it connects.
        self.opened = []
        self.limited = set()
        self.by_engine = set()  # The connections that an engine opened, and no function of the user's.
        self.has_creator = False
        self.connections = {"tenant": 0, "other": 0}

    def is_tenant(self, arguments):
        """Whether a connection goes where Herder asked: the tell-tale of an env.py that ignores its arguments."""
        database = arguments.get("database") or arguments.get("dbname")
        host, port = arguments.get("host"), arguments.get("port")
        given_host = self.url.host or self.url.query.get("host")
        return database == self.url.database and (
            isinstance(host, (list, tuple)) or host == given_host and int(port or 5432) == (self.url.port or 5432)
        )

    def is_tenants(self, connection):
        """Whether an open connection is one to the tenant's database: whoever says nothing else is believed to go there."""
        return connection.dialect.name == "postgresql" and ELSEWHERE not in connection.info

    def watch(self, revisions):
        """Wraps Alembic's list of steps, so that a failure knows its revision."""

        def steps(heads, context):
            self.started = True
            self.heads_before = list(heads)
            self.ledger = {"table": context.version_table, "schema": context.version_table_schema}
            self.outer_transaction = bool(getattr(context, "_in_external_transaction", False))
            self.stay_home(context)
            for step in revisions(heads):
                self.step = getattr(getattr(step, "revision", None), "revision", None)
                self.steps.append(self.step)
                yield step
            self.step = None

        return steps

    def look(self, _heads, context):
        """Alembic's list of steps where there are none: only says where they would be done."""
        self.started = True
        row = context.connection.exec_driver_sql(PLACE).fetchone()
        ledger, session = ledger_schema(context), dict(json.loads(row[3] or "{}"), **session_of(context.connection))
        self.place = {"database": row[0], "schema": row[1], "path": json.loads(row[2]), "ledger": ledger, "role": row[4], "user": row[5]}
        self.place["session"] = dict(session, **self.given)
        self.place["listens"] = listens(context.connection) or ("creator" if self.has_creator else None)
        return ()

    def stay_home(self, context):
        """Whoever keeps the ledger elsewhere migrates somebody else's schema, and finds the next tenant done. Whoever is connected to
        another database migrates that."""
        connection = context.connection
        if connection is not None and context.dialect.name == "postgresql" and not self.is_tenants(connection):
            database = connection.exec_driver_sql("SELECT current_database()").scalar()
            if database != self.url.database:
                message = "env.py connected elsewhere: to database `{}`, not to the tenant's".format(database)
                raise Failure("env", message, "env.py must take its URL from `-x url=…` or `sqlalchemy.url`")
        ledger = ledger_schema(context) if self.schema is not None and context.dialect.name == "postgresql" else None
        if ledger is not None and ledger != self.schema:
            message = "env.py keeps its ledger in schema `{}`, not in the tenant's".format(ledger)
            hint = "env.py must SET search_path to the schema of `-x schema=…`, or pass version_table_schema=<the tenant's schema>"
            raise Failure("env", message, hint)


def listens(connection):
    """The event of a connection or its engine that the user's code listens to, if any: what it does there, a plan does not."""
    engine = connection.engine
    dispatches = (engine.pool.dispatch, engine.dialect.dispatch, engine.dispatch, connection.dispatch)
    names = {name for kind in (PoolEvents, DialectEvents, ConnectionEvents) for name in dir(kind) if not name.startswith("_")}
    for dispatch, name in ((dispatch, name) for name in sorted(names) for dispatch in dispatches):
        for listener in getattr(dispatch, name, ()):
            # SQLAlchemy puts some of them into functions of its own.
            inner = [cell.cell_contents for cell in getattr(listener, "__closure__", None) or () if cell.cell_contents is not None]
            for function in [listener] + inner:
                code = getattr(getattr(function, "__func__", function), "__code__", None)
                if code is not None and code.co_filename.endswith(".py") and not is_known(code.co_filename):
                    if not code.co_filename.startswith("herder_warm/"):
                        return name
    return None


def ledger_schema(context):
    """The schema of the version table, where env.py names one or one is found already."""
    if context.version_table_schema is not None:
        return context.version_table_schema
    # Where an unqualified name leads that is there, which need not be where it would be made.
    found = (
        "SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
        " WHERE pg_class.oid = to_regclass(quote_ident('{}'))"
    )
    return context.connection.exec_driver_sql(found.format(context.version_table.replace("'", "''"))).scalar()


def session_of(connection):
    """What decides how a connection reads and writes values."""
    names = ("TimeZone", "DateStyle", "extra_float_digits", "standard_conforming_strings")
    return {name: connection.exec_driver_sql("SHOW " + name).scalar() for name in names}
