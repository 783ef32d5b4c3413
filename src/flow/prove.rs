//! Whether a plan may take the place of the live tool: fitted to its tenants, and known from before or proven now.

use std::collections::HashMap;

use tracing::info;

use crate::{
    domain::{failure::chain, plan::Plan, tenant::Place, worker::Errand},
    flow::{
        context::Context,
        service::{Opening, Service},
    },
    runner::{Ground, Offer, PlanProver, Verdict},
    secret::Secret,
    store::{StoreError, proof},
    tenant_error::TenantError,
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
    let Some(prover) = cx.runner.prover() else {
        return Ok(Offer::Plan(plan));
    };
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
    let proving = Proving {
        cx,
        prover,
        to,
        ground,
    };
    let proven = tokio::select! {
        offer = proving.on(&service, plan, refuted) => Some(offer),
        // Another process may be at its own proof: it ends what ours has open, and clears away what it has made.
        () = service.lost() => None,
    };
    let offer = match proven {
        Some(offer) => {
            service.release().await;
            offer
        }
        // What it had open was broken off: should the service connection be ours still, nobody gets it before that is gone.
        None => Err(ProveError::Runner(service.loss())),
    };
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
    Runner(TenantError),
}

impl From<StoreError> for ProveError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<TenantError> for ProveError {
    fn from(error: TenantError) -> Self {
        Self::Runner(error)
    }
}

/// A plan's way from its tool to its tenants.
struct Proving<'a> {
    cx: &'a Context,
    prover: &'a dyn PlanProver,
    to: Option<&'a str>,
    ground: Ground<'a>,
}

impl Proving<'_> {
    async fn on(&self, service: &Service, plan: Plan, refuted: &mut Refuted) -> Result<Offer, ProveError> {
        let opening = Opening::of_server(self.cx, self.ground.url, Errand::Proof);
        service.inherit(opening).await?;
        self.fitted_and_proven(plan, refuted).await
    }

    async fn fitted_and_proven(&self, plan: Plan, refuted: &mut Refuted) -> Result<Offer, ProveError> {
        let plan = match self.prover.fit(plan, self.to, self.ground).await? {
            Offer::Plan(plan) if self.prover.needs_proof() => plan,
            offer => return Ok(offer),
        };
        Ok(match self.known_or_proven(&plan, refuted).await? {
            Verdict::Proven => Offer::Plan(plan),
            Verdict::Refuted { why } | Verdict::Unproven { why } => Offer::Live { why },
        })
    }

    async fn known_or_proven(&self, plan: &Plan, refuted: &mut Refuted) -> Result<Verdict, ProveError> {
        let Some(key) = self.prover.proof_key(plan, self.to, self.ground).await? else {
            return Ok(Verdict::Refuted {
                why: "it renders other SQL a moment later".into(),
            });
        };
        if proof::is_known(&self.cx.pool, &key).await? {
            return Ok(Verdict::Proven);
        }
        if let Some(why) = refuted.get(&key) {
            return Ok(Verdict::Refuted { why: why.clone() });
        }
        let (began, to) = (std::time::Instant::now(), self.to.unwrap_or("base"));
        let verdict = self.prover.prove(plan, self.to, self.ground).await?;
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &verdict {
            Verdict::Proven => {
                proof::keep(&self.cx.pool, &key).await?;
                info!(duration_ms, "Proved the plan to {to}");
            }
            Verdict::Refuted { why } | Verdict::Unproven { why } => {
                info!(duration_ms, "No plan to {to}: {why}");
            }
        }
        if let Verdict::Refuted { why } = &verdict {
            refuted.insert(key, why.clone());
        }
        Ok(verdict)
    }
}
