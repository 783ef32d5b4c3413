"""The warm process: imports Alembic once, then migrates one tenant after another.

`process.rs` starts it and is its only caller. The protocol is one JSON object a line: requests on what was standard
input, answers on what was standard output. Both are moved to private descriptors first, because the user's code owns
the usual ones: a `print()` in a migration goes to standard error, and `input()` finds an empty file.

Alembic's context is global to a process, so one request is served at a time, on the main thread, where `asyncio.run`
works and signal handlers may be set. A second thread only reads: when the pipe ends, the worker is dead, and this
process must not go on migrating for nobody.

Runs on Python 3.8 and newer, with Alembic 1.8 and newer, SQLAlchemy 1.4 and newer.
"""

import json
import os
import queue
import signal
import sys
import threading

# How much of a statement or message travels back: enough to recognise it, too little to flood a table.
LONGEST_TEXT = 2048


def take_over_pipes():
    """Moves the protocol to private descriptors and gives the user's code harmless standard ones."""
    # `dup` makes descriptors that a migration's own subprocesses do not inherit.
    requests, answers = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    return requests, os.fdopen(answers, "wb")


def read_requests(descriptor, inbox):
    """Feeds `inbox`, on its own thread, until the worker closes the pipe or dies."""
    rest = b""
    while True:
        chunk = os.read(descriptor, 65536)
        if not chunk:
            end_at_once()
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            inbox.put(json.loads(line))


def end_at_once():
    """Ends this process and whatever a migration started: no clean-up, so that every connection breaks now."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


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


# ---------------------------------------------------------------- secrets


class Scrubber:
    """Takes the current tenant's password out of every text that leaves, in each form in which it may appear."""

    def __init__(self, *urls):
        forms = set()
        for url in urls:
            authority = url.partition("://")[2].partition("?")[0].partition("/")[0]
            raw = authority.rpartition("@")[0].partition(":")[2]
            plain = unquote(raw)
            for form in (raw, plain, quote(plain, safe=""), quote(plain, safe=" +"), quote_plus(plain)):
                forms.update((form, form.replace("%", "%%"), repr(form)[1:-1], json.dumps(form)[1:-1]))
        # Longest first: a short form may be a part of a longer one.
        self.forms = sorted(filter(None, forms), key=len, reverse=True)

    def __call__(self, value):
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self(item) for item in value]
        if not isinstance(value, str):
            return value
        for form in self.forms:
            value = value.replace(form, "***")
        # Other URLs too: env.py may know a catalog database.
        return re.sub(r"://([^\s:/@]*):[^\s@]*@", r"://\1:***@", value)


# ---------------------------------------------------------------- URLs and connections


def sqlalchemy_url(url, scheme):
    """Rewrites a libpq URL for SQLAlchemy: its scheme, clean percent-encoding, and no options that only sqlx knows.

    `sslmode`, `options` and the like stay, also for asyncpg, which takes none of them: env.py may swap the driver, so
    they are translated at the last moment, in `limit_connection`.
    """
    _, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    userinfo, at, hosts = authority.rpartition("@")
    user, colon, password = userinfo.partition(":")
    # libpq splits at the last `@`, SQLAlchemy at the first: encoded, there is only one.
    userinfo = quote(unquote(user), safe="") + colon + quote(unquote(password), safe="")
    pairs, options = [], []
    for key, value in parse_qsl(query, keep_blank_values=True):
        bracket = re.fullmatch(r"options\[(.+)\]", key)
        if bracket:
            options.append("-c {}={}".format(bracket.group(1), escape_option(value)))
        elif key == "options":
            options.append(value)
        elif key != "statement-cache-capacity":
            pairs.append(({"ssl-mode": "sslmode", "ssl-ca": "sslrootcert"}.get(key, key.replace("-", "")), value))
    if options:
        pairs.append(("options", " ".join(options)))
    query = urlencode(pairs, quote_via=quote)
    return scheme + "://" + userinfo + at + hosts + slash + path + ("?" + query if query else "")


