//! What env.py does besides its revisions, and only where it is connected.

use super::*;

/// A table that a tenant's rows are in, and a function that changes them.
const INFO: &[&str] = &[
    "create table t (id int primary key, x text)",
    "create table info (id int primary key, v text)",
    "create function tidy() returns void language sql as $$ update info set v = 'tidied' $$",
    "create materialized view mv as select 1 as one",
];

/// `ENV` with lines of Python where its connection is set up, and where its revisions are done.
fn env(before: &str, after: &str) -> String {
    let path = "        connection.execute(text(f'SET search_path TO \"{schema}\"'))\n";
    let end = "            context.run_migrations()\n\n\noffline()";
    let before: String = before.lines().map(|line| format!("        {line}\n")).collect();
    let after: String = after.lines().map(|line| format!("        {line}\n")).collect();
    let env = ENV.replace(path, &format!("{path}{before}")).replace(
        end,
        &format!("            context.run_migrations()\n{after}\n\noffline()"),
    );
    env.replacen(
        "import create_engine, pool, text",
        "import create_engine, event, inspect, pool, text",
        1,
    )
}

/// What env.py says once its revisions are done, where there is a table to say it of.
fn afterwards(statement: &str) -> String {
    let looks = "if context.get_context().get_current_revision():";
    env(
        "",
        &format!("{looks}\n    connection.execute(text({statement:?}))\n    connection.commit()"),
    )
}

async fn fleet() -> Fleet {
    let second = executes(&["update t set x = 'y'", "refresh materialized view mv"]);
    let fleet = Fleet::new(ENV, &[("a", &executes(INFO)), ("b", &second)]).await;
    let shared = "create schema shared; create table shared.fleet (version int);
                  create function shared.set_tenant() returns void language sql as
                  $$ select set_config('app.tenant', 'acme', false) $$";
    run(&mut fleet.admin().await, shared).await;
    fleet
}

impl Fleet {
    async fn with_env(&self, env: &str) -> Result<Plan, String> {
        let folder = self._folder.as_ref().expect("a folder").path();
        std::fs::write(folder.join("migrations/env.py"), env).expect("env.py");
        self.up(&["a"], "b").await
    }
}

