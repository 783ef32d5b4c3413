//! What reaches out of the tenant: not proven, and not done by the proof either.

use super::*;

#[tokio::test]
async fn what_reaches_out_of_its_schema_is_not_proven_and_not_done() {
    let fleet = Fleet::new(ENV, &[("a", TABLE), ("b", "pass")]).await;
    for (body, what) in [
        (
            "create table public.stray (id int)",
            "changes or writes public.stray",
        ),
        (
            "create function public.f() returns int language sql as $$ select 1 $$",
            "function public.f",
        ),
        ("create schema elsewhere", "schema elsewhere"),
        ("create extension hstore", "extension hstore"),
        ("create role nobody_special", "writes pg_authid"),
        ("create publication stray", "publication stray"),
        (
            "create function e() returns event_trigger language plpgsql as 'begin end';
             create event trigger stray on ddl_command_end execute function e()",
            "event trigger stray",
        ),
        ("create foreign data wrapper stray", "foreign-data wrapper stray"),
        (
            "create cast (point as money) with inout",
            "cast (pg_catalog.point AS ",
        ),
        (
            "alter default privileges grant select on tables to public",
            "default acl for role postgres on tables",
        ),
        ("select lo_create(0)", "large object "),
        ("select lo_from_bytea(0, 'x')", "writes pg_largeobject"),
        (
            "comment on function pg_catalog.now() is 'stray'",
            "function pg_catalog.now()",
        ),
        ("comment on role postgres is 'stray'", "writes pg_shdescription"),
    ] {
        fleet.rewrite("b", "a", &executes(&[&body.replace('\n', " ")]));
        let why = fleet.up(&["a"], "b").await.expect_err(body);
        assert!(
            why.starts_with("revision b: ") && why.contains(what) && why.contains("outside the tenant"),
            "{body}: {why}"
        );
    }
    // An old revision that does it is found as well, before it runs.
    let fleet = Fleet::new(
        ENV,
        &[
            ("a", "op.execute('create table public.stray (id int)')"),
            ("b", "op.execute('select 1')"),
        ],
    )
    .await;
    let why = fleet.up(&["a"], "b").await.expect_err("it reaches out");
    assert!(why.contains("changes or writes public.stray"), "{why}");
    // What shows in no row, locks nothing, or is done by env.py and only where it is online, is not done either.
    let shared =
        "create schema shared; create function shared.touch() returns int language sql as $$ select 1 $$;
                  create type shared.mood as enum ('p'); create table shared.n (n int)";
    let says = |sql: &str| format!("op.execute({sql:?})");
    for (body, what) in [
        (says("drop function shared.touch()"), "shared.touch"),
        (says("alter type shared.mood add value 'q'"), "type shared.mood"),
        (says("grant select on shared.n to public"), "table shared.n"),
        (
            "ids = op.get_bind().execute(sa.text('insert into shared.n values (1)'))\nfor i in []: pass"
                .to_owned(),
            "writes shared.n",
        ),
    ] {
        let fleet = Fleet::new(
            ENV,
            &[("a", TABLE), ("b", &body), ("c", "op.execute('select 1')")],
        )
        .await;
        run(&mut fleet.admin().await, shared).await;
        for (from, to) in [("a", "b"), ("b", "c")] {
            let why = fleet.up(&[from], to).await.expect_err(what);
            assert!(
                why.contains(what) && why.contains("outside the tenant"),
                "{body}: {why}"
            );
        }
    }
    let after = "        context.configure(connection=connection, version_table_schema=schema, **OPTIONS)\n";
    let env = ENV.replace(
        after,
        &format!("        connection.execute(text(\"insert into shared.n values (1)\"))\n        connection.commit()\n{after}"),
    );
    let fleet = Fleet::new(&env, &[("a", TABLE)]).await;
    run(&mut fleet.admin().await, shared).await;
    let why = fleet.up(&[], "a").await.expect_err("it writes to a shared table");
    assert!(
        why.contains("changes or writes shared.n, outside the tenant"),
        "{why}"
    );
    let rows = sqlx::query_scalar::<_, i64>("select count(*) from shared.n");
    assert_eq!(
        rows.fetch_one(&mut fleet.admin().await).await.expect("a count"),
        0
    );
    // To refer to a shared table is no change to it.
    let fleet = Fleet::new(
        ENV,
        &[
            ("a", TABLE),
            (
                "b",
                "op.execute('alter table t add c int references shared.countries')",
            ),
        ],
    )
    .await;
    run(
        &mut fleet.admin().await,
        "create schema shared; create table shared.countries (id int primary key)",
    )
    .await;
    fleet.up(&["a"], "b").await.expect("a proof");
}

