//! The same SQL, fed by hand: nothing is checked, nothing is written down but the tool's own ledger.

use async_trait::async_trait;

use super::{Contender, Job, Ran};
use crate::{feed::feed, meter::measure, project::Ledger, stage::Stage};

/// So many connections that stay open, one message a tenant.
pub(crate) struct ByHand {
    pub(crate) ledger: Ledger,
    pub(crate) connections: usize,
}

#[async_trait]
impl Contender for ByHand {
    fn name(&self) -> String {
        let what = match self.ledger {
            Ledger::Alembic => "Alembic's SQL",
            Ledger::Sqlx => "SQL files",
        };
        format!("{what} by hand ×{}", self.connections)
    }

    fn ledger(&self) -> Ledger {
        self.ledger
    }

    async fn run(&self, stage: &Stage, job: &Job) -> anyhow::Result<Ran> {
        let message = stage.project.by_hand(self.ledger, job.task);
        let work = feed(stage, &job.tenants, self.connections, &message);
        let ((), reading) = measure(stage, work).await?;
        Ok(Ran {
            reading,
            ..Ran::default()
        })
    }
}
