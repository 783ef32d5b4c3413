//! Warm Alembic processes: what arrives in env.py, what comes back from it, and how they end.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use herder::database_url::DatabaseUrl;
use herder::domain::revision::Direction;
use herder::runner::alembic::{Launch, Migrated, Project, ToolErrorKind, WarmError, WarmPool, WarmProcess};
use sqlx::Executor as _;

use crate::handmade::{
    ASYNC_ENV, DRIVERS, Database, Handmade, SYNC_ENV, Tenant, launch, saas, server, tool, until, warm,
};

// ---------------------------------------------------------------- the realistic project

#[tokio::test]
async fn the_realistic_project_goes_up_and_down_with_each_env() {
    let mut process = warm().await;
    for ini in [
        "alembic_schema.ini",
        "alembic_sync.ini",
        "alembic_docs_commit.ini",
        "alembic_database.ini",
    ] {
        let database = Database::new().await;
        let odd = "tenant-1 ünï";
        database.run(&format!("create schema \"{odd}\"")).await;
        let by_schema = ini != "alembic_database.ini";
        let schema = if by_schema { odd } else { "public" };
        let mut tenant = Tenant::new(&database.url);
        tenant.schema = by_schema.then_some(odd);

        let up = process.migrate(&saas(ini), &tenant.up()).await.expect(ini);
        assert_eq!(up.steps.len(), 12, "{ini}");
        assert_eq!(up.heads_before, Vec::<String>::new(), "{ini}");
        assert_eq!(up.connections.tenant, 1, "{ini}");
        assert_eq!(up.connections.other, 0, "{ini}");
        assert_eq!(
            up.ledger.as_ref().and_then(|ledger| ledger.schema.as_deref()),
            by_schema.then_some(odd)
        );
        let ledger = format!("select max(version_num) from \"{schema}\".alembic_version");
        assert_eq!(
            database.text(&ledger).await.as_deref(),
            Some("0012_task_priority"),
            "{ini}"
        );
        assert_eq!(
            database.sessions().await,
            0,
            "{ini}: no session outlives its tenant"
        );

        let again = process.migrate(&saas(ini), &tenant.up()).await.expect(ini);
        assert_eq!(again.steps, Vec::<String>::new(), "{ini}");
        assert_eq!(again.heads_before, ["0012_task_priority"], "{ini}");

        let down = tenant.to(Direction::Downgrade, "base");
        let down = process.migrate(&saas(ini), &down).await.expect(ini);
        assert_eq!(down.steps.len(), 12, "{ini}");
        assert_eq!(
            down.steps[0], "0012_task_priority",
            "{ini}: the newest is undone first"
        );
        assert_eq!(database.text(&ledger).await, None, "{ini}");
        let tables = format!("select count(*) from pg_tables where schemaname = '{schema}'");
        assert_eq!(database.count(&tables).await, 1, "{ini}: only the ledger is left");
        if by_schema {
            let strays = "select count(*) from pg_tables where schemaname = 'public'";
            assert_eq!(database.count(strays).await, 0, "{ini}: public is untouched");
        }
    }
}

#[tokio::test]
async fn an_env_that_never_commits_gives_itself_away() {
    let database = Database::new().await;
    database.run("create schema acme").await;
    let mut process = warm().await;
    let migrated = process
        .migrate(
            &saas("alembic_docs.ini"),
            &Tenant::new(&database.url).schema("acme").up(),
        )
        .await
        .expect("Alembic is content");
    assert_eq!(migrated.steps.len(), 12);
    assert!(
        migrated.outer_transaction,
        "Alembic joined the transaction that `SET search_path` began"
    );
    assert_eq!(
        migrated.connections.left_open, 1,
        "its engine was never disposed of"
    );
    assert_eq!(
        database
            .count("select count(*) from pg_tables where schemaname = 'acme'")
            .await,
        0
    );
    until("the connection is closed nevertheless", 0, || database.sessions()).await;
}

#[tokio::test]
async fn a_project_describes_itself() {
    let mut process = warm().await;
    let described = process
        .describe(&saas("alembic_schema.ini"))
        .await
        .expect("a description");
    assert_eq!(described.url_scheme.as_deref(), Some("postgresql+asyncpg"));
    assert_eq!(described.heads, ["0012_task_priority"]);
    assert_eq!(described.revisions.len(), 12);
    let first = &described.revisions[0];
    assert_eq!(
        (first.revision.as_str(), first.label.as_str()),
        ("0001_accounts", "accounts and users")
    );
    assert_eq!(first.file, "versions/0001_accounts.py");
    assert_eq!(first.sha256.len(), 64);
    for pair in described.revisions.windows(2) {
        assert_eq!(pair[1].down, [pair[0].revision.clone()]);
    }
    assert_eq!(&described.versions, process.versions());
}

// ---------------------------------------------------------------- what env.py gets

const TELL: &str = r#"op.execute("create table seen as select current_setting('application_name') as name, current_setting('lock_timeout') as lock, current_setting('statement_timeout') as statement, current_setting('work_mem') as mem")"#;

#[tokio::test]
async fn label_and_limits_arrive_with_every_driver() {
    let mut process = warm().await;
    for (scheme, env) in DRIVERS {
        let database = Database::new().await;
        let project = Handmade::new(env).revision("a", None, TELL);
        // Words of libpq and of sqlx, most of which asyncpg does not take from a URL.
        let url = format!(
            "{}?sslmode=prefer&application_name=theirs&connect_timeout=7&options=-c%20work_mem%3D7MB\
             &keepalives_idle=5&target_session_attrs=any&statement-cache-capacity=1",
            database.url.replace("postgres://", "postgresql://")
        );
        let tenant = Tenant::new(&url).scheme(scheme);
        let migrated = process
            .migrate(&project.project(), &tenant.up())
            .await
            .expect(scheme);
        assert_eq!(migrated.connections.tenant, 1, "{scheme}");
        let seen = database
            .text("select concat_ws('|', name, lock, statement, mem) from seen")
            .await;
        assert_eq!(seen.as_deref(), Some("herder/run/job/1|3s|15min|7MB"), "{scheme}");
    }
}

