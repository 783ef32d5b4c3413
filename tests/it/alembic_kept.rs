//! What one tenant's migration leaves behind in a warm process: nothing that the next one could meet.

use std::process::{Command, Stdio};

use herder::runner::alembic::WarmProcess;

use crate::handmade::{Database, Handmade, SYNC_ENV, Tenant, saas, tool, warm};

/// Migrates a new schema.
async fn migrate(process: &mut WarmProcess, project: &Handmade, database: &Database, schema: &str) {
    database.run(&format!("create schema {schema}")).await;
    let tenant = Tenant::new(&database.url).schema(schema);
    process
        .migrate(&project.project(), &tenant.up())
        .await
        .expect(schema);
}

/// What the alembic command has in a process of its own for each tenant: env.py first, and nothing of another one.
#[tokio::test]
async fn what_a_module_keeps_of_one_tenant_does_not_meet_the_next() {
    let by_variable = "import os\nos.environ['TENANT'] = schema\n";
    let by_argument =
        "from alembic import context\nTENANT = context.get_x_argument(as_dictionary=True)['schema']\n";
    let settings = "import os\nclass Settings:\n    def __init__(self):\n        self.tenant = os.environ.get('TENANT', 'public')\n\
                    settings = Settings()\n";
    let (import_settings, import_tenant) = ("from settings import settings\n", "import tenant\n");
    let in_a_class = "class Settings:\n    SCHEMA = 'public'\n";
    let in_a_cache = "import functools\nfrom alembic import context\n\n@functools.lru_cache\ndef schema():\n    \
                      return [context.get_x_argument(as_dictionary=True)['schema']]\n";
    for (name, module, prelude, body) in [
        (
            "settings.py",
            settings,
            format!("{by_variable}{import_settings}"),
            "from settings import settings; op.execute(f'create table \"{settings.tenant}\".t (x int)')",
        ),
        // Nobody but the revision imports it.
        (
            "settings.py",
            settings,
            by_variable.to_owned(),
            "from settings import settings; op.execute(f'create table \"{settings.tenant}\".t (x int)')",
        ),
        (
            "tenant.py",
            by_argument,
            import_tenant.to_owned(),
            "import tenant; op.execute(f'create table \"{tenant.TENANT}\".t (x int)')",
        ),
        (
            "settings.py",
            in_a_class,
            "from settings import Settings\nSettings.SCHEMA = schema\n".to_owned(),
            "from settings import Settings; op.execute(f'create table \"{Settings.SCHEMA}\".t (x int)')",
        ),
        (
            "tenant.py",
            in_a_cache,
            String::new(),
            "import tenant; op.execute(f'create table \"{tenant.schema()[0]}\".t (x int)')",
        ),
        // What a revision has begun to read, and what it told Python to do.
        (
            "rows.csv",
            "t\n",
            String::new(),
            "import decimal; decimal.getcontext().prec = decimal.getcontext().prec - 15\n    \
             [op.execute(f'create table \"{op.get_context().version_table_schema}\".{row[0]} (x int)') for row in ROWS]\n\n\
             import csv\nROWS = csv.reader(open('rows.csv'))",
        ),
        // A listener that watches all engines.
        (
            "listening.py",
            "",
            "import sqlalchemy\n@sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, 'connect', insert=True)\n\
             def into(connection, _):\n    cursor = connection.cursor()\n    \
             cursor.execute(f'set search_path = \"{schema}\"')\n    \
             connection.commit()\n"
                .to_owned(),
            "op.execute('create table t (x int)')",
        ),
        // The history is read without env.py, and what the revision imports then knows nothing of a tenant.
        (
            "settings.py",
            "SCHEMA = 'public'\n",
            "import settings\nsettings.SCHEMA = schema\n".to_owned(),
            "op.execute(f'create table \"{SCHEMA}\".t (x int)')\n\nfrom settings import SCHEMA",
        ),
    ] {
        let database = Database::new().await;
        let env = SYNC_ENV.replace(
            "engine =",
            &format!("schema = context.get_x_argument(as_dictionary=True)['schema']\n{prelude}engine ="),
        );
        let env = env.replace(
            "(connection=connection)",
            "(connection=connection, version_table_schema=schema)",
        );
        let project = Handmade::new(&env).revision("a", None, body);
        project.write(name, module);
        let mut process = warm().await;
        process.describe(&project.project()).await.expect("a description");
        // As many as it takes until a process would go on with the next tenant.
        for schema in ["one", "two", "three", "four", "five", "six"] {
            migrate(&mut process, &project, &database, schema).await;
            let made =
                format!("select count(*) from pg_tables where tablename = 't' and schemaname = '{schema}'");
            assert_eq!(database.count(&made).await, 1, "{name}, {body}: {schema}");
        }
    }
}

