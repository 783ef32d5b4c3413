//! The figures: a table for people, JSON for programs.

use std::{fs, path::PathBuf};

use serde::Serialize;
use serde_json::json;

use crate::{
    args::{Common, Task},
    contender::{Contender, Ran},
    tenants::Fleet,
};

/// A contender at a task.
#[derive(Serialize)]
pub(crate) struct Line {
    fleet: String,
    task: &'static str,
    pub(crate) contender: String,
    /// How many tenants it was given.
    pub(crate) tenants: usize,
    /// Each round.
    pub(crate) ran: Vec<Ran>,
}

impl Line {
    pub(crate) fn new(fleet: Fleet, task: Task, contender: &dyn Contender) -> Self {
        Self {
            fleet: fleet.name(),
            task: task.name(),
            contender: contender.name(),
            tenants: contender.most(task).min(fleet.count()),
            ran: Vec::new(),
        }
    }

    /// The median of something over the rounds that went well.
    fn median(&self, of: impl Fn(&Ran) -> f64) -> f64 {
        median(self.ran.iter().filter(|r| r.problem.is_none()).map(of))
    }

    fn problem(&self) -> Option<&str> {
        self.ran.iter().find_map(|r| r.problem.as_deref())
    }

    /// Milliseconds per tenant from the first claim to the last settlement: without what a run costs once.
    fn worked(&self) -> Option<f64> {
        let each = self.median(|r| r.worked.unwrap_or(f64::NAN)) / self.tenants as f64 * 1000.0;
        (self.problem().is_none() && each.is_finite()).then_some(each)
    }

    /// Milliseconds per tenant. None: it did not do it.
    pub(crate) fn each(&self) -> Option<f64> {
        let each = self.median(|r| r.reading.seconds) / self.tenants as f64 * 1000.0;
        (self.problem().is_none() && each.is_finite()).then_some(each)
    }
}

/// The median; NaN of nothing.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// All figures of one run.
pub(crate) struct Report {
    lines: Vec<Line>,
    path: Option<PathBuf>,
    durable: bool,
}

impl Report {
    pub(crate) fn new(common: &Common) -> Self {
        Self {
            lines: Vec::new(),
            path: common.json.clone(),
            durable: common.durable,
        }
    }

    /// Prints the table of a task, and keeps it.
    pub(crate) fn add(&mut self, fleet: Fleet, task: Task, lines: Vec<Line>) {
        println!("\n### {}, {}\n", fleet.name(), task.name());
        println!(
            "| contender | ms a tenant | × fastapi-tenancy | of by hand | client CPU ms | server CPU ms | connections | worker MB | clients MB | |"
        );
        println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|---|");
        let predecessor = find(&lines, "fastapi-tenancy");
        for line in &lines {
            let Some(each) = line.each() else {
                println!(
                    "| {} | – | | | | | | | | {} |",
                    line.contender,
                    line.problem().unwrap_or("did not run")
                );
                continue;
            };
            let cpu = |of: fn(&Ran) -> f64| line.median(of) / line.tenants as f64 * 1000.0;
            println!(
                "| {} | {each:.2} | {} | {} | {:.2} | {:.2} | {:.0} + {:.0} | {} | {} | {} |",
                line.contender,
                times(predecessor.map(|p| p / each)),
                of_by_hand(by_hand(&lines, line), each, line.worked()),
                cpu(|r| r.reading.client_cpu),
                cpu(|r| r.reading.server_cpu),
                line.median(|r| r.reading.tenant_connections as f64),
                line.median(|r| r.reading.control_connections as f64),
                megabytes(line.median(|r| r.reading.worker_mb)),
                megabytes(line.median(|r| r.reading.clients_mb)),
                notes(line, fleet.count()),
            );
        }
        self.lines.extend(lines);
    }