#[tokio::test]
async fn what_is_committed_as_it_is_done_reaches_out_nowhere_either() {
    let shared = "create schema shared; create table shared.n (n int); create index old on shared.n (n);
                  create function shared.adds() returns void language sql as 'insert into shared.n values (1)';
                  create procedure shared.adds_and_commits() language plpgsql as $$ begin
                      insert into shared.n values (1); commit;
                  end $$";
    let reaches = "shared.n, outside the tenant";
    for (sql, what) in [
        ("insert into shared.n values (1)", reaches),
        ("select shared.adds()", reaches),
        ("create index concurrently i on shared.n (n)", reaches),
        (
            "create index concurrently on shared.n (n)",
            "where its proof cannot look first",
        ),
        (
            "drop index concurrently shared.old",
            "shared.old, outside the tenant",
        ),
        (
            "call shared.adds_and_commits()",
            "invalid transaction termination",
        ),
        (
            "do 'begin insert into shared.n values (1); commit; end'",
            "invalid transaction termination",
        ),
    ] {
        let body = format!("with op.get_context().autocommit_block():\n    op.execute({sql:?})");
        let revisions = [("a", TABLE), ("b", &body), ("c", "op.execute('select 1')")];
        let fleet = Fleet::new(ENV, &revisions).await;
        run(&mut fleet.admin().await, shared).await;
        let why = fleet.up(&["a"], "b").await.expect_err(what);
        assert!(why.contains(what), "{sql}: {why}");
        // One that stands below what is planned.
        fleet.up(&["b"], "c").await.expect_err(what);
        let left = "select string_agg(distinct relname, ' ') || (select count(*) from shared.n)
                    from pg_class where relnamespace = 'shared'::regnamespace";
        let left = sqlx::query_scalar::<_, String>(left)
            .fetch_one(&mut fleet.admin().await)
            .await;
        assert_eq!(left.expect("what is left"), "n old0", "{sql}");
    }
}

#[tokio::test]
async fn what_drops_things_outside_its_schema_is_not_proven_and_not_done() {
    let fleet = Fleet::new(ENV, &[("a", TABLE), ("b", "pass")]).await;
    let mut admin = fleet.admin().await;
    run(
        &mut admin,
        "create schema shared; create table shared.old (); create function shared.f() returns int language sql as 'select 1'",
    )
    .await;
    for (body, what) in [
        ("drop table if exists shared.old", "drops relation shared.old"),
        ("drop function if exists shared.f()", "drops function shared.f"),
        ("drop schema if exists shared cascade", "drops "),
    ] {
        fleet.rewrite("b", "a", &executes(&[body]));
        let why = fleet.up(&["a"], "b").await.expect_err(body);
        assert!(
            why.starts_with("revision b: ") && why.contains(what) && why.contains("outside the tenant"),
            "{body}: {why}"
        );
        run(&mut admin, "select shared.f() from shared.old").await;
    }
    let own = [
        "create temp table x ()",
        "drop table x",
        "create table y (a int)",
        "alter table y alter a type text",
        "drop table y",
        "drop table t",
    ];
    fleet.rewrite("b", "a", &executes(&own));
    fleet.up(&["a"], "b").await.expect("a proof");
}

/// Where nothing can be rendered or rehearsed before, only live Alembic's own connection can tell.
#[tokio::test]
async fn what_an_older_revision_drops_outside_its_schema_is_not_dropped() {
    let shared = "create schema shared; create table shared.legacy (); create collation shared.c (locale = 'C');
                  create function shared.lf() returns int language sql as 'select 1'; create table shared.n (n int);
                  create function shared.drops() returns void language sql as 'drop table if exists shared.legacy'";
    let asks = "for i in op.get_bind().execute(sa.text('select 1')): pass\n";
    let alone = |sql: &str| format!("with op.get_context().autocommit_block():\n    op.execute({sql:?})");
    let says = |sql: &str| format!("{asks}op.execute({sql:?})");
    for (driver, body, what) in [
        (
            "psycopg2",
            says("drop table if exists shared.legacy"),
            "drops relation shared.legacy",
        ),
        (
            "psycopg",
            says("drop function if exists shared.lf()"),
            "drops function shared.lf",
        ),
        (
            "psycopg",
            says("select shared.drops()"),
            "drops relation shared.legacy",
        ),
        (
            "psycopg2",
            format!(
                "{}\nop.execute('commit')",
                says("drop table if exists shared.legacy")
            ),
            "drops relation shared.legacy",
        ),
        (
            "psycopg2",
            format!(
                "{asks}op.execute('rollback')\n{}",
                says("drop table if exists shared.legacy")
            ),
            "drops relation shared.legacy",
        ),
        // The driver takes the transaction for open, and the server commits at once.
        (
            "psycopg2",
            format!("{asks}op.execute('commit')\nop.execute('insert into shared.n values (1)')"),
            "writes shared.n",
        ),
        (
            "psycopg",
            format!("{asks}op.execute('commit')\nop.execute('insert into shared.n values (1)')"),
            "writes shared.n",
        ),
        (
            "psycopg2",
            alone("drop table if exists shared.legacy"),
            "drops relation shared.legacy",
        ),
        (
            "psycopg",
            alone("drop function if exists shared.lf()"),
            "drops function shared.lf",
        ),
    ] {
        let revisions = [
            ("a", TABLE),
            ("b", body.as_str()),
            ("c", "op.execute('select 1')"),
        ];
        let config = format!("plan = \"auto\"\nurl_scheme = \"postgresql+{driver}\"");
        let fleet = Fleet::with(ENV, &revisions, &config).await;
        let mut admin = fleet.admin().await;
        run(&mut admin, shared).await;
        let why = fleet.up(&["b"], "c").await.expect_err(&body);
        assert!(
            why.contains(what) && why.contains("outside the tenant"),
            "{driver} {body}: {why}"
        );
        run(
            &mut admin,
            "select 1 / (count(*) = 0)::int, shared.lf() from shared.n, shared.legacy",
        )
        .await;
    }
    // What it drops of its own is no obstacle.
    let own = format!(
        "{asks}op.execute('drop table t')\nop.execute('commit')\nop.execute('create table w (w int)')\n{}",
        alone("create table u (u int)")
    );
    let revisions = [
        ("a", TABLE),
        ("b", own.as_str()),
        ("c", "op.execute('drop table u')"),
    ];
    let fleet = Fleet::new(
        &ENV.replace("OPTIONS = {}", "OPTIONS = {'transaction_per_migration': True}"),
        &revisions,
    )
    .await;
    fleet.up(&["b"], "c").await.expect("a proof");
}

