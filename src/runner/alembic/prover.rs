//! Alembic's plans: rendered under made-up names, and proven where both renderings agree.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use sha2::{Digest, Sha256};

use super::{
    AlembicRunner, Refusal, Rendered, Rendering, fit, offline,
    runner::to_error,
    shadow::{self, Shadow},
};
use crate::{
    config::PlanConfig,
    domain::{
        plan::{Plan, PlanStep, SCHEMA},
        revision::Direction,
    },
    runner::{Ground, MigrationRunner, Offer, PlanProver, Verdict},
    tenant_error::TenantError,
};

/// How far apart two renderings are that prove a plan free of the time.
const CLOCK_TICK: Duration = Duration::from_millis(1100);

/// Goes up with every change to what a proof looks at: an older proof says nothing then.
const PROOF_VERSION: &str = "10";

/// How often a proof is tried that something is in the way of.
const PROOF_TRIES: u32 = 3;

impl AlembicRunner {
    /// What is rendered under a made-up name.
    fn rendering<'a>(
        &'a self,
        direction: Direction,
        before: &'a BTreeSet<String>,
        target: &'a str,
        by_schema: bool,
    ) -> Rendering<'a> {
        Rendering {
            direction,
            heads: before,
            target,
            scheme: self.scheme(),
            database: offline::DATABASE,
            schema: by_schema.then_some(SCHEMA),
            env: false,
        }
    }

    /// Renders under two made-up names, and makes steps of it where both say the same.
    pub(super) async fn rendered(
        &self,
        direction: Direction,
        before: &BTreeSet<String>,
        target: &str,
        by_schema: bool,
    ) -> Result<Result<Vec<PlanStep>, String>, TenantError> {
        let mut process = self.checkout().await?;
        let mut rendering = self.rendering(direction, before, target, by_schema);
        let first = process
            .render(self.project(), &rendering)
            .await
            .map_err(to_error)?;
        let (events, ledger) = match first {
            Rendered::Script { events, ledger, .. } => (events, ledger),
            Rendered::Refused { refused } => return Ok(Err(why(&refused))),
        };
        rendering.database = offline::OTHER_DATABASE;
        rendering.schema = by_schema.then_some(offline::OTHER_SCHEMA);
        let other = process
            .render(self.project(), &rendering)
            .await
            .map_err(to_error)?;
        let other = match other {
            Rendered::Script { events, .. } => offline::with_schema(events),
            Rendered::Refused { refused } => return Ok(Err(why(&refused))),
        };
        if let Some(revision) = offline::first_difference(&events, &other) {
            let place = revision.map_or_else(|| "env.py".into(), |r| format!("revision {r}"));
            return Ok(Err(format!(
                "{place} renders other SQL each time, or for each tenant"
            )));
        }
        if ledger.table != self.version_table()
            || ledger.schema.as_deref().is_some_and(|s| by_schema && s != SCHEMA)
        {
            return Ok(Err(format!(
                "env.py keeps its ledger in {}{}, not in the tenant's {}",
                ledger.schema.map(|s| format!("{s}.")).unwrap_or_default(),
                ledger.table,
                self.version_table()
            )));
        }
        Ok(offline::steps(&events, before, self.version_table()))
    }
}

#[async_trait]
impl PlanProver for AlembicRunner {
    async fn fit(&self, plan: Plan, to: Option<&str>, ground: Ground<'_>) -> Result<Offer, TenantError> {
        fit::fit(self, plan, to.unwrap_or("base"), ground).await
    }

    fn needs_proof(&self) -> bool {
        self.plan_config() != PlanConfig::Always
    }

    async fn proof_key(
        &self,
        plan: &Plan,
        to: Option<&str>,
        ground: Ground<'_>,
    ) -> Result<Option<String>, TenantError> {
        let by_schema = ground.place.schema.is_some();
        let target = to.unwrap_or("base");
        let mut process = self.checkout().await?;
        let rendering = Rendering {
            env: true,
            ..self.rendering(plan.direction, &plan.before, target, by_schema)
        };
        let again = process
            .render(self.project(), &rendering)
            .await
            .map_err(to_error)?;
        // The rendering that comes last counts: a plan that changes by itself is not proven by an old one.
        let env = match again {
            Rendered::Script {
                events,
                env: Some(env),
                ..
            } if offline::steps(&events, &plan.before, self.version_table()).as_ref() == Ok(&plan.steps) => {
                env
            }
            _ => return Ok(None),
        };
        let versions = process.versions();
        let versions = format!(
            "{} {} {} {env}",
            versions.python, versions.alembic, versions.sqlalchemy
        );
        drop(process);
        let history = self.history().await?;
        let postgres = shadow::postgres_major(ground).await?;
        let mut hash = Sha256::new();
        // All revisions that a proof runs: up to where the plan begins, and up to where it ends.
        for revision in plan.before.iter().map(String::as_str).chain(to) {
            hash.update(history.fingerprint(Some(revision)));
            hash.update([0]);
        }
        for part in [
            PROOF_VERSION,
            &plan.id(),
            &versions,
            if by_schema { "schema" } else { "database" },
            self.version_table(),
            self.scheme().unwrap_or_default(),
            &format!("{:?}", self.project().x),
            &postgres.to_string(),
        ] {
            hash.update(part);
            hash.update([0]);
        }
        Ok(Some(format!("{:x}", hash.finalize())))
    }

    async fn prove(&self, plan: &Plan, to: Option<&str>, ground: Ground<'_>) -> Result<Verdict, TenantError> {
        let began = Instant::now();
        let target = to.unwrap_or("base");
        let mut tries = 1;
        let verdict = loop {
            match Shadow::new(self, ground, plan, target)?.prove().await? {
                shadow::End::Found(verdict) => break verdict,
                shadow::End::Hindered(_) if tries < PROOF_TRIES => tries += 1,
                shadow::End::Hindered(why) => break Verdict::Unproven { why },
            }
        };
        if verdict != Verdict::Proven {
            return Ok(verdict);
        }
        // Two renderings within one second have the same time in seconds.
        tokio::time::sleep(CLOCK_TICK.saturating_sub(began.elapsed())).await;
        let again = self
            .rendered(
                plan.direction,
                &plan.before,
                target,
                ground.place.schema.is_some(),
            )
            .await?;
        match again {
            Ok(steps) if steps == plan.steps => Ok(Verdict::Proven),
            _ => Ok(Verdict::Refuted {
                why: "it renders different SQL each time".into(),
            }),
        }
    }
}

/// Why a plan cannot be rendered, for a person.
pub(super) fn why(refusal: &Refusal) -> String {
    match &refusal.revision {
        Some(revision) => format!("revision {revision}: {}", refusal.message),
        None => refusal.message.clone(),
    }
}
