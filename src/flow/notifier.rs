//! The notifier: tells a webhook of the starts, halts and ends of runs. Nothing waits for it, and nothing fails with it.
//!
//! A notice is a row, written by the transaction that moved the run. Every worker has a notifier, and so has every command
//! that moves a run: whoever comes first takes it. So it is told while anybody with the webhook in its config lives, up
//! to three times until the receiver says yes; twice where the receiver's yes, or the one who heard it, was lost.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    config::NotifyConfig,
    domain::{
        backoff::spread,
        job::JobState,
        notice::{Notice, Occasion},
        run::{RunId, RunState, short},
    },
    store::{
        self, StoreError, notice,
        view::{self, RunView},
    },
    webhook::{Webhook, WebhookError},
};

/// How often a notifier looks. With jitter, so that a hundred workers do not look at once.
const ROUND: Duration = Duration::from_secs(1);

/// The delay after a first failed try; it doubles.
const BACKOFF: Duration = Duration::from_secs(2);

/// How much longer than a POST may take a notice belongs to the one who took it.
const GRACE: Duration = Duration::from_secs(10);

/// Tells what there is to tell.
#[derive(Clone)]
pub struct Notifier {
    pool: PgPool,
    webhook: Webhook,
    occasions: Vec<Occasion>,
    timeout: Duration,
}

impl Notifier {
    /// A notifier, if the config names a webhook.
    pub fn new(config: &NotifyConfig, pool: PgPool) -> Option<Self> {
        Some(Self {
            pool,
            webhook: Webhook::new(config.webhook()?.clone(), config.timeout),
            occasions: config.events.clone(),
            timeout: config.timeout,
        })
    }

