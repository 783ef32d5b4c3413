//! Signing on and off: while its lease runs, a worker's jobs are its own.

use std::time::{Duration, Instant};

use tracing::warn;

use super::{LAST_WORDS, Shared, Stage};
use crate::{
    domain::backoff::Backoff,
    queue::Intake,
    store::{self, StoreError, worker},
};

/// How often signing on is tried again.
const SIGN_ON_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(100),
    max: Duration::from_secs(2),
};

impl Shared {
    /// What it says of itself.
    pub(super) fn row(&self) -> worker::WorkerRow {
        worker::WorkerRow {
            id: self.id.clone(),
            name: self.options.name.clone(),
            concurrency: i32::try_from(self.options.concurrency).unwrap_or(i32::MAX),
            draining: false,
            only_run: self.options.only_run,
            runner: self.cx.config.runner.kind().into(),
            servers: self.cx.servers.names().map(str::to_owned).collect(),
        }
    }

    /// Signs on. The control database may be away: then it is waited for.
    pub(super) async fn register(&self, row: &worker::WorkerRow) {
        let mut tries = 0;
        while let Err(error) = store::answered(self.sign_on(row)).await {
            tries += 1;
            if tries == 1 {
                warn!(%error, "Cannot register this worker; retrying until it works");
            }
            self.answered();
            tokio::select! {
                () = tokio::time::sleep(SIGN_ON_BACKOFF.delay(tries, rand::random())) => {}
                () = self.drain.cancelled() => return,
            }
        }
    }

    async fn sign_on(&self, row: &worker::WorkerRow) -> Result<(), StoreError> {
        // Before the first claim: a job whose worker has no lease is anybody's.
        let mut connection = self.cx.pool.acquire().await?;
        let (sent, lease) = (Instant::now(), self.cx.config.worker.lease);
        worker::begin_anew(&mut connection, &row.id).await?;
        let beat = worker::beat(&mut connection, row, lease).await?;
        self.health.beat(sent, lease, beat.server_since);
        Ok(())
    }

    /// Gives back what the control database thinks that we hold: claims that were never begun, and attempts whose end could not be
    /// written.
    pub(super) async fn give_back_rest(&self) {
        let rest = async {
            let mut connection = self.cx.pool.acquire().await?;
            let row = worker::WorkerRow {
                concurrency: 0,
                draining: true,
                ..self.row()
            };
            let beat = worker::beat(&mut connection, &row, self.cx.config.worker.lease).await?;
            for job in beat.known {
                worker::give_back(&mut connection, &self.id, job.attempt).await?;
            }
            Ok::<_, StoreError>(())
        };
        match tokio::time::timeout(LAST_WORDS, rest).await {
            Ok(Ok(())) => {}
            _ => warn!("Could not return the remaining jobs; their lease will expire"),
        }
    }

    /// Signs off, over the last connection to the control database, and closes that one.
    pub(super) async fn sign_off(&self) {
        self.enter(Stage::SignedOff);
        let off = async {
            let mut connection = self.cx.pool.acquire().await?;
            worker::remove(&mut connection, &self.id).await?;
            Ok::<_, StoreError>(connection.close().await?)
        };
        let off = tokio::time::timeout(LAST_WORDS, off).await;
        if let Err(error) = off.unwrap_or(Err(StoreError::Silent(LAST_WORDS))) {
            warn!(%error, "Could not sign off; the lease will expire");
        }
    }
}