def escape_option(value):
    """Escapes a value for libpq's `options`, which splits at spaces."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


# libpq's words that asyncpg has no counterpart for; without them the connection is the same or a little less watched.
LIBPQ_ONLY = (
    "channel_binding client_encoding fallback_application_name gssdelegation gssencmode keepalives keepalives_count"
    " keepalives_idle keepalives_interval load_balance_hosts requirepeer require_auth sslcompression sslsni"
    " tcp_user_timeout"
).split()
# asyncpg understands these in a DSN, though not as arguments: a DSN that holds nothing else hands them over.
DSN_ONLY = (
    "sslcert sslcrl sslkey sslmode sslnegotiation sslpassword sslrootcert ssl_max_protocol_version"
    " ssl_min_protocol_version"
).split()


def adapt_for_asyncpg(arguments, application_name, settings):
    """Turns libpq's connection words, which asyncpg refuses, into asyncpg's; and adds label and limits."""
    server_settings = dict(arguments.get("server_settings") or {})
    if "options" in arguments:
        # The server parses it, as it does for libpq.
        server_settings["options"] = arguments.pop("options")
    arguments.pop("application_name", None)
    for word in LIBPQ_ONLY:
        arguments.pop(word, None)
    if "dbname" in arguments:
        arguments["database"] = arguments.pop("dbname")
    if "connect_timeout" in arguments:
        # libpq's 0 means "no limit"; so does asyncpg's None.
        arguments["timeout"] = float(arguments.pop("connect_timeout")) or None
    for_dsn = [(word, arguments.pop(word)) for word in DSN_ONLY if word in arguments]
    if for_dsn and "dsn" not in arguments and "ssl" not in arguments:
        arguments["dsn"] = "postgresql://?" + urlencode(for_dsn)
    server_settings.update(settings, application_name=application_name)
    arguments["server_settings"] = server_settings


def adapt_for_libpq(arguments, application_name, settings):
    """Adds label and limits in libpq's words. A later `-c` wins over an earlier one, so the given options stay."""
    given = arguments.get("options") or os.environ.get("PGOPTIONS") or ""
    limits = ["-c {}={}".format(name, escape_option(value)) for name, value in settings.items()]
    arguments["options"] = " ".join(filter(None, [given] + limits))
    arguments["application_name"] = application_name


def limit_connection(dialect, record, _args, arguments):
    """Before any connection of any engine: label it and limit it, in the startup message, so that `RESET` keeps it."""
    run = Run.current
    if run is None or dialect.name != "postgresql":
        return
    if run.is_tenant(arguments):
        run.connections["tenant"] += 1
    else:
        run.connections["other"] += 1
    if dialect.driver.startswith("asyncpg"):
        adapt_for_asyncpg(arguments, run.application_name, run.settings)
    elif dialect.driver.startswith("psycopg"):
        adapt_for_libpq(arguments, run.application_name, run.settings)
    else:
        return
    run.limited.add(id(record))


def note_connection(connection, record):
    """After any connection: remember it, and limit those that `limit_connection` never saw (an engine's `creator=`)."""
    run = Run.current
    module = type(connection).__module__
    if run is None or not any(name in module for name in ("psycopg", "postgresql", "pg8000")):
        return
    run.opened.append((connection, record))
    if id(record) in run.limited:
        return
    cursor = connection.cursor()
    for name, value in dict(run.settings, application_name=run.application_name).items():
        cursor.execute("SET {} = '{}'".format(name, value.replace("'", "''")))
    cursor.close()
    connection.commit()


def close_left_open(run):
    """Closes what env.py left open (an engine that was never disposed of), and says how many there were.

    A pooled connection would otherwise live until the garbage collector finds it: after the tenant's slot was given
    back, so above the budget. It goes through the pool's own record, so that an engine that outlives the tenant (one
    that the user's modules hold) connects anew instead of handing out a corpse.
    """
    left_open = 0
    logging.disable(logging.CRITICAL)
    try:
        for connection, record in run.opened:
            raw = getattr(connection, "driver_connection", None) or getattr(connection, "_connection", connection)
            if raw.is_closed() if hasattr(raw, "is_closed") else raw.closed:
                continue
            left_open += 1
            # An async connection's event loop is gone, so nothing can be awaited any more: the socket itself ends it.
            transport = getattr(raw, "_transport", None)
            finish = raw.pgconn.finish if hasattr(raw, "pgconn") else raw.close
            for close in (lambda: shut_down(transport), record.invalidate, finish):
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


