//! Where env.py goes, and what it says there besides its revisions: a plan is for the same place, and says it, too.

use sqlx::{AssertSqlSafe, Executor};

use super::{
    Shadow, Stop,
    outside::within,
    refuted,
    scratch::{Scratch, close, open},
    unproven,
};
use crate::{
    domain::{plan::SCHEMA, revision::Direction},
    runner::alembic::{
        WarmProcess, Whereabouts, fit,
        runner::settings,
        said::{Beside, Sides},
    },
    session::quote,
};

impl Shadow<'_> {
    /// Asks env.py where it would go. One that ignores what it is told would migrate somebody's tenant.
    pub(super) async fn look(&self, process: &mut WarmProcess) -> Result<(), Stop> {
        let settings = settings(self.ground.limits);
        let migration = self.migration(&self.live, Direction::Upgrade, "heads", &settings);
        let Whereabouts {
            database,
            schema,
            path,
            ledger,
            session,
            listens,
            role,
            besides,
        } = self.asked(
            process
                .look(self.runner.project(), &migration, &within(&self.live))
                .await,
        )?;
        if database != self.live.url.database() {
            return refuted(format!(
                "env.py connects to database `{database}`, not to the one that it is given"
            ));
        }
        let own = self.live.schema.as_ref();
        if own.is_some_and(|own| schema.as_ref() != Some(own) || ledger.as_ref().is_some_and(|l| l != own)) {
            // A schema in which a role may do nothing is passed over in its search_path.
            if let Some(role) = role {
                return refuted(format!(
                    "env.py works as role `{role}`, which has no rights in a scratch schema"
                ));
            }
            return refuted(format!(
                "env.py works in schema `{}` with its ledger in `{}`, not in the one that it is given",
                schema.as_deref().unwrap_or("none"),
                ledger.as_deref().unwrap_or("the same"),
            ));
        }
        self.has_all(&besides, &self.live)?;
        self.searches(&path).await?;
        if let Some(event) = listens {
            return unproven(format!(
                "env.py has a `{event}` of its own for its engine, and a plan is sent by another client"
            ));
        }
        match fit::deviation(self.plan, &session) {
            Some(why) => unproven(why),
            None => Ok(()),
        }
    }

    /// Whether a plan looks for names in the same schemas as env.py's connection: an operator that is not found makes another
    /// comparison, and `IF EXISTS` nothing at all.
    async fn searches(&self, live: &[String]) -> Result<(), Stop> {
        let mut on = open(&self.live.url, &self.ground).await?;
        let path = fit::search_path(self.plan)
            .map(|path| path.replace(SCHEMA, self.live.schema.as_deref().unwrap_or(SCHEMA)))
            .or_else(|| self.live.schema.as_deref().map(quote));
        if let Some(path) = path {
            on.execute(AssertSqlSafe(format!("set search_path to {path}")))
                .await?;
        }
        let planned: Vec<String> = sqlx::query_scalar("select current_schemas(false)::text[]")
            .fetch_one(&mut on)
            .await?;
        close(on).await;
        match planned == live {
            true => Ok(()),
            false => unproven(format!(
                "env.py's connection searches the schemas [{}], its script [{}]: let both set the same search_path",
                live.join(", "),
                planned.join(", ")
            )),
        }
    }

    /// What env.py says outside all revisions, a plan must say, too.
    pub(super) fn has_all(&self, besides: &[Beside], scratch: &Scratch) -> Result<(), Stop> {
        match self.sides(scratch).missing(besides) {
            None => Ok(()),
            Some(why) => refuted(why),
        }
    }

    pub(super) fn sides<'b>(&'b self, scratch: &'b Scratch) -> Sides<'b> {
        Sides {
            plan: self.plan,
            schema: scratch.schema.as_deref(),
            ledger: self.runner.version_table(),
        }
    }
}