#[tokio::test]
async fn an_engine_with_its_own_creator_is_limited_too() {
    let database = Database::new().await;
    let env = SYNC_ENV.replace(
        "create_engine(",
        "create_engine(creator=lambda: __import__('psycopg2').connect(context.config.get_main_option('sqlalchemy.url').replace('+psycopg2', '')), url=",
    );
    let project = Handmade::new(&env).revision("a", None, TELL);
    let tenant = Tenant::new(&database.url).scheme("postgresql+psycopg2");
    warm()
        .await
        .migrate(&project.project(), &tenant.up())
        .await
        .expect("a migration");
    let seen = database
        .text("select concat_ws('|', name, lock, statement) from seen")
        .await;
    assert_eq!(seen.as_deref(), Some("herder/run/job/1|3s|15min"));
}

#[tokio::test]
async fn arguments_options_and_environment_are_as_on_the_command_line() {
    let database = Database::new().await;
    database.run("create schema \"s p\"").await;
    let at_home = SYNC_ENV.replace(
        "(connection=connection",
        "(connection=connection, version_table_schema='s p'",
    );
    let env = format!(
        "import os, sys, json\nfrom alembic import context\nimport beside\n\
         c = context.config\nseen = dict(x=context.get_x_argument(), argv=sys.argv, cwd=os.getcwd(), sql=c.cmd_opts.sql,\n\
         schema=c.attributes['x_args'].get('schema'), tail=c.get_main_option('sqlalchemy.url')[-12:],\n\
         cargo=[n for n in os.environ if n in ('CARGO_PKG_NAME', 'CARGO_MANIFEST_DIR')], stdin=sys.stdin.read(), left=os.environ.get('LEFT'))\n\
         os.environ['LEFT'] = 'behind'\nprint('seen', json.dumps(seen))\n{at_home}"
    );
    let project = Handmade::new(&env).revision("a", None, "pass");
    project.write("beside.py", "");
    let mut process = warm().await;
    let url = format!("{}?application_name=a%25b", database.url);
    for _ in 0..2 {
        let tenant = Tenant::new(&url).schema("s p").scheme("postgresql+psycopg2");
        let mut asked = project.project();
        asked.x.insert("tenant".into(), "{schema} of {database}".into());
        process.migrate(&asked, &tenant.up()).await.expect("a migration");
        let tail = process.stderr_tail();
        let seen = tail
            .lines()
            .find_map(|line| line.strip_prefix("seen "))
            .expect(&tail);
        let seen: serde_json::Value = serde_json::from_str(seen).expect("JSON");
        assert_eq!(seen["x"][1], "schema=s p");
        let name = DatabaseUrl::parse(&database.url).expect("a URL").database();
        assert_eq!(seen["x"][2], format!("tenant=s p of {name}"));
        assert!(
            seen["x"][0]
                .as_str()
                .is_some_and(|x| x.starts_with("url=postgresql+psycopg2://")),
            "{seen}"
        );
        assert_eq!(seen["tail"], "n_name=a%25b");
        assert_eq!(seen["schema"], "s p");
        assert_eq!(seen["sql"], false);
        assert_eq!(
            seen["cargo"],
            serde_json::json!(["CARGO_MANIFEST_DIR"]),
            "all but what was removed"
        );
        assert_eq!(seen["stdin"], "");
        assert_eq!(
            seen["left"],
            serde_json::Value::Null,
            "one tenant's environment is not the next one's"
        );
        assert_eq!(seen["argv"][0], "alembic");
        let folder = project.folder.path().canonicalize().expect("a folder");
        assert_eq!(seen["cwd"], folder.display().to_string());
    }
}

#[tokio::test]
async fn an_env_that_uses_one_loop_by_hand_serves_many_tenants() {
    let env = ASYNC_ENV.replace(
        "asyncio.run(main())",
        "loop = asyncio.get_event_loop()\nloop.run_until_complete(main())\nloop.close()",
    );
    let project = Handmade::new(&env).revision("a", None, "pass");
    let mut process = warm().await;
    for _ in 0..3 {
        let database = Database::new().await;
        let tenant = Tenant::new(&database.url).scheme("postgresql+asyncpg");
        process
            .migrate(&project.project(), &tenant.up())
            .await
            .expect("a migration");
    }
}

#[tokio::test]
async fn printing_and_logging_do_not_disturb() {
    let database = Database::new().await;
    let noise = "print('hello'); __import__('sys').__stdout__.write('raw\\n'); __import__('os').system('echo child'); __import__('os').write(1, b'{\"id\": 1}\\n')";
    let project = Handmade::new(SYNC_ENV).revision("a", None, noise);
    let mut process = warm().await;
    let tenant = Tenant::new(&database.url).scheme("postgresql+psycopg2");
    process
        .migrate(&project.project(), &tenant.up())
        .await
        .expect("a migration");
    let tail = process.stderr_tail();
    for word in ["hello", "raw", "child", "{\"id\": 1}"] {
        assert!(tail.contains(word), "{tail}");
    }
    process.describe(&project.project()).await.expect("a description");
    assert_eq!(process.stderr_tail(), "", "each request has its own");
}

#[tokio::test]
async fn an_edited_revision_is_noticed() {
    let project = Handmade::new(SYNC_ENV).revision("a", None, "pass");
    let mut process = warm().await;
    let before = process.describe(&project.project()).await.expect("a description");
    let project = project
        .revision("a", None, "none")
        .revision("b", Some("a"), "pass");
    let after = process.describe(&project.project()).await.expect("a description");
    assert_eq!(after.heads, ["b"]);
    assert_ne!(before.revisions[0].sha256, after.revisions[0].sha256);
}

