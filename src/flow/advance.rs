//! Moves a run on, and says so in the log: after a settlement, and in every keeper's rounds.

use sqlx::PgConnection;
use tracing::{error, info};

use crate::{
    domain::run::{RunId, short},
    store::{
        StoreError,
        run::{self, Advanced, Others},
    },
};

/// Opens the next wave of a run, halts it, or settles it, if it is time for that.
///
/// # Errors
/// The control database fails. The next call does what this one could not.
pub(super) async fn advance(
    connection: &mut PgConnection,
    run: RunId,
    others: Others,
) -> Result<(), StoreError> {
    let advanced = run::advance(connection, run, others).await?;
    let short = short(&run);
    match advanced {
        Advanced::No => {}
        Advanced::Opened { wave, jobs } => {
            let tenants = if jobs == 1 { "tenant" } else { "tenants" };
            info!(run.id = %run, wave, jobs, "Opened wave {wave} of run {short}: {jobs} {tenants}");
        }
        Advanced::Halted(reason) => error!(run.id = %run, %reason, "Halted run {short}: {reason}"),
        Advanced::Settled(state) => info!(run.id = %run, state = %state, "Run {short} has ended: {state}"),
    }
    Ok(())
}
