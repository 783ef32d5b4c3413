//! What only a connected migration does: it would be missing from a plan.

use super::*;

/// A scratch schema has no rows of a tenant's, so that an UPDATE changes nothing there: only its text can tell.
#[tokio::test]
async fn what_only_a_connected_migration_says_stays_live() {
    let update = "op.execute('update t set x = 1')";
    for question in [
        "(op.get_bind().dialect.server_version_info or (0,)) >= (9,)",
        "op.get_context().opts.get('as_sql') is not True",
        "not context.config.cmd_opts.sql",
        "type(op.get_bind()).__name__ == 'Connection'",
    ] {
        let why = refused(&format!("if {question}:\n    {update}")).await;
        assert!(
            why.contains("`update t set x = 1` runs only where Alembic is connected")
                || why.contains("asks whether it runs offline"),
            "{question}: {why}"
        );
    }
    let why = refused("op.execute('update t set x = %d' % (2 if context.config.cmd_opts.sql else 1))").await;
    assert!(why.contains("`update t set x = 1` runs only where"), "{why}");
    // The driver is not asked to take the doubled signs back.
    let options = "execution_options={'no_parameters': True}";
    let why = refused(&format!(
        "op.execute(\"update t set x = 2 where '50%' = ''\", {options})"
    ))
    .await;
    assert!(why.contains("where '50%%' = ''` runs only where"), "{why}");
    let why = refused(&format!("if context.config.cmd_opts.sql:\n    {update}")).await;
    assert_eq!(why, "`update t set x = 1` is only in its script");
    // Called by Alembic itself, once a revision is done.
    let env = ENV.replace(
        "context.configure(connection=connection,",
        "context.configure(connection=connection, on_version_apply=lambda ctx, **_: ctx.connection.execute(text('update t set x = 2')),",
    );
    let fleet = Fleet::new(&env, &[("a", TABLE), ("b", "pass")]).await;
    let why = fleet.up(&["a"], "b").await.expect_err("a callback");
    assert!(why.contains("`update t set x = 2` runs only where"), "{why}");
}

#[tokio::test]
async fn what_a_connection_brings_along_is_seen() {
    let engine = "create_engine(url, poolclass";
    for (options, why) in [
        (
            "'-c app.actor=migrator'",
            "env.py works with app.actor migrator, and a plan would not",
        ),
        (
            "'-c default_text_search_config=pg_catalog.german'",
            "env.py works with default_text_search_config pg_catalog.german, and a plan would not",
        ),
    ] {
        let connected = format!("create_engine(url, connect_args={{'options': {options}}}, poolclass");
        let fleet = Fleet::new(&ENV.replace(engine, &connected), &[("a", TABLE)]).await;
        assert_eq!(fleet.up(&[], "a").await.expect_err(options), why);
    }
    let listening = ENV.replace(
        "def online():",
        "from sqlalchemy import event\nfrom sqlalchemy.engine import Engine\n@event.listens_for(Engine, 'connect')\n\
         def actor(connection, _):\n    cursor = connection.cursor()\n    cursor.execute(\"set app.actor = 'migrator'\")\n    \
         connection.commit()\n\ndef online():",
    );
    let fleet = Fleet::new(&listening, &[("a", TABLE)]).await;
    assert_eq!(
        fleet.up(&[], "a").await.expect_err("a listener"),
        "env.py has a `connect` of its own for its engine, and a plan is sent by another client"
    );
    // Who sees what a policy hides, and owns what is made.
    let other = format!("u{}", uuid::Uuid::new_v4().simple());
    let connected = format!("create_engine(make_url(url).set(username='{other}'), poolclass");
    let importing = "from sqlalchemy.engine import make_url\nfrom sqlalchemy import";
    let env = ENV
        .replace(engine, &connected)
        .replacen("from sqlalchemy import", importing, 1);
    let fleet = Fleet::new(&env, &[("a", TABLE)]).await;
    run(
        &mut fleet.admin().await,
        &format!("create role {other} superuser login"),
    )
    .await;
    let why = fleet.up(&[], "a").await.expect_err("another user");
    run(&mut fleet.admin().await, &format!("drop role {other}")).await;
    let seen = format!(
        "env.py connects as `{other}`, and a plan would as `postgres`, who may see and own other things"
    );
    assert_eq!(why, seen);
    // An operator of an extension's is found in `public`, or it is not.
    let further = ENV.replace(
        "SET search_path TO \"{schema}\"'))",
        "SET search_path TO \"{schema}\", public'))",
    );
    let fleet = Fleet::new(&further, &[("a", TABLE)]).await;
    let why = fleet.up(&[], "a").await.expect_err("another path");
    assert!(
        why.starts_with("env.py's connection searches the schemas [herder_shadow_"),
        "{why}"
    );
    let both = further.replace(
        "SET LOCAL search_path TO \"{schema}\"'",
        "SET LOCAL search_path TO \"{schema}\", public'",
    );
    Fleet::new(&both, &[("a", TABLE)])
        .await
        .up(&[], "a")
        .await
        .expect("a proof");
    let end =
        "        with context.begin_transaction():\n            context.run_migrations()\n\n\noffline()";
    let without = ENV
        .replace(
            end,
            "        context.run_migrations()\n        connection.commit()\n\n\noffline()",
        )
        .replace(
            "    with context.begin_transaction():\n        context.execute",
            "    if True:\n        context.execute",
        );
    let fleet = Fleet::new(&without, &[("a", TABLE)]).await;
    let why = fleet.up(&[], "a").await.expect_err("no transaction");
    assert!(
        why.contains("in a transaction where Alembic is connected, and outside one"),
        "{why}"
    );
}

