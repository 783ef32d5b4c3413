//! The most common reasons for a run that does not move, or not end: nobody does its work.

use herder::{
    domain::{
        job::JobState,
        run::{RunId, RunState, short},
    },
    store::{
        StoreError,
        view::{self, RunView, Unserved},
    },
};
use sqlx::PgPool;

use crate::{output, render::words::count};

/// Says that nobody takes what is due of a run, if so.
pub(crate) async fn warn_of_unserved(pool: &PgPool, run: RunId) -> Result<bool, StoreError> {
    let Some(unserved) = view::unserved(pool, run).await? else {
        return Ok(false);
    };
    let (lack, remedy) = match unserved {
        Unserved::NoWorker => (
            "no worker is running".to_owned(),
            "start `herder-worker`".to_owned(),
        ),
        Unserved::Runner(runner) => (
            format!("no running worker has a runner of kind `{runner}`"),
            format!("start `herder-worker` with `[runner] kind = \"{runner}\"`"),
        ),
        Unserved::Servers(servers) => (
            format!(
                "no running worker has {} `{}` in its config",
                if servers.len() == 1 { "server" } else { "servers" },
                servers.join("`, `")
            ),
            "start `herder-worker` with the config that this run was started with".to_owned(),
        ),
    };
    output::warning(&lack);
    output::hint(&format!(
        "{remedy}, or do the work in this process with `herder resume {} --local 8`",
        short(&run)
    ));
    Ok(true)
}

/// Says that nobody ends what lost workers held of a run, if so.
pub(crate) async fn warn_of_unended(pool: &PgPool, run: &RunView) -> Result<(), StoreError> {
    let running = run.count(JobState::Running);
    let is_ending = matches!(run.state, RunState::Halted | RunState::Cancelled);
    if running > 0 && is_ending && view::workers(pool).await?.alive() == 0 {
        output::warning(&format!(
            "no worker is running: what lost workers held ({}) stays `running` until one starts",
            count(running, "tenant")
        ));
        output::hint("start `herder-worker`");
    }
    Ok(())
}
