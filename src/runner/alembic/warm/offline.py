"""A plan's SQL: Alembic's own offline mode, with nothing of a tenant in it, and nothing that only looks like SQL.

Offline mode is easily fooled: a revision that asks whether it is offline, swallows the error of a query, or prints its
own text, gives a script that looks whole and is not. So whatever would make a script differ from the real thing is
refused while it is rendered, by `Refused`, which no `except Exception` swallows.
"""

import contextlib
import functools
import hashlib
import os
import sys

import sqlalchemy
from alembic.runtime.environment import EnvironmentContext
from sqlalchemy import inspection
from sqlalchemy.engine.mock import MockConnection

from herder_warm import reach
from herder_warm.codes import text_of
from herder_warm.drivers import drivers_business, guard_drivers, literals
from herder_warm.errors import Failure, explain
from herder_warm.looks import answer, creates
from herder_warm.migrate import prepare
from herder_warm.project import Project
from herder_warm.run import Run
from herder_warm.tries import caught
from herder_warm.urls import sqlalchemy_url

ASKS = "it asks whether it runs offline"
OWN_CODE = ("alembic.", "sqlalchemy.", "herder_warm.")


class Refused(BaseException):
    """This cannot be rendered. Not an `Exception`: nobody's code is to carry on after it."""


def render(request):
    """What Alembic would say to a tenant at `heads`, as a list of events; or why nobody can tell beforehand."""
    listen()
    project = Project.open(request["ini"], request["section"])
    scheme = request["scheme"] or project.url_scheme() or "postgresql"
    url = sqlalchemy_url(request["url"], scheme)
    run = Run.current = Run(request, url)
    script = run.offline = Script(run)
    try:
        config = prepare(project, request, url, "{}:{}".format(",".join(request["heads"]), request["target"]))
        steps = script.watch(project.script, request["direction"], request["target"])
        environment = EnvironmentContext(
            config,
            project.script,
            fn=steps,
            as_sql=True,
            starting_rev=request["heads"] or None,
            destination_rev=request["target"],
            tag=None,
        )
        script.attend(environment)
        with environment:
            project.script.run_env()
        if not run.started:
            script.refuse("env.py runs no migration in offline mode")
    except BaseException as error:
        return {"refused": script.refusal or refusal_of(error, project, run)}
    finally:
        Run.current = None
    if script.refusal is not None:  # Somebody caught it nevertheless.
        return {"refused": script.refusal}
    return {"events": script.events, "ledger": run.ledger, "env": digest(project) if request["env"] else None}


def digest(project):
    """What the revision files do not cover: env.py, the configuration, and the code that they lead to."""
    toml = os.path.join(project.folder, "pyproject.toml")
    sha = hashlib.sha256()
    for path in [project.ini, toml] + reach.files(os.path.join(project.script.dir, "env.py")):
        sha.update((text_of(path) or b"") + b"\0")
    return sha.hexdigest()


def refusal_of(error, project, run):
    """Why the user's code could not be rendered. What would fail for a tenant as well is an error."""
    failure = explain(error, project, run)
    if failure.fields["kind"] in ("config", "script", "target"):
        raise failure
    return {"message": failure.fields["message"], "revision": run.step}


class Script:
    """The events of one rendering, in order."""

    def __init__(self, run):
        self.run = run
        self.events = []
        self.refusal = None
        self.caught = None  # Where a statement's failure would be.

    def refuse(self, message):
        # The first reason counts: all others come from it.
        self.refusal = self.refusal or {"message": message, "revision": self.run.step}
        raise Refused(message)

    def add(self, kind, content=None):
        self.events.append({"is": kind} if content is None else {"is": kind, "of": content})

    def write(self, text):
        """Alembic's output buffer. Its statements come by `execute`; here come its remarks, and everybody else's."""
        text = text.strip()
        if text.startswith("-- Running "):
            self.add("remark", text)
        elif not all(line.strip().startswith("--") or not line.strip() for line in text.splitlines()):
            self.refuse("the script was written to by hand: a live migration would not do that")

    def flush(self):
        pass

    def watch(self, directory, direction, target):
        """Alembic's list of steps, with an event for each."""
        revisions = directory._upgrade_revs if direction == "upgrade" else directory._downgrade_revs
        run = self.run

        def steps(heads, context):
            if run.started:
                self.refuse("env.py migrates more than once")
            run.started = True
            run.ledger = {"table": context.version_table, "schema": context.version_table_schema}
            for step in revisions(target, heads):
                guard_drivers(refuse_connection)
                run.step = getattr(getattr(step, "revision", None), "revision", None)
                self.add("step", run.step)
                yield step
                # Whoever reads data besides has been told of that.
                if self.caught is not None:
                    self.refuse("it goes on where a statement fails ({})".format(self.caught))
            run.step = None
            self.add("end")

        return steps

    def note_heads(self, heads, **_kwargs):
        self.add("heads", sorted(heads))

    def attend(self, environment):
        """Puts itself into the `alembic.context` that env.py and the revisions see."""
        configure, is_offline_mode = environment.configure, environment.is_offline_mode

        def configure_for_plan(*args, **kwargs):
            # No driver takes this text, so no `%` is to be doubled for one.
            kwargs["dialect_opts"] = dict(kwargs.get("dialect_opts") or {}, paramstyle="named")
            kwargs["literal_binds"] = True
            # Only what Alembic itself writes arrives there: a `print()` goes elsewhere.
            kwargs["output_buffer"] = self
            kwargs.pop("output_encoding", None)
            configure(*args, **kwargs)
            self.adopt(environment.get_context())

        def tell():
            if self.run.step is not None:
                self.refuse(ASKS)
            return is_offline_mode()

        environment.configure, environment.is_offline_mode = configure_for_plan, tell

    def adopt(self, context):
        """Listens to a MigrationContext that env.py configured."""
        # What the server would have said of itself in a connection: strings take backslashes as they are.
        context.dialect._backslash_escapes = False
        context.on_version_apply_callbacks = tuple(context.on_version_apply_callbacks) + (self.note_heads,)
        answer(self, context.dialect)
        impl = context.impl
        for kind in ("begin", "commit"):
            setattr(impl, "emit_" + kind, lambda kind=kind: self.add(kind))
        impl._exec = self.watched(impl, context)
        context.connection.__class__ = Bind
        for each in (context, impl):
            each.__class__ = telling(type(each))

    def watched(self, impl, context):
        """`impl._exec`, noting each statement without its terminator, and with the tabs that Alembic takes out."""
        execute = impl._exec

        def noted(construct, *args, **kwargs):
            if isinstance(construct, str):
                construct = sqlalchemy.text(construct)
            if self.run.step is not None:
                self.caught = self.caught or caught(sys._getframe(1))
            business = drivers_business(construct, impl.dialect)
            if business is not None:
                self.refuse("it gives a statement " + business)
            written = []
            is_ledger = getattr(construct, "table", None) is context._version
            with contextlib.nullcontext() if is_ledger else literals(construct, impl.dialect):
                impl.static_output = written.append
                try:
                    execute(construct, *args, **kwargs)
                finally:
                    del impl.static_output
                for text in written:
                    text = text[: -len(impl.command_terminator)] if text.endswith(impl.command_terminator) else text
                    self.add("ledger" if is_ledger else "sql", with_tabs(text, construct, impl))

        return noted


