//! Connections that are kept from one tenant to the next, to which they are as good as new.

use std::collections::BTreeSet;

use herder::{domain::tenant::Place, session::lock_key};

use crate::fleet::{Setup, Tool, list, steps};

#[tokio::test]
async fn one_guard_serves_one_tenant_after_the_other() {
    let [first, second] = steps(2).try_into().expect("two");
    let guard = "create table guard as select pid, application_name as name from pg_stat_activity
                 where application_name = current_setting('application_name') and pid <> pg_backend_pid()";
    let setup = Setup::schemas(5).migrations(Tool::Alembic, vec![first.then(guard), second]);
    let fleet = setup.start().await;
    let worker = fleet.worker(&["--concurrency", "1"]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);

    let (mut backends, mut names) = (BTreeSet::new(), Vec::new());
    for tenant in &fleet.tenants {
        let schema = tenant.schema_name();
        backends.extend(list(&fleet.home, &format!("select pid::text from {schema}.guard")).await);
        names.extend(list(&fleet.home, &format!("select name from {schema}.guard")).await);
    }
    // A machine that stands still for a second closes one in between.
    assert!(backends.len() < 3, "{backends:?}");
    let attempts = "select format('herder/%s/%s/%s', run_id, job.id, attempt.epoch)
                    from herder.attempt join herder.job on job.id = job_id order by 1";
    names.sort_unstable();
    assert_eq!(names, list(&fleet.control, attempts).await);

    let locks = "select coalesce(application_name, '') from pg_locks left join pg_stat_activity using (pid)
                 where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())";
    assert_eq!(list(&fleet.home, locks).await, Vec::<String>::new());
    fleet
        .wait_until("all slots are given back", async || fleet.slots().await == 0)
        .await;
    fleet
        .wait_until("and the guard is closed", async || fleet.sessions().await == 0)
        .await;
    assert_eq!(worker.drain().await, Some(0));
}

/// A worker with more room than slots looks in vain again and again. What it keeps is not idle for that.
#[tokio::test]
async fn a_connection_is_kept_although_there_is_room_for_more_jobs_than_slots() {
    let step = steps(1)
        .remove(0)
        .then("create table backend as select pg_backend_pid() as pid; select pg_sleep(0.02)");
    let fleet = Setup::schemas(60)
        .migrations(Tool::Sql, vec![step])
        .set("servers.main.budget", 3)
        .start()
        .await;
    let worker = fleet.worker(&["--concurrency", "8"]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    let mut backends = BTreeSet::new();
    for tenant in &fleet.tenants {
        let pid = format!("select pid::text from {}.backend", tenant.schema_name());
        backends.extend(list(&fleet.home, &pid).await);
    }
    assert!(backends.len() <= 4, "{backends:?}");
    assert_eq!(worker.drain().await, Some(0));
}

/// A live attempt takes two slots, one by plan one: what is left over of two must not be held for ever.
#[tokio::test]
async fn slots_that_were_kept_for_more_than_is_needed_are_given_back() {
    let fleet = Setup::schemas(12).plans(steps(2)).start().await;
    // What it reads has no offline form.
    fleet.project().file(
        "versions/20250101_step.py",
        "import sqlalchemy\nfrom alembic import op\nrevision = '20250101'\ndown_revision = None\n\n\
         def upgrade():\n    op.get_bind().execute(sqlalchemy.text('select 1')).scalar_one()\n    \
         op.execute('create table if not exists effects (n int generated always as identity, step text)')\n    \
         op.execute(\"insert into effects (step) values ('up 20250101')\")\n\n\
         def downgrade():\n    pass\n",
    );
    let worker = fleet.worker(&["--concurrency", "3"]);
    let mut some = vec!["upgrade", "--to", "20250101", "--wait"];
    for tenant in fleet.tenants.iter().step_by(2) {
        some.extend(["--tenant", &tenant.id]);
    }
    fleet.herder(&some).await.expect(0);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    let ways: String = fleet
        .ask(
            "select format('%s live, %s by plan', count(*) filter (where plan_id is null), count(plan_id))
             from herder.job where run_id = (select id from herder.run order by created_at desc limit 1)",
        )
        .await;
    assert_eq!(ways, "6 live, 6 by plan");
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    fleet
        .wait_until("all slots are given back", async || fleet.slots().await == 0)
        .await;
    assert_eq!(worker.drain().await, Some(0));
}

/// A tenant that somebody else holds is no sign that the connection broke.
#[tokio::test]
async fn a_kept_connection_is_not_lost_because_a_tenant_is_locked() {
    let fleet = Setup::schemas(2).migrations(Tool::Sql, steps(1)).start().await;
    let place = Place {
        server: "main".into(),
        database: fleet.database("home"),
        schema: fleet.tenants[1].schema.clone(),
    };
    let mut stranger = fleet.home.acquire().await.expect("a connection");
    sqlx::query("select pg_advisory_lock($1)")
        .bind(lock_key(&place))
        .execute(&mut *stranger)
        .await
        .expect("a lock");
    let env = [("RUST_LOG", "info,herder=debug")];
    let worker = fleet.worker_with(&["--concurrency", "1"], &env);
    fleet.herder(&["upgrade"]).await.expect(0);
    let refused = "select count(*) from herder.attempt where error ->> 'reason' = 'locked_by_other'";
    fleet
        .wait_until("the second one was refused", async || {
            fleet.ask::<i64>(refused).await >= 1
        })
        .await;
    stranger.close().await.expect("a goodbye");
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    assert!(!worker.log().contains("was lost"), "{}", worker.log());
    assert_eq!(worker.drain().await, Some(0));
}

/// Once anybody has set `app.region`, it is '' in that session to its end, and not NULL as before: no RESET takes that back.
#[tokio::test]
async fn a_setting_that_no_reset_takes_back_reaches_no_other_tenant() {
    let [first] = steps(1).try_into().expect("one");
    let fresh = "do $$ begin if current_setting('app.region', true) is not null then
                   raise exception 'another tenant was here'; end if; end $$";
    let step = first.then(fresh).then("set local app.region = 'eu'");
    let fleet = Setup::schemas(8).migrations(Tool::Sql, vec![step]).start().await;
    fleet.herder(&["rehearse", "--all"]).await.expect(0);
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    fleet.assert_effects(&["up 20250101"]).await;
}

/// PL/pgSQL compiles a function once for a session, with the types of the tenant that calls it first.
#[tokio::test]
async fn no_tenant_meets_the_types_of_another_in_a_shared_function() {
    let step = steps(1).remove(0).then("insert into l values (shared.f())");
    let fleet = Setup::schemas(3).migrations(Tool::Sql, vec![step]).start().await;
    let mut sql = "create schema shared; set check_function_bodies = off;
        create function shared.f() returns text language plpgsql as
        $$ DECLARE s cfg.v%type; begin s := 123456.789; return s; end $$;"
        .to_owned();
    for (i, tenant) in fleet.tenants.iter().enumerate() {
        let (schema, kind) = (tenant.schema_name(), if i == 0 { "int" } else { "numeric" });
        sql += &format!("create table {schema}.cfg (v {kind}); create table {schema}.l (a text);");
    }
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&fleet.home)
        .await
        .expect("a shared function");
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(0);
    let mut written = Vec::new();
    for tenant in &fleet.tenants {
        written.extend(list(&fleet.home, &format!("select a from {}.l", tenant.schema_name())).await);
    }
    assert_eq!(written, ["123457", "123456.789", "123456.789"]);
}

