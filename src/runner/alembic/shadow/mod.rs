//! The proof of a plan. In two scratch schemas (or databases) that stand where the plan begins, one is brought on by
//! live Alembic, the other by the plan. Then both must be the same, and nothing around them another than before.
//!
//! Never more than one connection is open: ours is closed while Alembic has its own. The scratch names carry a mark of
//! the fleet, whose proofs come one after the other, and the time: so a proof that was killed is cleared away by the
//! next one, or by another fleet's an hour later.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::Rng;
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tracing::warn;

use super::{
    digest::{Difference, catalog, difference, rows},
    runner::AlembicRunner,
};
use crate::{
    database_url::DatabaseUrl,
    domain::{failure::FailureClass, plan::Plan},
    runner::proof::{Ground, Verdict},
    secret::Secret,
    session::{LINGER, quote},
    tenant_error::TenantError,
};

mod look;
mod outside;
mod scratch;
mod sides;

pub use self::scratch::SHADOW_PREFIX;
pub(super) use self::scratch::postgres_major;
use self::scratch::{Scratch, close, is_there, open, remove, sweep};

/// How long the removal of the scratch schemas may take, when everything else was told to stop.
const CLEAR_LIMIT: Duration = Duration::from_secs(20);

/// How long a whole proof may take. Old revisions that need longer on empty tables wait for something.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// Why a proof ended early.
enum Stop {
    Refuted(String),
    Unproven(String),
    Hindered(String),
    Error(TenantError),
}

/// How a proof ended.
pub(super) enum End {
    /// It found this.
    Found(Verdict),
    /// Somebody was in its way: another one may find more.
    Hindered(String),
}

impl From<TenantError> for Stop {
    fn from(error: TenantError) -> Self {
        Self::Error(error)
    }
}

impl From<sqlx::Error> for Stop {
    fn from(error: sqlx::Error) -> Self {
        Self::Error(error.into())
    }
}

fn unproven<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Unproven(why.into()))
}

/// It failed, and may have done so for what others do at the same time: a long transaction keeps an index from being built.
fn failed<T>(class: FailureClass, why: String) -> Result<T, Stop> {
    match class {
        FailureClass::Transient => Err(Stop::Hindered(why)),
        FailureClass::Infrastructure | FailureClass::Permanent => unproven(why),
    }
}

/// It lies in the project, and not in the server that the proof is made on.
fn refuted<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Refuted(why.into()))
}

/// A proof in progress.
pub(super) struct Shadow<'a> {
    runner: &'a AlembicRunner,
    ground: Ground<'a>,
    plan: &'a Plan,
    /// Where the plan leads, as Alembic takes it.
    target: &'a str,
    live: Scratch,
    planned: Scratch,
    /// What its connections call themselves.
    name: String,
}