def with_tabs(text, construct, impl):
    """Alembic turns tabs into spaces, in functions and strings, too. A live migration keeps them."""
    if "    " not in text:
        return text
    literal = impl.literal_binds and not isinstance(construct, sqlalchemy.schema.DDLElement)
    kwargs = {"compile_kwargs": {"literal_binds": True}} if literal else {}
    raw = str(construct.compile(dialect=impl.dialect, **kwargs)).strip()
    return raw if raw.replace("\t", "    ") == text else text


@functools.lru_cache(maxsize=None)
def telling(kind):
    """A class whose `as_sql` tells when a revision looks at it. Alembic itself looks at it all the time."""

    def as_sql(self):
        run = Run.current
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if run is not None and run.step is not None and not caller.startswith(OWN_CODE):
            run.offline.refuse(ASKS)
        return self.__dict__["as_sql"]

    return type(kind.__name__, (kind,), {"as_sql": property(as_sql, lambda self, value: None), "__module__": kind.__module__})


class Bind(MockConnection):
    """What `op.get_bind()` gives: it takes statements, and has no answers."""

    @property
    def __class__(self):
        """What `isinstance` looks at: whether it is a live connection is a question like `is_offline_mode()`."""
        run = Run.current
        if run is not None and run.step is not None:
            if not sys._getframe(1).f_globals.get("__name__", "").startswith(OWN_CODE):
                run.offline.refuse(ASKS)
        return Bind

    def execute(self, obj, parameters=None, execution_options=None, **_kwargs):
        if isinstance(obj, str):
            obj = sqlalchemy.text(obj)
        if parameters:
            if not isinstance(parameters, dict) or not hasattr(obj, "bindparams"):
                Run.current.offline.refuse("it passes rows to a statement of its own")
            obj = obj.bindparams(**parameters)
        self._execute_impl(obj)
        return NoResult()

    def _run_ddl_visitor(self, visitorcallable, element, **kwargs):
        """SQLAlchemy's own looks at nothing first."""
        if not creates(visitorcallable):
            kwargs["checkfirst"] = False
        visitorcallable(self.dialect, self, **kwargs).traverse_single(element)

    def __getattr__(self, name):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        # Alembic itself asks, and knows what to do without an answer.
        if name.startswith("__") or name == "in_transaction" and caller.startswith("alembic."):
            raise AttributeError(name)
        Run.current.offline.refuse("it uses a live connection (`{}`)".format(name))


class NoResult:
    """What a statement gives. Whoever looks at it reads data, which differs from tenant to tenant."""

    def _refuse(self, *_args):
        Run.current.offline.refuse("it reads what a statement found")

    def __getattr__(self, name):
        self._refuse()

    __iter__ = __next__ = __len__ = __bool__ = __getitem__ = __enter__ = _refuse


@inspection._inspects(Bind)
def refuse_inspection(_bind):
    Run.current.offline.refuse("it inspects the database")


def listen():
    """Refuses everything that reaches out of the process while a plan is rendered."""
    if hasattr(sys, "addaudithook"):
        sys.addaudithook(refuse_reaching_out)
    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "do_connect", refuse_connection)


def refuse_connection(*_args):
    run = Run.current
    if run is not None and run.offline is not None:
        run.offline.refuse(
            "env.py has no offline mode: it connects to a database" if run.step is None else "it connects to a database"
        )


def refuse_reaching_out(event, args):
    run = Run.current
    if run is None or run.offline is None:
        return
    if event == "import" and run.step is not None and args[0] in ("psycopg2._psycopg", "psycopg.connection"):
        run.offline.refuse("it loads a database driver")
    if event in REACHING_OUT:
        run.offline.refuse("it reaches out of the process ({})".format(event))


REACHING_OUT = frozenset(
    "os.exec os.fork os.forkpty os.posix_spawn os.spawn os.system pty.spawn socket.connect socket.getaddrinfo"
    " socket.sendto sqlite3.connect subprocess.Popen".split()
)
