//! `kind = "sql"`: a folder of SQL files as sqlx-cli writes it. The ledger is sqlx's own, so that `sqlx migrate info`,
//! or an application that calls `sqlx::migrate!` at its start, agrees with what was done here.

mod apply;
mod directory;
mod ledger;
mod script;
pub(super) mod statement;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use tokio::sync::Mutex;

use self::{
    apply::Tenant,
    directory::{Directory, Fingerprint, Migration, fingerprint},
    ledger::Applied,
    script::Script,
};
use super::{LedgerTable, MigrationRunner, RunnerError, Work};
use crate::{
    config::SqlConfig,
    domain::revision::{History, HistoryError},
    session::TenantSession,
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
    async fn directory(&self) -> Result<Arc<Directory>, RunnerError> {
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
        let (print, directory) = read.await.map_err(|e| RunnerError::Setup {
            message: format!("cannot read the migrations in {}: {e}", self.folder.display()),
            hint: "this is a bug in Herder".into(),
        })??;
        *known = Some((print, Arc::clone(&directory)));
        Ok(directory)
    }

    async fn run(&self, session: &mut TenantSession, work: &Work<'_>) -> Result<(), RunnerError> {
        let directory = self.directory().await?;
        if directory.history.revisions() != work.history.revisions() {
            return Err(RunnerError::OtherMigrations);
        }
        let direction = work.claim.direction;
        let pending = directory.work(direction, work.pending)?;
        let mut tenant = Tenant::new(session).await?;
        let applied = match tenant.ledger_rows().await? {
            Some(rows) => rows,
            None if pending.is_empty() => return Ok(()),
            None => {
                tenant.make_ledger().await?;
                Vec::new()
            }
        };
        check(&directory, &applied, &pending)?;
        for (migration, script) in pending {
            let begun = |a: &Applied| a.version == migration.version && !a.whole;
            let resumed = applied.iter().any(begun);
            tenant.run(direction, migration, script, resumed).await?;
        }
        Ok(())
    }
}

/// Refuses a tenant in which something is half done, missing here, or edited since: in sqlx's order.
fn check(
    directory: &Directory,
    applied: &[Applied],
    pending: &[(&Migration, &Script)],
) -> Result<(), RunnerError> {
    let resumable = |a: &Applied| {
        let mut again = pending.iter().filter(|(m, _)| m.version == a.version);
        again.any(|(_, script)| script.is_resumable())
    };
    if let Some(half) = applied.iter().find(|a| !a.whole && !resumable(a)) {
        return Err(RunnerError::Dirty(half.version.to_string()));
    }
    for row in applied.iter().filter(|a| a.whole) {
        let Some(migration) = directory.get(row.version) else {
            return Err(HistoryError::UnknownLedger(row.version.to_string()).into());
        };
        if migration.checksum != row.checksum {
            return Err(RunnerError::Edited {
                revision: migration.id.clone(),
                file: migration.up.file.clone(),
            });
        }
    }
    Ok(())
}

#[async_trait]
impl MigrationRunner for SqlRunner {
    async fn history(&self) -> Result<Arc<History>, RunnerError> {
        Ok(Arc::clone(&self.directory().await?.history))
    }

    fn connections(&self) -> i16 {
        1
    }

    fn ledger_table(&self) -> Option<LedgerTable> {
        Some(LedgerTable {
            table: ledger::TABLE.into(),
            revision: "version::text",
            condition: "success",
        })
    }

    async fn migrate(&self, session: &mut TenantSession, work: &Work<'_>) -> Result<(), RunnerError> {
        tokio::select! {
            biased;
            () = work.cancel.cancelled() => Err(RunnerError::Cancelled),
            done = self.run(session, work) => done,
        }
    }
}
