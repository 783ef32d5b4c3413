//! How warm processes start and end.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use herder::domain::revision::Direction;
use herder::runner::alembic::{Launch, Migrated, Project, WarmError, WarmPool, WarmProcess};
use sqlx::Executor as _;

use crate::handmade::{Database, Handmade, SYNC_ENV, Tenant, launch, saas, until, warm};

#[tokio::test]
async fn a_python_that_cannot_serve_is_named() {
    let start = async |python: &str| {
        let launch = Launch {
            python: python.into(),
            env_remove: Vec::new(),
        };
        WarmProcess::spawn(&launch).await.map(|_| ()).expect_err(python)
    };
    let error = start("/no/such/python").await;
    assert!(matches!(error, WarmError::PythonMissing { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "cannot start the Python interpreter `/no/such/python`"
    );

    let bare = Command::new(crate::venv::python())
        .args(["-c", "import sys; print(sys.base_prefix + '/bin/python3')"])
        .output()
        .expect("Python");
    let error = start(String::from_utf8_lossy(&bare.stdout).trim()).await;
    assert!(matches!(error, WarmError::AlembicMissing { .. }), "{error:?}");
    assert!(error.to_string().contains("No module named 'alembic'"), "{error}");

    assert!(matches!(start("/bin/false").await, WarmError::Died { .. }));
    // It may end before it was told everything.
    assert!(matches!(
        start("/bin/echo").await,
        WarmError::Protocol { .. } | WarmError::Died { .. }
    ));
}

/// A migration that starts a child, tells its process id, and waits for a lock that the test holds.
const STUCK: &str = r#"p = __import__('subprocess').Popen(['sleep', '1000'])
    op.execute(f"create table started as select {p.pid} as child, {__import__('os').getpid()} as python")
    op.get_context().connection.commit()
    op.execute("select pg_advisory_lock(1)")
    op.execute("create table finished ()")"#;

struct Stuck {
    database: Database,
    _lock: sqlx::pool::PoolConnection<sqlx::Postgres>,
}

impl Stuck {
    async fn new() -> Self {
        let database = Database::new().await;
        let mut lock = database.pool.acquire().await.expect("a connection");
        lock.execute("select pg_advisory_lock(1)").await.expect("a lock");
        Self {
            database,
            _lock: lock,
        }
    }

    fn tenant(url: &str) -> Tenant<'_> {
        Tenant::new(url)
            .scheme("postgresql+psycopg2")
            .setting("client_connection_check_interval", "100ms")
            .setting("lock_timeout", "0")
    }

    async fn wait_until_stuck(&self) -> [i64; 2] {
        let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())";
        until("the migration waits", 1, || self.database.count(waiting)).await;
        [
            self.database.count("select child::int8 from started").await,
            self.database.count("select python::int8 from started").await,
        ]
    }

    async fn assert_all_gone(&self, pids: [i64; 2]) {
        // A zombie has no command line any more.
        let alive = async || {
            pids.iter()
                .filter(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| !c.is_empty()))
                .count()
        };
        until("python and its child are gone", 0, alive).await;
        until("its backend is gone", 0, || self.database.sessions()).await;
        assert_eq!(
            self.database.text("select to_regclass('finished')::text").await,
            None
        );
    }
}

#[tokio::test]
async fn dropping_a_migration_ends_it_with_all_it_started() {
    let stuck = Stuck::new().await;
    let project = Handmade::new(SYNC_ENV).revision("a", None, STUCK);
    let pool = WarmPool::new(launch(), 1);
    let mut process = pool.checkout().await.expect("a process");
    let tenant = Stuck::tenant(&stuck.database.url);
    let (migration, project) = (tenant.up(), project.project());
    let pids = tokio::select! {
        ended = process.migrate(&project, &migration) => panic!("it was not stuck: {ended:?}"),
        pids = stuck.wait_until_stuck() => pids,
    };
    stuck.assert_all_gone(pids).await;
    assert!(!process.is_usable());
    assert!(matches!(
        process.describe(&project).await,
        Err(WarmError::Protocol { .. })
    ));
    drop(process);
    pool.checkout()
        .await
        .expect("another process")
        .describe(&project)
        .await
        .expect("a description");
}

