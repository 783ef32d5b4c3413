//! What reaches out of the tenant's schema: not proven, and not done by the proof either.

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

/// An env.py that notes in a table for all tenants how far they are, in its online mode only.
async fn noting(driver: &str, note: &str) -> (Fleet, Result<Plan, String>) {
    let env = ENV
        .replace(
            "            context.run_migrations()\n\n\noffline",
            "            context.run_migrations()\n        NOTE\n\n\noffline",
        )
        .replace("NOTE", &note.replace('\n', "\n        "));
    assert_ne!(env, ENV);
    let fleet = Fleet::with(
        &env,
        &[("a", TABLE)],
        &format!("plan = \"auto\"\nurl_scheme = \"{driver}\""),
    )
    .await;
    run(
        &mut fleet.admin().await,
        "create schema shared; create table shared.fleet (version int); insert into shared.fleet values (0);
         create function shared.note() returns int language sql as 'update shared.fleet set version = 1 returning 1'",
    )
    .await;
    let judged = fleet.up(&[], "a").await;
    (fleet, judged)
}

#[tokio::test]
async fn rows_that_only_live_alembic_writes_elsewhere_are_seen_and_not_written() {
    let update = "update shared.fleet set version = 1";
    let alone = |statement: &str| {
        format!(
            "with create_engine(url, isolation_level='AUTOCOMMIT').connect() as alone:\n    alone.execute(text('{statement}'))"
        )
    };
    let commit = format!("connection.execute(text('{update}'))\nconnection.commit()");
    let other = "with create_engine(url.rsplit('/', 1)[0] + '/postgres').begin() as other:\n    \
                 other.execute(text('comment on database postgres is null'))";
    for (driver, note) in [
        ("postgresql+psycopg2", commit.clone()),
        ("postgresql+psycopg", commit.clone()),
        (
            "postgresql+psycopg2",
            format!("connection.execute(text('{update}'))\nconnection.execute(text('commit'))"),
        ),
        ("postgresql+psycopg2", alone(update)),
        ("postgresql+psycopg", alone("select shared.note()")),
        // Nobody hears of its failure.
        (
            "postgresql+psycopg2",
            format!(
                "try:\n    {}\nexcept Exception:\n    connection.rollback()",
                commit.replace('\n', "\n    ")
            ),
        ),
    ] {
        let (fleet, judged) = noting(driver, &note).await;
        let why = judged.expect_err(&note);
        assert_eq!(
            why, "live Alembic changes or writes shared.fleet, outside the tenant's schema",
            "{driver}: {note}"
        );
        let version: i32 = sqlx::query_scalar("select version from shared.fleet")
            .fetch_one(&mut fleet.admin().await)
            .await
            .expect("a row");
        assert_eq!(version, 0, "{driver}: {note}");
    }
    let (_, judged) = noting("postgresql+psycopg2", other).await;
    assert_eq!(
        judged.expect_err(other),
        "live Alembic writes pg_shdescription, outside the tenant's schema"
    );
}

#[tokio::test]
async fn rows_that_only_live_alembic_writes_by_an_async_driver_are_seen_as_well() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/alembic-saas/env_schema/env.py");
    let env = std::fs::read_to_string(root).expect("env.py");
    let run_all = "context.run_migrations()";
    assert!(env.contains(run_all));
    let note = format!(
        "{run_all}; context.is_offline_mode() or context.execute('update shared.fleet set version = 1')"
    );
    let fleet = Fleet::with(
        &env.replace(run_all, &note),
        &[("a", TABLE)],
        "plan = \"auto\"\nurl_scheme = \"postgresql+asyncpg\"",
    )
    .await;
    run(
        &mut fleet.admin().await,
        "create schema shared; create table shared.fleet (version int)",
    )
    .await;
    let why = fleet.up(&[], "a").await.expect_err("it writes");
    assert_eq!(
        why,
        "live Alembic changes or writes shared.fleet, outside the tenant's schema"
    );
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

/// What all tenants have in common.
const SHARED: &str = "create schema shared;
    create table shared.plans (id int primary key, name text);
    create table shared.b (id int primary key, plan int);
    create function shared.f() returns trigger language plpgsql as 'begin return new; end';
    create trigger tr before insert on shared.plans for each row execute function shared.f();
    create domain shared.email text constraint c check (value <> '');
    create text search configuration shared.en (copy = pg_catalog.english);
    create collation shared.co (locale = 'C');
    create operator shared.### (leftarg = int, rightarg = int, function = int4pl);
    create cast (point as money) with inout;
    create foreign data wrapper w;
    create server s foreign data wrapper w;
    create user mapping for postgres server s;
    select lo_create(4711);
    comment on schema shared is 'shared';
    comment on function shared.f() is 'shared';
    alter default privileges in schema shared grant select on tables to pg_monitor";

