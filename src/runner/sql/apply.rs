//! Runs one file in one tenant, and writes it down in the same breath.

use std::{sync::Arc, time::Instant};

use futures_util::StreamExt;
use sqlx::{
    AssertSqlSafe, Either, PgConnection, Row,
    postgres::{PgDatabaseError, PgErrorPosition, PgRow},
};

use super::{
    directory::Migration,
    ledger::{Applied, LedgerOf, literal},
    script::{Form, Script, Step, copy_from_stdin, culprit, step, undoes_itself},
};
use crate::{
    domain::revision::Direction,
    runner::RunnerError,
    session::{TenantSession, quote},
};

/// A tenant at work.
pub(super) struct Tenant<'a> {
    on: &'a mut PgConnection,
    schema: Option<String>,
    /// As the session came: each file begins with it, whatever the one before did to it.
    search_path: String,
    ledger: LedgerOf,
}

impl<'a> Tenant<'a> {
    pub(super) async fn new(session: &'a mut TenantSession) -> Result<Self, RunnerError> {
        let ledger = LedgerOf::new(session).await?;
        let schema = session.schema().map(str::to_owned);
        let on = session.connection();
        let search_path = sqlx::query_scalar("select current_setting('search_path')")
            .persistent(false)
            .fetch_one(&mut *on)
            .await?;
        Ok(Self {
            on,
            schema,
            search_path,
            ledger,
        })
    }

    /// The ledger's rows. None: it has no table yet.
    pub(super) async fn ledger_rows(&mut self) -> Result<Option<Vec<Applied>>, RunnerError> {
        self.ledger.rows(self.on).await
    }

    /// Makes the ledger's table.
    pub(super) async fn make_ledger(&mut self) -> Result<(), RunnerError> {
        self.ledger.ensure(self.on).await
    }

    /// Runs one file.
    pub(super) async fn run(
        &mut self,
        direction: Direction,
        migration: &Migration,
        script: &Script,
        resumed: bool,
    ) -> Result<(), RunnerError> {
        match script.form() {
            Form::Transaction => self.in_transaction(direction, migration, script).await,
            Form::Message | Form::Steps => self.outside(direction, migration, script, resumed).await,
        }
    }

    /// One transaction for the ledger and the file, as sqlx does it. The ledger comes first: a second attempt at the
    /// same then waits for this one instead of doing all of it in vain.
    async fn in_transaction(
        &mut self,
        direction: Direction,
        migration: &Migration,
        script: &Script,
    ) -> Result<(), RunnerError> {
        let start = Instant::now();
        let entry = match direction {
            Direction::Upgrade => self.ledger.record(migration),
            Direction::Downgrade => self.ledger.erase(migration),
        };
        let begun = self.ask(format!("begin; {entry}")).await;
        let row = begun.map_err(|e| e.at(&migration.id, None))?;
        let Some(transaction) = row.map(|row| row.get::<Option<String>, _>(0)) else {
            // Somebody else has done it since we looked.
            self.tell("rollback".into()).await?;
            return Ok(());
        };
        self.send(&script.body, migration).await?;
        self.check_place(script).await?;
        self.check_transaction(script, migration, transaction).await?;
        // Back to our own settings and role before the last word in the ledger: the file may have left its own.
        let (reset, took) = (
            self.reset(),
            self.ledger.took(migration, start.elapsed().as_nanos()),
        );
        let end = self.tell(format!("{reset}; {took}; commit")).await;
        end.map_err(|e| e.at(&migration.id, None))
    }

    /// A file that does not want a transaction, or that ends ours.
    async fn outside(
        &mut self,
        direction: Direction,
        migration: &Migration,
        script: &Script,
        resumed: bool,
    ) -> Result<(), RunnerError> {
        let start = Instant::now();
        let (announce, withdraw) = match direction {
            Direction::Upgrade => (self.ledger.announce(migration), self.ledger.withdraw(migration)),
            Direction::Downgrade => (
                self.ledger.announce_undo(migration),
                self.ledger.withdraw_undo(migration),
            ),
        };
        self.tell(announce).await?;
        for (i, message) in script.messages().into_iter().enumerate() {
            if self.is_done(&message, resumed).await? {
                continue;
            }
            if let Err(error) = self.send(&message, migration).await {
                let refused = matches!(error, RunnerError::Database { .. });
                if refused && i == 0 && !resumed && undoes_itself(&message) {
                    // If even this fails, the row stays, and somebody will look: better than doing it twice.
                    let _ = self.tell(withdraw).await;
                }
                return Err(error);
            }
        }
        self.check_place(script).await?;
        let nanoseconds = start.elapsed().as_nanos();
        let done = match direction {
            Direction::Upgrade => self.ledger.complete(migration, nanoseconds),
            Direction::Downgrade => self.ledger.complete_undo(migration),
        };
        // A transaction that the file left open is committed, as sqlx does.
        self.tell("commit".into())
            .await
            .map_err(|e| e.at(&migration.id, None))?;
        let reset = self.reset();
        self.tell(format!("{reset}; {done}")).await
    }