/// The function of an event trigger is compiled once for a session, too.
#[tokio::test]
async fn no_tenant_meets_the_types_of_another_in_an_event_trigger() {
    let step = steps(1).remove(0).then("create view watched as select 1 as one");
    let fleet = Setup::schemas(3).migrations(Tool::Sql, vec![step]).start().await;
    let mut sql = "set check_function_bodies = off;
        create function public.watch() returns event_trigger language plpgsql as $$
          declare x cfg.rate%type; begin
            x := 1.23456; execute format('insert into %I.audit values (%L)', current_schema(), x); end $$;
        create event trigger watch on ddl_command_end when tag in ('CREATE VIEW') execute function public.watch();"
        .to_owned();
    for (i, tenant) in fleet.tenants.iter().enumerate() {
        let (schema, scale) = (tenant.schema_name(), i + 1);
        sql += &format!(
            "create table {schema}.cfg (rate numeric(10, {scale})); create table {schema}.audit (p text);"
        );
    }
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&fleet.home)
        .await
        .expect("an event trigger");
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(0);
    let mut written = Vec::new();
    for tenant in &fleet.tenants {
        written.extend(
            list(
                &fleet.home,
                &format!("select p from {}.audit", tenant.schema_name()),
            )
            .await,
        );
    }
    assert_eq!(written, ["1.2", "1.23", "1.235"]);
}

/// What each tenant has for itself is compiled for each, and costs no connection.
#[tokio::test]
async fn functions_of_the_tenants_own_let_a_connection_serve_them_all() {
    let [first, second] = steps(2).try_into().expect("two");
    let own =
        "create function own() returns int language plpgsql as $$ declare a int = 1; begin return a; end $$";
    let trace = "create table backend as select pg_backend_pid() as pid";
    let setup = Setup::schemas(6).migrations(Tool::Sql, vec![first.then(own)]);
    let fleet = setup.start().await;
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(0);
    fleet
        .project()
        .rewrite(&[steps(1).remove(0).then(own), second.then(trace)]);
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(0);
    let mut backends = BTreeSet::new();
    for tenant in &fleet.tenants {
        let pid = format!("select pid::text from {}.backend", tenant.schema_name());
        backends.extend(list(&fleet.home, &pid).await);
    }
    assert!(backends.len() < 4, "{backends:?}");
}

/// The connection that this is said over is the only one that claims and outcomes have.
#[tokio::test]
async fn a_link_that_dies_while_slots_are_given_back_is_not_waited_for() {
    let fleet = Setup::schemas(2).migrations(Tool::Sql, steps(2)).start().await;
    let (control, tenants) = fleet.wires().await;
    control.hold_at("slot.purpose = 'kept' and slot.job_id = kept.job");
    let worker = fleet.worker_over(&control, &tenants, &[]);
    fleet.herder(&["upgrade", "--to", "20250101"]).await.expect(0);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    fleet
        .wait_until("it gives back its slots", async || control.held() > 0)
        .await;
    control.lose_answers();
    control.heal();
    fleet.herder(&["upgrade"]).await.expect(0);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
    assert_eq!(fleet.slots().await, 0);
}
