//! How many sessions Herder has on a server, at any moment.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use sqlx::{Connection, PgConnection};

/// Looks at a server as often as it can, and keeps what it saw when there was the most of it.
pub(crate) struct Sampler {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    task: std::thread::JoinHandle<()>,
}

#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) samples: u64,
    /// The most sessions of Herder's at one moment.
    pub(crate) most: Vec<String>,
}

impl Sampler {
    /// A thread of its own: the test's must not slow it down.
    pub(crate) fn start(url: String) -> Self {
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let (seeing, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let task = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let mut connection = PgConnection::connect(&url).await.expect("a connection");
                let sessions =
                    "select concat_ws(' ', pid, application_name, clock_timestamp() - backend_start, state, query)
                     from pg_stat_activity
                     where application_name like 'herder%' and backend_type = 'client backend'";
                while !stopped.load(Ordering::Relaxed) {
                    let now: Vec<String> = sqlx::query_scalar(sessions)
                        .fetch_all(&mut connection)
                        .await
                        .expect("sessions");
                    let mut seen = seeing.lock().expect("no panic");
                    seen.samples += 1;
                    if now.len() > seen.most.len() {
                        seen.most = now;
                    }
                }
            });
        });
        Self { seen, stop, task }
    }

    pub(crate) fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.task.join().expect("no panic");
        std::mem::take(&mut *self.seen.lock().expect("no panic"))
    }
}