    /// What issue 3 asks for, and what came out.
    pub(crate) fn goals(&self) {
        println!("\n### Goals\n\n| | asked for | seen | |\n|---|--:|--:|---|");
        let mut fleets: Vec<&str> = self.lines.iter().map(|l| l.fleet.as_str()).collect();
        fleets.dedup();
        for fleet in fleets.into_iter().filter(|f| f.ends_with("schemas")) {
            for (task, least) in [(Task::OneStep, 20.0), (Task::Twelve, 6.0)] {
                let lines: Vec<&Line> = self
                    .lines
                    .iter()
                    .filter(|l| l.fleet == fleet && l.task == task.name())
                    .collect();
                let line = |name: &str| lines.iter().find(|l| l.contender == name);
                let each = |name: &str| line(name)?.each();
                let over = |a: &str, b: &str| Some(each(a)? / each(b)?);
                let at_work = |a: &str, b: &str| Some(each(a)? / line(b)?.worked()?);
                let (calls, old) = ("a call of alembic per tenant", "fastapi-tenancy");
                let live = "Herder live ×4";
                for (what, of) in [("Alembic plan", "Alembic's SQL"), ("SQL files", "SQL files")] {
                    for n in [4, 8] {
                        let (ours, hand) = (format!("Herder, {what} ×{n}"), format!("{of} by hand ×{n}"));
                        for (than, least, seen) in [
                            ("fastapi-tenancy", least, over(old, &ours)),
                            ("by hand", 0.8, over(&hand, &ours)),
                            ("by hand, work alone", 0.8, at_work(&hand, &ours)),
                        ] {
                            goal(
                                &format!("{fleet}, {}: {what} ×{n} to {than}", task.name()),
                                least,
                                seen,
                            );
                        }
                    }
                }
                for (what, least, seen) in [
                    ("live ×4 to fastapi-tenancy", 2.0, over(old, live)),
                    ("live ×4 to a call of alembic", 15.0, over(calls, live)),
                ] {
                    goal(&format!("{fleet}, {}: {what}", task.name()), least, seen);
                }
            }
        }
        let most = self
            .lines
            .iter()
            .flat_map(|l| &l.ran)
            .map(|r| r.reading.worker_mb);
        let most = most.fold(0.0, f64::max);
        if most > 0.0 {
            println!(
                "| memory of a worker, MB | ≤ 100 | {most:.0} | {} |",
                mark(most <= 100.0)
            );
        }
    }

    pub(crate) fn write(&self) -> anyhow::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let all = json!({ "version": 1, "durable": self.durable, "lines": self.lines });
        Ok(fs::write(path, serde_json::to_string_pretty(&all)?)?)
    }
}

pub(crate) fn mark(reached: bool) -> &'static str {
    if reached { "yes" } else { "**no**" }
}

fn goal(what: &str, least: f64, seen: Option<f64>) {
    if let Some(seen) = seen {
        println!("| {what} | ≥ {least} | {seen:.2} | {} |", mark(seen >= least));
    }
}

fn find(lines: &[Line], name: &str) -> Option<f64> {
    lines.iter().find(|l| l.contender == name)?.each()
}

/// The same SQL over as many connections.
fn by_hand(lines: &[Line], line: &Line) -> Option<f64> {
    let (way, connections) = line.contender.split_once(" ×")?;
    let connections = connections.split(',').next()?;
    let what = match way {
        "Herder, Alembic plan" => "Alembic's SQL",
        "Herder, SQL files" => "SQL files",
        _ => return None,
    };
    find(lines, &format!("{what} by hand ×{connections}"))
}

/// The ratio for the whole command, and in brackets that for the work alone.
fn of_by_hand(hand: Option<f64>, each: f64, worked: Option<f64>) -> String {
    let Some(hand) = hand else {
        return String::new();
    };
    let work = worked.map_or_else(String::new, |w| format!(" ({:.2})", hand / w));
    format!("{:.2}{work}", hand / each)
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(String::new, |r| format!("{r:.2}"))
}

fn megabytes(value: f64) -> String {
    if value > 0.5 {
        format!("{value:.0}")
    } else {
        String::new()
    }
}

/// What else there is to know of a line.
fn notes(line: &Line, fleet: usize) -> String {
    let mut notes = Vec::new();
    if line.tenants < fleet {
        notes.push(format!("over {} tenants", line.tenants));
    }
    let of = |f: fn(&Ran) -> Option<f64>| median(line.ran.iter().filter_map(f));
    let (enqueued, worked) = (of(|r| r.enqueued), of(|r| r.worked));
    if enqueued.is_finite() {
        notes.push(format!(
            "{enqueued:.2} s to the first claim, {worked:.2} s of work"
        ));
    }
    if let Some(proof) = line.ran.iter().filter_map(|r| r.proof).reduce(f64::max) {
        let least = line.ran.iter().filter_map(|r| r.proof).fold(f64::MAX, f64::min);
        notes.push(format!("`herder plan` {least:.1}–{proof:.1} s"));
    }
    notes.join("; ")
}
