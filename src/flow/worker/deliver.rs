//! A delivery, from the claim to its settlement.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tracing::{Instrument, error, field, info, info_span, warn};

use super::{
    LAST_WORDS, Shared,
    settler::{Settler, Written},
};
use crate::{
    domain::{
        failure::JobError,
        job::{Claim, Step},
        outcome::Settlement,
    },
    flow::execute::{Attempt, Executed, Trail, close_all, verb},
    queue::Delivery,
    store::job::Ended,
    telemetry,
};

impl Shared {
    /// From a claim to its settlement, whatever happens in between.
    pub(super) async fn deliver(&self, delivery: Delivery, settler: &Settler) {
        let claim = &delivery.claim;
        let started = Instant::now();
        let span = info_span!(
            "attempt", run.id = %claim.run, job.id = claim.attempt.job, tenant.id = %claim.tenant,
            attempt = claim.attempt.epoch, trace_id = field::Empty
        );
        if let Some(trace) = &claim.trace {
            span.record("trace_id", field::display(trace.trace()));
            telemetry::adopt(&span, trace);
        }
        async {
            // Whatever becomes of this: what is held here for no attempt would be held for ever.
            let _entry = self.held.entry(claim.attempt);
            let Executed {
                settlement,
                kept,
                progress,
                is_out_of_sight,
            } = self.attempt(claim).await;
            let server = &claim.place.server;
            self.reach
                .ended(server, claim.attempt.job, settlement.as_ref(), Instant::now());
            match settlement {
                Some(settlement) => {
                    self.held.enter(claim.attempt, Step::Settling);
                    let ended = Ended::new(claim.attempt, &settlement, kept.is_some())
                        .after(progress)
                        .suspect(is_out_of_sight);
                    if let Some(kept) = kept {
                        self.kept.put(claim, kept);
                    }
                    self.settle(&delivery, settler, ended, &settlement, started.elapsed())
                        .await;
                }
                None => close_all(kept).await,
            }
        }
        .instrument(span)
        .await;
    }

    async fn attempt(&self, claim: &Claim) -> Executed {
        let stop = self.held.stop(claim.attempt);
        let enter = |step| {
            self.held.enter(claim.attempt, step);
            self.reach.entered(&claim.place.server, claim.attempt.job, step);
        };
        let is_sure = || self.held.is_sure(claim.attempt);
        let attempt = Attempt {
            cx: &self.cx,
            plans: &self.plans,
            worker: &self.id,
            claim,
            stop: &stop,
            metrics: &self.metrics,
            enter: &enter,
            is_sure: &is_sure,
            trail: Trail::default(),
        };
        let inherited = self.kept.take(claim).await;
        match AssertUnwindSafe(attempt.execute(inherited)).catch_unwind().await {
            Ok(executed) => executed,
            Err(_) => {
                error!(tenant.id = %claim.tenant, "A bug in Herder: the attempt at tenant `{}` panicked", claim.tenant);
                let reason = "panic".to_owned();
                let message = "a bug in Herder: the attempt panicked".to_owned();
                let hint = Some("the worker's log says where".to_owned());
                Executed {
                    settlement: Some(Settlement::Failed(JobError {
                        reason,
                        message,
                        hint,
                        ..JobError::default()
                    })),
                    kept: None,
                    progress: attempt.trail.progress(true),
                    is_out_of_sight: false,
                }
            }
        }
    }

    /// Writes an outcome, however long the control database is away.
    async fn settle(
        &self,
        delivery: &Delivery,
        settler: &Settler,
        ended: Ended,
        settlement: &Settlement,
        took: Duration,
    ) {
        let claim = &delivery.claim;
        let written = tokio::select! {
            written = settler.write(ended, Arc::clone(&delivery.room)) => written,
            () = self.last_words_said() => return,
        };
        if written == Written::Yes {
            self.kept.settled(claim);
            self.metrics.settled(settlement, took);
            return log(claim, settlement, took);
        }
        // Its slot is somebody else's by now, or about to be.
        close_all(self.kept.take(claim).await).await;
        match written {
            Written::Fenced => {
                self.metrics.fenced();
                warn!(
                    "The outcome of tenant `{}` came too late: its job no longer belongs to this attempt",
                    claim.tenant
                );
            }
            _ => error!(
                "The outcome of tenant `{}` could not be written, which is a bug in Herder: its job is given back",
                claim.tenant
            ),
        }
    }

    /// Once a drain must come to its end, outcomes are waited for no longer than this.
    async fn last_words_said(&self) {
        self.hurry.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
    }
}

/// One line for each ended attempt.
fn log(claim: &Claim, settlement: &Settlement, took: Duration) {
    let tenant = &claim.tenant;
    let duration_ms = took.as_millis() as u64;
    let name = |r: &Option<String>| r.clone().unwrap_or_else(|| "base".into());
    match settlement {
        Settlement::Succeeded { outcome, from, to } => info!(
            duration_ms,
            outcome = outcome.as_str(),
            "{} tenant `{tenant}` from {} to {}",
            verb(claim.direction),
            name(from),
            name(to)
        ),
        Settlement::Failed(e) => error!(
            duration_ms, reason = %e.reason, sqlstate = e.sqlstate.as_deref(), revision = e.revision.as_deref(),
            "Failed to migrate tenant `{tenant}`: {}", e.message
        ),
        Settlement::Retry { error: e, delay, .. } => warn!(
            duration_ms, reason = %e.reason, sqlstate = e.sqlstate.as_deref(),
            "Retrying tenant `{tenant}` in {delay:.1?}: {}", e.message
        ),
        Settlement::Live { at, .. } => warn!(
            duration_ms,
            "Tenant `{tenant}` is at {at}, not where its plan starts: continuing with the migration tool"
        ),
        Settlement::Returned => info!(duration_ms, "Returned tenant `{tenant}`: this worker is draining"),
        Settlement::Skipped(e) => warn!(
            duration_ms,
            "Skipped tenant `{tenant}`, which is no longer listed: {}", e.message
        ),
        Settlement::Cancelled => info!(duration_ms, "Stopped tenant `{tenant}`: its run was cancelled"),
    }
}