/// A tenant that is a database has no more of the server than others.
#[tokio::test]
async fn what_belongs_to_all_databases_is_not_a_scratch_databases_own() {
    let env = ENV
        .replace("[\"schema\"]", ".get(\"schema\")")
        .replace("version_table_schema=schema, ", "")
        .replace("        context.execute(f'SET LOCAL search_path TO \"{schema}\"')\n", "")
        .replace(
            "        connection.execute(text(f'SET search_path TO \"{schema}\"'))\n        connection.commit()\n",
            "",
        );
    let revisions = [("a", TABLE), ("b", "pass"), ("c", "op.execute('select 1')")];
    let mut fleet = Fleet::new(&env, &revisions).await;
    fleet.isolation = Isolation::Database;
    let mut admin = fleet.admin().await;
    let role = format!("r{}", uuid::Uuid::new_v4().simple());
    run(
        &mut admin,
        &format!("create role {role}; comment on role {role} is 'r'"),
    )
    .await;
    let asks = "for i in op.get_bind().execute(sa.text('select 1')): pass\n";
    let mut wrong = Vec::new();
    for (said, what) in [
        ("create role ROLE_2", "writes pg_authid"),
        ("alter role ROLE createrole", "writes pg_authid"),
        (
            "alter role ROLE set work_mem = '1MB'",
            "writes pg_db_role_setting",
        ),
        ("grant pg_monitor to ROLE", "writes pg_auth_members"),
        ("comment on role ROLE is null", "writes pg_shdescription"),
        ("grant create on database postgres to ROLE", "writes pg_database"),
    ] {
        let said = executes(&[&said.replace("ROLE", &role)]);
        let what = format!("{what}, outside the tenant's database");
        let alone = format!("with op.get_context().autocommit_block():\n    {said}");
        for (body, from, to) in [
            (said.clone(), "a", "b"),
            (alone, "a", "b"),
            (asks.to_owned() + &said, "b", "c"),
        ] {
            fleet.rewrite("b", "a", &body);
            let planned = fleet.up(&[from], to).await;
            if !planned.as_ref().is_err_and(|why| why.contains(&what)) {
                wrong.push(format!("{body}: {:?}", planned.map(|_| "a plan")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let left: Vec<String> = sqlx::query_scalar(
        "select concat_ws(' ', rolname, rolcreaterole, rolconfig, shobj_description(oid, 'pg_authid'),
             (select count(*) from pg_auth_members where member = r.oid), has_database_privilege(oid, 'postgres', 'create'))
         from pg_roles r where starts_with(rolname, $1)",
    )
    .bind(&role)
    .fetch_all(&mut admin)
    .await
    .expect("a look");
    assert_eq!(left, [format!("{role} f r 0 f")]);
    // What is done in it is its own, and so is what is said about it.
    let about = |what: &str| {
        format!("do $$ begin execute format({what:?}, current_database()); end $$").replace('"', "'")
    };
    let own = [
        "create schema shared",
        "create table shared.n (n int)",
        "create extension hstore",
        "create publication p",
        &about("comment on database %I is ''own''"),
        &about("alter database %I set work_mem = ''2MB''"),
    ];
    let alone = "\nwith op.get_context().autocommit_block():\n    op.execute('create index concurrently i on t (x)')\n    \
                 op.execute('vacuum t')\n    op.execute('create table shared.m (m int)')";
    fleet.rewrite("b", "a", &(executes(&own) + alone));
    fleet.up(&["a"], "b").await.expect("a proof");
}
