//! What goes wrong in a database or on the way to it, and how it is told.

use std::time::Duration;

use herder::runner::alembic::ToolErrorKind;
use sqlx::Executor as _;

use crate::handmade::{ASYNC_ENV, DRIVERS, Database, Handmade, SYNC_ENV, Tenant, server, tool, warm};

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
async fn what_the_server_says_to_do_comes_back() {
    let mut process = warm().await;
    for (scheme, env) in DRIVERS {
        let database = Database::new().await;
        let body =
            "op.execute(\"do $$ begin raise exception 'not now' using hint = 'Ask the DBA.'; end $$\")";
        let project = Handmade::new(env).revision("a", None, body);
        let tenant = Tenant::new(&database.url).scheme(scheme);
        let error = tool(process.migrate(&project.project(), &tenant.up()).await);
        assert_eq!(
            (error.message.as_str(), error.hint.as_deref()),
            ("not now", Some("Ask the DBA")),
            "{scheme}"
        );
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
