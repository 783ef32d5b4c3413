//! What came of it: a table for people, JSON for programs, and whether every promise was kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::args::Args;
use crate::crew::{Crew, Exit};
use crate::project::Project;
use crate::sampler::Seen;
use crate::world::{Broken, Window, World, locked, rows};

pub(crate) const LOST: &str = "no effect is lost";
pub(crate) const TWICE: &str = "no effect is there twice";
pub(crate) const STRANDED: &str = "no job is stranded";
pub(crate) const INTERLEAVED: &str = "no second run over the same tenants";
const OVER: &str = "no server has more sessions than the budget";
const LEFT: &str = "no session, lock or slot is left";
const BURNT: &str = "no attempt is burnt by infrastructure";
const RESUME: &str = "work is resumed soon after kill -9";
const OUTLIVED: &str = "a drained worker leaves no session";

/// Goals at default settings, in seconds.
const RESUME_P50: f64 = 8.0;
const RESUME_P99: f64 = 15.0;

/// How long a worker is believed, with a second for its start: before, it calls nobody else dead.
const LEASE: f64 = 6.0;

/// How long a server may take to notice that a client is gone.
const GRACE: f64 = 1.0;

/// What came of it.
pub(crate) struct Report {
    json: Value,
    lines: Vec<String>,
    kept: bool,
}

/// An attempt whose worker was lost.
type Rescued = (String, String, f64, f64);

impl Report {
    /// Adds it all up.
    pub(crate) async fn new(
        world: &Arc<World>,
        args: &Args,
        crews: &[Arc<Crew>],
        sampled: Vec<Seen>,
        leftovers: Vec<String>,
    ) -> Self {
        if !leftovers.is_empty() {
            world.breaks(LEFT, leftovers.len() as u64, leftovers.join("; "));
        }
        for seen in &sampled {
            if seen.over > 0 {
                let what = format!("{} of {} samples on {}", seen.over, seen.samples, seen.server);
                world.breaks(OVER, seen.over, what);
            }
        }
        let exits: Vec<Exit> = crews
            .iter()
            .flat_map(|crew| locked(&crew.exits).clone())
            .collect();
        let outlived = outlived(world, &exits, &sampled);
        let (mut attempts, mut resumed) = (BTreeMap::new(), Vec::new());
        for crew in crews {
            count_attempts(world, &crew.project, &mut attempts).await;
            resumed.extend(resumes(world, &crew.project, &exits).await);
        }
        let all = Quantiles::of(resumed.iter().map(|r| r.at_work));
        let alone = || resumed.iter().filter(|r| r.alone);
        let undisturbed = Quantiles::of(alone().map(|r| r.at_work));
        let rescued = Quantiles::of(alone().map(|r| r.rescued));
        if undisturbed.count > 0 && (undisturbed.p50 > RESUME_P50 || undisturbed.p99 > RESUME_P99) {
            world.breaks(RESUME, 1, format!("{undisturbed}, nothing else in the way"));
        }
        let counts = world.counts();
        let faults: BTreeMap<&str, u64> = counts
            .iter()
            .filter(|(what, _)| is_fault(what))
            .map(|(w, n)| (*w, *n))
            .collect();
        let others: BTreeMap<&str, u64> = counts
            .iter()
            .filter(|(what, _)| !is_fault(what))
            .map(|(w, n)| (*w, *n))
            .collect();
        let broken = world.broken();
        let fault_count: u64 = faults.values().sum();
        let samples: u64 = sampled.iter().map(|seen| seen.samples).sum();
        let json = json!({
            "version": 1,
            "seed": args.seed, "minutes": args.minutes, "faults_a_minute": args.rate, "tenants": args.tenants,
            "took_seconds": world.seconds(), "ended_at": chrono::Utc::now().to_rfc3339(),
            "faults": faults, "fault_count": fault_count, "counts": others, "attempts": attempts,
            "samples": samples, "sampled": sampled,
            "resume_after_kill_seconds": { "all": all, "nothing_else_in_the_way": undisturbed, "of_which_until_rescued": rescued },
            "longest_session_after_exit_seconds": outlived,
            "leftovers": leftovers, "broken": broken, "kept": broken.is_empty(),
        });
        let mut lines = vec![
            format!("seed {}: {:.1} minutes", args.seed, world.seconds() / 60.0),
            String::new(),
        ];
        let mut line = |what: &str, value: String| lines.push(format!("  {what:<58} {value:>9}"));
        for (what, count) in &faults {
            line(what, count.to_string());
        }
        line("faults", fault_count.to_string());
        line("", String::new());
        for (what, count) in &others {
            line(what, count.to_string());
        }
        for (result, count) in &attempts {
            line(&format!("attempts: {result}"), count.to_string());
        }
        line("", String::new());
        for seen in &sampled {
            let most: Vec<String> = seen
                .most
                .iter()
                .map(|(project, most)| match seen.budgets.get(project) {
                    Some(budget) => format!("{project} {most} of {budget}"),
                    None => format!("{project} {most}"),
                })
                .collect();
            line(
                &format!("samples on {} (most: {})", seen.server, most.join(", ")),
                seen.samples.to_string(),
            );
        }
        line("samples", samples.to_string());
        line(&format!("resumed after kill -9: {all}"), String::new());
        line(
            &format!("   nothing else in the way: {undisturbed}"),
            String::new(),
        );
        for (how, (seconds, _)) in &outlived {
            line(&format!("longest session after {how}"), format!("{seconds:.2} s"));
        }
        line("", String::new());
        for promise in [
            LOST,
            TWICE,
            OVER,
            STRANDED,
            LEFT,
            BURNT,
            INTERLEAVED,
            RESUME,
            OUTLIVED,
        ] {
            line(promise, verdict(&broken, promise));
        }
        for Broken {
            promise, count, what, ..
        } in &broken
        {
            lines.push(format!("BROKEN {promise} ({count}): {what}"));
        }
        Self {
            json,
            lines,
            kept: broken.is_empty(),
        }
    }

