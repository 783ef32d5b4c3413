//! A connection to the control database for who comes often. A pool asks each connection that comes back whether it
//! lives, twice, and again before it goes out: for a claim or an outcome that is as much talk as the statement itself.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{PgConnection, PgPool, Postgres, pool::PoolConnection};
use tokio::sync::Mutex;

use super::StoreError;

/// How long a connection is kept from the pool. Others, who come seldom, wait for it as long.
const HOLD: Duration = Duration::from_millis(20);

/// The same, as a multiple of what a statement takes: over a slow link, that talk is what takes most of the time.
const HOLD_FACTOR: u32 = 6;

/// How long it is kept at most.
const MAX_HOLD: Duration = Duration::from_secs(2);

/// Holds a connection of the pool for a moment longer than it is used.
pub struct Line {
    pool: PgPool,
    held: Mutex<Option<PoolConnection<Postgres>>>,
}

impl Line {
    /// One that takes its connections from this pool.
    pub fn new(pool: PgPool) -> Arc<Self> {
        Arc::new(Self {
            pool,
            held: Mutex::new(None),
        })
    }

    /// Uses the connection. Whoever else wants to waits.
    ///
    /// # Errors
    /// What `work` answers; or the control database cannot be reached, or was silent for so long.
    pub async fn with<T>(
        self: &Arc<Self>,
        limit: Duration,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut held = self.held.lock().await;
        let (mut connection, is_new) = match held.take() {
            Some(connection) => (connection, false),
            None => (self.pool.acquire().await?, true),
        };
        let since = Instant::now();
        match tokio::time::timeout(limit, work(&mut connection)).await {
            Ok(Ok(done)) => {
                *held = Some(connection);
                if is_new {
                    let hold = (since.elapsed() * HOLD_FACTOR).clamp(HOLD, MAX_HOLD);
                    tokio::spawn(Arc::clone(self).give_back(hold));
                }
                Ok(done)
            }
            // The pool finds out whether it is still good for anything.
            Ok(Err(error)) => Err(error),
            Err(_) => {
                // In the middle of a statement it is good for nobody.
                connection.close_on_drop();
                Err(StoreError::Silent(limit))
            }
        }
    }

    /// Gives the connection back to the pool in a moment.
    async fn give_back(self: Arc<Self>, hold: Duration) {
        tokio::time::sleep(hold).await;
        drop(self.held.lock().await.take());
    }
}
