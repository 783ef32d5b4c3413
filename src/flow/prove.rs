//! Whether a plan may take the place of the live tool: known from before, or proven now.

use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    database_url::DatabaseUrl,
    domain::{plan::Plan, tenant::Place},
    flow::{
        budget::Service,
        context::{Context, chain},
    },
    runner::{Ground, RunnerError, Verdict, alembic::AlembicRunner},
    store::{StoreError, proof},
};

/// Why nobody knows.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// The control database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The project is broken, or the proof was told to stop.
    #[error(transparent)]
    Runner(#[from] RunnerError),
}

/// Whether `plan` does what live Alembic does, beside the tenant at `place`. A server that cannot be reached leaves it
/// unproven: its tenants are tried all the same, one by one.
///
/// # Errors
/// See [`ProveError`].
pub async fn prove(
    cx: &Context,
    runner: &AlembicRunner,
    plan: &Plan,
    to: Option<&str>,
    place: &Place,
    url: &DatabaseUrl,
    cancel: &CancellationToken,
) -> Result<Verdict, ProveError> {
    if runner.trusts_plans() {
        return Ok(Verdict::Proven);
    }
    // The service connection is the only one that a proof opens at a time.
    let service = Service::acquire(&cx.pool, &place.server).await?;
    let ground = Ground {
        url,
        by_schema: place.schema.is_some(),
        limits: &cx.config.limits,
        cancel,
    };
    let verdict = known_or_proven(cx, runner, plan, to, ground).await;
    service.release().await;
    match verdict {
        Err(ProveError::Runner(error @ (RunnerError::Connection(_) | RunnerError::Database { .. }))) => {
            let why = format!("its proof failed: {}", chain(&error));
            Ok(Verdict::Unproven { why })
        }
        other => other,
    }
}

async fn known_or_proven(
    cx: &Context,
    runner: &AlembicRunner,
    plan: &Plan,
    to: Option<&str>,
    ground: Ground<'_>,
) -> Result<Verdict, ProveError> {
    let Some(key) = runner.proof_key(plan, to, ground).await? else {
        return Ok(Verdict::Unproven {
            why: "it renders other SQL a moment later".into(),
        });
    };
    if proof::is_known(&cx.pool, &key).await? {
        return Ok(Verdict::Proven);
    }
    let began = std::time::Instant::now();
    let verdict = runner.prove(plan, to, ground).await?;
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    match &verdict {
        Verdict::Proven => {
            proof::keep(&cx.pool, &key).await?;
            info!(duration_ms, "Proved the plan to {}", to.unwrap_or("base"));
        }
        Verdict::Unproven { why } => info!(duration_ms, "No plan to {}: {why}", to.unwrap_or("base")),
    }
    Ok(verdict)
}