/// Takes it away, as far as it is there.
const NOT_SHARED: &str =
    "drop schema shared cascade; drop foreign data wrapper w cascade; drop cast if exists (point as money);
    select lo_unlink(oid) from pg_largeobject_metadata";

/// All of it that a revision could have changed, in words.
const LOOK: &str = "
    select 'trigger ' || tgname || tgenabled::text from pg_trigger where not tgisinternal
    union all select 'constraint ' || conname from pg_constraint where connamespace = 'shared'::regnamespace
    union all select 'column ' || attname || coalesce(attacl::text, '') from pg_attribute where attrelid = 'shared.plans'::regclass
    union all select 'relation ' || relname || coalesce(relacl::text, '') from pg_class where relnamespace = 'shared'::regnamespace
    union all select 'default ' || defaclacl::text from pg_default_acl
    union all select 'mapping ' || maptokentype from pg_ts_config_map where mapcfg::regconfig::text = 'shared.en'
    union all select 'collation ' || collname from pg_collation where collnamespace = 'shared'::regnamespace
    union all select 'operator ' || oprname from pg_operator where oprnamespace = 'shared'::regnamespace
    union all select 'comment ' || description from pg_description where description = 'shared'
    union all select 'object ' || oid from pg_largeobject_metadata
    union all select 'cast ' || castmethod::text from pg_cast where castsource = 'point'::regtype and casttarget = 'money'::regtype
    union all select 'user ' || usename from pg_user_mappings
    order by 1";

