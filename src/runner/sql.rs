//! `kind = "sql"`: a folder of SQL files as sqlx-cli writes it. The ledger is sqlx's own, so that `sqlx migrate info`,
//! or an application that calls `sqlx::migrate!` at its start, agrees with what was done here.

mod directory;
mod ledger;
mod plan;
mod script;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use tokio::sync::Mutex;

use self::{
    directory::{Directory, Fingerprint, fingerprint},
    plan::plan,
};
use super::{
    MigrationRunner, Offer, Work,
    apply::{Afterwards, Applied, NoJournal, Order, apply},
};
use crate::{
    config::SqlConfig,
    domain::{
        revision::{Direction, History, Ledger},
        tenant::Isolation,
    },
    session::{LedgerTable, TenantSession},
    tenant_error::TenantError,
};

/// Migrates by SQL files.
pub(super) struct SqlRunner {
    folder: PathBuf,
    /// The folder as it was read last.
    known: Mutex<Option<(Fingerprint, Arc<Directory>)>>,
}

impl SqlRunner {
    /// A runner over a folder, which is read later.
    pub(super) fn new(config: &SqlConfig) -> Self {
        Self {
            folder: config.directory.clone(),
            known: Mutex::new(None),
        }
    }

    /// The folder as it is now. Its files are read again only where one of them changed.
    async fn directory(&self) -> Result<Arc<Directory>, TenantError> {
        let mut known = self.known.lock().await;
        let (folder, before) = (self.folder.clone(), known.take());
        let read = tokio::task::spawn_blocking(move || {
            // The fingerprint comes first: a change while the files are read is then seen the next time.
            let now = fingerprint(&folder)?;
            match before {
                Some((then, directory)) if then == now => Ok((now, directory)),
                _ => Directory::read(&folder).map(|directory| (now, Arc::new(directory))),
            }
        });
        let (print, directory) = read.await.map_err(|e| TenantError::Setup {
            message: format!("cannot read the migrations in {}: {e}", self.folder.display()),
            hint: "this is a bug in Herder".into(),
        })??;
        *known = Some((print, Arc::clone(&directory)));
        Ok(directory)
    }

    /// The plan for just this tenant, made and applied on the spot.
    async fn run(&self, session: &mut TenantSession, work: &Work<'_>) -> Result<(), TenantError> {
        let directory = self.directory().await?;
        if directory.history.revisions() != work.history.revisions() {
            return Err(TenantError::OtherMigrations);
        }
        let table = ledger_table();
        let ledger = session.read_ledger(&table).await?;
        let plan = plan(&directory, work.claim.direction, &ledger, work.to)?;
        let order = Order {
            plan: &plan,
            ledger: &table,
            name: &work.claim.label().to_string(),
            afterwards: Afterwards::Closed,
            journal: &NoJournal,
        };
        match apply(session, &order).await? {
            Applied::Done(_) | Applied::Found(_) => Ok(()),
            Applied::Locked => Err(TenantError::LockedByOther("another session".into())),
            Applied::Unfit(at) => Err(TenantError::UnexpectedAnswer(format!(
                "the plan does not fit {at}"
            ))),
            Applied::Elsewhere(found) => Err(TenantError::LedgerMoved {
                expected: directory
                    .history
                    .describe(&ledger)
                    .unwrap_or_else(|| "base".into()),
                found: directory
                    .history
                    .describe(&found)
                    .unwrap_or_else(|| "base".into()),
            }),
        }
    }
}

fn ledger_table() -> LedgerTable {
    LedgerTable {
        table: ledger::TABLE.into(),
        revision: "version::text",
        condition: "success",
        half: Some(ledger::HALF),
        checksum: Some("pg_catalog.encode(checksum, 'hex')"),
    }
}

#[async_trait]
impl MigrationRunner for SqlRunner {
    async fn history(&self) -> Result<Arc<History>, TenantError> {
        Ok(Arc::clone(&self.directory().await?.history))
    }

    fn connections(&self) -> i16 {
        1
    }

    fn ledger_table(&self) -> Option<LedgerTable> {
        Some(ledger_table())
    }

    async fn plan(
        &self,
        direction: Direction,
        before: &Ledger,
        to: Option<&str>,
        _: Isolation,
    ) -> Result<Offer, TenantError> {
        Ok(Offer::Plan(plan(
            &*self.directory().await?,
            direction,
            before,
            to,
        )?))
    }

    async fn migrate(&self, session: &mut TenantSession, work: &Work<'_>) -> Result<(), TenantError> {
        tokio::select! {
            biased;
            () = work.cancel.cancelled() => Err(TenantError::Cancelled),
            done = self.run(session, work) => done,
        }
    }
}