/// Something of nearly every kind.
const EVERYTHING: &[&str] = &[
    "create table t (id serial primary key, x text, a int, b int)",
    "create table child (id int constraint fk references t)",
    "create type comp as (f int)",
    "create table typed of comp",
    "create index i on t ((x || 'a'))",
    "create function addto(int, int) returns int language sql immutable as 'select $1 + $2'",
    "create function totext(comp) returns text language sql immutable as 'select null'",
    "create function diff(int, int) returns float8 language sql immutable as 'select 1.0'",
    "create function trg() returns trigger language plpgsql as 'begin return new; end'",
    "create aggregate agg (int) (sfunc = addto, stype = int)",
    "create operator === (leftarg = int, rightarg = int, function = int4eq)",
    "create operator family fam using btree",
    "create operator class cls for type int using btree family fam as operator 1 <, function 1 btint4cmp(int, int)",
    "create collation coll from \"C\"",
    "create text search dictionary dict (template = simple)",
    "create text search configuration cfg (copy = simple)",
    "create type rng as range (subtype = int)",
    "create type kind as enum ('a', 'b')",
    "create domain dom as int constraint pos check (value > 0)",
    "create cast (comp as text) with function totext(comp)",
    "create statistics st on a, b from t",
    "create view v as select id from t",
    "create rule r as on insert to v do instead nothing",
    "create policy p on t using (id > 0)",
    "create trigger tr before insert on t for each row execute function trg()",
    "create sequence s",
    "create materialized view mv as select 1 as one",
    "create conversion conv for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8",
    "create foreign table ft (a int) server shared_server options (o 'x')",
    "alter publication shared_publication add table t",
];

/// What may be done to it.
const CHANGES: &[&str] = &[
    "create or replace aggregate agg (int) (sfunc = addto, stype = int, initcond = '1')",
    "select setval('s', 5, false)",
    "alter table child disable trigger all",
    "comment on constraint pos on domain dom is 'x'",
    "comment on policy p on t is 'x'",
    "comment on rule r on v is 'x'",
    "comment on statistics st is 'x'",
    "comment on operator === (int, int) is 'x'",
    "comment on collation coll is 'x'",
    "comment on text search configuration cfg is 'x'",
    "comment on cast (comp as text) is 'x'",
    "comment on column t.x is 'x'",
    "comment on index i is 'x'",
    "comment on function diff(int, int) is 'x'",
    "alter table t set (toast.autovacuum_enabled = false)",
    "alter index i alter column 1 set statistics 50",
    "alter table typed not of",
    "refresh materialized view mv with no data",
    "drop collation coll; create collation coll (locale = 'POSIX')",
    "drop type rng; create type rng as range (subtype = int, subtype_diff = diff)",
    "drop cast (comp as text); create cast (comp as text) with function totext(comp) as implicit",
    "alter operator === (int, int) set (restrict = eqsel)",
    "alter operator family fam using btree add function 1 (int, int8) btint48cmp(int, int8)",
    "alter statistics st set statistics 50",
    "alter foreign table ft options (set o 'y')",
    "alter foreign table ft alter a options (c 'y')",
    "alter publication shared_publication drop table t",
    "alter text search configuration cfg alter mapping for word with english_stem",
    "alter text search dictionary dict (stopwords = english)",
    "alter default privileges in schema {} grant select on tables to public",
];

