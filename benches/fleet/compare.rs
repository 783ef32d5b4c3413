//! Side by side: the same task over the same fleet, contender after contender, round after round.

use std::{io::Write, time::Instant};

use crate::{
    args::{Compare, Task},
    contender::{self, Contender, Job, Ran},
    report::{Line, Report},
    stage::Stage,
    tenants::Fleet,
};

/// Runs the comparison and prints it.
///
/// # Errors
/// The stage broke. A contender that fails only fails itself.
pub(crate) async fn run(args: &Compare) -> anyhow::Result<()> {
    let start = Instant::now();
    let stage = Stage::set(&args.common).await?;
    let mut report = Report::new(&args.common);
    let databases = (args.databases() > 0).then(|| Fleet::Databases(args.databases()));
    let schemas = args.schemas().into_iter().map(Fleet::Schemas);
    for fleet in schemas.chain(databases) {
        for task in args.tasks() {
            let lines = side_by_side(&stage, fleet, task, args).await?;
            report.add(fleet, task, lines);
        }
    }
    report.goals();
    println!("\nAll of it took {:.0?}.", start.elapsed());
    report.write()
}

async fn side_by_side(stage: &Stage, fleet: Fleet, task: Task, args: &Compare) -> anyhow::Result<Vec<Line>> {
    let contenders: Vec<Box<dyn Contender>> = contender::list(fleet, task, args.all)
        .into_iter()
        .filter(|c| args.only.is_empty() || args.only.iter().any(|text| c.name().contains(text)))
        .collect();
    let mut lines: Vec<Line> = contenders.iter().map(|c| Line::new(fleet, task, &**c)).collect();
    for round in 0..args.rounds() {
        // Brought back and forth, tables have a dropped column more for each contender.
        stage.empty(fleet).await?;
        for (contender, line) in contenders.iter().zip(&mut lines) {
            if round > 0 && contender.once() {
                continue;
            }
            progress(&format!(
                "{}, {}, round {}: {}",
                fleet.name(),
                task.name(),
                round + 1,
                contender.name()
            ));
            stage.bring(fleet, task).await?;
            let job = Job {
                fleet,
                task,
                tenants: fleet.tenants().into_iter().take(line.tenants).collect(),
            };
            let ran = match contender.run(stage, &job).await {
                Ok(ran) => checked(stage, &**contender, &job, ran).await?,
                Err(error) => Ran {
                    problem: Some(format!("{error:#}")),
                    ..Ran::default()
                },
            };
            line.ran.push(ran);
        }
    }
    progress("");
    Ok(lines)
}

/// Nobody is believed: each tenant's ledger must say so, the last revision's column must be there, and nothing may
/// have landed in `public`.
async fn checked(stage: &Stage, contender: &dyn Contender, job: &Job, mut ran: Ran) -> anyhow::Result<Ran> {
    if ran.problem.is_some() {
        return Ok(ran);
    }
    let ledger = contender.ledger();
    let head = stage.project.head(ledger);
    let seen = stage.look(&job.tenants, ledger).await?;
    let there = seen
        .iter()
        .filter(|s| s.migrated && s.revision.as_deref() == Some(head.as_str()));
    let there = there.count();
    if there < job.tenants.len() {
        ran.problem = Some(format!(
            "only {there} of {} tenants were migrated",
            job.tenants.len()
        ));
    } else if matches!(job.fleet, Fleet::Schemas(_)) && !stage.public_is_empty().await? {
        ran.problem = Some("something landed in `public`".to_owned());
    }
    Ok(ran)
}

/// What is at work, on one line of the terminal.
fn progress(text: &str) {
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "\r\x1b[2K{text}");
    let _ = stderr.flush();
}