/// The third tenant finds what the first two have imported, but nothing of the project's own.
#[tokio::test]
async fn well_known_libraries_are_imported_once_and_the_projects_own_modules_for_each_tenant() {
    let env = PLAIN_ENV.replace(
        "arguments =",
        "import sys\nfound = ' '.join(name for name in ('fastapi', 'helper') if name in sys.modules)\n\
         import helper\nhelper.FOUND = found\narguments =",
    );
    let project = Handmade::new(&env).revision(
        "a",
        None,
        "import helper; op.execute(\"create table said as select '%s' as what\" % helper.FOUND)",
    );
    project.write("helper.py", "import fastapi\nFOUND = None\n");
    let (database, mut process) = (Database::new().await, warm().await);
    for (schema, found) in [("one", ""), ("two", "fastapi"), ("three", "fastapi")] {
        migrate(&mut process, &project, &database, schema).await;
        let said = database
            .text(&format!("select what::text from {schema}.said"))
            .await;
        assert_eq!(said.as_deref(), Some(found), "{schema}");
    }
}

#[tokio::test]
async fn a_url_that_a_module_keeps_is_not_the_next_tenants() {
    let keeping =
        "import kept\nkept.URL = kept.URL or context.config.get_main_option('sqlalchemy.url')\nengine =";
    let env = SYNC_ENV
        .replace("engine =", keeping)
        .replace("context.config.get_main_option(\"sqlalchemy.url\")", "kept.URL");
    let project = Handmade::new(&env).revision("a", None, "op.execute('create table t (x int)')");
    project.write("kept.py", "URL = None\n");
    let mut process = warm().await;
    for scheme in ["postgresql+psycopg", "postgresql+psycopg2"] {
        for database in [Database::new().await, Database::new().await] {
            let tenant = Tenant::new(&database.url).scheme(scheme);
            process
                .migrate(&project.project(), &tenant.up())
                .await
                .expect(scheme);
            assert_eq!(database.count("select count(*) from t").await, 0, "{scheme}");
        }
    }
}

#[tokio::test]
async fn an_edited_module_is_imported_anew() {
    let database = Database::new().await;
    database.run("create table said (what text)").await;
    let project = Handmade::new(SYNC_ENV).revision(
        "a",
        None,
        "import helper; op.execute(f\"insert into said values ('{helper.WORD}')\")",
    );
    let mut process = warm().await;
    for word in ["before", "after, and longer"] {
        project.write("helper.py", &format!("WORD = '{word}'\n"));
        database.run("drop table if exists alembic_version").await;
        let tenant = Tenant::new(&database.url);
        process
            .migrate(&project.project(), &tenant.up())
            .await
            .expect(word);
    }
    let said = database.text("select string_agg(what, '; ') from said").await;
    assert_eq!(said.as_deref(), Some("before; after, and longer"));
}