#[tokio::test]
async fn a_killed_process_is_reported_dead_with_its_last_words() {
    let stuck = Stuck::new().await;
    let body = format!("print('last words', flush=True)\n    {STUCK}");
    let project = Handmade::new(SYNC_ENV).revision("a", None, &body);
    let mut process = warm().await;
    let tenant = Stuck::tenant(&stuck.database.url);
    let (migration, project) = (tenant.up(), project.project());
    let (ended, pids) = tokio::join!(process.migrate(&project, &migration), async {
        let pids = stuck.wait_until_stuck().await;
        Command::new("kill")
            .args(["-9", &pids[1].to_string()])
            .status()
            .expect("kill");
        pids
    });
    match ended {
        Err(WarmError::Died { status, stderr_tail }) => {
            assert_eq!(status.to_string(), "signal: 9 (SIGKILL)");
            assert_eq!(stderr_tail, "last words");
        }
        other => panic!("{other:?}"),
    }
    stuck.assert_all_gone(pids).await;
}

/// Not a test: the parent that `a_killed_worker_takes_its_migrations_along` kills.
#[tokio::test]
#[ignore = "the other half of a test"]
async fn migrates_until_killed() {
    let (Ok(ini), Ok(url)) = (std::env::var("INI"), std::env::var("URL")) else {
        return;
    };
    let _ = warm()
        .await
        .migrate(&Project::new(ini), &Stuck::tenant(&url).up())
        .await;
}

#[tokio::test]
async fn a_killed_worker_takes_its_migrations_along() {
    let stuck = Stuck::new().await;
    let project = Handmade::new(SYNC_ENV).revision("a", None, STUCK);
    let mut worker = Command::new(std::env::current_exe().expect("this test"))
        .args([
            "--exact",
            "alembic_process::ending::migrates_until_killed",
            "--ignored",
        ])
        .env("INI", project.project().ini)
        .env("URL", &stuck.database.url)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a worker");
    let pids = stuck.wait_until_stuck().await;
    worker.kill().expect("kill -9");
    worker.wait().expect("its end");
    stuck.assert_all_gone(pids).await;
}

#[tokio::test]
async fn a_pool_reuses_its_processes_and_never_exceeds_its_size() {
    let pool = WarmPool::new(launch(), 2);
    let project = Handmade::new(SYNC_ENV).revision(
        "a",
        None,
        r#"op.execute(f"create table t as select {__import__('os').getppid()} as pid")"#,
    );
    let work = async |_: usize| {
        let database = Database::new().await;
        let tenant = Tenant::new(&database.url).scheme("postgresql+psycopg2");
        let mut process = pool.checkout().await.expect("a process");
        process
            .migrate(&project.project(), &tenant.up())
            .await
            .expect("a migration");
        database.count("select pid::int8 from t").await
    };
    let pids = futures_util::future::join_all((0..6).map(work)).await;
    let distinct: std::collections::BTreeSet<_> = pids.iter().collect();
    assert!(distinct.len() <= 2, "{pids:?}");

    let waiting = tokio::time::timeout(Duration::from_millis(50), async {
        let _held = (pool.checkout().await, pool.checkout().await);
        pool.checkout().await.map(|_| ())
    });
    assert!(waiting.await.is_err(), "a third has to wait");
    pool.checkout()
        .await
        .expect("a process after all")
        .describe(&project.project())
        .await
        .expect("a description");
}

/// Prints milliseconds per tenant. `cargo test --test it -- --ignored --nocapture how_fast`
#[tokio::test]
#[ignore = "a measurement"]
async fn how_fast_a_warm_process_is() {
    let database = Database::new().await;
    let start = Instant::now();
    let mut process = warm().await;
    eprintln!("start: {:?}", start.elapsed());
    for ini in ["alembic_schema.ini", "alembic_sync.ini"] {
        for count in [1_usize, 12] {
            let target = if count == 1 { "0001_accounts" } else { "head" };
            let rounds = 40;
            let mut spent = Duration::ZERO;
            for round in 0..rounds {
                let schema = format!("{}_{count}_{round}", ini.replace(".ini", ""));
                database.run(&format!("create schema {schema}")).await;
                let tenant = Tenant::new(&database.url).schema(&schema);
                let start = Instant::now();
                let migrated: Migrated = process
                    .migrate(&saas(ini), &tenant.to(Direction::Upgrade, target))
                    .await
                    .expect("a migration");
                spent += start.elapsed();
                assert_eq!(migrated.steps.len(), count);
            }
            eprintln!("{ini}, {count} steps: {:?} a tenant", spent / rounds);
        }
    }
}
