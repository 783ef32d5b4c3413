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
            user,
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
        self.is_alike(&user, &path).await?;
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

    /// Whether a plan works as the same user as env.py's connection, who sees and owns as much, and looks for names in the same schemas:
    /// an operator that is not found makes another comparison, and `IF EXISTS` nothing at all.
    async fn is_alike(&self, user: &str, path: &[String]) -> Result<(), Stop> {
        let mut on = open(&self.live.url, &self.ground).await?;
        let said = fit::search_path(self.plan)
            .map(|path| path.replace(SCHEMA, self.live.schema.as_deref().unwrap_or(SCHEMA)))
            .or_else(|| self.live.schema.as_deref().map(quote));
        if let Some(said) = said {
            on.execute(AssertSqlSafe(format!("set search_path to {said}")))
                .await?;
        }
        let (ours, planned): (String, Vec<String>) =
            sqlx::query_as("select session_user::text, current_schemas(false)::text[]")
                .fetch_one(&mut on)
                .await?;
        close(on).await;
        if ours != user {
            return unproven(format!(
                "env.py connects as `{user}`, and a plan would as `{ours}`, who may see and own other things"
            ));
        }
        match planned == path {
            true => Ok(()),
            false => unproven(format!(
                "env.py's connection searches the schemas [{}], its script [{}]: let both set the same search_path",
                path.join(", "),
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