/// Migrates a new schema, and says which process did it.
async fn by_which(process: &mut WarmProcess, project: &Handmade, database: &Database, schema: &str) -> i64 {
    migrate(process, project, database, schema).await;
    database
        .count(&format!("select pid::int8 from {schema}.by"))
        .await
}

/// In the tenant's schema, in a way that leaves no trace in the process.
const PLAIN_ENV: &str = r#"
from alembic import context
from sqlalchemy import create_engine, pool, text

arguments = context.get_x_argument(as_dictionary=True)
engine = create_engine(arguments["url"], poolclass=pool.NullPool)
with engine.connect() as connection:
    connection.execute(text("set search_path to " + arguments["schema"]))
    connection.commit()
    context.configure(connection=connection, version_table_schema=arguments["schema"])
    with context.begin_transaction():
        context.run_migrations()
"#;

const WHO: &str =
    r#"op.execute("create table by as select %s as pid" % open("/proc/self/stat").read().split()[0])"#;

#[tokio::test]
async fn tenants_share_a_process_only_where_all_files_are_plain() {
    let database = Database::new().await;
    let project = Handmade::new(PLAIN_ENV).revision("a", None, WHO);
    let mut process = warm().await;
    let mut pids = Vec::new();
    for schema in ["a1", "a2", "a3", "a4", "a5"] {
        pids.push(by_which(&mut process, &project, &database, schema).await);
    }
    assert_eq!(pids[3], pids[4], "by now it knows the files: {pids:?}");

    // What was edited is read again, and shared only when it is known to be plain, too.
    let project = project.revision(
        "a",
        None,
        &format!("{WHO}\n    op.execute('create table edited (x int)')"),
    );
    let edited = by_which(&mut process, &project, &database, "b1").await;
    assert_eq!(database.count("select count(*) from b1.edited").await, 0);
    assert_ne!(by_which(&mut process, &project, &database, "b2").await, edited);

    // What fails leaves nobody knows what.
    let project = project.revision("a", None, &format!("{WHO}\n    op.execute('nonsense')"));
    let tenant = Tenant::new(&database.url).schema("a1");
    database
        .run("drop table a1.by; drop table a1.alembic_version")
        .await;
    tool(process.migrate(&project.project(), &tenant.up()).await);

    // Who knows what a cache is good for?
    let project = project.revision("a", None, &format!("{WHO}\n\nimport functools"));
    let mut pids = Vec::new();
    for schema in ["c1", "c2", "c3", "c4", "c5"] {
        pids.push(by_which(&mut process, &project, &database, schema).await);
    }
    pids.dedup();
    assert_eq!(pids.len(), 5, "each its own: {pids:?}");
}

const LOGGING: &str = "[alembic]\nscript_location = migrations\n[loggers]\nkeys = root\n[handlers]\nkeys = console\n\
    [formatters]\nkeys =\n[logger_root]\nlevel = WARNING\nhandlers = console\n\
    [handler_console]\nclass = StreamHandler\nargs = (sys.stderr,)\n";

/// What no file shows: SQLAlchemy keeps the statements that it has made of functions, with what those found around them, and
/// `fileConfig` disables all loggers that are there already.
#[tokio::test]
async fn what_the_tools_keep_of_a_plain_file_does_not_meet_the_next_tenant() {
    let by_lambda = "global lines\n    \
        lines = sa.table('lines', sa.column('w'), schema=op.get_context().version_table_schema)\n    \
        op.execute('create table lines (w text)')\n    \
        op.get_bind().execute(sa.lambda_stmt(lambda: sa.insert(lines).values(w='hello')))\n    \
        op.execute('create table said as select count(*)::text as what from lines')";
    let by_logger = "import logging; op.execute(\"create table said as select '%s' as what\" \
        % logging.getLogger('migrations').isEnabledFor(30))";
    let logging = PLAIN_ENV.replace(
        "arguments =",
        "import logging\nfrom logging.config import fileConfig\nfileConfig(context.config.config_file_name)\n\
         logging.getLogger('migrations')\narguments =",
    );
    for (env, body, expected) in [(PLAIN_ENV, by_lambda, "1"), (&logging, by_logger, "True")] {
        let project = Handmade::new(env).revision("a", None, body);
        project.write("alembic.ini", LOGGING);
        let texts: Vec<String> = ["migrations/env.py", "migrations/versions/a.py"]
            .iter()
            .map(|file| std::fs::read_to_string(project.folder.path().join(file)).expect(file))
            .collect();
        let files: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(are_plain(&files), [true, true], "{body}");
        let (database, mut process) = (Database::new().await, warm().await);
        for schema in ["one", "two", "three", "four", "five", "six"] {
            migrate(&mut process, &project, &database, schema).await;
            let said = database
                .text(&format!("select what::text from {schema}.said"))
                .await;
            assert_eq!(said.as_deref(), Some(expected), "{schema}: {body}");
        }
    }
}

