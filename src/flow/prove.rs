//! Whether a plan may take the place of the live tool: fitted to its tenants, and known from before or proven now.

use std::collections::HashMap;

use tracing::info;

use crate::{
    domain::{failure::chain, plan::Plan, tenant::Place},
    flow::{context::Context, service::Service},
    runner::{Ground, Offer, RunnerError, Verdict},
    secret::Secret,
    store::{StoreError, proof},
};

/// Why plans are refuted, by the keys of their proofs: what one server has shown need not be shown on each of a hundred.
pub(super) type Refuted = HashMap<String, String>;

/// `plan` for tenants like the one at `place`, if it does what the tool does. Where nobody can tell, because the server is
/// away, say, it is live: the tenants are tried all the same, one by one.
///
/// # Errors
/// The control database fails.
pub(super) async fn prove(
    cx: &Context,
    plan: Plan,
    to: Option<&str>,
    (place, own_url): (&Place, Option<&Secret>),
    refuted: &mut Refuted,
) -> Result<Offer, StoreError> {
    let url = match cx.servers.url_for(place, own_url) {
        Ok(url) => url,
        Err(e) => return Ok(Offer::Live { why: chain(&e) }),
    };
    // The service connection is the only one that a proof opens at a time.
    let service = Service::acquire(cx, &place.server).await?;
    let ground = Ground {
        url: &url,
        place,
        limits: &cx.config.limits,
        cancel: &cx.stop,
        owner: &cx.mark,
    };
    let _whole = cx.busy();
    let offer = fitted_and_proven(cx, plan, to, ground, refuted).await;
    service.release().await;
    match offer {
        Ok(offer) => Ok(offer),
        Err(ProveError::Store(error)) => Err(error),
        Err(ProveError::Runner(error)) => Ok(Offer::Live {
            why: format!("its proof failed: {}", chain(&error)),
        }),
    }
}

/// Why nobody knows.
enum ProveError {
    Store(StoreError),
    Runner(RunnerError),
}

impl From<StoreError> for ProveError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<RunnerError> for ProveError {
    fn from(error: RunnerError) -> Self {
        Self::Runner(error)
    }
}

async fn fitted_and_proven(
    cx: &Context,
    plan: Plan,
    to: Option<&str>,
    ground: Ground<'_>,
    refuted: &mut Refuted,
) -> Result<Offer, ProveError> {
    let plan = match cx.runner.fit(plan, to, ground).await? {
        Offer::Plan(plan) if cx.runner.needs_proof() => plan,
        offer => return Ok(offer),
    };
    Ok(match known_or_proven(cx, &plan, to, ground, refuted).await? {
        Verdict::Proven => Offer::Plan(plan),
        Verdict::Refuted { why } | Verdict::Unproven { why } => Offer::Live { why },
    })
}

async fn known_or_proven(
    cx: &Context,
    plan: &Plan,
    to: Option<&str>,
    ground: Ground<'_>,
    refuted: &mut Refuted,
) -> Result<Verdict, ProveError> {
    let Some(key) = cx.runner.proof_key(plan, to, ground).await? else {
        return Ok(Verdict::Refuted {
            why: "it renders other SQL a moment later".into(),
        });
    };
    if proof::is_known(&cx.pool, &key).await? {
        return Ok(Verdict::Proven);
    }
    if let Some(why) = refuted.get(&key) {
        return Ok(Verdict::Refuted { why: why.clone() });
    }
    let began = std::time::Instant::now();
    let verdict = cx.runner.prove(plan, to, ground).await?;
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    match &verdict {
        Verdict::Proven => {
            proof::keep(&cx.pool, &key).await?;
            info!(duration_ms, "Proved the plan to {}", to.unwrap_or("base"));
        }
        Verdict::Refuted { why } | Verdict::Unproven { why } => {
            info!(duration_ms, "No plan to {}: {why}", to.unwrap_or("base"));
        }
    }
    if let Verdict::Refuted { why } = &verdict {
        refuted.insert(key, why.clone());
    }
    Ok(verdict)
}