// ---------------------------------------------------------------- secrets

#[tokio::test]
async fn no_password_comes_back_in_any_form() {
    let database = Database::new().await;
    let shout = "\nimport sys\nurl = context.config.get_main_option('sqlalchemy.url')\nx = context.get_x_argument(as_dictionary=True)['url']\n\
                 from sqlalchemy.engine import make_url\npw = make_url(url).password\nprint(url, x, pw, repr(pw), ascii(pw))\n\
                 import json\nshell = ''.join(c if c.isalnum() else chr(92) + c for c in pw)\n\
                 odd = [shell, json.dumps(pw).replace('/', chr(92) + '/'), json.dumps(json.dumps(pw)), json.dumps([shell])]\n\
                 print(*odd)\n\
                 raise RuntimeError(f'cannot reach {url} with {pw} {pw!r} {odd} {odd[0]} {odd[1]} {odd[2]} {odd[3]}')\n";
    let env = format!("from alembic import context{shout}");
    let project = Handmade::new(&env).revision("a", None, "pass");
    let mut process = warm().await;
    let secret = "p%25a%40b%3A%2F%C3%BC%20x%27%5C%22tr0ub4dor";
    let url = database.url.replace("postgres@", &format!("postgres:{secret}@"));
    let error = tool(process.migrate(&project.project(), &Tenant::new(&url).up()).await);
    assert_eq!(error.kind, ToolErrorKind::Env);
    let all = format!("{error:?} {error} {}", process.stderr_tail());
    for form in [secret, "p%a@b:/ü x'\\", "a%40b", "a@b", "tr0ub4dor"] {
        assert!(!all.contains(form), "{form} is in {all}");
    }
    assert!(
        error
            .message
            .starts_with("RuntimeError: cannot reach postgresql://postgres:***@"),
        "{error}"
    );
    assert!(process.stderr_tail().contains("***"), "{}", process.stderr_tail());
}