/// Whether a process finds itself changed by what this makes of it.
fn is_seen(change: &str) -> bool {
    let mut script = "import importlib.util, sys, types\n\
        def module(name, text):\n    made = sys.modules[name] = types.ModuleType(name)\n    exec(text, made.__dict__)\n    return made\n\
        herder_warm = module('herder_warm', '')\n"
        .to_owned();
    for (name, text) in [
        ("own", include_str!("../../src/runner/alembic/warm/own.py")),
        ("clean", include_str!("../../src/runner/alembic/warm/clean.py")),
    ] {
        let text = serde_json::Value::from(text);
        script += &format!("herder_warm.{name} = module('herder_warm.{name}', {text})\n");
    }
    let change = serde_json::Value::from(change);
    script += &format!(
        "import sqlalchemy\nherder_warm.own.inherited = frozenset(sys.modules)\n\
         beginning = herder_warm.clean.Beginning()\n\
         exec(compile({change}, '/home/me/env.py', 'exec'))\n\
         sys.exit(7 if beginning.is_left() else 0)"
    );
    let mut python = Command::new(crate::venv::python());
    let ended = python.args(["-c", &script]).output().expect("a Python");
    match ended.status.code() {
        Some(7) => true,
        Some(0) => false,
        _ => panic!("{change}: {}", String::from_utf8_lossy(&ended.stderr)),
    }
}

/// What no file shows, once more: a plain one may call what does all this.
#[test]
fn a_process_sees_what_has_become_of_it() {
    for change in [
        "import os; os.environ['TENANT'] = 'a'",
        "import os; del os.environ['PATH']",
        "import io; sys.stdout = io.StringIO()",
        "import os; os.dup2(os.open(os.devnull, os.O_WRONLY), 1)",
        "sys.stdout.close()",
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "import alembic.op; alembic.op._proxy = object()",
        "import alembic.context; alembic.context._proxy = object()",
        "mine = types.ModuleType('mine'); mine.__file__ = '/home/me/mine.py'; sys.modules['mine'] = mine",
        "n = 5; sqlalchemy.lambda_stmt(lambda: sqlalchemy.select(n))",
    ] {
        assert!(is_seen(change), "{change}");
    }
    for nothing in [
        "pass",
        "import json, fractions",
        "sys.path.insert(0, '/home/me')",
        "import logging; logging.getLogger('mine').setLevel(10)",
    ] {
        assert!(!is_seen(nothing), "{nothing}");
    }
}

/// Judges each of these files.
fn are_plain(files: &[&str]) -> Vec<bool> {
    let judge = concat!(
        include_str!("../../src/runner/alembic/warm/plain.py"),
        "\nimport json\nfiles = json.load(sys.stdin)\nprint(json.dumps([is_plain(ast.parse(file)) for file in files]))"
    );
    let mut python = Command::new(crate::venv::python())
        .args(["-c", judge])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a Python");
    serde_json::to_writer(python.stdin.take().expect("a pipe"), files).expect("files");
    serde_json::from_slice(&python.wait_with_output().expect("an end").stdout).expect("verdicts")
}