    /// Writes the JSON.
    pub(crate) fn write(&self, world: &World) {
        let text = serde_json::to_string_pretty(&self.json).expect("JSON");
        std::fs::write(world.dir.join("report.json"), text).expect("a report");
    }

    /// Prints the table.
    #[expect(clippy::print_stdout, reason = "it is what this program is for")]
    pub(crate) fn print(&self, world: &World) {
        println!(
            "{}\n\n{}",
            self.lines.join("\n"),
            world.dir.join("report.json").display()
        );
    }

    /// Whether every promise was kept.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept
    }
}

/// Faults are named by what is done; the rest is what was seen.
fn is_fault(what: &str) -> bool {
    [
        "kill -9",
        "SIG",
        "immediate restart",
        "a session ended",
        "all connections",
        "a worker cut off",
        "pause and",
    ]
    .iter()
    .any(|start| what.starts_with(start))
}

fn verdict(broken: &[Broken], promise: &str) -> String {
    match broken
        .iter()
        .filter(|b| b.promise == promise)
        .map(|b| b.count)
        .sum::<u64>()
    {
        0 => "kept".into(),
        count => format!("BROKEN {count}"),
    }
}

/// How long sessions were seen after their worker was gone, by how it went, and the last of them.
fn outlived(world: &World, exits: &[Exit], sampled: &[Seen]) -> BTreeMap<&'static str, (f64, String)> {
    let mut longest = BTreeMap::new();
    for exit in exits.iter().filter(|exit| exit.sound) {
        let seen = sampled.iter().filter_map(|seen| seen.last_seen.get(&exit.role));
        let Some((last, session)) = seen.max_by(|a, b| a.0.total_cmp(&b.0)) else {
            continue;
        };
        let how = if exit.killed { "kill -9" } else { "SIGTERM" };
        let after = last - exit.at;
        let most: &mut (f64, String) = longest.entry(how).or_default();
        if after > most.0 {
            *most = (after, session.clone());
        }
        if !exit.killed && after > GRACE {
            let what = format!("{}: seen {after:.2} s after its end: {session}", exit.name);
            world.breaks(OUTLIVED, 1, what);
        }
    }
    longest
}

