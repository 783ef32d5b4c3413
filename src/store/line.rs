//! A connection to the control database for who comes often. A pool asks each connection that comes back whether it
//! lives, twice, and again before it goes out: for a claim or an outcome that is as much talk as the statement itself.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use sqlx::{PgConnection, PgPool, Postgres, pool::PoolConnection};
use tokio::sync::{Mutex, Notify};

use super::StoreError;

/// How long a connection is kept from the pool. Others, who come seldom, wait for it as long.
const HOLD: Duration = Duration::from_millis(20);

/// Holds a connection of the pool for a moment longer than it is used.
pub struct Line {
    pool: PgPool,
    held: Mutex<Option<PoolConnection<Postgres>>>,
    used: Notify,
}

impl Line {
    /// One that takes its connections from this pool.
    pub fn new(pool: PgPool) -> Arc<Self> {
        let line = Arc::new(Self {
            pool,
            held: Mutex::new(None),
            used: Notify::new(),
        });
        tokio::spawn(give_back(Arc::downgrade(&line)));
        line
    }

    /// Uses the connection. Whoever else wants to waits.
    ///
    /// # Errors
    /// What `work` answers; or the control database cannot be reached, or was silent for so long.
    pub async fn with<T>(
        &self,
        limit: Duration,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut held = self.held.lock().await;
        let mut connection = match held.take() {
            Some(connection) => connection,
            None => {
                let connection = self.pool.acquire().await?;
                self.used.notify_one();
                connection
            }
        };
        match tokio::time::timeout(limit, work(&mut connection)).await {
            Ok(Ok(done)) => {
                *held = Some(connection);
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
}

/// Gives the connection to the pool again and again, as long as there is a line.
async fn give_back(line: Weak<Line>) {
    while let Some(line) = line.upgrade() {
        if tokio::time::timeout(Duration::from_secs(1), line.used.notified())
            .await
            .is_ok()
        {
            tokio::time::sleep(HOLD).await;
            drop(line.held.lock().await.take());
        }
    }
}
