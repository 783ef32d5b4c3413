//! Only one attempt at a tenant: its lock, and what a former attempt has left.

use std::time::Duration;

use tracing::warn;

use super::Attempt;
use crate::{
    domain::{job::AttemptLabel, run::short},
    session::{Holder, TenantSession},
    tenant_error::TenantError,
};

/// How many times the lock is asked for while its holder goes away.
pub(super) const LOCK_TRIES: usize = 3;

/// How often an attempt in doubt asks whether its job is still its own.
const DOUBT: Duration = Duration::from_millis(50);

impl Attempt<'_> {
    /// Waits until the job is ours beyond doubt, or until this attempt is told that it is not.
    pub(super) async fn be_sure(&self) -> Result<(), TenantError> {
        while !(self.is_sure)() {
            tokio::select! {
                () = self.stop.token().cancelled() => break,
                () = tokio::time::sleep(DOUBT) => {}
            }
        }
        match self.stop.reason() {
            Some(_) => Err(TenantError::Cancelled),
            None => Ok(()),
        }
    }

    /// Takes the tenant's lock. An older attempt at the same job is ended; a newer one means that this one is over; a
    /// stranger is left alone.
    pub(super) async fn guard(&self, session: &mut TenantSession) -> Result<(), TenantError> {
        let claim = self.claim;
        if claim.attempt.epoch > 1 {
            // Its tool may be at work without its guard.
            self.end_older(session).await?;
        }
        for _ in 0..LOCK_TRIES {
            if session.try_lock().await? {
                return Ok(());
            }
            self.face_holder(session).await?;
        }
        Err(TenantError::LockedByOther("a session that comes and goes".into()))
    }

    /// Looks who holds the tenant's lock. Ok: the lock looks free, ask again.
    pub(super) async fn face_holder(&self, session: &mut TenantSession) -> Result<(), TenantError> {
        let claim = self.claim;
        match session.holder().await? {
            None => Ok(()),
            Some(Holder::Attempt(AttemptLabel { run, attempt }))
                if (run, attempt.job) == (claim.run, claim.attempt.job) =>
            {
                if attempt.epoch > claim.attempt.epoch {
                    return Err(TenantError::Superseded);
                }
                self.end_older(session).await
            }
            Some(Holder::Attempt(AttemptLabel { run, .. })) => {
                let run = short(&run);
                Err(TenantError::LockedByOther(format!("run {run}")))
            }
            Some(Holder::Stranger(name)) => Err(TenantError::LockedByOther(name)),
        }
    }

    pub(super) async fn end_older(&self, session: &mut TenantSession) -> Result<(), TenantError> {
        let claim = self.claim;
        let ended = session.end_older(claim.label()).await?;
        if ended > 0 {
            warn!(
                run.id = %claim.run, tenant.id = %claim.tenant, attempt = claim.attempt.epoch, ended,
                "Ended {ended} sessions that a former attempt at tenant `{}` had left", claim.tenant
            );
        }
        Ok(())
    }
}