/// How the attempts of a project ended. One that counts was burnt.
async fn count_attempts(world: &World, project: &Project, attempts: &mut BTreeMap<String, i64>) {
    let results: Vec<(String, String, i64)> = rows(
        &project.control,
        "select coalesce(result, 'never ended'), coalesce(error ->> 'sqlstate', error ->> 'reason', ''), count(*)
         from herder.attempt group by 1, 2 order by 1, 2",
    )
    .await;
    for (result, why, count) in results {
        if ["retried", "failed", "never ended"].contains(&result.as_str()) {
            let examples: Vec<(String,)> = rows(
                &project.control,
                &format!(
                    "select concat_ws(' ', tenant, attempt.epoch, ended_at, attempt.error) from herder.attempt
                     join herder.job on job.id = job_id where coalesce(result, 'never ended') = '{result}' limit 3"
                ),
            )
            .await;
            let what = format!("{}: {count} attempts {result}, {why}: {examples:?}", project.name);
            world.breaks(BURNT, count.unsigned_abs(), what);
        }
        let key = if why.is_empty() {
            result
        } else {
            format!("{result}, {why}")
        };
        *attempts.entry(key).or_default() += count;
    }
}

/// How soon the work of a killed worker went on, in seconds.
struct Resumed {
    /// Nothing else was in the way.
    alone: bool,
    /// Until its job was sent back.
    rescued: f64,
    /// Until the next attempt began.
    at_work: f64,
}

/// The seconds from each kill of a sound worker to the next attempt at each job that it held, and whether nothing
/// else was in the way: no crash of a server, no pause of the run, and somebody there to take over.
async fn resumes(world: &World, project: &Project, exits: &[Exit]) -> Vec<Resumed> {
    let killed: HashMap<&str, &Exit> = exits
        .iter()
        .filter(|e| e.killed && e.sound)
        .map(|e| (e.name.as_str(), e))
        .collect();
    let rescued: Vec<Rescued> = rows(
        &project.control,
        "select lost.worker, run_id::text, extract(epoch from lost.ended_at)::float8, extract(epoch from next.started_at)::float8
         from herder.attempt lost join herder.job on job.id = lost.job_id
         join herder.attempt next on next.job_id = lost.job_id and next.epoch = lost.epoch + 1
         where lost.result = 'rescued'",
    )
    .await;
    let windows = world.windows();
    let in_the_way = |window: &Window, run: &str, from: f64, to: f64| {
        (window.of == run || world.servers.iter().any(|s| s.name == window.of))
            && window.from < to
            && window.to > from
    };
    let resumed = |(worker, run, rescued, started): &Rescued| {
        // A worker's id is its name and a random value.
        // What was taken from it before, when it stood still, is another matter.
        let kill = killed
            .get(worker.rsplit_once('-')?.0)
            .filter(|kill| kill.at < *rescued)?;
        let heir = |heir: &Exit| {
            let stood_still = |w: &Window| w.of == heir.name && w.from < *started && w.to > kill.at - LEASE;
            heir.name.starts_with(project.name)
                && heir.since < kill.at - LEASE
                && heir.at > *started
                && !windows.iter().any(stood_still)
        };
        let alone = exits.iter().any(heir) && !windows.iter().any(|w| in_the_way(w, run, kill.at, *started));
        Some(Resumed {
            alone,
            rescued: rescued - kill.at,
            at_work: started - kill.at,
        })
    };
    rescued.iter().filter_map(resumed).collect()
}

/// Where half, nearly all, and all of some seconds are below.
#[derive(Debug, serde::Serialize)]
struct Quantiles {
    count: usize,
    p50: f64,
    p99: f64,
    max: f64,
}

impl Quantiles {
    fn of(seconds: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = seconds.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (sorted.len() as f64 * share).ceil() as usize;
            sorted.get(rank.max(1) - 1).copied().unwrap_or_default()
        };
        Self {
            count: sorted.len(),
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

impl std::fmt::Display for Quantiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, p50, p99, max } = self;
        write!(f, "p50 {p50:.1} s, p99 {p99:.1} s, max {max:.1} s of {count}")
    }
}
