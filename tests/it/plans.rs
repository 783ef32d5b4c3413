//! Plans: made once, kept once, applied by workers that know nothing but them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use herder::{
    config::Config,
    domain::{
        revision::{Direction, Target},
        run::{RunId, RunState},
        tenant::Place,
        wave::Rollout,
    },
    flow::{
        context::Context,
        enqueue::{self, Enqueued, Request},
        resolve::Wanted,
        retry::retry,
        worker::{Options, Worker},
    },
    metrics::Metrics,
    runner::Offer,
    session::{lock_key, quote},
    store::{self, view},
};
use sqlx::{PgConnection, PgPool};

use crate::tenant::{PATIENCE, connect, execute, value, write};

/// A fleet of schemas with SQL files, and workers in this very process.
struct Bench {
    folder: tempfile::TempDir,
    cx: Arc<Context>,
    /// A URL of the tenants' database.
    home: String,
    database: String,
}

impl Bench {
    async fn new(files: &[(&str, &str)], schemas: &[&str]) -> Self {
        Self::with(files, schemas, "").await
    }

    async fn with(files: &[(&str, &str)], schemas: &[&str], config: &str) -> Self {
        let server = crate::server::shared().await;
        let name = RunId::new_v4().simple().to_string();
        let (control, database) = (format!("c{name}"), format!("t{name}"));
        let mut admin = connect(&server.url("postgres")).await;
        execute(&mut admin, &format!("create database {control}")).await;
        execute(&mut admin, &format!("create database {database}")).await;
        let home = server.url(&database);
        let mut tenants = connect(&home).await;
        for schema in schemas {
            execute(&mut tenants, &format!("create schema {}", quote(schema))).await;
        }
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("migrations")).expect("a folder");
        write(&folder.path().join("migrations"), files);
        let list: String = schemas
            .iter()
            .map(|s| format!("\"{0}\",\"{0}\"\n", s.replace('"', "\"\"")))
            .collect();
        let text = format!(
            "[control]\nurl = \"{}\"\n[tenants]\nsource = \"file\"\npath = \"tenants.csv\"\n\
             [servers.main]\nurl = \"{home}\"\nbudget = 5\n[runner]\nkind = \"sql\"\n\
             [limits]\nlock_timeout = \"5s\"\nbackoff = \"50ms\"\n[worker]\nheartbeat = \"200ms\"\nlease = \"2s\"\npoll = \"20ms\"\n{config}",
            server.url(&control)
        );
        write(
            folder.path(),
            &[
                ("tenants.csv", &format!("id,schema\n{list}")),
                ("herder.toml", &text),
            ],
        );
        let config = Config::load(&folder.path().join("herder.toml")).expect("a config");
        let cx = Context::new(config, "herder/test", 10).expect("a context");
        store::setup::setup(&cx.pool).await.expect("control tables");
        Self {
            folder,
            cx: Arc::new(cx),
            home,
            database,
        }
    }

    fn migrations(&self) -> std::path::PathBuf {
        self.folder.path().join("migrations")
    }

    async fn admin(&self) -> PgConnection {
        connect(&self.home).await
    }

    async fn enqueue(&self, direction: Direction, target: &str) -> Enqueued {
        let request = Request {
            direction,
            target: target.parse().expect("a target"),
            wanted: Wanted::default(),
            rollout: Rollout::default(),
            trace: None,
        };
        enqueue::enqueue(&self.cx, &request).await.expect("a run")
    }

    /// Works at a run until it is over.
    async fn work(&self, run: RunId) -> RunState {
        let worker = self.worker(8);
        let working = tokio::spawn({
            let worker = worker.clone();
            async move { worker.run().await }
        });
        let state = self.over(run).await;
        worker.drain();
        let ended = tokio::time::timeout(PATIENCE, working).await;
        ended.expect("it ends").expect("no panic").expect("no fault");
        state
    }

    fn worker(&self, concurrency: usize) -> Worker {
        let options = Options {
            name: "test".into(),
            concurrency,
            drain_timeout: Duration::from_secs(10),
            only_run: None,
        };
        Worker::new(Arc::clone(&self.cx), options, Metrics::new().expect("metrics"))
    }

    async fn over(&self, run: RunId) -> RunState {
        let wait = async {
            loop {
                let state = store::run::state(&self.pool(), run).await.expect("a state");
                if !state.is_open() {
                    return state;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("the run is over")
    }

    fn pool(&self) -> PgPool {
        self.cx.pool.clone()
    }

    /// Migrates all to the head.
    async fn up(&self) -> (RunId, RunState) {
        let run = self.enqueue(Direction::Upgrade, "head").await.run;
        (run, self.work(run).await)
    }

    /// How each tenant's job ended: its outcome, or the reason of its error.
    async fn ends(&self, run: RunId) -> BTreeMap<String, String> {
        let jobs = view::jobs(&self.pool(), run, None, None).await.expect("jobs");
        let ends = jobs.into_iter().map(|j| {
            let reason = j.error.map(|e| e.reason);
            let outcome = j.outcome.map(|outcome| outcome.to_string());
            (j.tenant, outcome.or(reason).unwrap_or_default())
        });
        ends.collect()
    }

    async fn ask(&self, sql: &str) -> String {
        value(&mut self.pool().acquire().await.expect("a connection"), sql).await
    }

    /// What stands outside the tenants' schemas.
    async fn in_public(&self) -> String {
        let sql = "select string_agg(relname, ' ') from pg_class where relnamespace = 'public'::regnamespace";
        value(&mut self.admin().await, sql).await
    }
}

const FILES: [(&str, &str); 3] = [
    ("1_notes.up.sql", "create table notes (id int primary key)"),
    (
        "2_mood.up.sql",
        "create type mood as enum ('ok'); alter table notes add column mood mood",
    ),
    ("3_sad.up.sql", "alter type mood add value 'sad'"),
];

const USE: (&str, &str) = (
    "4_use.up.sql",
    "alter table notes alter column mood set default 'sad'",
);

#[tokio::test]
async fn a_plan_is_kept_once_and_applied_without_the_migrations() {
    let odd = "Ac me's \"best\\, \" $herder$";
    let bench = Bench::new(&FILES, &["a", "b", "c", odd, "x$$y", "ünï"]).await;
    let (_, state) = {
        let run = bench.enqueue(Direction::Upgrade, "2").await.run;
        (run, bench.work(run).await)
    };
    assert_eq!(state, RunState::Succeeded);
    execute(&mut bench.admin().await, "create schema late").await;
    let list = std::fs::read_to_string(bench.folder.path().join("tenants.csv")).expect("a list");
    write(bench.folder.path(), &[("tenants.csv", &(list + "late,late\n"))]);
    write(&bench.migrations(), &[USE]);

    let plan = enqueue::plan(&bench.cx, Direction::Upgrade, &Target::Head, &Wanted::default()).await;
    let plan = plan.expect("a plan");
    let steps: Vec<usize> = plan
        .ways
        .iter()
        .map(|way| match &way.offer {
            Offer::Plan(plan) => plan.steps.len(),
            Offer::Live { why } => panic!("{why}"),
        })
        .collect();
    assert_eq!(steps, [2, 4]);

    let run = bench.enqueue(Direction::Upgrade, "head").await.run;
    std::fs::remove_dir_all(bench.migrations()).expect("the folder goes");
    assert_eq!(bench.work(run).await, RunState::Succeeded);
    assert!(bench.ends(run).await.values().all(|end| end == "migrated"));
    let kept = bench
        .ask(&format!("select count(distinct plan_id) || ' ' || count(plan_id) || ' ' || max(connections) from herder.job where run_id = '{run}'"))
        .await;
    assert_eq!(kept, "2 7 1");
    assert_eq!(bench.ask("select count(*)::text from herder.plan").await, "3");
    assert_eq!(bench.in_public().await, "");
    for schema in ["a", odd, "x$$y", "late"] {
        let sql = format!(
            "insert into {0}.notes values (1) returning mood::text",
            quote(schema)
        );
        assert_eq!(value(&mut bench.admin().await, &sql).await, "sad");
    }
}

#[tokio::test]
async fn a_stranger_with_the_lock_is_waited_for_without_an_attempt() {
    let bench = Bench::new(&FILES, &["a", "b"]).await;
    let place = Place {
        server: "main".into(),
        database: bench.database.clone(),
        schema: Some("b".into()),
    };
    let mut stranger = bench.admin().await;
    execute(
        &mut stranger,
        &format!("select pg_advisory_lock({})", lock_key(&place)),
    )
    .await;
    let run = bench.enqueue(Direction::Upgrade, "head").await.run;
    let release = async {
        let mut refused = String::new();
        while refused != "locked_by_other" {
            tokio::time::sleep(Duration::from_millis(10)).await;
            refused = bench
                .ask("select coalesce(max(error->>'reason'), '') from herder.job where tenant = 'b'")
                .await;
        }
        drop(stranger);
    };
    let (state, ()) = tokio::join!(bench.work(run), release);
    assert_eq!(state, RunState::Succeeded);
    let attempts = bench
        .ask("select string_agg(attempts::text, ' ' order by tenant) from herder.job")
        .await;
    assert_eq!(attempts, "1 1");
}

#[tokio::test]
async fn a_tenant_that_moved_goes_on_from_where_it_stands() {
    let bench = Bench::new(&FILES, &["ahead", "there", "astray", "edited"]).await;
    let run = bench.enqueue(Direction::Upgrade, "head").await.run;
    let mut migrator = sqlx::migrate::Migrator::new(bench.migrations())
        .await
        .expect("the migrations");
    migrator.set_locking(false);
    for (schema, to) in [("ahead", 2), ("there", 3), ("astray", 1), ("edited", 1)] {
        let mut tenant = bench.admin().await;
        execute(&mut tenant, &format!("set search_path = {schema}")).await;
        migrator.run_to(to, &mut tenant).await.expect("sqlx goes there");
    }
    let mut admin = bench.admin().await;
    execute(&mut admin, "update astray._sqlx_migrations set version = 99").await;
    execute(
        &mut admin,
        "update edited._sqlx_migrations set checksum = 'other'",
    )
    .await;
    assert_eq!(bench.work(run).await, RunState::Failed);
    let ends = bench.ends(run).await;
    let expected = [
        ("ahead", "migrated"),
        ("astray", "unknown_revision"),
        ("edited", "edited_migration"),
        ("there", "already_current"),
    ];
    assert_eq!(ends, expected.map(|(t, e)| (t.to_owned(), e.to_owned())).into());
    let tried = bench
        .ask("select string_agg(result, ' ' order by attempt.epoch) from herder.attempt join herder.job on job.id = job_id where tenant = 'astray'")
        .await;
    assert_eq!(tried, "replanned failed");
}

#[tokio::test]
async fn a_ledger_that_lost_rows_is_told_by_what_it_lacks() {
    let files = [
        ("1_notes.sql", "create table notes (id int)"),
        ("2_bad.sql", "truncate _sqlx_migrations"),
    ];
    for config in ["", "# live"] {
        let bench = Bench::with(&files, &["a"], config).await;
        let run = bench.enqueue(Direction::Upgrade, "head").await.run;
        if config == "# live" {
            bench
                .ask("update herder.job set plan_id = null returning 'x'")
                .await;
        }
        assert_eq!(bench.work(run).await, RunState::Failed);
        let said = bench.ask("select error->>'message' from herder.job").await;
        assert!(
            said.ends_with("the tenant's ledger is at 2 without 1, not at 2"),
            "{config}: {said}"
        );
    }
}

#[tokio::test]
async fn a_lost_answer_to_a_commit_is_found_by_the_next_attempt() {
    // A former attempt that is known to have done nothing was not the one.
    for (orphaned, outcome) in [(true, "found_applied"), (false, "already_current")] {
        let bench = Bench::new(&FILES, &["a"]).await;
        let run = bench.enqueue(Direction::Upgrade, "head").await.run;
        let mut migrator = sqlx::migrate::Migrator::new(bench.migrations())
            .await
            .expect("the migrations");
        migrator.set_locking(false);
        let mut tenant = bench.admin().await;
        execute(&mut tenant, "set search_path = a").await;
        migrator.run(&mut tenant).await.expect("it commits");
        bench
            .ask(&format!(
                "update herder.job set epoch = 1, orphaned = {orphaned} returning 'x'"
            ))
            .await;
        assert_eq!(bench.work(run).await, RunState::Succeeded);
        assert_eq!(bench.ends(run).await["a"], outcome);
    }
}

#[tokio::test]
async fn a_retry_takes_up_mended_migrations_and_keeps_the_plan_of_others() {
    let files = [FILES[0], ("2_bad.up.sql", "create table notes (id int)")];
    let bench = Bench::new(&files, &["a", "b"]).await;
    let (run, state) = bench.up().await;
    assert_eq!(state, RunState::Failed);
    let plans = "select count(plan_id)::text from herder.job";
    assert_eq!(retry(&bench.cx, run).await.expect("a retry").tenants, 2);
    assert_eq!(bench.ask(plans).await, "2");
    assert_eq!(bench.work(run).await, RunState::Failed);
    write(
        &bench.migrations(),
        &[("2_bad.up.sql", "create table more (id int)")],
    );
    assert_eq!(retry(&bench.cx, run).await.expect("a retry").tenants, 2);
    assert_eq!(bench.ask(plans).await, "0");
    assert_eq!(bench.work(run).await, RunState::Succeeded);
    let tables = "select string_agg(relname, ' ' order by relname) from pg_class
                  where relnamespace = 'a'::regnamespace and relkind = 'r'";
    assert_eq!(
        value(&mut bench.admin().await, tables).await,
        "_sqlx_migrations more notes"
    );
}