#[tokio::test]
async fn a_percent_sign_that_an_ini_cannot_hold_is_explained() {
    let database = Database::new().await;
    let env = "from alembic import context\n\
               url = context.get_x_argument(as_dictionary=True)['url']\n\
               context.config.set_main_option('sqlalchemy.url', url)\n";
    let project = Handmade::new(env).revision("a", None, "pass");
    let url = database.url.replace("postgres@", "postgres:a%40b@");
    let error = tool(
        warm()
            .await
            .migrate(&project.project(), &Tenant::new(&url).up())
            .await,
    );
    assert_eq!(
        error.hint.as_deref(),
        Some(
            "an ini writes `%` as `%%`: in env.py, config.set_main_option(\"sqlalchemy.url\", url.replace(\"%\", \"%%\"))"
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_password_of_odd_characters_logs_in() {
    let database = Database::new().await;
    // A server that trusts everybody proves nothing here, but does no harm.
    let role = format!("odd_{}", uuid::Uuid::new_v4().simple());
    database
        .run(&format!(
            "create role {role} superuser login password 'p%a@b:/ü x''\\?#[+&='"
        ))
        .await;
    let group = crate::server::WITH_PASSWORD;
    database.run(&format!("grant {group} to {role}")).await;
    let secret = "p%25a%40b%3A%2F%C3%BC%20x%27%5C%3F%23%5B%2B%26%3D";
    let url = database.url.replace("postgres@", &format!("{role}:{secret}@"));
    let mut process = warm().await;
    for (scheme, env) in [
        ("postgresql+psycopg2", SYNC_ENV),
        ("postgresql+psycopg", SYNC_ENV),
        ("postgresql+asyncpg", ASYNC_ENV),
    ] {
        let project = Handmade::new(env).revision("a", None, "pass");
        process
            .migrate(&project.project(), &Tenant::new(&url).scheme(scheme).up())
            .await
            .expect(scheme);
    }
    database.run(&format!("drop owned by {role}")).await;
    database.run(&format!("drop role {role}")).await;
}

// ---------------------------------------------------------------- failures

#[tokio::test]
async fn the_databases_own_errors_come_back_with_sqlstate_statement_and_revision() {
    let mut process = warm().await;
    for (scheme, env) in [
        ("postgresql+psycopg2", SYNC_ENV),
        ("postgresql+psycopg", SYNC_ENV),
        ("postgresql+asyncpg", ASYNC_ENV),
    ] {
        let database = Database::new().await;
        let insert = r#"op.get_bind().execute(sa.text("insert into t values (:v)"), {"v": "hush-hush"})"#;
        let project = Handmade::new(env)
            .revision("a", None, r#"op.execute("create table t (v text primary key)")"#)
            .revision("b", Some("a"), &format!("{insert}\n    {insert}"));
        let tenant = Tenant::new(&database.url).scheme(scheme);
        let error = tool(process.migrate(&project.project(), &tenant.up()).await);
        assert_eq!(error.kind, ToolErrorKind::Database, "{scheme}: {error:?}");
        assert_eq!(error.sqlstate.as_deref(), Some("23505"), "{scheme}");
        assert_eq!(
            error.message, "duplicate key value violates unique constraint \"t_pkey\"",
            "{scheme}"
        );
        assert_eq!(error.revision.as_deref(), Some("b"), "{scheme}");
        assert!(
            error
                .statement
                .as_deref()
                .is_some_and(|s| s.starts_with("insert into t")),
            "{scheme}: {error:?}"
        );
        assert!(!format!("{error:?}").contains("hush"), "{scheme}: {error:?}");
        assert_eq!(
            error.to_string(),
            "b: duplicate key value violates unique constraint \"t_pkey\" (23505)"
        );

        // The first error counts, not the one about the transaction that it broke.
        let body =
            "try:\n        op.execute('select 1/0')\n    except Exception:\n        op.execute('select 1')";
        let project = Handmade::new(env).revision("a", None, body);
        let error = tool(process.migrate(&project.project(), &tenant.up()).await);
        assert_eq!(error.sqlstate.as_deref(), Some("22012"), "{scheme}: {error:?}");
    }
}

#[tokio::test]
async fn an_index_that_was_broken_off_is_not_taken_for_a_good_one() {
    let mut process = warm().await;
    for (scheme, env) in DRIVERS {
        let database = Database::new().await;
        let build = "with op.get_context().autocommit_block():\n        \
                     op.create_index('Ix', 't', ['x'], unique=True, postgresql_concurrently=True, if_not_exists=True)";
        let plain = "with op.get_context().autocommit_block():\n        \
                     op.execute('create /* slowly */ index concurrently iy\\n on t (f(x)) -- again')";
        let project = Handmade::new(env)
            .revision("a", None, build)
            .revision("b", Some("a"), plain);
        database.run("create table t (x int)").await;
        database.run("insert into t values (1), (1)").await;
        database
            .run("create function f(x int) returns int immutable return 1 / x")
            .await;
        let tenant = Tenant::new(&database.url).scheme(scheme);
        let leftover = async || {
            let names =
                "select string_agg(indexrelid::regclass::text, ' ') from pg_index where not indisvalid";
            database.text(names).await
        };
        let twice = tool(process.migrate(&project.project(), &tenant.up()).await);
        assert_eq!(twice.sqlstate.as_deref(), Some("23505"), "{scheme}");
        assert_eq!(leftover().await.as_deref(), Some("\"Ix\""), "{scheme}");
        database.run("delete from t").await;
        database.run("insert into t values (0)").await;
        let zero = tool(process.migrate(&project.project(), &tenant.up()).await);
        assert_eq!(zero.sqlstate.as_deref(), Some("22012"), "{scheme}");
        assert_eq!(leftover().await.as_deref(), Some("iy"), "{scheme}");
        database.run("update t set x = 1").await;
        process
            .migrate(&project.project(), &tenant.up())
            .await
            .expect(scheme);
        assert_eq!(leftover().await, None, "{scheme}");
        let built = "select count(*) from pg_index where indrelid = 't'::regclass and indisvalid";
        assert_eq!(database.count(built).await, 2, "{scheme}");
    }
}

/// Its ledger is the tenant's, so that all would be well but for the tables.
#[tokio::test]
async fn an_env_that_works_in_another_schema_is_refused_before_it_makes_anything_there() {
    let mut process = warm().await;
    let database = Database::new().await;
    database.run("create schema \"Acme\"").await;
    database.run("create table here (x int)").await;
    let own = "context.configure(connection=connection, version_table_schema=context.get_x_argument(as_dictionary=True)['schema'])";
    let strayed = |env: &str| env.replace("context.configure(connection=connection)", own);
    let astray = strayed(SYNC_ENV);
    let unquoted = astray.replace(
        "    context.configure",
        "    connection.exec_driver_sql('set search_path to Acme, public')\n    context.configure",
    );
    for env in [&astray, &unquoted] {
        for body in [
            "op.create_table('t', sa.Column('x', sa.Integer), if_not_exists=True)",
            "op.execute('/* one */ create table if not exists \"t\" (x int)')",
            "op.execute('alter table if exists only here add y int')",
            "op.drop_table('here')",
            "op.execute('create or replace view v as select 1')",
            "op.execute('create table t (x text default current_setting($$search_path$$))')",
        ] {
            let project = Handmade::new(env).revision("a", None, body);
            let tenant = Tenant::new(&database.url).schema("Acme");
            let error = tool(process.migrate(&project.project(), &tenant.up()).await);
            assert_eq!(error.kind, ToolErrorKind::Env, "{body}: {error:?}");
            assert!(
                error.message.starts_with("env.py works in schema `public`"),
                "{error:?}"
            );
        }
    }
    // Nor does it help to have been at home before.
    let home = "op.execute('set search_path to \"Acme\"')\n    op.execute('create table u (x int)')";
    for left in [
        "op.execute('set search_path to public')",
        "op.get_bind().execute(sa.text(\"select set_config('search_path', 'public', false)\"))",
        "op.execute('reset search_path')",
        "op.execute('create table w (x int); set search_path to public')",
    ] {
        let body = format!("{home}\n    {left}\n    op.execute('create table t (x int)')");
        let project = Handmade::new(&astray).revision("a", None, &body);
        let tenant = Tenant::new(&database.url).schema("Acme");
        let error = tool(process.migrate(&project.project(), &tenant.up()).await);
        assert!(
            error.message.starts_with("env.py works in schema `public`"),
            "{left}: {error:?}"
        );
    }
    // Nor to swallow it: the ledger must not say that it was done.
    let swallowed =
        "try:\n        op.execute('alter table here add y int')\n    except Exception:\n        pass";
    for (scheme, env) in [
        ("postgresql+psycopg2", astray.clone()),
        ("postgresql+asyncpg", strayed(ASYNC_ENV)),
    ] {
        let project = Handmade::new(&env).revision("a", None, swallowed);
        let tenant = Tenant::new(&database.url).schema("Acme").scheme(scheme);
        let error = tool(process.migrate(&project.project(), &tenant.up()).await);
        assert_eq!(error.kind, ToolErrorKind::Env, "{scheme}: {error:?}");
        let ledgers = "select count(*) from pg_class where relname = 'alembic_version'";
        assert_eq!(database.count(ledgers).await, 0, "{scheme}");
    }
    let seen = "select count(*) from pg_class where relnamespace = 'public'::regnamespace";
    assert_eq!(database.count(seen).await, 1);
    // Who says the schema each time, or has it said, is at home anywhere.
    let mapped = astray.replace(
        "as connection:",
        "as connection:\n    connection = connection.execution_options(schema_translate_map={None: 'Acme'})",
    );
    let body = "op.create_table('t', sa.Column('x', sa.Integer))\n    op.drop_table('t')\n    \
                op.execute('create temp table u (x int)')\n    op.execute('drop table u')\n    \
                op.execute('create table if not exists \"Acme\" . v (x int)')";
    let project = Handmade::new(&mapped).revision("a", None, body);
    let tenant = Tenant::new(&database.url).schema("Acme");
    process
        .migrate(&project.project(), &tenant.up())
        .await
        .expect("a migration");
    assert_eq!(database.count(seen).await, 1);
    let made = "select count(*) from pg_tables where schemaname = 'Acme' and tablename = 'v'";
    assert_eq!(database.count(made).await, 1);
    // What is done in another database of the product's is its own business.
    let central = Database::new().await;
    let url = central.url.replace("postgres://", "postgresql+psycopg2://");
    let body = format!(
        "with sa.create_engine('{url}').begin() as central:\n        \
         central.exec_driver_sql('create table if not exists audit (x int)')"
    );
    let project = Handmade::new(&mapped)
        .revision("a", None, "pass")
        .revision("b", Some("a"), &body);
    process
        .migrate(&project.project(), &tenant.up())
        .await
        .expect("a migration");
    assert_eq!(central.count("select count(*) from audit").await, 0);
}

/// A licence in a box, say. No look at a statement may take longer the more of them there are.
#[tokio::test]
async fn a_file_that_begins_with_many_remarks_takes_no_longer() {
    let database = Database::new().await;
    database.run("create schema acme").await;
    let astray = SYNC_ENV.replace(
        "    context.configure",
        "    connection.exec_driver_sql('set search_path to acme')\n    connection.commit()\n    context.configure",
    );
    let body = "for last in ('select 1', 'create table t (x int)', 'do $$begin end$$', 'create index i on t (x)'):\n        \
                op.execute('/* one */\\n-- two\\n/**/' * 60 + last)";
    let project = Handmade::new(&astray).revision("a", None, body);
    let tenant = Tenant::new(&database.url).schema("acme");
    let up = tenant.up();
    let (project, mut process) = (project.project(), warm().await);
    let migrated = tokio::time::timeout(Duration::from_secs(60), process.migrate(&project, &up));
    migrated.await.expect("an end").expect("a migration");
}

/// Before a statement of env.py's, Herder asks on the same connection: it breaks there as well as anywhere.
#[tokio::test]
async fn a_connection_that_was_lost_between_two_statements_is_no_fault_of_the_second() {
    let mut process = warm().await;
    for (scheme, env) in DRIVERS {
        let database = Database::new().await;
        database.run("create schema acme").await;
        let env = env.replace(
            "context.configure(connection=connection)",
            "context.configure(connection=connection, version_table_schema='acme')",
        );
        let body = "import os, socket\n    raw = op.get_bind().connection.driver_connection\n    \
                    file = raw._transport.get_extra_info('socket') if hasattr(raw, '_transport') else raw\n    \
                    socket.socket(fileno=os.dup(file.fileno())).shutdown(socket.SHUT_RDWR)\n    \
                    op.execute('create table t (x int)')";
        let project = Handmade::new(&env).revision("a", None, body);
        let tenant = Tenant::new(&database.url).schema("acme").scheme(scheme);
        let error = tool(process.migrate(&project.project(), &tenant.up()).await);
        let is_lost = error.kind == ToolErrorKind::Connect || error.sqlstate.as_deref() == Some("08003");
        assert!(is_lost, "{scheme}: {error:?}");
    }
}

#[tokio::test]
async fn a_held_lock_is_a_lock_timeout() {
    let database = Database::new().await;
    database.run("create table t (v text)").await;
    let mut holder = database.pool.begin().await.expect("a transaction");
    holder.execute("lock table t").await.expect("a lock");
    let mut process = warm().await;
    for (scheme, env) in [
        ("postgresql+psycopg2", SYNC_ENV),
        ("postgresql+asyncpg", ASYNC_ENV),
    ] {
        let project = Handmade::new(env).revision("a", None, r#"op.execute("alter table t add w int")"#);
        let tenant = Tenant::new(&database.url)
            .scheme(scheme)
            .setting("lock_timeout", "50ms");
        let error = tool(process.migrate(&project.project(), &tenant.up()).await);
        assert_eq!(error.sqlstate.as_deref(), Some("55P03"), "{scheme}: {error:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_from_one_that_refuses() {
    let database = Database::new().await;
    let mut process = warm().await;
    for (scheme, env) in [
        ("postgresql+psycopg2", SYNC_ENV),
        ("postgresql+psycopg", SYNC_ENV),
        ("postgresql+asyncpg", ASYNC_ENV),
    ] {
        let project = Handmade::new(env).revision("a", None, "pass");
        let nobody = Tenant::new("postgres://u:hush@127.0.0.1:1/d").scheme(scheme);
        let error = tool(process.migrate(&project.project(), &nobody.up()).await);
        assert_eq!(
            (error.kind, error.sqlstate.as_deref()),
            (ToolErrorKind::Connect, None),
            "{scheme}: {error:?}"
        );

        // The throw-away server has no TLS.
        let url = format!("{}?sslmode=require", database.url);
        let error = tool(
            process
                .migrate(&project.project(), &Tenant::new(&url).scheme(scheme).up())
                .await,
        );
        assert_eq!(error.kind, ToolErrorKind::Connect, "{scheme}: {error:?}");
        assert!(error.message.contains("SSL"), "{scheme}: {error:?}");

        let url = format!("{}/not_there", server().await);
        let error = tool(
            process
                .migrate(&project.project(), &Tenant::new(&url).scheme(scheme).up())
                .await,
        );
        assert_eq!(error.sqlstate.as_deref(), Some("3D000"), "{scheme}: {error:?}");

        let url = database.url.replace("postgres@", "stranger@");
        let error = tool(
            process
                .migrate(&project.project(), &Tenant::new(&url).scheme(scheme).up())
                .await,
        );
        assert!(
            error.sqlstate.as_deref().is_some_and(|s| s.starts_with("28")),
            "{scheme}: {error:?}"
        );

        let narrow = format!("narrow_{}", uuid::Uuid::new_v4().simple());
        database
            .run(&format!("create role {narrow} login connection limit 0"))
            .await;
        let url = database.url.replace("postgres@", &format!("{narrow}@"));
        let error = tool(
            process
                .migrate(&project.project(), &Tenant::new(&url).scheme(scheme).up())
                .await,
        );
        assert_eq!(error.sqlstate.as_deref(), Some("53300"), "{scheme}: {error:?}");

        let end = "op.execute('select pg_terminate_backend(pg_backend_pid())')";
        let project = Handmade::new(env).revision("a", None, end);
        let tenant = Tenant::new(&database.url).scheme(scheme);
        let error = tool(process.migrate(&project.project(), &tenant.up()).await);
        // psycopg tells of the closed connection only, and so does an older asyncpg.
        let ended = matches!(error.sqlstate.as_deref(), Some("57P01" | "08003"));
        let ended = ended || error.kind == ToolErrorKind::Connect;
        assert!(ended, "{scheme}: {error:?}");
        assert_eq!(error.revision.as_deref(), Some("a"), "{scheme}: {error:?}");
    }
}

#[tokio::test]
async fn a_project_that_cannot_work_says_so_before_any_tenant_is_touched() {
    use ToolErrorKind::{Config, Env, Script};
    let good = || Handmade::new(SYNC_ENV).revision("a", None, "pass");
    let with = |file: &str, text: &str| {
        let project = good();
        project.write(file, text);
        project
    };
    let header = "revision = 'b'\ndown_revision = 'a'\n";
    let cases = [
        (with("alembic.ini", "[alembic]\n"), Config, "script_location"),
        (
            with("alembic.ini", "[alembic]\nscript_location = nowhere\n"),
            Config,
            "nowhere",
        ),
        (
            with("alembic.ini", "script_location = x\n"),
            Config,
            "no section headers",
        ),
        (
            with("migrations/env.py", "import x\nif True\n"),
            Env,
            "(migrations/env.py, line 2)",
        ),
        (
            with("migrations/versions/b.py", &format!("{header}\ndef upgrade(:\n")),
            Script,
            "(migrations/versions/b.py, line 4)",
        ),
        (
            with(
                "migrations/versions/b.py",
                &format!("{header}import sys\nsys.exit(3)\n"),
            ),
            Script,
            "sys.exit(3) (migrations/versions/b.py, line 4)",
        ),
        (
            with("migrations/versions/b.py", &format!("{header}import no_such\n")),
            Script,
            "ModuleNotFoundError: No module named 'no_such' (migrations/versions/b.py, line 3)",
        ),
        (
            with(
                "migrations/versions/b.py",
                "revision = 'a'\ndown_revision = None\n",
            ),
            Script,
            "revision a is in two files: migrations/versions/a.py and migrations/versions/b.py",
        ),
        (
            with(
                "migrations/versions/b.py",
                "revision = 'b'\ndown_revision = 'zz'\n",
            ),
            Script,
            "revision b (migrations/versions/b.py) follows zz, which no file defines",
        ),
        (
            good()
                .revision("b", Some("c"), "pass")
                .revision("c", Some("b"), "pass"),
            Script,
            "Cycle is detected in revisions (b, c)",
        ),
        (
            with("migrations/versions/other.py", "x = 1\n"),
            Script,
            "Could not determine revision id from filename other.py",
        ),
        (
            with("migrations/versions/b.py", "revision = 'b'\n"),
            Script,
            "AttributeError: module 'b_py' has no attribute 'down_revision' (migrations/versions/b.py)",
        ),
    ];
    let mut process = warm().await;
    for (project, kind, words) in &cases {
        let error = tool(process.describe(&project.project()).await);
        assert_eq!(error.kind, *kind, "{error:?}");
        assert!(error.message.contains(words), "{words} is not in {error:?}");
        assert!(!error.message.contains('\n'), "{error:?}");
    }
    let error = tool(process.describe(&Project::new("/no/such/alembic.ini")).await);
    assert_eq!(
        (error.kind, error.message.as_str()),
        (Config, "there is no /no/such/alembic.ini")
    );
    let error = tool(
        process
            .describe(&Project {
                section: "other".into(),
                ..good().project()
            })
            .await,
    );
    assert_eq!(error.kind, Config, "{error:?}");
    assert!(error.hint.is_some(), "{error:?}");

    // The same process goes on with a good one; two heads are no mistake in themselves.
    let forked = good()
        .revision("b", Some("a"), "pass")
        .revision("c", Some("a"), "pass");
    assert_eq!(
        process
            .describe(&forked.project())
            .await
            .expect("a description")
            .heads,
        ["b", "c"]
    );
}

#[tokio::test]
async fn targets_that_make_no_sense_are_told_apart() {
    let database = Database::new().await;
    let mut process = warm().await;
    let tenant = Tenant::new(&database.url).scheme("postgresql+psycopg2");
    let forked = Handmade::new(SYNC_ENV)
        .revision("a", None, "pass")
        .revision("b", Some("a"), "pass")
        .revision("c", Some("a"), "pass");
    let error = tool(process.migrate(&forked.project(), &tenant.up()).await);
    assert_eq!(error.kind, ToolErrorKind::Target, "{error:?}");
    assert!(
        error
            .hint
            .as_deref()
            .is_some_and(|hint| hint.contains("alembic merge heads")),
        "{error:?}"
    );
    let heads = tenant.to(Direction::Upgrade, "heads");
    assert_eq!(
        process
            .migrate(&forked.project(), &heads)
            .await
            .expect("both")
            .steps
            .len(),
        3
    );

    let unknown = tenant.to(Direction::Upgrade, "zzz");
    let error = tool(process.migrate(&forked.project(), &unknown).await);
    assert_eq!(error.message, "Can't locate revision identified by 'zzz'");
    assert!(
        error
            .hint
            .as_deref()
            .is_some_and(|hint| hint.contains("alembic history")),
        "{error:?}"
    );

    let newer = Handmade::new(SYNC_ENV).revision("a", None, "pass");
    let error = tool(process.migrate(&newer.project(), &tenant.up()).await);
    assert_eq!(error.kind, ToolErrorKind::Target, "{error:?}");
    assert!(
        error
            .hint
            .as_deref()
            .is_some_and(|hint| hint.contains("deploy the version")),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_env_that_fails_says_where() {
    let database = Database::new().await;
    let cases = [
        (
            "raise ValueError('no\\nway')",
            None,
            "ValueError: no way (migrations/env.py, line 1)",
            None,
        ),
        (
            "import sys\nsys.exit('enough')",
            None,
            "sys.exit(enough) (migrations/env.py, line 2)",
            None,
        ),
        (
            "raise KeyboardInterrupt",
            None,
            "KeyboardInterrupt (migrations/env.py, line 1)",
            None,
        ),
        (
            "x = 1",
            None,
            "env.py ended without running any migration",
            Some("context.run_migrations"),
        ),
        (
            SYNC_ENV,
            Some("postgresql+asyncpg"),
            "MissingGreenlet",
            Some("env.py is synchronous"),
        ),
        (
            ASYNC_ENV,
            Some("postgresql+psycopg2"),
            "async",
            Some("env.py is asynchronous"),
        ),
        (SYNC_ENV, Some("postgresql+nope"), "nope", None),
    ];
    let mut process = warm().await;
    for (env, scheme, words, hint) in cases {
        let project = Handmade::new(env).revision("a", None, "pass");
        let mut tenant = Tenant::new(&database.url);
        tenant.scheme = scheme;
        let error = tool(process.migrate(&project.project(), &tenant.up()).await);
        assert_eq!(error.kind, ToolErrorKind::Env, "{error:?}");
        assert!(error.message.contains(words), "{words} is not in {error:?}");
        if let Some(hint) = hint {
            assert!(
                error.hint.as_deref().is_some_and(|given| given.contains(hint)),
                "{error:?}"
            );
        }
    }
    for (body, words) in [
        (
            "raise LookupError('gone')",
            "LookupError: gone (migrations/versions/a.py, line 8)",
        ),
        (
            "raise SystemExit(4)",
            "sys.exit(4) (migrations/versions/a.py, line 8)",
        ),
    ] {
        let project = Handmade::new(SYNC_ENV).revision("a", None, body);
        let tenant = Tenant::new(&database.url).scheme("postgresql+psycopg2");
        let error = tool(process.migrate(&project.project(), &tenant.up()).await);
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ToolErrorKind::Migration, words)
        );
        assert_eq!(error.revision.as_deref(), Some("a"));
    }
    assert_eq!(database.sessions().await, 0);
}

// ---------------------------------------------------------------- starting and ending

#[tokio::test]
async fn a_python_that_cannot_serve_is_named() {
    let start = async |python: &str| {
        let launch = Launch {
            python: python.into(),
            env_remove: Vec::new(),
        };
        WarmProcess::spawn(&launch).await.map(|_| ()).expect_err(python)
    };
    let error = start("/no/such/python").await;
    assert!(matches!(error, WarmError::PythonMissing { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "cannot start the Python interpreter `/no/such/python`"
    );

    let bare = Command::new(crate::venv::python())
        .args(["-c", "import sys; print(sys.base_prefix + '/bin/python3')"])
        .output()
        .expect("Python");
    let error = start(String::from_utf8_lossy(&bare.stdout).trim()).await;
    assert!(matches!(error, WarmError::AlembicMissing { .. }), "{error:?}");
    assert!(error.to_string().contains("No module named 'alembic'"), "{error}");

    assert!(matches!(start("/bin/false").await, WarmError::Died { .. }));
    // It may end before it was told everything.
    assert!(matches!(
        start("/bin/echo").await,
        WarmError::Protocol { .. } | WarmError::Died { .. }
    ));
}

/// A migration that starts a child, tells its process id, and waits for a lock that the test holds.
const STUCK: &str = r#"p = __import__('subprocess').Popen(['sleep', '1000'])
    op.execute(f"create table started as select {p.pid} as child, {__import__('os').getpid()} as python")
    op.get_context().connection.commit()
    op.execute("select pg_advisory_lock(1)")
    op.execute("create table finished ()")"#;

struct Stuck {
    database: Database,
    _lock: sqlx::pool::PoolConnection<sqlx::Postgres>,
}

impl Stuck {
    async fn new() -> Self {
        let database = Database::new().await;
        let mut lock = database.pool.acquire().await.expect("a connection");
        lock.execute("select pg_advisory_lock(1)").await.expect("a lock");
        Self {
            database,
            _lock: lock,
        }
    }

    fn tenant(url: &str) -> Tenant<'_> {
        Tenant::new(url)
            .scheme("postgresql+psycopg2")
            .setting("client_connection_check_interval", "100ms")
            .setting("lock_timeout", "0")
    }

    async fn wait_until_stuck(&self) -> [i64; 2] {
        let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())";
        until("the migration waits", 1, || self.database.count(waiting)).await;
        [
            self.database.count("select child::int8 from started").await,
            self.database.count("select python::int8 from started").await,
        ]
    }

    async fn assert_all_gone(&self, pids: [i64; 2]) {
        // A zombie has no command line any more.
        let alive = async || {
            pids.iter()
                .filter(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| !c.is_empty()))
                .count()
        };
        until("python and its child are gone", 0, alive).await;
        until("its backend is gone", 0, || self.database.sessions()).await;
        assert_eq!(
            self.database.text("select to_regclass('finished')::text").await,
            None
        );
    }
}

#[tokio::test]
async fn dropping_a_migration_ends_it_with_all_it_started() {
    let stuck = Stuck::new().await;
    let project = Handmade::new(SYNC_ENV).revision("a", None, STUCK);
    let pool = WarmPool::new(launch(), 1);
    let mut process = pool.checkout().await.expect("a process");
    let tenant = Stuck::tenant(&stuck.database.url);
    let (migration, project) = (tenant.up(), project.project());
    let pids = tokio::select! {
        ended = process.migrate(&project, &migration) => panic!("it was not stuck: {ended:?}"),
        pids = stuck.wait_until_stuck() => pids,
    };
    stuck.assert_all_gone(pids).await;
    assert!(!process.is_usable());
    assert!(matches!(
        process.describe(&project).await,
        Err(WarmError::Protocol { .. })
    ));
    drop(process);
    pool.checkout()
        .await
        .expect("another process")
        .describe(&project)
        .await
        .expect("a description");
}

#[tokio::test]
async fn a_killed_process_is_reported_dead_with_its_last_words() {
    let stuck = Stuck::new().await;
    let body = format!("print('last words', flush=True)\n    {STUCK}");
    let project = Handmade::new(SYNC_ENV).revision("a", None, &body);
    let mut process = warm().await;
    let tenant = Stuck::tenant(&stuck.database.url);
    let (migration, project) = (tenant.up(), project.project());
    let (ended, pids) = tokio::join!(process.migrate(&project, &migration), async {
        let pids = stuck.wait_until_stuck().await;
        Command::new("kill")
            .args(["-9", &pids[1].to_string()])
            .status()
            .expect("kill");
        pids
    });
    match ended {
        Err(WarmError::Died { status, stderr_tail }) => {
            assert_eq!(status.to_string(), "signal: 9 (SIGKILL)");
            assert_eq!(stderr_tail, "last words");
        }
        other => panic!("{other:?}"),
    }
    stuck.assert_all_gone(pids).await;
}

/// Not a test: the parent that `a_killed_worker_takes_its_migrations_along` kills.
#[tokio::test]
#[ignore = "the other half of a test"]
async fn migrates_until_killed() {
    let (Ok(ini), Ok(url)) = (std::env::var("INI"), std::env::var("URL")) else {
        return;
    };
    let _ = warm()
        .await
        .migrate(&Project::new(ini), &Stuck::tenant(&url).up())
        .await;
}

#[tokio::test]
async fn a_killed_worker_takes_its_migrations_along() {
    let stuck = Stuck::new().await;
    let project = Handmade::new(SYNC_ENV).revision("a", None, STUCK);
    let mut worker = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "alembic_process::migrates_until_killed", "--ignored"])
        .env("INI", project.project().ini)
        .env("URL", &stuck.database.url)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a worker");
    let pids = stuck.wait_until_stuck().await;
    worker.kill().expect("kill -9");
    worker.wait().expect("its end");
    stuck.assert_all_gone(pids).await;
}

#[tokio::test]
async fn a_pool_reuses_its_processes_and_never_exceeds_its_size() {
    let pool = WarmPool::new(launch(), 2);
    let project = Handmade::new(SYNC_ENV).revision(
        "a",
        None,
        r#"op.execute(f"create table t as select {__import__('os').getppid()} as pid")"#,
    );
    let work = async |_: usize| {
        let database = Database::new().await;
        let tenant = Tenant::new(&database.url).scheme("postgresql+psycopg2");
        let mut process = pool.checkout().await.expect("a process");
        process
            .migrate(&project.project(), &tenant.up())
            .await
            .expect("a migration");
        database.count("select pid::int8 from t").await
    };
    let pids = futures_util::future::join_all((0..6).map(work)).await;
    let distinct: std::collections::BTreeSet<_> = pids.iter().collect();
    assert!(distinct.len() <= 2, "{pids:?}");

    let waiting = tokio::time::timeout(Duration::from_millis(50), async {
        let _held = (pool.checkout().await, pool.checkout().await);
        pool.checkout().await.map(|_| ())
    });
    assert!(waiting.await.is_err(), "a third has to wait");
    pool.checkout()
        .await
        .expect("a process after all")
        .describe(&project.project())
        .await
        .expect("a description");
}

/// Prints milliseconds per tenant. `cargo test --test it -- --ignored --nocapture how_fast`
#[tokio::test]
#[ignore = "a measurement"]
async fn how_fast_a_warm_process_is() {
    let database = Database::new().await;
    let start = Instant::now();
    let mut process = warm().await;
    eprintln!("start: {:?}", start.elapsed());
    for ini in ["alembic_schema.ini", "alembic_sync.ini"] {
        for count in [1_usize, 12] {
            let target = if count == 1 { "0001_accounts" } else { "head" };
            let rounds = 40;
            let mut spent = Duration::ZERO;
            for round in 0..rounds {
                let schema = format!("{}_{count}_{round}", ini.replace(".ini", ""));
                database.run(&format!("create schema {schema}")).await;
                let tenant = Tenant::new(&database.url).schema(&schema);
                let start = Instant::now();
                let migrated: Migrated = process
                    .migrate(&saas(ini), &tenant.to(Direction::Upgrade, target))
                    .await
                    .expect("a migration");
                spent += start.elapsed();
                assert_eq!(migrated.steps.len(), count);
            }
            eprintln!("{ini}, {count} steps: {:?} a tenant", spent / rounds);
        }
    }
}
