//! `herder rehearse`: it says who would fail, and leaves nothing behind.

use std::collections::BTreeMap;

use serde_json::Value;
use sqlx::Connection;

use crate::fleet::{Fleet, Setup, Tool, ask, steps, tell};

/// All that is in a tenant, by PostgreSQL's own word, but where its sequences stand.
async fn dump(fleet: &Fleet, database: &str, schema: Option<&str>) -> String {
    let mut command = tokio::process::Command::new(fleet.cluster.program("pg_dump"));
    command.arg(fleet.cluster.url(database));
    if let Some(schema) = schema {
        command.args(["--schema", schema]);
    }
    let output = command.output().await.expect("pg_dump runs");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.contains("CREATE TABLE"), "{text}");
    // Newer ones begin and end with a random word.
    let kept = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
    text.lines()
        .filter(kept)
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The same without the sequences' last numbers: a rollback does not take those back.
fn without_sequences(dump: &str) -> String {
    let lines = dump.lines().filter(|line| !line.contains("pg_catalog.setval("));
    lines.map(|line| format!("{line}\n")).collect()
}

async fn dumps(fleet: &Fleet) -> Vec<String> {
    let home = fleet.database("home");
    let mut dumps = Vec::new();
    for tenant in &fleet.tenants {
        dumps.push(match &tenant.database {
            Some(database) => dump(fleet, database, None).await,
            None => dump(fleet, &home, Some(&tenant.schema_name())).await,
        });
    }
    dumps
}

/// What became of each tenant that was tried.
fn tenants(report: &Value) -> BTreeMap<String, Value> {
    let tenants = report["tenants"].as_array().expect("tenants");
    let by_name = tenants
        .iter()
        .map(|t| (t["tenant"].as_str().expect("a name").to_owned(), t.clone()));
    by_name.collect()
}

