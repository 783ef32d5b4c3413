//! What becomes of a job whose attempt failed.

use std::time::Duration;

use super::Attempt;
use crate::{
    domain::{
        failure::{FailureClass, JobError},
        outcome::Settlement,
    },
    flow::held::StopReason,
    scrub::Scrubber,
    store,
    tenant_error::TenantError,
};

/// How long the infrastructure may be in a job's way before the job fails: long enough for a failover, short enough
/// that a wrong port does not keep a deploy waiting for ever.
pub(in crate::flow) const BLOCKED_LIMIT: Duration = Duration::from_secs(5 * 60);

/// What to do about a job that failed for what was in its way for so long.
pub(in crate::flow) fn in_the_way_for(limit: Duration) -> String {
    format!(
        "it was in the way for {} minutes; `herder retry` tries again",
        limit.as_secs() / 60
    )
}

/// The shortest password that is taken out of what a server says. A shorter one may be any word of it, as may one that is a name.
const LEAST_SECRET: usize = 8;

impl Attempt<'_> {
    /// What becomes of a job whose attempt failed.
    pub(super) async fn judge(&self, error: TenantError) -> Option<Settlement> {
        match self.stop.reason() {
            Some(StopReason::Superseded) => return None,
            // Whoever took it up, or began anew, would do a part of it again.
            _ if matches!(error, TenantError::Left { .. }) => {}
            Some(StopReason::RunCancelled) => return Some(Settlement::Cancelled),
            Some(StopReason::Drain) => return Some(Settlement::Returned),
            None => {}
        }
        if matches!(error, TenantError::Superseded) {
            return None;
        }
        let (claim, limits) = (self.claim, &self.cx.config.limits);
        let mut recorded = self.recorded(&error);
        self.tell_of_pieces(&mut recorded).await;
        self.metrics.failed(&recorded);
        if let Some(plan) = self.plan_error(&error).await {
            recorded = plan.and_tool(&recorded);
        }
        let backoff = |n: i32| limits.backoff().delay(n.max(1).unsigned_abs(), rand::random());
        match error.class() {
            FailureClass::Permanent if self.is_gone(&error, &mut recorded).await => {
                Some(Settlement::Skipped(recorded))
            }
            FailureClass::Permanent => Some(Settlement::Failed(recorded)),
            FailureClass::Transient if claim.failures + 1 >= limits.max_attempts => {
                let tries = claim.failures + 1;
                let tried = format!("it was tried {tries} times; `herder retry` tries again");
                let said = recorded.hint.take().into_iter().chain(self.trail.in_the_way());
                recorded.hint = Some(said.chain([tried]).collect::<Vec<_>>().join("; "));
                Some(Settlement::Failed(recorded))
            }
            FailureClass::Transient => {
                recorded.hint = recorded.hint.or_else(|| self.trail.in_the_way());
                Some(Settlement::Retry {
                    error: recorded,
                    delay: backoff(claim.failures + 1),
                    counts: true,
                })
            }
            FailureClass::Infrastructure if recorded.is_backpressure() => Some(Settlement::Retry {
                error: recorded,
                delay: backoff(1),
                counts: false,
            }),
            FailureClass::Infrastructure => {
                if claim.blocked.is_some_and(|b| b > BLOCKED_LIMIT) {
                    recorded.hint = Some(in_the_way_for(BLOCKED_LIMIT));
                    return Some(Settlement::Failed(recorded));
                }
                // The longer it lasts, the rarer the tries.
                let tries = claim.blocked.map_or(1, |b| {
                    1 + i32::try_from(b.as_secs() / 2).unwrap_or(i32::MAX).min(30)
                });
                Some(Settlement::Retry {
                    error: recorded,
                    delay: backoff(tries),
                    counts: false,
                })
            }
        }
    }

    /// What is recorded of an error. A URL of the tenant's own is not at hand here: its password goes where it stands in a URL.
    pub(super) fn recorded(&self, error: &TenantError) -> JobError {
        let mut recorded = error.to_job_error();
        let secrets = match self.cx.servers.url_for(&self.claim.place, None) {
            Ok(url) => {
                let names = [url.user(), Some(url.database())];
                let mut secrets = url.secrets();
                secrets
                    .retain(|secret| secret.len() >= LEAST_SECRET && !names.contains(&Some(secret.clone())));
                secrets
            }
            Err(_) => Vec::new(),
        };
        Scrubber::new(secrets).clean_error(&mut recorded);
        recorded
    }

    /// What the job's plan failed with, where the migration tool was to take over from it and could not even be asked.
    async fn plan_error(&self, error: &TenantError) -> Option<JobError> {
        let is_about_tool = matches!(error, TenantError::Setup { .. } | TenantError::OtherMigrations);
        if self.claim.plan.is_some() || !is_about_tool || self.claim.attempt.epoch < 2 {
            return None;
        }
        // Where the control database does not answer, the tool's own error has to do.
        store::answered(store::job::plan_error(&self.cx.pool, self.claim.attempt.job))
            .await
            .ok()?
    }

    /// Says so where a revision was torn in pieces and some of them are done: whoever undid those by hand, as one does with a
    /// migration that failed, would have a retry go on without them.
    async fn tell_of_pieces(&self, recorded: &mut JobError) {
        let (Some(note), Some(id)) = (self.trail.note(), &self.claim.plan) else {
            return;
        };
        let (Some(done), Ok(known)) = (note.done_through(), self.plans.get(id).await) else {
            return;
        };
        let revision = known.plan.revision_of(done);
        if recorded.revision.as_deref() == Some(&revision) && recorded.reason != "half_applied" {
            recorded.hint.get_or_insert_with(|| {
                format!(
                    "the pieces of revision {revision} before this one are committed, and `herder retry`, or another run, goes on behind \
                     them as long as nobody moves the tenant's ledger; whoever undoes them by hand has its rows written anew as well \
                     (alembic stamp --purge)"
                )
            });
        }
    }

    /// Whether the tenant was dropped since the run was made, and taken off the list: then nothing is wrong. A list of nobody at
    /// all says nothing about anybody: it is being written, or its query is wrong, and a run must not succeed by that.
    async fn is_gone(&self, error: &TenantError, recorded: &mut JobError) -> bool {
        let source = &self.cx.source;
        let off_the_list = matches!(error, TenantError::OffTheList);
        let dropped = matches!(error, TenantError::SchemaMissing(_))
            || matches!(error, TenantError::Database { sqlstate, .. } if sqlstate == "3D000");
        if !(off_the_list || dropped && matches!(source.find(&self.claim.tenant).await, Ok(None))) {
            return false;
        }
        match source.list().await {
            Ok(list) if list.is_empty() => {
                if off_the_list {
                    recorded.message = "the tenant source lists nobody any more".into();
                }
                recorded.hint = Some(
                    "a list of nobody does not say that this tenant is gone: once `herder tenants` shows the others, \
                     `herder retry` tries again"
                        .into(),
                );
                false
            }
            Ok(list) => list.iter().all(|listed| listed.id != self.claim.tenant),
            Err(_) => false,
        }
    }
}
