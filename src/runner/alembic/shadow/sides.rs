//! The two sides of a proof: to where the plan begins both are brought by live Alembic; from there one by it, the other by the plan.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::{
    Shadow, Stop, failed,
    outside::{OUTSIDE, about_outside, kept_inside, kept_inside_alone, within},
    refuted,
    scratch::{Scratch, close, open},
    unproven,
};
use crate::{
    domain::{
        failure::cut,
        plan::{SCHEMA, StepForm},
        revision::Direction,
        tenant::Place,
    },
    runner::{
        alembic::{
            Migrated, Migration, WarmError, WarmProcess,
            runner::{settings, to_error},
        },
        apply::{Afterwards, Applied, NoJournal, Order, apply},
    },
    session::{TenantSession, quote},
    tenant_error::TenantError,
};

impl Shadow<'_> {
    /// The old revisions may reach out of their schema, too. Where they can be rendered, that shows in a transaction
    /// that is rolled back, before Alembic runs them.
    pub(super) async fn rehearse_beginning(&self) -> Result<(), Stop> {
        let (Some(schema), 1, Some(target)) = (
            &self.planned.schema,
            self.plan.before.len(),
            self.plan.before.first(),
        ) else {
            return Ok(());
        };
        let empty = BTreeSet::new();
        let rendered = self
            .runner
            .rendered(Direction::Upgrade, &empty, target, true)
            .await?;
        let Ok(steps) = rendered else { return Ok(()) };
        let mut own = String::new();
        for step in &steps {
            let StepForm::Transaction { sql } = &step.form else {
                break;
            };
            own.push_str(&sql.replace(SCHEMA, schema));
        }
        let sql = format!(
            "begin; set local search_path = {};\n{}",
            quote(schema),
            kept_inside(&self.planned, &own)
        );
        let mut on = open(&self.planned.url, &self.ground).await?;
        let rehearsed = on.execute(sqlx::raw_sql(AssertSqlSafe(sql + "rollback"))).await;
        close(on).await;
        match rehearsed.map_err(TenantError::from) {
            Err(error) if about_outside(&error).is_some() => refuted(format!(
                "its proof would run old revisions; one {}",
                about_outside(&error).unwrap_or_default()
            )),
            // What cannot be rehearsed may still run.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Brings a scratch tenant from the base to where the plan begins, by live Alembic.
    pub(super) async fn bring_to_beginning(
        &self,
        process: &mut WarmProcess,
        scratch: &Scratch,
    ) -> Result<(), Stop> {
        if self.plan.before.is_empty() {
            return Ok(());
        }
        for head in &self.plan.before {
            self.migrate(process, scratch, Direction::Upgrade, head).await?;
        }
        let mut on = open(&scratch.url, &self.ground).await?;
        let ledger = self.ledger(&mut on, scratch).await;
        close(on).await;
        if ledger? != self.plan.before {
            return unproven("live Alembic does not get to where the plan begins");
        }
        Ok(())
    }

    pub(super) async fn migrate(
        &self,
        process: &mut WarmProcess,
        scratch: &Scratch,
        direction: Direction,
        target: &str,
    ) -> Result<Migrated, Stop> {
        let settings = settings(self.ground.limits);
        let migration = self.migration(scratch, direction, target, &settings);
        let within = within(scratch);
        let done = self.asked(
            process
                .migrate_within(self.runner.project(), &migration, &within)
                .await,
        )?;
        self.has_all(&done.besides, scratch)?;
        Ok(done)
    }

    pub(super) fn migration<'b>(
        &'b self,
        scratch: &'b Scratch,
        direction: Direction,
        target: &'b str,
        settings: &'b BTreeMap<String, String>,
    ) -> Migration<'b> {
        Migration {
            direction,
            target,
            url: scratch.url.expose(),
            scheme: self.runner.scheme(),
            schema: scratch.schema.as_deref(),
            application_name: &self.name,
            settings,
        }
    }

    pub(super) fn asked<T>(&self, answer: Result<T, WarmError>) -> Result<T, Stop> {
        match answer {
            Ok(done) => Ok(done),
            Err(WarmError::Tool(error)) if error.message.starts_with(OUTSIDE) => refuted(format!(
                "{}live Alembic {}",
                at(error.revision.as_deref()),
                &error.message[OUTSIDE.len()..],
            )),
            Err(WarmError::Tool(error)) => {
                let scratch = match self.ground.place.schema {
                    Some(_) => "schema",
                    None => "database",
                };
                let why = format!("live Alembic fails in a scratch {scratch}: {error}");
                failed(to_error(error.into()).class(), why)
            }
            Err(other) => Err(to_error(other).into()),
        }
    }

    /// Brings the other scratch tenant on by the plan, as a worker does it. Before each commit, it is made sure that
    /// nothing outside it changes: afterwards it would be too late.
    pub(super) async fn apply(&self) -> Result<(), Stop> {
        let mut plan = self.plan.clone();
        for step in &mut plan.steps {
            match &mut step.form {
                StepForm::Transaction { sql } => *sql = kept_inside(&self.planned, sql),
                StepForm::Outside { statements, .. } => {
                    let mut kept = Vec::new();
                    for statement in statements.iter() {
                        let Some(inside) = kept_inside_alone(&self.planned, statement) else {
                            let said = cut(statement, 120);
                            return unproven(format!(
                                "it says `{said}` outside a transaction, where its proof cannot look first"
                            ));
                        };
                        kept.extend(inside);
                    }
                    *statements = kept;
                }
            }
        }
        let place = Place {
            database: self.planned.url.database(),
            schema: self.planned.schema.clone(),
            ..self.ground.place.clone()
        };
        let (url, limits) = (&self.planned.url, self.ground.limits);
        let mut session = TenantSession::open(url, &place, &self.name, limits, &[]).await?;
        // Steps outside a transaction want the tenant's lock to be held. Nobody else knows this one.
        let locked = plan.is_transactional() || session.try_lock().await?;
        let ledger = self.runner.ledger();
        let order = Order {
            plan: &plan,
            ledger: &ledger,
            name: &self.name,
            afterwards: Afterwards::Closed,
            journal: &NoJournal,
        };
        let applied = match locked {
            true => apply(&mut session, &order).await,
            false => Ok(Applied::Locked),
        };
        session.close().await;
        match applied {
            Ok(Applied::Done(ledger)) if ledger.revisions == self.plan.after => Ok(()),
            Ok(Applied::Unfit(at)) => unproven(format!("the plan does not fit its own scratch schema: {at}")),
            Ok(_) => unproven("the plan does not get to its own end"),
            Err(error @ (TenantError::Connection(_) | TenantError::Cancelled)) => Err(error.into()),
            Err(error) => failed(
                error.class(),
                match (about_outside(&error), &error) {
                    (Some(what), TenantError::Database { revision, .. }) => {
                        format!("{}{what}", at(revision.as_deref()))
                    }
                    (
                        _,
                        TenantError::Database {
                            sqlstate,
                            message,
                            revision,
                            ..
                        },
                    ) => {
                        format!(
                            "{}the plan fails: {message} ({sqlstate})",
                            at(revision.as_deref())
                        )
                    }
                    (_, other) => format!("the plan fails: {other}"),
                },
            ),
        }
    }

    /// The rows of a scratch tenant's ledger.
    async fn ledger(&self, on: &mut PgConnection, scratch: &Scratch) -> Result<BTreeSet<String>, Stop> {
        let table = quote(self.runner.version_table());
        let table = match &scratch.schema {
            Some(schema) => format!("{}.{table}", quote(schema)),
            None => table,
        };
        let exists: bool = sqlx::query_scalar("select to_regclass($1) is not null")
            .bind(&table)
            .persistent(false)
            .fetch_one(&mut *on)
            .await?;
        if !exists {
            return Ok(BTreeSet::new());
        }
        let rows: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(format!("select version_num::text from {table}")))
                .persistent(false)
                .fetch_all(on)
                .await?;
        Ok(rows.into_iter().collect())
    }
}

fn at(revision: Option<&str>) -> String {
    revision.map(|r| format!("revision {r}: ")).unwrap_or_default()
}