#[test]
fn what_alembic_writes_is_plain() {
    let files = [
        // A revision, and what people add to it.
        "from typing import Sequence, Union\nfrom alembic import op\nimport sqlalchemy as sa\n\
         from sqlalchemy.dialects import postgresql\n\
         revision: str = 'b'\ndown_revision: Union[str, Sequence[str], None] = 'a'\nROWS = []\nROWS.append({'id': 1})\n\
         def upgrade() -> None:\n    t = op.create_table('t', sa.Column('id', postgresql.UUID(as_uuid=True)),\n        \
         sa.Column('at', sa.DateTime(timezone=True), server_default=sa.func.now()))\n    op.bulk_insert(t, ROWS)\n    \
         op.execute(t.update().where(t.c.id == None).values(id=1))\n    op.execute(sa.update(t).values(id=2))\n    \
         with op.batch_alter_table('t') as batch:\n        batch.add_column(sa.Column('e', sa.Enum('a', name='e')))\n    \
         sa.Enum('a', name='f').create(op.get_bind(), checkfirst=True)\n    \
         for row in op.get_bind().execute(sa.text('select 1')):\n        print(row)\n\
         from sqlalchemy.engine.reflection import Inspector\nInspector.from_engine(op.get_bind()).get_table_names()",
        // An env.py, with the recipe of Alembic's cookbook.
        "import os\nfrom logging.config import fileConfig\nfrom alembic import context\n\
         from sqlalchemy import engine_from_config, pool, text\n\
         config = context.config\nif config.config_file_name is not None:\n    fileConfig(config.config_file_name)\n\
         if 'B' in os.environ:\n    config.set_main_option('sqlalchemy.url', os.environ['B'] or os.environ.get('A') or os.getenv('C'))\n\
         section = config.get_section(config.config_ini_section, {})\nsection['sqlalchemy.echo'] = 'false'\n\
         engine = engine_from_config(section, prefix='sqlalchemy.', poolclass=pool.NullPool)\n\
         with engine.connect() as connection:\n    connection.execute(text('set search_path to x'))\n    \
         connection.dialect.default_schema_name = 'x'",
        "from __future__ import annotations\nimport datetime as dt, json, re, uuid\nfrom sqlalchemy.sql import func, column\n\
         count = 0\nfor i in range(3):\n    count += 1\n\
         def line(*of):\n    return json.dumps([dt.datetime.now(dt.timezone.utc).isoformat(), str(uuid.uuid4())])",
    ];
    assert_eq!(are_plain(&files), [true; 3]);

    let folder = saas("").ini;
    let texts: Vec<_> = ["env_schema", "env_sync", "env_database", "versions"]
        .iter()
        .flat_map(|part| std::fs::read_dir(folder.join(part)).expect("a folder"))
        .map(|file| file.expect("a file").path())
        .filter(|file| file.extension().is_some_and(|extension| extension == "py"))
        .map(|file| std::fs::read_to_string(file).expect("a file"))
        .collect();
    let files: Vec<_> = texts.iter().map(String::as_str).collect();
    assert_eq!(files.len(), 15);
    assert!(are_plain(&files).iter().all(|plain| *plain));
}

