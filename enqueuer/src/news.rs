//! Telling the webhook before a command ends: no worker may be there to do it.

use herder::{
    config::NotifyConfig,
    domain::run::{RunId, short},
    flow::notifier::Notifier,
};
use sqlx::PgPool;
use tokio::task::JoinHandle;

use crate::output;

/// What there is to tell of a run that this command moves.
#[must_use = "what is not told here is left to the workers"]
pub(crate) struct News {
    notifier: Option<Notifier>,
    run: RunId,
    first: Option<JoinHandle<bool>>,
}

impl News {
    /// Begins to tell of a run, beside whatever the command does next.
    pub(crate) fn of(config: &NotifyConfig, pool: &PgPool, run: RunId) -> Self {
        let notifier = Notifier::new(config, pool.clone());
        let first = notifier
            .clone()
            .map(|notifier| tokio::spawn(async move { notifier.tell(run).await }));
        Self { notifier, run, first }
    }

    /// Tells the rest, for as long as one message may take. How the command ends does not depend on it.
    pub(crate) async fn told(self) {
        let (Some(notifier), Some(first)) = (self.notifier, self.first) else {
            return;
        };
        // Where the first one has waited in vain until now, another wait would be in vain as well.
        let hope = first.is_finished() || first.await.unwrap_or(false);
        if !(hope && notifier.tell(self.run).await) {
            output::warning(&format!(
                "not all notifications about run {} were delivered to the webhook; a worker with the same [notify] delivers the rest within the hour",
                short(&self.run)
            ));
        }
    }
}
