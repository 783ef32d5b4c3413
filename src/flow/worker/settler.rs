//! Writes how attempts ended, and claims other jobs in their place: whatever has ended while the last statement was on its
//! way goes into the next one, so that a worker with many quick tenants costs the control database a few statements and
//! not thousands.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use sqlx::PgConnection;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::Instant,
};
use tracing::{debug, error, warn};

use crate::{
    domain::{backoff::Backoff, job::AttemptId},
    flow::{advance::advance, held::Held},
    queue::{Claimer, Delivery},
    store::{
        StoreError,
        job::{self, Ended, Settled},
        run::Others,
    },
};

/// How often what could not be written is tried again.
const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(100),
    max: Duration::from_secs(2),
};

/// How many ends go into one statement: enough for the busiest worker, few enough for one that stays quick.
const BATCH: usize = 100;

/// How long an end waits until half of the jobs that run have ended, too: a statement costs much the same for one as for ten, and
/// the other half keeps the server busy meanwhile.
const GATHER: Duration = Duration::from_millis(3);

/// How long a statement may take. A connection that died in the middle of it answers never.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What became of an end that was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It is.
    Yes,
    /// The job went on without the attempt, and nothing was written.
    Fenced,
    /// Nothing was written, and never will be: that is a bug. The next heartbeats give the job back.
    Never,
}

/// Takes the ends of attempts.
pub(super) struct Settler {
    ends: mpsc::UnboundedSender<End>,
}

struct End {
    ended: Ended,
    room: Arc<OwnedSemaphorePermit>,
    written: oneshot::Sender<Written>,
}

impl Settler {
    /// A settler, which takes ends, and the task that writes them, which lasts as long. What is claimed in their place goes to `next`.
    pub(super) fn new(
        claimer: Arc<Claimer>,
        held: Arc<Held>,
        next: mpsc::UnboundedSender<Delivery>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (ends, ended) = mpsc::unbounded_channel();
        (Self { ends }, Writer { claimer, held, next }.run(ended))
    }

    /// Writes an end, however long the control database is away, and moves its run on. The room goes on to what is claimed in its
    /// place.
    pub(super) async fn write(&self, ended: Ended, room: Arc<OwnedSemaphorePermit>) -> Written {
        let (written, answer) = oneshot::channel();
        // Nobody takes it any more only where the writer has panicked.
        let _ = self.ends.send(End { ended, room, written });
        answer.await.unwrap_or(Written::Never)
    }
}

struct Writer {
    claimer: Arc<Claimer>,
    held: Arc<Held>,
    next: mpsc::UnboundedSender<Delivery>,
}

impl Writer {
    async fn run(self, mut ended: mpsc::UnboundedReceiver<End>) {
        let mut batch = Vec::new();
        while ended.recv_many(&mut batch, BATCH).await > 0 {
            let (enough, until) = (self.held.len().div_ceil(2).min(BATCH), Instant::now() + GATHER);
            while batch.len() < enough
                && let Ok(Some(end)) = tokio::time::timeout_at(until, ended.recv()).await
            {
                batch.push(end);
            }
            self.write(std::mem::take(&mut batch)).await;
        }
    }

    async fn write(&self, ends: Vec<End>) {
        let ended: Vec<&Ended> = ends.iter().map(|end| &end.ended).collect();
        let (mut tries, mut otherwise) = (0, Written::Fenced);
        let settled = loop {
            match self.settle(&ended).await {
                Ok(settled) => break settled,
                // One that the server will never take must not hold back the others. Its job is given back by the next
                // heartbeats, which find it held by nobody.
                Err(error) if error.is_final() => match ends.len() {
                    1 => {
                        error!(%error, "Cannot write an outcome");
                        otherwise = Written::Never;
                        break Vec::new();
                    }
                    _ => {
                        for end in ends {
                            Box::pin(self.write(vec![end])).await;
                        }
                        return;
                    }
                },
                Err(error) => {
                    tries += 1;
                    if error.may_be_done() {
                        // What is missing in a later answer was most likely written by the try whose answer was lost.
                        otherwise = Written::Yes;
                    }
                    if tries == 1 {
                        let count = ended.len();
                        warn!(%error, "Cannot write the outcomes of {count} attempts yet; retrying");
                    }
                    tokio::time::sleep(BACKOFF.delay(tries, rand::random())).await;
                }
            }
        };
        // Before their room is free for the next claims: a run that just halted must give none.
        let runs: BTreeSet<_> = settled.iter().filter(|s| s.moves).map(|s| s.run).collect();
        for run in runs {
            let advancing = async |line: &mut PgConnection| advance(line, run, Others::Awaited).await;
            if let Err(error) = self.claimer.line.with(TIMEOUT, advancing).await {
                // The keeper of any worker does it a moment later.
                debug!(%error, "Could not advance the run");
            }
        }
        let written: BTreeSet<AttemptId> = settled.iter().map(|s| s.attempt).collect();
        let mut room = Vec::with_capacity(ends.len());
        for end in ends {
            let _ = end.written.send(match written.contains(&end.ended.attempt) {
                true => Written::Yes,
                false => otherwise,
            });
            room.push(end.room);
        }
        match self.claimer.claim(room).await {
            Ok(claimed) => claimed.deliveries.into_iter().for_each(|delivery| {
                // Nobody takes it any more only where the process is about to end.
                let _ = self.next.send(delivery);
            }),
            // The queue asks again after its rest, and says so if that fails as well.
            Err(error) => debug!(%error, "Could not claim what comes next"),
        }
    }

    async fn settle(&self, ended: &[&Ended]) -> Result<Vec<Settled>, StoreError> {
        let worker = &self.claimer.filter.worker;
        let settling = async |line: &mut PgConnection| job::settle(line, worker, ended).await;
        self.claimer.line.with(TIMEOUT, settling).await
    }
}