    /// Tells of all runs until it is stopped. What it is telling then, it still tells.
    pub async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            match self.tell_next(None).await {
                Ok(true) => continue,
                Ok(false) => {}
                // The heartbeat says so where people look.
                Err(error) => debug!(%error, "Cannot look for notices"),
            }
            tokio::select! {
                () = tokio::time::sleep(spread(ROUND, rand::random())) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Tells what there is to tell of a run, or waits until another one has told it: for a process that ends, and may
    /// be the only one. Nothing is begun after the time that one POST may take; false: something is left.
    pub async fn tell(&self, run: RunId) -> bool {
        let deadline = Instant::now() + self.timeout;
        let told = async {
            loop {
                let told = self.tell_next(Some(run)).await?;
                let over = Instant::now() > deadline;
                if (!told || over) && !notice::any_left(&self.pool, run, &self.occasions).await? {
                    return Ok::<_, StoreError>(true);
                }
                if over {
                    return Ok(false);
                }
                if !told {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        // What was taken must be told, or a try is lost: so only a control database that hangs cuts it short.
        matches!(
            tokio::time::timeout(self.timeout * 2 + GRACE, told).await,
            Ok(Ok(true))
        )
    }

    /// Tells the next notice that is due, and says whether there was one.
    async fn tell_next(&self, run: Option<RunId>) -> Result<bool, StoreError> {
        let lease = self.timeout + GRACE;
        let taken = store::answered(notice::take(&self.pool, run, &self.occasions, lease)).await?;
        let Some(notice) = taken else {
            return Ok(false);
        };
        let Some(message) = self.message(&notice).await? else {
            store::answered(notice::remove(&self.pool, notice.id)).await?;
            return Ok(true);
        };
        match self.webhook.post(&message).await {
            Ok(()) => {
                debug!(run.id = %notice.run, event = %notice.occasion, "Notified the webhook");
                store::answered(notice::remove(&self.pool, notice.id)).await?;
            }
            Err(error) => self.failed(&notice, &error).await?,
        }
        Ok(true)
    }

    async fn failed(&self, notice: &Notice, error: &WebhookError) -> Result<(), StoreError> {
        let (run, event) = (short(&notice.run), notice.occasion);
        if notice.tries >= notice::TRIES {
            warn!(run.id = %notice.run, %event, %error, "Gave up notifying the webhook of the {event} of run {run}: {error}");
            return store::answered(notice::remove(&self.pool, notice.id)).await;
        }
        debug!(run.id = %notice.run, %event, %error, "Cannot notify the webhook yet: {error}");
        let delay = BACKOFF * 2_u32.pow(notice.tries.unsigned_abs().saturating_sub(1));
        store::answered(notice::put_back(&self.pool, notice.id, delay)).await
    }

    /// What is said. None: the run is gone.
    async fn message(&self, notice: &Notice) -> Result<Option<Value>, StoreError> {
        let runs = store::answered(view::runs(&self.pool, Some(notice.run), 1)).await?;
        let Some(mut run) = runs.into_iter().next() else {
            return Ok(None);
        };
        // As it was: it may have gone on since.
        run.state = notice.state;
        run.reason.clone_from(&notice.reason);
        run.counts.clone_from(&notice.counts);
        run.settled_at = (notice.occasion == Occasion::Finish).then_some(notice.made_at);
        Ok(Some(message(notice, &run)))
    }
}

/// The message: `text` for chats, the rest for programs. Tenants' names and numbers, never an error's words: values of
/// rows may stand in those.
fn message(notice: &Notice, run: &RunView) -> Value {
    json!({
        "version": 1,
        "id": notice.id.to_string(),
        "event": notice.occasion.as_str(),
        "at": notice.made_at,
        "text": escaped(&text(notice.occasion, run, &notice.failed)),
        "run": run,
        "counts": run.counts,
        "failed": notice.failed,
    })
}

fn text(occasion: Occasion, run: &RunView, failed: &[String]) -> String {
    let id = short(&run.id);
    let what = format!("run {id} ({} to {})", run.direction, run.target);
    let tenants = match run.tenants {
        1 => "1 tenant".to_owned(),
        n => format!("{n} tenants"),
    };
    let names = match (
        failed.join(", "),
        run.count(JobState::Failed) - failed.len() as i64,
    ) {
        (names, ..=0) => names,
        (names, more) => format!("{names} and {more} more"),
    };
    let why = format!("`herder status {id} --failed` shows why");
    let retry = format!("`herder retry {id}` tries again");
    let again = match run.half_applied {
        0 => format!("{why}; {retry}"),
        n => format!("{why}, and what to mend by hand first (half applied: {n}); only then {retry}"),
    };
    match (occasion, run.state) {
        (Occasion::Start, _) => format!("▶️ Herder started {what}: {tenants}"),
        (Occasion::Halt, _) => format!(
            "⛔ Herder halted {what}: {}. {} of {tenants} succeeded; failed: {names}. {why}",
            run.reason.as_deref().unwrap_or("too many failures"),
            run.count(JobState::Succeeded),
        ),
        (Occasion::Finish, RunState::Failed) => format!(
            "❌ Herder finished {what}: {} of {tenants} failed: {names}. {again}",
            run.count(JobState::Failed),
        ),
        (Occasion::Finish, RunState::Cancelled) => format!(
            "⏹️ Herder cancelled {what}: {} of {tenants} had succeeded",
            run.count(JobState::Succeeded)
        ),
        (Occasion::Finish, _) => format!("✅ Herder finished {what}: {tenants}, none failed"),
    }
}

/// As chats want it: a tenant named `<!channel>` must not wake everybody.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::revision::Direction;

    fn run(state: RunState, counts: &[(JobState, i64)]) -> RunView {
        RunView {
            id: RunId::from_u128(0x7f3a_1b2c << 96),
            direction: Direction::Upgrade,
            target: "head".into(),
            runner: "sql".into(),
            state,
            tenants: 412,
            wave: 0,
            waves: 1,
            failure_limit: None,
            reason: (state == RunState::Halted).then(|| "3 tenants failed; the failure limit is 2".into()),
            created_at: chrono::DateTime::UNIX_EPOCH,
            settled_at: None,
            counts: counts.iter().copied().collect(),
            half_applied: 0,
        }
    }

    #[test]
    fn each_occasion_has_its_words() {
        let failed = ["acme".to_owned(), "beta".into(), "gamma".into()];
        let some = [(JobState::Failed, 5), (JobState::Succeeded, 400)];
        let say = |occasion, state, failed: &[String]| text(occasion, &run(state, &some), failed);
        let said = [
            say(Occasion::Start, RunState::Running, &[]),
            say(Occasion::Halt, RunState::Halted, &failed),
            say(Occasion::Finish, RunState::Failed, &failed),
            text(
                Occasion::Finish,
                &RunView {
                    half_applied: 2,
                    ..run(RunState::Failed, &some)
                },
                &failed,
            ),
            say(Occasion::Finish, RunState::Cancelled, &failed),
            say(Occasion::Finish, RunState::Succeeded, &[]),
        ];
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn no_tenant_wakes_everybody() {
        assert_eq!(escaped("<!channel> & co"), "&lt;!channel&gt; &amp; co");
    }
}