# ---------------------------------------------------------------- the project


class Project:
    """An ini file with its revision files, imported once and kept while the files stay as they are."""

    kept = {}

    @classmethod
    def open(cls, ini, section):
        """The project as it is on disk now, from memory where possible. Changes into its folder, as its users do."""
        if not os.path.isfile(ini):
            raise Failure("config", "there is no {}".format(ini), "`[runner] config` names Alembic's ini file")
        os.chdir(os.path.dirname(ini))
        kept = cls.kept.get((ini, section))
        if kept is None or kept.fingerprint != kept.take_fingerprint():
            kept = cls.kept[ini, section] = cls(ini, section)
        return kept

    def __init__(self, ini, section):
        self.ini, self.section, self.folder = ini, section, os.path.dirname(ini)
        self.locations, self.recursive = [], False
        try:
            self.script = ScriptDirectory.from_config(self.config())
        except (CommandError, configparser.Error, ImportError) as error:
            raise Failure("config", one_line(error), config_hint(error))
        finally:
            # `prepend_sys_path` is prepended again by each load.
            sys.path[:] = list(dict.fromkeys(sys.path))
        self.locations = [os.path.abspath(str(path)) for path in self.script._version_locations]
        self.recursive = bool(getattr(self.script, "recursive_version_locations", False))
        # Taken before the files are read: a change in between is then seen by the next request.
        self.fingerprint = self.take_fingerprint()
        self.script.revision_map = RevisionMap(self.checked_revisions)
        self.load()
        self.check_env()

    def config(self, **kwargs):
        """A fresh configuration, which env.py may change as it likes. Reads pyproject.toml where `alembic` would."""
        toml = os.path.join(self.folder, "pyproject.toml")
        if "toml_file" in inspect.signature(Config.__init__).parameters and os.path.isfile(toml):
            kwargs["toml_file"] = toml
        # An ini may be absent in a project that is configured by pyproject.toml alone.
        ini = None if self.ini == toml else self.ini
        return Config(ini, ini_section=self.section, **kwargs)

    def take_fingerprint(self):
        """Name, time and size of every file that a reload would read."""
        files = [self.ini, os.path.join(self.folder, "pyproject.toml")]
        for location in self.locations:
            for root, folders, names in os.walk(location):
                folders[:] = [name for name in folders if name != "__pycache__"] if self.recursive else []
                files += [os.path.join(root, name) for name in names if ".py" in name]
        return sorted((path, *stamp(path)) for path in files)

    def checked_revisions(self):
        """Alembic's revisions, less what it only warns about: a revision in two files, a parent in none."""
        by_id = {}
        for script in self.script._load_revisions():
            twin = by_id.setdefault(script.revision, script)
            if twin is not script:
                message = "revision {} is in two files: {} and {}"
                raise Failure("script", message.format(script.revision, self.relative(twin.path), self.relative(script.path)))
        for script in by_id.values():
            for down in script._versioned_down_revisions:
                if down not in by_id:
                    message = "revision {} ({}) follows {}, which no file defines"
                    raise Failure("script", message.format(script.revision, self.relative(script.path), down))
        return list(by_id.values())

    def load(self):
        """Imports all revision files. Whatever they raise is said with file and line."""
        try:
            self.script.get_heads()
        except Failure:
            raise
        except (CommandError, RevisionError) as error:
            raise Failure("script", one_line(error))
        except BaseException as error:
            raise Failure("script", "{} ({})".format(describe_error(error), self.place(error)))

    def check_env(self):
        """Finds an env.py that is missing or does not compile, before any tenant is touched."""
        path = str(self.script.env_py_location)
        if not os.path.isfile(path):
            raise Failure("config", "there is no {}".format(self.relative(path)), "`script_location` names its folder")
        try:
            with open(path, "rb") as file:
                compile(file.read(), path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise Failure("env", "{} ({})".format(describe_error(error), self.place(error)))

    def relative(self, path):
        return os.path.relpath(str(path), self.folder)

    def place(self, error):
        """Where in the user's own files `error` happened: `file, line N`, as relative as the ini allows."""
        if isinstance(error, SyntaxError) and error.filename:
            return "{}, line {}".format(self.relative(error.filename), error.lineno)
        own = [str(self.script.dir)] + self.locations
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if any(os.path.abspath(frame.filename).startswith(os.path.abspath(folder) + os.sep) for folder in own)
        ]
        if not frames:
            return "in {}".format(self.relative(self.script.dir))
        return "{}, line {}".format(self.relative(frames[-1].filename), frames[-1].lineno)

    def url_scheme(self):
        """The scheme of the ini's own `sqlalchemy.url`: a hint at the driver that the project was written for."""
        try:
            url = self.config().get_main_option("sqlalchemy.url") or ""
        except configparser.Error:
            return None  # It names a variable that only env.py knows.
        scheme = url.partition("://")[0] if "://" in url else ""
        # `driver://` is the template's placeholder.
        if not re.fullmatch(r"[a-z][a-z0-9_]*(\+[a-z0-9_]+)?", scheme) or scheme == "driver":
            return None
        return re.sub(r"^postgres(?=\+|$)", "postgresql", scheme)


