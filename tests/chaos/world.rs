//! The servers, the clock, the diary, and what happened to whom.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use herder::throwaway::Settings;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};

use crate::args::Args;
use crate::fleet::Cluster;

/// How long our own questions may take, server restarts and a busy machine included.
const PATIENCE: Duration = Duration::from_secs(180);

/// A PostgreSQL server.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) cluster: Arc<Cluster>,
    /// Whether it is being restarted.
    busy: AtomicBool,
}

/// All that the parts of this test share.
pub(crate) struct World {
    /// The control databases' server, and two with tenants.
    pub(crate) servers: [Server; 3],
    /// Where configs, logs, diary and report go.
    pub(crate) dir: PathBuf,
    began: Instant,
    diary: Mutex<File>,
    /// When the faults were over.
    calm_since: OnceLock<Instant>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    windows: Mutex<Vec<Window>>,
    broken: Mutex<Vec<Broken>>,
}

/// A time in which nothing could go on, for another reason than a death.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// A server's name, a run's id, or a worker's name.
    pub(crate) of: String,
    /// Seconds since 1970.
    pub(crate) from: f64,
    pub(crate) to: f64,
}

/// A promise that was not kept.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Broken {
    pub(crate) promise: &'static str,
    pub(crate) at_seconds: f64,
    pub(crate) count: u64,
    pub(crate) what: String,
}

impl World {
    /// Starts the servers.
    pub(crate) async fn start(args: &Args) -> Arc<Self> {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .parent()
            .expect("the target folder")
            .join(format!("chaos/{}", args.seed));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a folder");
        let server = async |name, connections: u32| Server {
            name,
            cluster: Cluster::own(Settings::default().parameter("max_connections", connections)).await,
            busy: AtomicBool::new(false),
        };
        let world = Self {
            servers: [
                server("control", 250).await,
                server("east", 100).await,
                server("west", 100).await,
            ],
            diary: Mutex::new(File::create(dir.join("diary.log")).expect("a diary")),
            dir,
            began: Instant::now(),
            calm_since: OnceLock::new(),
            counts: Mutex::default(),
            windows: Mutex::default(),
            broken: Mutex::default(),
        };
        world.say(&format!(
            "seed {}, {} minutes, {} faults a minute",
            args.seed, args.minutes, args.rate
        ));
        Arc::new(world)
    }

    /// Seconds since the beginning.
    pub(crate) fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Writes a line into the diary, and shows it.
    pub(crate) fn say(&self, line: &str) {
        self.note(line);
        eprintln!("{:8.2}  {line}", self.seconds());
    }

    /// Writes a line into the diary.
    pub(crate) fn note(&self, line: &str) {
        // A diary that cannot be written must not end the test.
        let _ = writeln!(locked(&self.diary), "{:8.2}  {line}", self.seconds());
    }

    /// No round begins from now on.
    pub(crate) fn finish(&self) {
        self.calm_since.get_or_init(Instant::now);
    }

    /// Whether no round begins any more.
    pub(crate) fn is_finishing(&self) -> bool {
        self.calm_since.get().is_some()
    }

    /// For how long there have been no faults any more.
    pub(crate) fn calm(&self) -> Duration {
        self.calm_since.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    /// Counts something that happened.
    pub(crate) fn count(&self, what: &'static str, by: u64) {
        *locked(&self.counts).entry(what).or_default() += by;
    }

    /// All counts so far.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        locked(&self.counts).clone()
    }

    /// Takes note of a promise that broke.
    pub(crate) fn breaks(&self, promise: &'static str, count: u64, what: String) {
        self.say(&format!("BROKEN {promise}: {what}"));
        locked(&self.broken).push(Broken {
            promise,
            at_seconds: self.seconds(),
            count,
            what,
        });
    }

    /// All that broke so far.
    pub(crate) fn broken(&self) -> Vec<Broken> {
        locked(&self.broken).clone()
    }

    /// Takes note of a time in which something stood still.
    pub(crate) fn stood_still(&self, of: &str, from: f64) {
        let of = of.to_owned();
        locked(&self.windows).push(Window { of, from, to: now() });
    }

    /// All such times.
    pub(crate) fn windows(&self) -> Vec<Window> {
        locked(&self.windows).clone()
    }

    /// Crashes a server, and starts it again after a while. False: it is down already.
    pub(crate) async fn crash(&self, index: usize, down: Duration) -> bool {
        let server = &self.servers[index];
        if server.busy.swap(true, Ordering::Relaxed) {
            return false;
        }
        let from = now();
        let cluster = Arc::clone(&server.cluster);
        let restart = move || {
            cluster.server().stop_immediate();
            std::thread::sleep(down);
            cluster.server().restart().expect("a restart");
        };
        tokio::task::spawn_blocking(restart).await.expect("no panic");
        self.stood_still(server.name, from);
        server.busy.store(false, Ordering::Relaxed);
        true
    }
}

impl Server {
    /// A few connections of our own to a database. They are not the fleet's: see [`crate::project::Project::roles`].
    pub(crate) fn pool(&self, database: &str) -> PgPool {
        let options: PgConnectOptions = self.cluster.url(database).parse().expect("a URL");
        PgPoolOptions::new()
            .max_connections(3)
            .acquire_timeout(Duration::from_secs(10))
            .connect_lazy_with(options.application_name("chaos"))
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a time after 1970").as_secs_f64()
}

/// What a lock holds, whatever happened to others who held it.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks a server that may be away for rows.
pub(crate) async fn rows<T>(pool: &PgPool, sql: &str) -> Vec<T>
where
    T: for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        let query = sqlx::query_as(AssertSqlSafe(sql.to_owned()));
        match query.fetch_all(pool).await {
            Ok(rows) => return rows,
            Err(error) if Instant::now() > deadline => panic!("{error} in {sql}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Asks a server that may be away for one value.
pub(crate) async fn one<T>(pool: &PgPool, sql: &str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    let mut rows: Vec<(T,)> = rows(pool, sql).await;
    assert_eq!(rows.len(), 1, "{sql}");
    rows.remove(0).0
}
