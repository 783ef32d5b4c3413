//! Taking up the failed tenants of a run.

use crate::{
    domain::{
        revision::{HistoryError, Target},
        run::RunId,
    },
    flow::{context::Context, enqueue::EnqueueError},
    store::{
        retry::{self, Retried, SentBack},
        run,
    },
    tenant_error::TenantError,
};

/// Sends the failed tenants of a run back, with the migrations as they are now: what was wrong may have been mended in
/// them. Returns how many there were.
///
/// # Errors
/// The project is broken, no longer has the run's target, another run is at work on these tenants, or the control
/// database fails.
pub async fn retry(cx: &Context, id: RunId) -> Result<SentBack, EnqueueError> {
    let history = cx.runner.history().await?;
    let manifest = run::manifest(&cx.pool, id).await?;
    let target: Target = manifest.target.parse().unwrap_or(Target::Head);
    let covered = target.covered(manifest.direction, manifest.to);
    if let Some(missing) = covered
        .as_deref()
        .filter(|t| !history.is_opaque() && history.get(t).is_none())
    {
        return Err(TenantError::History(HistoryError::UnknownTarget(missing.to_owned())).into());
    }
    match retry::retry(&cx.pool, id, &history.fingerprint(covered.as_deref())).await? {
        Retried::Jobs(sent_back) => Ok(sent_back),
        Retried::Narrow {
            server,
            budget,
            needed,
        } => Err(EnqueueError::Budget {
            server,
            budget,
            needed,
        }),
        Retried::Overlap { run, places } => Err(EnqueueError::Overlap { run, places }),
    }
}
