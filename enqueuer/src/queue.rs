//! `--queue`: a start waits behind the run that is at work on the same tenants.

use std::time::{Duration, Instant};

use herder::domain::run::{RunId, RunState, short};
use sqlx::PgPool;

use crate::{control, exit::Exit, follow, output, signals::Interrupts};

/// How often to look whether the other run has ended.
const POLL: Duration = Duration::from_secs(1);

/// Waits until a run that was in the way has ended, and writes nothing anywhere meanwhile. Some: the wait ended first,
/// by a signal or because no tenant of that run was settled for `patience`.
pub(crate) async fn wait_behind(
    pool: &PgPool,
    (run, places): (RunId, i64),
    patience: Option<Duration>,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Option<Exit>> {
    let id = short(&run);
    output::say(&format!(
        "{:>12} behind run {id}, which covers {places} of the same tenants",
        "Queued"
    ));
    let (mut state, mut settled, mut moved) = (RunState::Running, -1, Instant::now());
    loop {
        // A control database that is away has ended no run.
        if let Some(seen) = follow::unless_away(control::view_run(pool, run).await)? {
            if !seen.state.is_open() {
                return Ok(None);
            }
            if seen.state != state && seen.state != RunState::Running {
                output::warning(&format!("run {id} is {} and waits for an operator", seen.state));
                output::hint(&format!(
                    "`herder resume {id}` continues it; `herder cancel {id}` ends it"
                ));
            }
            if seen.settled() != settled {
                (settled, moved) = (seen.settled(), Instant::now());
            }
            state = seen.state;
        }
        if patience.is_some_and(|limit| moved.elapsed() > limit) {
            let limit = humantime::format_duration(patience.unwrap_or_default());
            output::warning(&format!(
                "no tenant of run {id} was settled for {limit}; nothing was started"
            ));
            return Ok(Some(Exit::Stalled));
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = interrupts.next() => {
                output::say("Stopped waiting; nothing was started");
                return Ok(Some(Exit::Interrupted));
            }
        }
    }
}
