//! What a proof leaves when it is broken off, and where one that is kept counts.

use rustix::process::Signal;

use super::*;

/// A fleet whose proof waits in a scratch schema.
async fn proving() -> (Fleet, Gate, Herder) {
    let [first, second] = steps(2).try_into().expect("two");
    let fleet = Setup::schemas(3).plans(vec![first, second.gated()]).start().await;
    let gate = fleet.close_gate().await;
    let herder = fleet.start_herder(&["upgrade"]);
    fleet.wait_at_gate(1).await;
    assert_ne!(list(&fleet.home, LEFT).await, [""; 0]);
    (fleet, gate, herder)
}

#[tokio::test]
async fn ctrl_c_in_a_proof_leaves_nothing_and_starts_nothing() {
    let (fleet, _gate, herder) = proving().await;
    herder.signal(Signal::INT);
    let ended = herder.end().await.expect(130);
    assert!(ended.stderr.contains("No run was started"), "{}", ended.all());
    assert_eq!(fleet.state().await, "none");
    let schemas = "select nspname::text from pg_namespace where nspname like 'herder\\_shadow%'";
    assert_eq!(list(&fleet.home, schemas).await, [""; 0]);
    fleet
        .wait_until("its sessions are gone", async || {
            list(&fleet.home, LEFT).await.is_empty()
        })
        .await;
}

#[tokio::test]
async fn the_next_proof_clears_away_what_a_killed_one_left() {
    let (fleet, gate, herder) = proving().await;
    herder.kill().await;
    let schemas = "select count(*) from pg_namespace where nspname like 'herder\\_shadow%'";
    assert_eq!(ask::<i64>(&fleet.home, schemas).await, 2);
    gate.open().await;
    fleet.herder(&["plan"]).await.expect(0);
    fleet
        .wait_until("nothing is left", async || {
            list(&fleet.home, LEFT).await.is_empty()
        })
        .await;
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (3, 0));
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
}

/// Whoever takes the turn next clears away what it finds: two that are gone would be alike.
#[tokio::test]
async fn a_proof_that_lost_its_turn_ends_and_proves_nothing() {
    let (fleet, _gate, herder) = proving().await;
    fleet
        .tell(
            "update herder.server set service_holder = 'another', service_until = now() + interval '1 hour'",
        )
        .await;
    let ended = herder.end().await.expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (0, 3), "{}", ended.all());
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.proof").await, 0);
    fleet
        .wait_until("its sessions are gone", async || {
            let sessions =
                "select count(*) from pg_stat_activity where application_name like 'herder/shadow/%'";
            fleet.ask::<i64>(sessions).await == 0
        })
        .await;
}

/// Nobody has ever made a run of this fleet, so that there would be nothing to hold its service connection by.
#[tokio::test]
async fn two_proofs_of_a_new_fleet_wait_for_each_other() {
    let (fleet, gate, first) = proving().await;
    let second = fleet.start_herder(&["plan"]);
    fleet
        .wait_until("the second asks for the service connection", async || {
            let asking = "select count(distinct pid) from pg_stat_activity
                where datname = current_database() and query like '%service_holder%' and pid <> pg_backend_pid()";
            fleet.ask::<i64>(asking).await > 1
        })
        .await;
    // Time enough to clear away what it took for left over.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    gate.open().await;
    first.end().await.expect(0);
    second.end().await.expect(0);
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.proof").await, 1);
    assert_eq!(
        fleet
            .ask::<i64>("select count(*) from herder.job where plan_id is not null")
            .await,
        3
    );
}

#[tokio::test]
async fn a_proof_is_made_once_for_the_same_migrations() {
    let fleet = Setup::schemas(3).plans(steps(2)).start().await;
    let proofs = "select count(*) from herder.proof";
    fleet.herder(&["plan"]).await.expect(0);
    assert_eq!(fleet.ask::<i64>(proofs).await, 1);
    let proven = "select max(proven_at)::text from herder.proof";
    let before: String = fleet.ask(proven).await;
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    assert_eq!(fleet.ask::<i64>(proofs).await, 1);
    assert_eq!(fleet.ask::<String>(proven).await, before);
    fleet
        .herder(&["downgrade", "--to", "-1", "--yes", "--local", "2"])
        .await
        .expect(0);
    assert_eq!(fleet.ask::<i64>(proofs).await, 2);
    assert_eq!(by_plan_and_live(&fleet).await, (3, 0));
}