/// A scratch tenant has no rows to show it.
#[tokio::test]
async fn whatever_looks_like_a_query_and_is_more_makes_no_plan() {
    let fleet = fleet().await;
    for said in [
        "UPDATE info SET v = (SELECT max(version_num) FROM alembic_version)",
        "WITH x AS (SELECT 'done'::text AS d) UPDATE info SET v = x.d FROM x",
        "SELECT tidy()",
        "SELECT 1; SELECT \"tidy\" ()",
        "SELECT max(v) FROM info",
        "DO $$ begin perform tidy(); end $$",
        // A revision of the plan says it as well, but not behind itself.
        "REFRESH MATERIALIZED VIEW mv",
        // It is there in this database.
        "CREATE SCHEMA IF NOT EXISTS shared",
    ] {
        let why = fleet.with_env(&afterwards(said)).await.expect_err(said);
        let last = said.strip_prefix("SELECT 1; ").unwrap_or(said);
        assert_eq!(
            why,
            format!("env.py says `{last}` only where it is connected"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_setting_that_a_query_makes_makes_no_plan() {
    let fleet = fleet().await;
    let both = "SELECT set_config('search_path', current_setting('search_path'), false), set_config('app.tenant', 'acme', false)";
    for said in ["SELECT shared.set_tenant()", both] {
        let before = format!("connection.execute(text({said:?}))");
        let why = fleet.with_env(&env(&before, "")).await.expect_err(said);
        assert_eq!(
            why,
            format!(
                "env.py says `{}` only where it is connected",
                herder::domain::failure::cut(said, 120)
            )
        );
    }
    let on_apply = ENV.replace(
        "context.configure(connection=connection,",
        "context.configure(connection=connection, on_version_apply=lambda ctx, **_: ctx.connection.execute(
            text('update t set x = (select max(version_num) from alembic_version)')),",
    );
    let why = fleet.with_env(&on_apply).await.expect_err("a callback");
    assert_eq!(
        why,
        "revision b: `update t set x = (select max(version_num) from alembic_version)` runs only where Alembic is connected"
    );
}

#[tokio::test]
async fn an_engine_that_connects_in_a_way_of_its_own_makes_no_plan() {
    let fleet = fleet().await;
    let engine = "    with create_engine(url, poolclass=pool.NullPool).connect() as connection:\n";
    let options = "cp.update(options=cp.get('options', '') + ' -c app.tenant=acme')";
    let listening = format!(
        "    engine = create_engine(url, poolclass=pool.NullPool)\n    \
         event.listen(engine, 'do_connect', lambda d, r, ca, cp: {options})\n    with engine.connect() as connection:\n"
    );
    let creating = "    import psycopg2\n    creator = lambda: psycopg2.connect(url.replace('+psycopg2', ''), options='-c app.tenant=acme')\n    \
                    with create_engine(url, creator=creator, poolclass=pool.NullPool).connect() as connection:\n";
    let told = format!("    import os\n    os.environ['PGOPTIONS'] = '-c app.tenant=acme'\n{engine}");
    let rewriting = format!(
        "{engine}        event.listen(connection, 'before_cursor_execute', lambda c, k, s, p, x, m: (s.replace(\"'y'\", \"'z'\"), p), retval=True)\n"
    );
    for (how, why) in [
        (
            listening,
            "env.py has a `do_connect` of its own for its engine, and a plan is sent by another client",
        ),
        (
            creating.to_owned(),
            "env.py has a `creator` of its own for its engine, and a plan is sent by another client",
        ),
        (told, "env.py works with app.tenant acme, and a plan would not"),
        (
            rewriting,
            "env.py has a `before_cursor_execute` of its own for its engine, and a plan is sent by another client",
        ),
    ] {
        let env = env("", "").replace(engine, &how);
        assert_eq!(fleet.with_env(&env).await.expect_err(&how), why);
    }
}

/// A scratch tenant does not have what the others have, and the revisions may go by that.
#[tokio::test]
async fn what_env_asks_where_tenants_may_answer_otherwise_makes_no_plan() {
    let fleet = fleet().await;
    for asked in [
        "select to_regclass('legacy')",
        "select version from shared.fleet",
        "select count(*) from pg_catalog.pg_tables",
    ] {
        let keeps =
            format!("context.config.attributes['legacy'] = connection.execute(text({asked:?})).scalar()");
        assert_eq!(
            fleet.with_env(&env(&keeps, "")).await.expect_err(asked),
            format!("env.py says `{asked}` only where it is connected")
        );
    }
    for (question, asked) in [
        (
            "has_table",
            "inspect(connection).has_table('legacy', schema=schema)",
        ),
        (
            "get_table_names",
            "inspect(connection).get_table_names(schema=schema)",
        ),
        ("has_schema", "inspect(connection).has_schema('legacy')"),
        ("has_table", "connection.dialect.has_table(connection, 'legacy')"),
    ] {
        let keeps = format!("context.config.attributes['legacy'] = {asked}");
        assert_eq!(
            fleet.with_env(&env(&keeps, "")).await.expect_err(asked),
            format!(
                "env.py asks the database (`{question}`), which may give another answer in each tenant, or tomorrow"
            )
        );
    }
    // Those of the whole product, in a database of its own.
    let elsewhere = "with create_engine(url.rsplit('/', 1)[0] + '/postgres').connect() as other:\n    \
                     context.config.attributes['flags'] = other.execute(text('select count(*) from pg_class')).scalar()";
    assert_eq!(
        fleet
            .with_env(&env(elsewhere, ""))
            .await
            .expect_err("another database"),
        "env.py says `select count(*) from pg_class` only where it is connected"
    );
}

/// Such looks and settings are ordinary, and a plan has no need of them.
#[tokio::test]
async fn what_changes_nothing_is_no_obstacle() {
    let before = "connection.execute(text(\"SELECT pg_advisory_lock(hashtext('migrations'))\"))\n\
                  connection.execute(text(\"select set_config('lock_timeout', '900', false), pg_catalog.set_config('search_path', :p, false)\"), {'p': schema})\n\
                  connection.execute(text('select exists (select 1 from information_schema.schemata where schema_name = :s)'), {'s': schema})\n\
                  connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS \"{schema}\"'))\n\
                  connection.execute(text('SELECT current_database(), current_schema(), version()'))\n\
                  assert inspect(connection).has_schema(schema) and schema in inspect(connection).get_schema_names()";
    let after = "if context.get_context().get_current_revision():\n    \
                     connection.execute(text('SELECT version_num FROM alembic_version'))\n\
                 connection.execute(text(\"SELECT pg_advisory_unlock(hashtext('migrations'))\"))\n\
                 connection.commit()";
    let fleet = fleet().await;
    fleet.with_env(&env(before, after)).await.expect("a proof");
    // What it says in both is in the plan.
    let end = "        context.run_migrations()\n\n\ndef online";
    let offline = "        context.run_migrations()\n        context.execute('refresh materialized view mv')\n\n\ndef online";
    let both = afterwards("REFRESH MATERIALIZED VIEW mv").replace(end, offline);
    fleet.with_env(&both).await.expect("a proof");
}

/// `run_migrations_offline` is what `alembic init` writes, and nobody looks at it.
#[tokio::test]
async fn what_env_says_only_where_it_is_connected_makes_no_plan() {
    let path = "        connection.execute(text(f'SET search_path TO \"{schema}\"'))\n";
    let end = "            context.run_migrations()\n\n\noffline()";
    for (said, shown) in [
        (
            "SELECT set_config('app.actor', 'alembic', false)",
            "set_config('app.actor'",
        ),
        (
            "SET session_replication_role = replica",
            "SET session_replication_role",
        ),
        ("SET ROLE postgres", "SET ROLE"),
    ] {
        let env = ENV.replace(
            path,
            &format!("{path}        connection.execute(text(\"{said}\"))\n"),
        );
        let why = Fleet::new(&env, &[("a", TABLE)])
            .await
            .up(&[], "a")
            .await
            .expect_err(said);
        assert!(
            why.starts_with("env.py says `")
                && why.contains(shown)
                && why.ends_with("` only where it is connected"),
            "{why}"
        );
    }
    // Behind the revisions, and only where there is something to do.
    let after = "            context.run_migrations()\n        if context.get_context().get_current_revision():\n            \
                 connection.execute(text(f'ANALYZE \"{schema}\".t'))\n            connection.commit()\n\n\noffline()";
    let env = ENV.replace(end, after);
    assert_ne!(env, ENV);
    let why = Fleet::new(&env, &[("a", TABLE)])
        .await
        .up(&[], "a")
        .await
        .expect_err("it analyzes");
    assert!(why.contains("env.py says `ANALYZE"), "{why}");
    // What it says in both, or what a plan has another word for, is no obstacle.
    let both = ENV
        .replace(path, &format!("{path}        connection.execute(text('SET session_replication_role = replica'))\n"))
        .replace("        context.run_migrations()\n\n\ndef online", "        context.execute('SET LOCAL session_replication_role = replica')\n        context.run_migrations()\n\n\ndef online")
        .replace(path, &format!("{path}        connection.execute(text('SET lock_timeout = 900'))\n"));
    Fleet::new(&both, &[("a", TABLE)])
        .await
        .up(&[], "a")
        .await
        .expect("a proof");
}