/// What stands around the schemas that hold everything.
const AROUND: &str = "create foreign data wrapper shared_wrapper; create server shared_server foreign data wrapper shared_wrapper;
                      create publication shared_publication";

/// Nobody notices this question, but the outcome differs.
const ONLY_LIVE: &str = "if not context.config.cmd_opts.sql:\n    ";

#[tokio::test]
async fn a_change_of_any_kind_that_only_live_alembic_makes_is_seen() {
    let fleet = Fleet::new(ENV, &[("a", &executes(EVERYTHING)), ("b", "pass")]).await;
    run(&mut fleet.admin().await, AROUND).await;
    let mut unseen = Vec::new();
    for change in CHANGES {
        fleet.rewrite(
            "b",
            "a",
            &format!("{ONLY_LIVE}{}\nop.execute('select 1')", executes(&[change])),
        );
        match fleet.up(&["a"], "b").await {
            Err(why) => assert!(
                why.starts_with("the plan does not do what live Alembic does"),
                "{change}: {why}"
            ),
            Ok(_) => unseen.push(change),
        }
    }
    assert!(unseen.is_empty(), "{unseen:#?}");
}

#[tokio::test]
async fn what_the_plan_does_as_well_is_proven_whatever_its_kind() {
    let both = [EVERYTHING, CHANGES].concat();
    let fleet = Fleet::new(ENV, &[("a", "pass"), ("b", &executes(&both))]).await;
    run(&mut fleet.admin().await, AROUND).await;
    fleet.up(&["a"], "b").await.expect("a proof");
}

/// What is one transaction to live Alembic is not two of a plan's, and the other way round.
#[tokio::test]
async fn what_a_plan_would_do_in_other_transactions_stays_live() {
    let block = "with op.get_context().autocommit_block():\n    op.execute";
    let why = refused(&format!(
        "{block}(\"set local app.by = 'me'; update t set x = 1\")"
    ))
    .await;
    assert!(
        why.contains("revision b says several statements at once outside a transaction"),
        "{why}"
    );
    let torn = format!("op.execute('update t set x = 1')\n{block}('create index concurrently i on t (x)')");
    let set = "op.execute(\"set local app.by = 'me'\")";
    let fleet = Fleet::new(ENV, &[("a", TABLE), ("b", set), ("c", &torn)]).await;
    let why = fleet.up(&["a"], "c").await.expect_err("a setting");
    assert!(
        why.contains("revision b does for its transaction what a plan, which ends that earlier, would lose"),
        "{why}"
    );
    let run = "context.run_migrations()";
    let env = ENV.replace(
        run,
        &format!("context.execute(\"SET LOCAL app.by = 'me'\"); {run}"),
    );
    let fleet = Fleet::new(&env, &[("a", TABLE), ("b", "pass"), ("c", &torn)]).await;
    fleet.up(&["a"], "b").await.expect("one step");
    let why = fleet.up(&["b"], "c").await.expect_err("several steps");
    assert!(
        why.starts_with("env.py says `SET LOCAL app.by = 'me'` for one transaction"),
        "{why}"
    );
}

/// The server calls its trigger by a number.
#[tokio::test]
async fn a_deferrable_constraint_is_the_same_on_both_sides() {
    let unique = "op.create_unique_constraint('uq', 't', ['x'], deferrable=True, initially='DEFERRED')";
    judge(unique).await.expect("a proof");
}