/// What env.py imports where it is connected is loaded by no rendering. It decides what live Alembic does all the same, as does a package
/// of the product's own that is installed.
#[tokio::test]
async fn a_proof_counts_while_all_that_env_py_may_import_is_the_same() {
    let fleet = Setup::schemas(1).plans(steps(1)).start().await;
    let project = fleet.project();
    let folder =
        "import os, sys\nhere = os.path.dirname(__file__)\nsys.path[:0] = [here, here + '/site-packages']\n";
    let env = project
        .text("env.py")
        .replace("import asyncio\n", &format!("import asyncio\n{folder}"));
    let online = "def do_run_migrations(connection, schema):\n";
    let env = env.replace(online, &format!("{online}    from after import nothing\n"));
    project.file("env.py", &env);
    project.file(
        "after/__init__.py",
        "from .deeper import nothing\nimport product\n",
    );
    project.file("after/deeper.py", "nothing = 1\n");
    project.file("site-packages/product.py", "nothing = 1\n");
    let proofs = async || {
        fleet.herder(&["plan"]).await.expect(0);
        fleet.ask::<i64>("select count(*) from herder.proof").await
    };
    assert_eq!((proofs().await, proofs().await), (1, 1));
    project.file("after/deeper.py", "nothing = 2\n");
    assert_eq!((proofs().await, proofs().await), (2, 2));
    project.file("site-packages/product.py", "nothing = 2\n");
    assert_eq!((proofs().await, proofs().await), (3, 3));
}

/// A plan is fitted to one tenant's sessions. Those of another database may begin in another way.
#[tokio::test]
async fn a_plan_is_not_used_where_sessions_begin_in_another_way() {
    let [first, second] = steps(2).try_into().expect("two");
    let second = second
        .then("create table w (at timestamptz)")
        .then("insert into w values ('2024-01-10 12:00')");
    let fleet = Setup::databases(3).plans(vec![first, second]).start().await;
    let elsewhere = fleet.database("t002");
    let zone = format!("alter database {elsewhere} set timezone = 'Asia/Tokyo'");
    tell(&fleet.home, &zone).await;
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    let times = "select (at at time zone 'UTC')::text from w";
    for (database, at) in [
        ("t001", "2024-01-10 12:00:00"),
        ("t002", "2024-01-10 03:00:00"),
        ("t003", "2024-01-10 12:00:00"),
    ] {
        let pool = fleet.pool(&fleet.database(database));
        assert_eq!(list(&pool, times).await, [at], "{database}");
    }
    assert_eq!(by_plan_and_live(&fleet).await, (2, 1));
}

/// A backslash in a plain literal, and the digits of a number as text.
#[tokio::test]
async fn a_plan_is_not_used_where_its_literals_mean_something_else() {
    let [first, second] = steps(2).try_into().expect("two");
    let first = first
        .then("create table w (a text, f float8)")
        .then("insert into w values ('x', 0.1::float8 + 0.2)");
    let second = second.then("update w set a = a || 'a\\\\b' || f");
    let fleet = Setup::databases(3).plans(vec![first, second]).start().await;
    for (tenant, setting) in [
        ("t002", "standard_conforming_strings = off"),
        ("t003", "extra_float_digits = 0"),
    ] {
        tell(
            &fleet.home,
            &format!("alter database {} set {setting}", fleet.database(tenant)),
        )
        .await;
    }
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (1, 2));
    for (tenant, text) in [
        ("t001", "xa\\b0.30000000000000004"),
        ("t002", "xa\u{8}0.30000000000000004"),
        ("t003", "xa\\b0.3"),
    ] {
        let pool = fleet.pool(&fleet.database(tenant));
        assert_eq!(list(&pool, "select a from w").await, [text], "{tenant}");
    }
}

/// Where all of them are so, nothing is rendered.
#[tokio::test]
async fn a_place_where_backslashes_escape_has_no_plan() {
    let fleet = Setup::schemas(2).plans(steps(2)).start().await;
    let home = fleet.database("home");
    tell(
        &fleet.home,
        &format!("alter database {home} set standard_conforming_strings = off"),
    )
    .await;
    let shown = fleet.herder(&["plan"]).await.expect(0);
    assert!(
        shown.stdout.contains("live: its sessions have standard_conforming_strings off, and a plan's literals are written for on"),
        "{}",
        shown.all()
    );
}

/// sqlx tells the server another time zone than anybody else's client does.
#[tokio::test]
async fn a_plan_reads_times_as_the_tools_own_sessions_do() {
    let [first, second] = steps(2).try_into().expect("two");
    let first = first.then("create table w (at timestamp, d text)");
    let second = second.then("alter table w alter at type timestamptz, alter d type date using d::date");
    let fleet = Setup::schemas(1).plans(vec![first, second]).start().await;
    let worker = fleet.worker(&[]);
    fleet
        .herder(&["upgrade", "--to", "20250101", "--wait"])
        .await
        .expect(0);
    tell(
        &fleet.home,
        "insert into t001.w values ('2024-01-10 12:00', '02/01/2024')",
    )
    .await;
    for setting in ["timezone = 'Europe/Berlin'", "datestyle = 'ISO, DMY'"] {
        let home = fleet.database("home");
        tell(&fleet.home, &format!("alter database {home} set {setting}")).await;
    }
    let shown = fleet.herder(&["plan", "--sql"]).await.expect(0);
    assert!(
        shown.stdout.contains("SET LOCAL TimeZone = 'Europe/Berlin';\n"),
        "{}",
        shown.all()
    );
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    fleet.assert_by_plan().await;
    let times = "select format('%s %s', at at time zone 'UTC', to_char(d, 'YYYY-MM-DD')) from t001.w";
    assert_eq!(list(&fleet.home, times).await, ["2024-01-10 11:00:00 2024-01-02"]);
    assert_eq!(worker.drain().await, Some(0));
}