/// What revisions say, and what is found about each. None: it gets a plan. Nothing that is shared changes.
async fn each_is_found(cases: &[(&str, Option<&str>)]) {
    let fleet = Fleet::new(ENV, &[("a", TABLE), ("b", "pass")]).await;
    let mut admin = fleet.admin().await;
    run(&mut admin, SHARED).await;
    let look = async |on: &mut PgConnection| -> Vec<String> {
        sqlx::query_scalar(LOOK).fetch_all(on).await.expect("a look")
    };
    let before = look(&mut admin).await;
    let mut wrong = Vec::new();
    for (said, what) in cases {
        let body = match said.strip_prefix("alone: ") {
            None => executes(&[said]),
            Some(said) => format!("with op.get_context().autocommit_block():\n    op.execute({said:?})"),
        };
        fleet.rewrite("b", "a", &body);
        let planned = fleet.up(&["a"], "b").await;
        let is_right = match (what, &planned) {
            (None, Ok(_)) => true,
            (Some(what), Err(why)) => why.contains(what) && why.ends_with(", outside the tenant's schema"),
            _ => false,
        };
        if !is_right {
            wrong.push(format!("{said}: {:?}", planned.map(|_| "a plan")));
        }
        let after = look(&mut admin).await;
        if after != before {
            wrong.push(format!("{said}: done"));
            run(&mut admin, NOT_SHARED).await;
            run(&mut admin, SHARED).await;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_shared_table_may_be_referred_to_and_not_changed_under_the_same_lock() {
    let new = "create trigger x before insert on shared.plans for each row execute function shared.f()";
    let replaced =
        "create or replace trigger tr before update on shared.plans for each row execute function shared.f()";
    let disabled = "alter table shared.plans disable trigger tr";
    let refers = "alter table t add p int references shared.plans";
    let own = "create trigger x before insert on t for each row execute function shared.f(); alter table t disable trigger x";
    each_is_found(&[
        (new, Some("trigger x on shared.plans")),
        (replaced, Some("trigger tr on shared.plans")),
        (disabled, Some("trigger tr on shared.plans")),
        (
            &format!("{refers}; {disabled}"),
            Some("trigger tr on shared.plans"),
        ),
        (&format!("alone: {new}"), Some("trigger x on shared.plans")),
        (
            "alter table shared.b add foreign key (plan) references shared.plans",
            Some(" on shared."),
        ),
        (refers, None),
        (own, None),
    ])
    .await;
}

#[tokio::test]
async fn rights_to_what_is_shared_stay_as_they_are() {
    each_is_found(&[
        (
            "grant select (name) on shared.plans to pg_monitor",
            Some("column shared.plans.name"),
        ),
        (
            "alter table t add p int references shared.plans; grant select on shared.plans to pg_monitor",
            Some("table shared.plans"),
        ),
        (
            "alter default privileges in schema shared revoke select on tables from pg_monitor",
            Some("drops default rights of shared.postgres"),
        ),
        (
            "grant connect on database postgres to pg_monitor",
            Some("writes pg_database"),
        ),
        (
            "alter table t alter x set not null; grant select on t to pg_monitor; grant update (x) on t to pg_monitor",
            None,
        ),
    ])
    .await;
}

#[tokio::test]
async fn what_leaves_no_row_behind_is_found_as_well() {
    each_is_found(&[
        (
            "alter domain shared.email drop constraint if exists c",
            Some("drops constraint shared.c"),
        ),
        (
            "alter domain shared.email add constraint d check (value <> 'x') not valid",
            Some("constraint d on shared.email"),
        ),
        (
            "alter text search configuration shared.en drop mapping if exists for word",
            Some("configuration shared.en"),
        ),
        (
            "drop text search configuration if exists shared.en",
            Some("drops text search configuration shared.en"),
        ),
        (
            "drop collation if exists shared.co",
            Some("drops collation shared.co"),
        ),
        (
            "alone: drop collation if exists shared.co",
            Some("drops collation shared.co"),
        ),
        (
            "drop operator if exists shared.### (int, int)",
            Some("drops operator shared.###"),
        ),
        ("comment on schema shared is null", Some("schema shared")),
        (
            "comment on function shared.f() is null",
            Some("function shared.f()"),
        ),
        (
            "do 'begin perform lo_unlink(oid) from pg_largeobject_metadata where oid = 4711; end'",
            Some("drops large object 4711"),
        ),
        ("drop cast if exists (point as money)", Some("drops cast ")),
        (
            "create user mapping if not exists for pg_monitor server s",
            Some("writes pg_user_mapping"),
        ),
        (
            "drop user mapping if exists for postgres server s",
            Some("writes pg_user_mapping"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn what_is_its_own_may_be_made_changed_and_dropped() {
    let own = "create domain d text constraint c check (value <> ''); alter domain d drop constraint c;
               comment on domain d is 'd'; create collation co (locale = 'C'); drop collation co;
               create text search configuration en (copy = pg_catalog.english);
               alter text search configuration en drop mapping for word; create type mood as enum ('p');
               create cast (mood as int) with inout; drop cast (mood as int);
               comment on table t is 't'; comment on table t is null";
    let temporary =
        "create temp table x (a text); alter table x alter a set not null; comment on table x is 'x';
                     create domain pg_temp.d text check (value <> ''); drop table x; drop domain pg_temp.d";
    let there =
        "create extension if not exists plpgsql; create user mapping if not exists for postgres server s";
    each_is_found(&[
        (&own.replace('\n', " "), None),
        (&temporary.replace('\n', " "), None),
        (there, None),
        ("drop table t", None),
    ])
    .await;
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

#[tokio::test]
async fn an_env_that_goes_elsewhere_is_found_before_it_does() {
    let env = ENV.replace(
        "connection.execute(text(f'SET search_path TO \"{schema}\"'))",
        "connection.execute(text('select 1'))",
    );
    let why = Fleet::new(&env, &[("a", TABLE)])
        .await
        .up(&[], "a")
        .await
        .expect_err("it goes to public");
    assert!(why.starts_with("env.py works in schema `public`"), "{why}");
    let role = format!("r{}", uuid::Uuid::new_v4().simple());
    let env = ENV.replace(
        "        connection.execute(text(f'SET search_path",
        &format!("        connection.execute(text('SET ROLE {role}'))\n        connection.execute(text(f'SET search_path"),
    );
    let fleet = Fleet::new(&env, &[("a", TABLE)]).await;
    run(&mut fleet.admin().await, &format!("create role {role}")).await;
    assert_eq!(
        fleet.up(&[], "a").await.expect_err("it may not"),
        format!("env.py works as role `{role}`, which has no rights in a scratch schema")
    );
    // A ledger that is there already is found before one is made.
    let env = ENV
        .replace("TO \"{schema}\"'", "TO \"{schema}\", shared'")
        .replace("version_table_schema=schema, ", "");
    let fleet = Fleet::new(&env, &[("a", TABLE)]).await;
    let there =
        "create schema shared; create table shared.alembic_version (version_num varchar(32) primary key)";
    run(&mut fleet.admin().await, there).await;
    let why = fleet.up(&[], "a").await.expect_err("its ledger is another's");
    assert!(
        why.ends_with("with its ledger in `shared`, not in the one that it is given"),
        "{why}"
    );
    let env = ENV.replace("version_table_schema=schema", "version_table_schema='public'");
    let why = Fleet::new(&env, &[("a", TABLE)])
        .await
        .up(&[], "a")
        .await
        .expect_err("it goes to public");
    assert_eq!(
        why,
        "env.py keeps its ledger in public.alembic_version, not in the tenant's alembic_version"
    );
}