    /// Whether a statement outside a transaction needs no doing, by what the catalog says. Mends what a former try
    /// left behind: an invalid index serves no query, and `if not exists` would take it for a good one.
    async fn is_done(&mut self, message: &str, resumed: bool) -> Result<bool, RunnerError> {
        match step(message) {
            Step::CreateIndex { name, table } => match self.index(&name, &table).await? {
                // Our former try got this far: the announcement says so. Without one, the server decides.
                Some((_, true)) => Ok(resumed),
                Some((leftover, false)) => {
                    self.tell(format!("drop index concurrently {leftover}")).await?;
                    Ok(false)
                }
                None => Ok(false),
            },
            Step::DropIndex { name } if resumed => {
                let there: bool = sqlx::query_scalar("select to_regclass($1) is not null")
                    .bind(name)
                    .persistent(false)
                    .fetch_one(&mut *self.on)
                    .await?;
                Ok(!there)
            }
            Step::DropIndex { .. } | Step::Harmless | Step::Once => Ok(false),
        }
    }

    /// The index of this name on this table, if the table is the tenant's: its full name, and whether it is valid.
    async fn index(&mut self, name: &str, table: &str) -> Result<Option<(String, bool)>, RunnerError> {
        let row = sqlx::query(
            "select n.nspname::text, c.relname::text, i.indisvalid from pg_index i \
             join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace \
             where c.relname = $1 and i.indrelid = to_regclass($2) and ($3::text is null or n.nspname = $3)",
        )
        .bind(name)
        .bind(table)
        .bind(&self.schema)
        .persistent(false)
        .fetch_optional(&mut *self.on)
        .await?;
        Ok(row.map(|row| {
            let (schema, index): (String, String) = (row.get(0), row.get(1));
            (format!("{}.{}", quote(&schema), quote(&index)), row.get(2))
        }))
    }

    /// Makes sure that the file did not wander off: what it made without a schema's name would be somebody else's.
    /// An empty path is fine, as pg_dump sets it: then all names were written out.
    async fn check_place(&mut self, script: &Script) -> Result<(), RunnerError> {
        let Some(wanted) = self.schema.clone() else {
            return Ok(());
        };
        let row = self
            .ask("select pg_catalog.current_schema()::pg_catalog.text".into())
            .await?;
        match row.and_then(|row| row.get::<Option<String>, _>(0)) {
            Some(found) if found != wanted => Err(RunnerError::Tool {
                message: format!(
                    "{} set search_path to schema `{found}`: what it made there is not the tenant's",
                    script.file
                ),
                sqlstate: None,
                revision: None,
                statement: None,
                hint: Some(format!(
                    "take SET search_path out of {}: Herder sets it, for each tenant",
                    script.file
                )),
            }),
            _ => Ok(()),
        }
    }

    /// Makes sure that the transaction which holds the ledger's row is still open. What ends it in plain sight was
    /// found when the file was read; this is for what nobody thought of.
    async fn check_transaction(
        &mut self,
        script: &Script,
        migration: &Migration,
        begun: Option<String>,
    ) -> Result<(), RunnerError> {
        let now = "select pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text";
        let row = self.ask(now.into()).await?;
        if row.and_then(|row| row.get::<Option<String>, _>(0)) == begun {
            return Ok(());
        }
        Err(RunnerError::Tool {
            message: format!("{} ended the transaction that it was run in", script.file),
            sqlstate: None,
            revision: Some(migration.id.clone()),
            statement: None,
            hint: Some("begin the file with `-- no-transaction` if it must commit on its own".into()),
        })
    }

    /// Back to the session as it was opened: its limits came with the connection, only the path was set later. No
    /// DISCARD ALL: it would give the tenant's lock back.
    fn reset(&self) -> String {
        format!(
            "reset session authorization; reset role; reset all; \
             select pg_catalog.set_config('search_path', {}, false)",
            literal(&self.search_path)
        )
    }

    /// Sends statements of ours.
    async fn tell(&mut self, sql: String) -> Result<(), RunnerError> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *self.on).await?;
        Ok(())
    }

    /// Sends statements of ours, and takes the one row that they give.
    async fn ask(&mut self, sql: String) -> Result<Option<PgRow>, RunnerError> {
        let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut *self.on).await?;
        Ok(rows.into_iter().next())
    }

    /// Sends statements of the file.
    async fn send(&mut self, text: &Arc<str>, migration: &Migration) -> Result<(), RunnerError> {
        let mut done = 0;
        let mut answers = sqlx::raw_sql(AssertSqlSafe(Arc::clone(text))).fetch_many(&mut *self.on);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(Either::Left(_)) => done += 1,
                Ok(Either::Right(_)) => {}
                Err(error) => return Err(explain(error, text, done, migration)),
            }
        }
        Ok(())
    }
}

/// What the server said, with the statement that it said it about.
fn explain(error: sqlx::Error, text: &str, done: usize, migration: &Migration) -> RunnerError {
    let server = match &error {
        sqlx::Error::Database(e) => e.try_downcast_ref::<PgDatabaseError>(),
        _ => None,
    };
    // It waits for the data, if nothing comes behind it; or it cannot make sense of what does.
    let confused = server.map_or(matches!(error, sqlx::Error::Protocol(_)), |e| e.code() == "42601");
    if confused && let Some(copy) = copy_from_stdin(text) {
        return RunnerError::Tool {
            message: "COPY … FROM stdin has nobody to read from".into(),
            sqlstate: None,
            revision: Some(migration.id.clone()),
            statement: Some(copy.to_owned()),
            hint: Some("write INSERT instead: only psql reads data out of a file of statements".into()),
        };
    }
    let position = match server.and_then(PgDatabaseError::position) {
        Some(PgErrorPosition::Original(position)) => Some(position),
        _ => None,
    };
    RunnerError::from(error).at(&migration.id, culprit(text, position, done))
}
