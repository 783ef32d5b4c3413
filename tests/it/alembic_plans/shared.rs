//! What belongs to no tenant: whatever a revision says about it, it stays as it is.

use super::*;

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