#[test]
fn what_may_leave_something_behind_is_not_plain() {
    let dialect = "from sqlalchemy.dialects.postgresql import dialect\n";
    let files = [
        // Somebody else's module, or one that others look at.
        "from app.models import Base",
        "from . import helper",
        "from sqlalchemy import *",
        "from alembic.op import *",
        "from typing import sys",
        "from collections.abc import sys",
        "import typing\ntyping.get_type_hints(print)",
        "from alembic import op\nop.Operations.x",
        "from sqlalchemy.dialects import registry\nregistry.load('x')",
        "import sqlalchemy as sa\nsa.Index.argument_for('postgresql', 'x', None)",
        "import logging\nlogging.getLogger().manager.setLoggerClass(print)",
        "from logging.config import fileConfig\nfileConfig('my.ini')",
        "from logging.config import fileConfig as configure\nconfigure('my.ini')",
        "from logging.config import fileConfig\nconfigure = fileConfig\nconfigure('my.ini')",
        "import sys",
        "from sqlalchemy import event",
        "import sqlalchemy as sa\nsa.event.listen(sa.Engine, 'connect', print)",
        "import decimal\ndecimal.getcontext().prec = 5",
        "from decimal import getcontext",
        "import asyncio\nasyncio.set_event_loop_policy(None)",
        "import logging\nlogging.getLogger().addHandler(None)",
        "import logging\nlogging.disable(10)",
        "from alembic import op\nop.register_operation('x')",
        "import sqlalchemy as sa\nmodule = sa",
        "import sqlalchemy as sa\nsa.String.length = 1",
        "import typing\ntyping.x = 1",
        "from sqlalchemy import func\nfunc.x = 1",
        // The environment.
        "import os\nos.environ['A'] = 'b'",
        "import os\ndel os.environ['A']",
        "import os\nos.environ.setdefault('A', 'b')",
        "import os\nf = os.environ.update\nf(A='b')",
        "import os\nmine = os.environ",
        "from os import environ\nenviron['A'] = 'b'",
        "import os\nos.chdir('/')",
        // What all connections share.
        &format!("{dialect}dialect.ischema_names['v'] = 1"),
        &format!("{dialect}dialect.ischema_names.update(v=1)"),
        &format!("{dialect}names = dialect.ischema_names\nnames['v'] = 1"),
        "def f(bind):\n    bind.dialect.ischema_names['v'] = 1",
        "def f(bind):\n    names = bind.dialect.ischema_names\n    names['v'] = 1",
        "def f(bind):\n    names = bind.dialect.ischema_names\n    names.update(v=1)",
        "def f(bind):\n    change = bind.dialect.ischema_names.update\n    change(v=1)",
        "def f(bind):\n    names = bind.dialect.names\n    names += ['v']",
        "def f(bind):\n    del bind.dialect.ischema_names['v']",
        "def f(bind):\n    bind.dialect.dbapi.extensions.register_type(1)",
        "def f(bind):\n    bind.dialect.positional = True",
        "def f(bind):\n    bind.dialect.names.difference_update(['v'])",
        "from sqlalchemy.dialects.postgresql import dialect as d\nd.default_schema_name = 'x'",
        "from alembic import context\nnames = context.config.get_section('x', shared)\nnames['v'] = 1",
        "from alembic import context\ncontext.config.stdout.close()",
        // Names that are somebody else's, whatever else they were.
        "names = {}\ndef f(names):\n    names['v'] = 1",
        "names = {}\nfor names in f():\n    names['v'] = 1",
        "names = {}\n(names := f())\nnames['v'] = 1",
        "names = {}\nnames['a']['b'] = 1",
        "dict = f\nnames = dict()\nnames['v'] = 1",
        "import sqlalchemy as sa\ndef f(sa):\n    pass",
        // Ways around.
        "class Settings:\n    pass",
        "@f\ndef g():\n    pass",
        "def g():\n    try:\n        yield\n    finally:\n        f()",
        "def g(setattr):\n    pass\nsetattr(f, 'x', 1)",
        "def g():\n    __builtins__ = {}\n__builtins__['sum'] = len",
        "setattr(f, 'x', 1)",
        "getattr(f, 'x')",
        "exec('')",
        "__builtins__",
        "''.__class__",
        "name = ''\nname.__class__",
        "def f(x):\n    x._private()",
    ];
    for (file, plain) in files.iter().zip(are_plain(&files)) {
        assert!(!plain, "{file}");
    }
}