impl<'a> Shadow<'a> {
    pub(super) fn new(
        runner: &'a AlembicRunner,
        ground: Ground<'a>,
        plan: &'a Plan,
        target: &'a str,
    ) -> Result<Self, TenantError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!(
            "{SHADOW_PREFIX}{}_{}_{:08x}",
            ground.owner,
            now.as_secs(),
            rand::rng().random::<u32>()
        );
        let scratch = |side: &str| {
            let name = format!("{name}_{side}");
            let database = ground.place.schema.is_none().then_some(name.as_str());
            let url = match database {
                None => ground.url.clone(),
                Some(_) => DatabaseUrl::for_database(&Secret::new(ground.url.expose()), database)
                    .map_err(|e| TenantError::Connection(e.to_string()))?,
            };
            let schema = ground.place.schema.is_some().then(|| name.clone());
            Ok::<_, TenantError>(Scratch { name, url, schema })
        };
        Ok(Self {
            live: scratch("a")?,
            planned: scratch("b")?,
            name: ground.label(),
            runner,
            ground,
            plan,
            target,
        })
    }

    /// Proves the plan. Whatever happens, the scratch schemas are gone afterwards, if that can be had at all.
    pub(super) async fn prove(self) -> Result<End, TenantError> {
        let cancel = self.ground.cancel;
        let ended = tokio::select! {
            ended = tokio::time::timeout(LIMIT, self.run()) => ended.ok(),
            () = cancel.cancelled() => Some(Err(Stop::Error(TenantError::Cancelled))),
        };
        if matches!(ended, None | Some(Err(Stop::Error(_)))) {
            // It was broken off: the server goes on with what was said last until it looks for whoever said it.
            tokio::time::sleep(LINGER).await;
        }
        let late = || unproven(format!("its proof was not done in {} min", LIMIT.as_secs() / 60));
        let proven = ended.unwrap_or_else(late);
        // What is left is cleared away by a later proof, and proves nothing against the plan.
        let cleared = tokio::time::timeout(CLEAR_LIMIT, self.clear()).await;
        if let Err(error) = cleared.unwrap_or(Err(TenantError::Silent(CLEAR_LIMIT))) {
            let (a, b) = (&self.live.name, &self.planned.name);
            warn!(%error, "Cannot remove the scratch schemas `{a}` and `{b}`; a later proof will");
        }
        match proven {
            Err(Stop::Error(error)) => Err(error),
            Err(Stop::Refuted(why)) => Ok(End::Found(Verdict::Refuted { why })),
            Err(Stop::Unproven(why)) => Ok(End::Found(Verdict::Unproven { why })),
            Err(Stop::Hindered(why)) => Ok(End::Hindered(why)),
            Ok(()) => Ok(End::Found(Verdict::Proven)),
        }
    }

    async fn run(&self) -> Result<(), Stop> {
        let mut on = open(self.ground.url, &self.ground).await?;
        sweep(&mut on, &self.ground).await;
        let before = self.outside(&mut on).await?;
        let since: String = sqlx::query_scalar("select clock_timestamp()::text")
            .fetch_one(&mut on)
            .await?;
        for scratch in [&self.live, &self.planned] {
            self.make(&mut on, scratch).await?;
        }
        close(on).await;

        // Before a process is taken: this asks for one of its own, and there may be no second.
        self.rehearse_beginning().await?;
        let mut process = self.runner.checkout().await?;
        self.look(&mut process).await?;
        self.bring_to_beginning(&mut process, &self.planned).await?;
        self.apply().await?;
        self.bring_to_beginning(&mut process, &self.live).await?;
        let done = self
            .migrate(&mut process, &self.live, self.plan.direction, self.target)
            .await?;
        drop(process);
        self.compare(&since).await?;
        if let Some(why) = self.sides(&self.live).difference(&done.said, &done.besides) {
            return refuted(why);
        }
        let mut on = open(self.ground.url, &self.ground).await?;
        let after = self.outside(&mut on).await?;
        close(on).await;
        match difference(&before, &after) {
            None => Ok(()),
            Some(Difference { gone, new }) => unproven(format!(
                "something outside the scratch schemas changed meanwhile: from [{gone}] to [{new}]"
            )),
        }
    }

    async fn make(&self, on: &mut PgConnection, scratch: &Scratch) -> Result<(), Stop> {
        let what = if self.ground.place.schema.is_some() {
            "schema"
        } else {
            "database"
        };
        let made = on
            .execute(AssertSqlSafe(format!("create {what} {}", quote(&scratch.name))))
            .await;
        match made.map_err(TenantError::from) {
            Ok(_) => Ok(()),
            Err(TenantError::Database {
                sqlstate, message, ..
            }) => unproven(format!(
                "its proof needs a scratch {what} in {}: {message} ({sqlstate})",
                self.ground.url
            )),
            Err(e) => Err(e.into()),
        }
    }

    /// What must not change: `public` and what belongs to the whole database, unless that is the tenant.
    async fn outside(&self, on: &mut PgConnection) -> Result<Vec<String>, Stop> {
        match self.ground.place.schema.is_some() {
            true => Ok(catalog(on, Some("public")).await?),
            false => Ok(Vec::new()),
        }
    }

    /// Whether both scratch tenants are the same now.
    async fn compare(&self, since: &str) -> Result<(), Stop> {
        let live = self.digest(&self.live, since).await?;
        let planned = self.digest(&self.planned, since).await?;
        match difference(&live, &planned) {
            None => Ok(()),
            Some(Difference { gone, new }) => refuted(format!(
                "the plan does not do what live Alembic does: live gives [{gone}], the plan gives [{new}]"
            )),
        }
    }

    async fn digest(&self, scratch: &Scratch, since: &str) -> Result<Vec<String>, Stop> {
        let mut on = open(&scratch.url, &self.ground).await?;
        let schema = scratch.schema.as_deref();
        let lines = async {
            let mut lines = catalog(&mut on, schema).await?;
            lines.extend(rows(&mut on, schema, since).await?);
            Ok::<_, TenantError>((lines, is_there(&mut on, schema).await?))
        }
        .await;
        close(on).await;
        match lines? {
            (lines, true) => Ok(lines),
            // Two that are gone are alike.
            (_, false) => Err(Stop::Hindered("somebody removed its scratch schema".into())),
        }
    }

    /// Removes the scratch schemas, whether they were made or not.
    async fn clear(&self) -> Result<(), TenantError> {
        let mut on = open(self.ground.url, &self.ground).await?;
        let mut cleared = Ok(());
        for scratch in [&self.live, &self.planned] {
            cleared = remove(&mut on, &scratch.name, self.ground.place.schema.is_some())
                .await
                .and(cleared);
        }
        close(on).await;
        cleared
    }
}
