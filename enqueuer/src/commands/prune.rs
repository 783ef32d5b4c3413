//! `herder prune`: forgets old runs.

use herder::store::prune::{self, OldRun};

use super::Setting;
use crate::{args, confirm, exit::Exit, output, render::words::count};

/// Jobs that one transaction deletes: a run of 100,000 tenants must not hold its row, and its log, for a minute.
const BATCH: i64 = 5_000;

pub(crate) async fn run(setting: &Setting, args: &args::Prune) -> anyhow::Result<Exit> {
    if !args.yes {
        // Whether or not anything is old enough: a schedule is to fail on its first day.
        confirm::on_terminal("prune")?;
    }
    let (_, pool) = setting.control().await?;
    let age = args.older_than;
    let runs = prune::old_runs(&pool, age).await?;
    if !runs.is_empty() && !args.yes {
        let question = format!(
            "Delete {} that ended more than {} ago, with the records of {}? No tenant is touched.",
            count(runs.len() as u64, "run"),
            humantime::format_duration(age),
            count(runs.iter().map(|run| run.jobs).sum::<i64>(), "job"),
        );
        if !confirm::asked(&question, None)? {
            output::say("Nothing was done");
            return Ok(Exit::Interrupted);
        }
    }
    let (mut gone, mut jobs) = (0_u64, 0);
    for OldRun { id, .. } in runs {
        loop {
            let batch = prune::delete_jobs(&pool, id, age, BATCH).await?;
            jobs += batch;
            if batch < BATCH {
                break;
            }
        }
        gone += u64::from(prune::delete_run(&pool, id, age).await?);
    }
    let plans = prune::delete_plans(&pool, age).await?;
    while prune::delete_stray_deliveries(&pool, BATCH).await? == BATCH.unsigned_abs() {}
    let workers = prune::delete_workers(&pool).await?;
    output::say(&format!(
        "Deleted {} with {}, {} and {}",
        count(gone, "run"),
        count(jobs, "job"),
        count(plans, "unused plan"),
        count(workers, "unused worker"),
    ));
    Ok(Exit::Done)
}