def stamp(path):
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


def describe(request):
    """Everything that can be known before a tenant is touched."""
    project = Project.open(request["ini"], request["section"])
    revisions = []
    # Alembic walks from the heads down; a base comes first here.
    for script in reversed(list(project.script.walk_revisions())):
        with open(script.path, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        revisions.append(
            {
                "revision": script.revision,
                "down": list(script._versioned_down_revisions),
                "depends_on": sorted(getattr(script, "_resolved_dependencies", None) or script.dependencies or ()),
                "branch_labels": sorted(getattr(script, "_orig_branch_labels", None) or ()),
                "label": one_line(script.doc),
                "file": project.relative(script.path),
                "sha256": digest,
            }
        )
    heads = sorted(project.script.get_heads())
    return {"versions": versions(), "url_scheme": project.url_scheme(), "heads": heads, "revisions": revisions}


def versions():
    return {
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "alembic": alembic.__version__,
        "sqlalchemy": sqlalchemy.__version__,
    }


# ---------------------------------------------------------------- one tenant


class Run:
    """What is known about the migration in progress. There is one at a time: `Run.current`."""

    current = None

    def __init__(self, request, url):
        self.application_name = request["application_name"]
        self.settings = request["settings"]
        self.target = request["target"]
        try:
            self.url = sqlalchemy.engine.make_url(url)
        except Exception:
            # Its own words would quote the URL.
            raise Failure("config", "the tenant's URL cannot be read", "a URL is postgresql://user:password@host:5432/database") from None
        self.started = False
        self.step = None  # The revision being applied or undone right now.
        self.steps = []  # All that were begun.
        self.heads_before = []
        self.ledger = None
        self.outer_transaction = False
        self.opened = []
        self.limited = set()
        self.connections = {"tenant": 0, "other": 0}

    def is_tenant(self, arguments):
        """Whether a connection goes where Herder asked: the tell-tale of an env.py that ignores its arguments."""
        database = arguments.get("database") or arguments.get("dbname")
        host, port = arguments.get("host"), arguments.get("port")
        given_host = self.url.host or self.url.query.get("host")
        return database == self.url.database and (
            isinstance(host, (list, tuple)) or host == given_host and int(port or 5432) == (self.url.port or 5432)
        )

    def watch(self, revisions):
        """Wraps Alembic's list of steps, so that a failure knows its revision."""

        def steps(heads, context):
            self.started = True
            self.heads_before = list(heads)
            self.ledger = {"table": context.version_table, "schema": context.version_table_schema}
            self.outer_transaction = bool(getattr(context, "_in_external_transaction", False))
            for step in revisions(heads):
                self.step = getattr(getattr(step, "revision", None), "revision", None)
                self.steps.append(self.step)
                yield step
            self.step = None

        return steps


def migrate(request):
    """Brings one tenant to `target`, exactly as `alembic upgrade` or `alembic downgrade` would."""
    project = Project.open(request["ini"], request["section"])
    scheme = request["scheme"] or project.url_scheme() or "postgresql"
    url = sqlalchemy_url(request["url"], scheme)
    run = Run.current = Run(request, url)
    try:
        run_env(project, request, url, run)
    except BaseException as error:
        raise explain(error, project, run) from None
    finally:
        Run.current = None
        left_open = close_left_open(run)
    if not run.started:
        raise Failure("env", "env.py ended without running any migration", "env.py must call context.run_migrations()")
    return {
        "steps": run.steps,
        "heads_before": run.heads_before,
        "ledger": run.ledger,
        "outer_transaction": run.outer_transaction,
        "connections": dict(run.connections, left_open=left_open),
    }


def run_env(project, request, url, run):
    direction, target = request["direction"], request["target"]
    arguments = {"url": url}
    if request["schema"] is not None:
        arguments["schema"] = request["schema"]
    options = argparse.Namespace(**vars(OPTIONS[direction]))
    options.config, options.name, options.revision = [project.ini], project.section, target
    # `context.get_x_argument()` reads these, and only these.
    options.x = ["{}={}".format(name, value) for name, value in arguments.items()]
    config = project.config(cmd_opts=options, attributes={"x_args": arguments})
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    # Without the URL: crash reporters like to print it.
    sys.argv = ["alembic", "-c", project.ini, "-n", project.section, direction, target]
    fresh_event_loop()
    script = project.script
    revisions = script._upgrade_revs if direction == "upgrade" else script._downgrade_revs
    steps = run.watch(lambda heads: revisions(target, heads))
    with EnvironmentContext(config, script, fn=steps, as_sql=False, starting_rev=None, destination_rev=target, tag=None):
        script.run_env()


def fresh_event_loop():
    """Mends what an earlier env.py left behind: it may have closed the main thread's loop, or taken it away.

    In a process of its own, `asyncio.get_event_loop()` would find a working loop there (before Python 3.14).
    """
    if "asyncio" not in sys.modules or sys.version_info >= (3, 14):
        return
    import asyncio

    policy = asyncio.get_event_loop_policy()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            usable = not policy.get_event_loop().is_closed()
    except RuntimeError:
        usable = False
    if not usable:
        policy.set_event_loop(policy.new_event_loop())


# ---------------------------------------------------------------- errors


def explain(error, project, run):
    """Classifies whatever came out of env.py."""
    if isinstance(error, Failure):
        return error
    chain = list(causes(error))
    found = database_failure(chain, run)
    if found is not None:
        return found
    phase = "migration" if run.step is not None else "env"
    if isinstance(error, CommandError) and error.__cause__ is not None or is_about_target(error):
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
    # 25P02 only says that an earlier statement failed; that one stands further down.
    error = next((each for each in candidates if sqlstate_of(each) != "25P02"), candidates[-1])
    below = list(causes(error))
    statement = next((each.statement for each in below if getattr(each, "statement", None)), None)
    message = next(filter(None, map(primary_message, reversed(below))), None) or describe_error(error)
    sqlstate = next(filter(None, map(sqlstate_of, below)), None) or sqlstate_of_refusal(message)
    lost = sqlstate is None and isinstance(error, (OperationalError, InterfaceError))
    kind = "connect" if lost else "database"
    return Failure(kind, message, database_hint(message), sqlstate, cut(statement), run.step)


def sqlstate_of(error):
    """The SQLSTATE that an exception carries itself: asyncpg's and psycopg's `sqlstate`, psycopg2's `pgcode`."""
    for holder in (error, getattr(error, "orig", None)):
        for name in ("sqlstate", "pgcode"):
            value = getattr(holder, name, None)
            if isinstance(value, str) and len(value) == 5:
                return value
    return None


def primary_message(error):
    """The server's primary message, without DETAIL (it quotes the rows' values) and without SQLAlchemy's additions."""
    if isinstance(error, DBAPIError):
        error = error.orig
    message = getattr(getattr(error, "diag", None), "message_primary", None)
    if message:
        return one_line(message)
    module = type(error).__module__
    if module.startswith("asyncpg"):
        return one_line(error.args[0]) if error.args else None
    if module.startswith("psycopg"):
        # A failed connection has no diagnosis, only libpq's text: one line per address that it tried.
        lines = [line for line in str(error).splitlines() if line.strip()]
        return one_line(next((line for line in lines if "FATAL" in line), lines[0])) if lines else None
    return None


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
    words = ("revision", "head", "target", "branch")
    return isinstance(error, (CommandError, RevisionError)) and any(word in str(error).lower() for word in words)


def command_hint(message, target):
    if "Multiple head" in message:
        return "`alembic merge heads` joins them; or name one revision as the target"
    match = re.search(r"locate revision identified by '([^']*)'", message)
    if match and match.group(1) != target:
        return "the tenant stands at a revision that this project does not have: deploy the version that has it"
    if match:
        return "`alembic history` lists the revisions of this project"
    if "expected to match one row" in message:
        return "the ledger was changed by somebody else during the migration"
    if "not up to date" in message:
        return "the tenant's ledger is behind what the command needs"
    return None


def config_hint(error):
    text = str(error)
    if "script_location" in text:
        return "the section name may be wrong: `[runner] section`, `alembic -n`"
    if isinstance(error, configparser.InterpolationError):
        return "a `%` in an ini is written `%%`"
    return None


def database_hint(message):
    if "unsupported startup parameter" in message:
        return "PgBouncer refuses session limits: connect past it, or set ignore_startup_parameters"
    return None


def env_hint(error, text):
    if isinstance(error, ImportError) and getattr(error, "name", None) in ("asyncpg", "psycopg", "psycopg2"):
        return "pip install {}, or set [runner] url_scheme to a driver that is there".format(error.name)
    if "MissingGreenlet" in text:
        return "env.py is synchronous, the URL's driver is not: set [runner] url_scheme, as in \"postgresql+psycopg\""
    if "requires an async driver" in text:
        return "env.py is asynchronous, the URL's driver is not: set [runner] url_scheme = \"postgresql+asyncpg\""
    if isinstance(error, ModuleNotFoundError):
        return "`prepend_sys_path = .` in the ini puts its folder on Python's path, as the alembic command does"
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


# ---------------------------------------------------------------- the loop


def serve(inbox, answers):
    """Answers requests for ever; the reader thread ends the process."""
    environment = dict(os.environ)
    standard_streams = sys.stdin, sys.stdout, sys.stderr
    while True:
        request = inbox.get()
        url = request.get("url") or ""
        try:
            answer = {"ok": True, "result": {"describe": describe, "migrate": migrate}[request["do"]](request)}
        except Failure as failure:
            answer = {"ok": False, "error": failure.fields}
        except BaseException as error:
            answer = {"ok": False, "error": Failure("internal", describe_error(error)).fields}
        sys.stdin, sys.stdout, sys.stderr = standard_streams
        # What one tenant's env.py put into the environment is not there for the next.
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        send(answers, dict(Scrubber(url)(answer), id=request["id"]))


def send(answers, answer):
    """Ends this request's part of standard error with a mark, so that the other side knows it has read it all."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    try:
        os.write(2, b"\x1e%d\n" % answer["id"])
    except OSError:
        pass
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


requests_descriptor, answer_file = take_over_pipes()

import argparse
import configparser
import hashlib
import inspect
import logging
import re
import socket
import traceback
import warnings
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlencode

try:
    import alembic
    import sqlalchemy
    from alembic.config import CommandLine, Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory
    from alembic.script.revision import RevisionError, RevisionMap
    from alembic.util import CommandError
    from sqlalchemy import event
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
    from sqlalchemy.pool import Pool
except ImportError as import_error:
    send(answer_file, {"id": 0, "ok": False, "error": Failure("internal", describe_error(import_error)).fields})
    sys.exit(0)

# The options as the real command line makes them, once for each direction: env.py may look at any of them.
OPTIONS = {
    direction: CommandLine(prog="alembic").parser.parse_args([direction, "head"]) for direction in ("upgrade", "downgrade")
}
event.listen(sqlalchemy.engine.Engine, "do_connect", limit_connection)
event.listen(Pool, "connect", note_connection)

send(answer_file, {"id": 0, "ok": True, "result": versions()})
inbox = queue.Queue()
threading.Thread(target=read_requests, args=(requests_descriptor, inbox), daemon=True).start()
serve(inbox, answer_file)