#[tokio::test]
async fn it_says_who_would_fail_and_leaves_nothing() {
    let [first, second, third] = steps(3).try_into().expect("three");
    let second = second.then("create unique index once on effects (step)");
    let third = third.outside("create index concurrently later on effects (n)");
    let fleet = Setup::schemas(6)
        .migrations(Tool::Sql, vec![first, second, third])
        .start()
        .await;
    tell(
        &fleet.home,
        "insert into t002.effects (step) values ('twice'), ('twice')",
    )
    .await;
    fleet
        .herder(&["upgrade", "--to", "+1", "--tenant", "t004", "--local", "1"])
        .await
        .expect(0);
    let before = dumps(&fleet).await;
    // The application reads t003, and holds on to it.
    let mut application = sqlx::PgConnection::connect(&fleet.cluster.url(&fleet.database("home")))
        .await
        .expect("a connection");
    let read = "begin; lock table t003.effects in share mode";
    sqlx::raw_sql(read).execute(&mut application).await.expect(read);

    let all = [
        "rehearse",
        "--all",
        "--lock-timeout",
        "200ms",
        "--output-format",
        "json",
    ];
    let report = fleet.herder(&all).await.expect(7).json();
    application.close().await.expect("it goes");
    let after = dumps(&fleet).await;

    let counts = serde_json::json!({"would_succeed": 4, "would_fail": 2, "not_rehearsed": 0});
    assert_eq!(report["counts"], counts, "{report:#}");
    let tried = tenants(&report);
    let fine = &tried["t001"];
    assert_eq!(
        fine["rehearsed"],
        serde_json::json!(["20250101", "20250102"]),
        "{fine:#}"
    );
    assert_eq!(fine["left_out"], serde_json::json!(["20250203"]), "{fine:#}");
    assert_eq!(
        fine["why"],
        "what runs outside a transaction cannot be rolled back"
    );
    let held = fine["held_ms"].as_f64().expect("a time");
    assert!(held > 0.0 && held < 60_000.0, "{held}");
    assert_eq!(tried["t004"]["rehearsed"], serde_json::json!(["20250102"]));
    let twice = &tried["t002"];
    assert_eq!(twice["error"]["sqlstate"], "23505", "{twice:#}");
    assert_eq!(twice["error"]["revision"], "20250102", "{twice:#}");
    let statement = twice["error"]["statement"].as_str().unwrap_or_default();
    assert!(statement.contains("create unique index once"), "{twice:#}");
    assert_eq!(twice["may_pass"], false);
    let busy = &tried["t003"];
    assert_eq!(busy["error"]["sqlstate"], "55P03", "{busy:#}");
    assert_eq!(busy["may_pass"], true, "{busy:#}");

    for ((before, after), tenant) in before.iter().zip(&after).zip(&fleet.tenants) {
        assert_eq!(
            without_sequences(before),
            without_sequences(after),
            "{}",
            tenant.id
        );
    }
    // They are the exception, and the docs say so.
    assert_ne!(before[0], after[0]);
    assert_eq!(fleet.sessions().await, 0);
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.run").await, 1);

    // What it foretold.
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    let failed = "select string_agg(tenant, ' ') from herder.job where state = 'failed'";
    assert_eq!(fleet.ask::<String>(failed).await, "t002");
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_sample_has_one_of_each_group_and_one_connection_is_enough() {
    let fleet = Setup::schemas(40)
        .migrations(Tool::Sql, steps(3))
        .set("servers.main.budget", 3)
        .start()
        .await;
    for (tenant, to) in [("t007", "+1"), ("t023", "+2")] {
        fleet
            .herder(&["upgrade", "--to", to, "--tenant", tenant, "--local", "1"])
            .await
            .expect(0);
    }
    let sample = ["rehearse", "--sample", "5", "--output-format", "json"];
    let report = fleet.herder(&sample).await.expect(0).json();
    let tried = tenants(&report);
    assert_eq!(tried.len(), 5, "{report:#}");
    assert!(
        tried.contains_key("t007") && tried.contains_key("t023"),
        "{report:#}"
    );

    let rehearsal = fleet.start_herder(&["rehearse", "--all"]);
    let running = tokio::spawn(rehearsal.end());
    let (mut most, mut seen) = (0, 0);
    while !running.is_finished() {
        let now = ask::<i64>(
            &fleet.home,
            "select count(*) from pg_stat_activity
             where application_name like 'herder/rehearsal/%' and datname = current_database()",
        )
        .await;
        (most, seen) = (most.max(now), seen + now);
    }
    let shown = running.await.expect("no panic").expect(0);
    assert!(
        shown
            .stdout
            .contains("40 of 40 pending tenants rehearsed: 40 would succeed, 0 would fail"),
        "{}",
        shown.all()
    );
    // A session that was just closed lingers for some milliseconds beside the next one.
    assert!(seen > 0 && most <= 2, "{most} at a time, seen {seen} times");
}

#[tokio::test]
async fn alembics_plans_are_rehearsed_in_databases_and_schemas() {
    for (ini, setup) in [
        ("alembic_schema.ini", Setup::schemas(3)),
        ("alembic_database.ini", Setup::databases(2)),
    ] {
        let fleet = setup.alembic_saas(ini).start().await;
        for (args, revisions) in [
            (&["rehearse", "--all"][..], 12),
            (&["rehearse", "--all", "--to", "base"], 5),
        ] {
            if revisions == 5 {
                fleet
                    .herder(&["upgrade", "--to", "0005", "--local", "2"])
                    .await
                    .expect(0);
            }
            let before = dumps(&fleet).await;
            let args = [args, &["--output-format", "json"]].concat();
            let report = fleet.herder(&args).await.expect(0).json();
            assert_eq!(
                report["counts"]["would_succeed"],
                fleet.tenants.len(),
                "{report:#}"
            );
            let rehearsed = report["tenants"][0]["rehearsed"].as_array().map(Vec::len);
            assert_eq!(rehearsed, Some(revisions), "{report:#}");
            let after = dumps(&fleet).await;
            for (before, after) in before.iter().zip(&after) {
                assert_eq!(without_sequences(before), without_sequences(after));
            }
        }
    }
}

#[tokio::test]
async fn what_runs_live_is_not_rehearsed_and_says_why() {
    let fleet = Setup::schemas(3)
        .migrations(Tool::Command, steps(2))
        .start()
        .await;
    let report = fleet
        .herder(&["rehearse", "--output-format", "json"])
        .await
        .expect(0)
        .json();
    assert_eq!(report["tenants"], serde_json::json!([]), "{report:#}");
    assert_eq!(
        report["live"][0]["why"],
        "what the command does is its own business"
    );
    assert_eq!(report["live"][0]["tenants"].as_array().map(Vec::len), Some(3));
    fleet.assert_effects(&[]).await;
}

/// A run's steps begin with every constraint as it was declared.
#[tokio::test]
async fn what_is_deferred_in_a_rehearsal_is_what_a_run_defers() {
    let [first, second] = steps(2).try_into().expect("two");
    let first = first
        .then("create table p (id int primary key)")
        .then("create table now (p int references p deferrable)")
        .then("create table later (p int references p initially deferred)");
    let second = second
        .then("insert into later values (2)")
        .then("insert into p values (1), (2)")
        .then("insert into now values (1)")
        .then("alter table now add column more int");
    let fleet = Setup::schemas(2)
        .migrations(Tool::Sql, vec![first, second])
        .start()
        .await;
    fleet.herder(&["rehearse", "--all"]).await.expect(0);
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(0);
}

#[tokio::test]
async fn what_a_run_has_no_time_for_would_fail() {
    let [first, second] = steps(2).try_into().expect("two");
    let fleet = Setup::schemas(1)
        .migrations(Tool::Sql, vec![first, second.then("select pg_sleep(1)")])
        .start()
        .await;
    fleet.configure(|config| {
        let limits: toml::Table = "statement_timeout = '300ms'".parse().expect("TOML");
        config.insert("limits".into(), limits.into());
    });
    let rehearsed = ["rehearse", "--output-format", "json"];
    let report = fleet.herder(&rehearsed).await.expect(7).json();
    let tried = &report["tenants"][0];
    assert_eq!(
        (&tried["forecast"], &tried["error"]["hint"]),
        (
            &"would_fail".into(),
            &"[limits] `statement_timeout` is how long a statement may run, in a run as well".into()
        ),
        "{report:#}"
    );
}

/// It gives its place away every now and then, and takes it back only when whoever waits has had it.
#[tokio::test]
async fn a_long_rehearsal_holds_up_neither_a_look_nor_the_work_of_a_lost_worker() {
    let step = steps(1).remove(0).then("select pg_sleep(0.2)");
    let fleet = Setup::schemas(150)
        .migrations(Tool::Sql, vec![step])
        .set("servers.main.budget", 3)
        .start()
        .await;
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet
        .wait_until("some are done", async || fleet.count("succeeded").await >= 2)
        .await;
    fleet.herder(&["pause"]).await.expect(0);
    let rehearsal = fleet.start_herder(&["rehearse", "--all"]);
    let errand = "select exists (select from pg_stat_activity where application_name like 'herder/rehears%')";
    fleet
        .wait_until("it has begun", async || ask(&fleet.home, errand).await)
        .await;
    fleet.herder(&["resume"]).await.expect(0);
    fleet
        .wait_until("the worker is at it again", async || {
            fleet.count("running").await > 0
        })
        .await;
    worker.kill().await;
    let _other = fleet.worker(&[]);
    let meanwhile = async {
        for _ in 0..6 {
            fleet.herder(&["tenants", "--revisions"]).await.expect(0);
        }
        let rescued = "select exists (select from herder.attempt where epoch > 1 and ended_at is not null)";
        fleet
            .wait_until("the lost worker's jobs are done", async || {
                fleet.ask(rescued).await
            })
            .await;
    };
    tokio::select! {
        biased;
        () = meanwhile => {}
        _ = rehearsal.end() => panic!("the rehearsal came to its end first"),
    }
}
