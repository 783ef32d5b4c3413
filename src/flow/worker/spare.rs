//! Kept connections that nobody asks for.

use std::{sync::Arc, time::Duration};

use tracing::debug;

use super::Shared;
use crate::{
    domain::job::AttemptId,
    store::{self, slot},
};

/// How long a connection is kept that nobody asks for, while there is other work.
const KEEP: Duration = Duration::from_secs(1);

impl Shared {
    /// Closes kept connections that nobody asks for, and gives back their slots.
    async fn release_kept(&self, longer_than: Duration) {
        let closed = self.kept.close_idle(longer_than).await;
        self.release(&closed).await;
    }

    /// Gives back the slots of connections that were kept after these attempts, and are closed.
    pub(super) async fn release(&self, attempts: &[AttemptId]) {
        if attempts.is_empty() {
            return;
        }
        match store::answered(slot::release_kept(&self.cx.pool, &self.id, attempts)).await {
            Ok(_) => self.kept.given_back(attempts),
            Err(error) => debug!(%error, "Cannot give back the slots of closed connections yet"),
        }
    }

    /// Gives back kept connections as soon as nothing is due, and otherwise after a while.
    pub(super) async fn keep(self: Arc<Self>) {
        loop {
            let longer_than = tokio::select! {
                () = self.idle.notified() => Duration::ZERO,
                () = tokio::time::sleep(KEEP) => KEEP,
            };
            self.release_kept(longer_than).await;
        }
    }
}
