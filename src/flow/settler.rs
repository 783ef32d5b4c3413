//! Writes how attempts ended: whatever has ended while the last statement was on its way goes into the next one, so that
//! a worker with many quick tenants costs the control database a few statements and not thousands.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use sqlx::PgPool;
use tokio::sync::{Mutex, mpsc, oneshot};
use tracing::{debug, warn};

use super::keeper::say;
use crate::{
    domain::{
        backoff::Backoff,
        job::{Epoch, JobId},
    },
    store::{
        StoreError,
        job::{self, Ended, Settled},
        run,
    },
};

/// How often what could not be written is tried again.
const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(100),
    max: Duration::from_secs(2),
};

/// How many ends go into one statement: enough for the busiest worker, few enough for one that stays quick.
const BATCH: usize = 100;

/// How long a statement may take. A connection that died in the middle of it answers never.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Takes the ends of attempts. The task behind it ends when this is dropped.
pub(super) struct Settler {
    ends: mpsc::UnboundedSender<End>,
    /// Held while a batch is written, with all that follows from it.
    writing: Arc<Mutex<()>>,
}

struct End {
    ended: Ended,
    written: oneshot::Sender<bool>,
}

impl Settler {
    /// Starts to take ends.
    pub(super) fn start(pool: PgPool, worker: String) -> Self {
        let (ends, mut ended) = mpsc::unbounded_channel();
        let writing = Arc::new(Mutex::new(()));
        let (writer, is_writing) = (Writer { pool, worker }, Arc::clone(&writing));
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while ended.recv_many(&mut batch, BATCH).await > 0 {
                let _writing = is_writing.lock().await;
                writer.write(std::mem::take(&mut batch)).await;
            }
        });
        Self { ends, writing }
    }

    /// Waits until what follows from the last written end is done, too: the next wave is open, the run is over.
    pub(super) async fn finished(&self) {
        let _written = self.writing.lock().await;
    }

    /// Writes an end, however long the control database is away. False: the job went on without this attempt, and
    /// nothing was written.
    pub(super) async fn write(&self, ended: Ended) -> bool {
        let (written, answer) = oneshot::channel();
        // Nobody takes it any more only where the process is about to end.
        let _ = self.ends.send(End { ended, written });
        answer.await.unwrap_or(false)
    }
}

struct Writer {
    pool: PgPool,
    worker: String,
}

impl Writer {
    async fn write(&self, ends: Vec<End>) {
        let (ended, answers): (Vec<Ended>, Vec<_>) =
            ends.into_iter().map(|end| (end.ended, end.written)).unzip();
        let mut tries = 0;
        let settled = loop {
            match self.settle(&ended).await {
                Ok(settled) => break settled,
                Err(error) => {
                    tries += 1;
                    if tries == 1 {
                        let count = ended.len();
                        warn!(%error, "Cannot write the outcomes of {count} attempts yet");
                    }
                    tokio::time::sleep(BACKOFF.delay(tries, rand::random())).await;
                }
            }
        };
        let written: BTreeSet<(JobId, Epoch)> = settled.iter().map(|s| (s.job, s.epoch)).collect();
        for (ended, answer) in ended.iter().zip(answers) {
            // After a fault, "nothing was written" most likely means that the lost answer was a yes.
            let _ = answer.send(tries > 0 || written.contains(&ended.attempt()));
        }
        let runs: BTreeSet<_> = settled.iter().map(|s| s.run).collect();
        for run in runs {
            match run::advance(&self.pool, run).await {
                Ok(advanced) => say(run, &advanced),
                // The keeper of any worker does it a moment later.
                Err(error) => debug!(%error, "Could not advance the run"),
            }
        }
    }

    async fn settle(&self, ended: &[Ended]) -> Result<Vec<Settled>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let settling = job::settle(&mut connection, &self.worker, ended);
        match tokio::time::timeout(TIMEOUT, settling).await {
            Ok(settled) => settled,
            Err(_) => {
                // In the middle of a statement it is good for nobody.
                connection.close_on_drop();
                Err(StoreError::Silent(TIMEOUT))
            }
        }
    }
}
