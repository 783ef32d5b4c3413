//! What happened to tenants, one line each.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use anstyle::Style;
use chrono::{DateTime, Utc};
use herder::{
    domain::{
        failure::JobError,
        job::{AttemptId, JobId},
        outcome::{
            AttemptResult::{
                self, Cancelled, Failed, Replanned, Rescued, Retried, Returned, Skipped, Snoozed, Succeeded,
            },
            Outcome,
        },
    },
    store::view::Event,
};

use super::{
    style::{DIM, ERROR, GOOD, WARNING},
    words::{between, delay, first_line, seconds, upright, way},
};

/// How wide a tenant's column is at least, and at most: the ids are not known beforehand.
const TENANT_WIDTH: std::ops::RangeInclusive<usize> = 16..=40;

/// What is said of tenants that settled when the run was made.
const CURRENT: Kind = Some(Succeeded(Outcome::AlreadyCurrent));

/// The events of a run in the order of their telling: knows which were told, and counts tenants and tries.
#[derive(Debug)]
pub(crate) struct Story {
    total: usize,
    /// Tenants that settled when the run was made: no event tells of them.
    current: usize,
    /// Jobs whose last event says that they are settled, and whether they failed.
    settled: HashMap<JobId, bool>,
    /// How many tries of a job have failed. Only of those that have any.
    tries: HashMap<JobId, u32>,
    told: HashSet<AttemptId>,
    newest: Option<DateTime<Utc>>,
    tenant_width: usize,
}

impl Story {
    /// The story of a run with so many tenants, of which so many were settled when it was made.
    pub(crate) fn new(total: usize, current: usize) -> Self {
        Self {
            total,
            current,
            settled: HashMap::new(),
            tries: HashMap::new(),
            told: HashSet::new(),
            newest: None,
            tenant_width: *TENANT_WIDTH.start(),
        }
    }

    /// The moment of the newest event that was told.
    pub(crate) fn newest(&self) -> Option<DateTime<Utc>> {
        self.newest
    }

    /// How many tenants are settled, as far as it was told.
    pub(crate) fn settled(&self) -> usize {
        (self.current + self.settled.len()).min(self.total)
    }

    /// How many tenants there are.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// The line of an event. None: it was told before.
    pub(crate) fn tell(&mut self, event: &Event) -> Option<Line> {
        if !self.told.insert(event.attempt) {
            return None;
        }
        self.newest = self.newest.max(Some(event.at));
        let ids = event.tenant.chars().count().min(*TENANT_WIDTH.end());
        self.tenant_width = self.tenant_width.max(ids);

        let kind = event.result();
        let tries = match kind {
            Some(Retried | Failed) => {
                let tries = self.tries.entry(event.attempt.job).or_default();
                *tries += 1;
                *tries
            }
            _ => 0,
        };
        let settles = kind.is_some_and(AttemptResult::settles);
        if settles {
            self.settled.insert(event.attempt.job, kind == Some(Failed));
        } else {
            // A retry takes up jobs that were settled.
            self.settled.remove(&event.attempt.job);
        }
        Some(Line {
            kind,
            word: match kind {
                Some(Retried) => format!("TRY {tries} FAIL"),
                _ => word(kind).to_owned(),
            },
            seconds: event.seconds,
            number: settles.then(|| self.settled()),
            total: self.total,
            tenant: upright(&event.tenant),
            tenant_width: self.tenant_width,
            what: what(kind, event),
        })
    }

    /// The jobs that failed are about to be taken up again: they are no longer settled.
    pub(crate) fn reopen_failed(&mut self) {
        self.settled.retain(|_, failed| !*failed);
    }

    /// The line for the tenants that no event tells of.
    pub(crate) fn opening(&self) -> Option<Line> {
        (self.current > 0).then(|| Line {
            kind: CURRENT,
            word: word(CURRENT).to_owned(),
            seconds: -1.0,
            number: Some(self.current),
            total: self.total,
            tenant: format!("{} already current", self.current),
            tenant_width: 0,
            what: String::new(),
        })
    }
}

/// What an event is about. None: a newer Herder knows more.
type Kind = Option<AttemptResult>;

/// The word that its line begins with.
fn word(kind: Kind) -> &'static str {
    match kind {
        Some(Succeeded(Outcome::Migrated)) => "MIGRATED",
        Some(Succeeded(Outcome::AlreadyCurrent)) => "CURRENT",
        Some(Succeeded(Outcome::FoundApplied)) => "FOUND",
        Some(Failed) => "FAILED",
        Some(Retried) => "TRY FAIL",
        Some(Snoozed) => "POSTPONED",
        Some(Replanned) => "REPLANNED",
        Some(Returned) => "RETURNED",
        Some(Rescued) => "RESCUED",
        Some(Skipped) => "SKIPPED",
        Some(Cancelled) => "CANCELLED",
        None => "EVENT",
    }
}

fn style(kind: Kind) -> Style {
    match kind {
        Some(Succeeded(Outcome::Migrated | Outcome::FoundApplied)) => GOOD,
        Some(Failed) => ERROR,
        Some(Retried | Rescued) => WARNING,
        Some(Succeeded(Outcome::AlreadyCurrent) | Snoozed | Replanned | Returned | Skipped | Cancelled)
        | None => DIM,
    }
}

/// Whether a person at a terminal wants the line to stay. What went well is in the bar.
fn stays(kind: Kind) -> bool {
    match kind {
        Some(Failed | Retried | Rescued | Skipped | Cancelled) => true,
        // A server that is down puts off all its tenants, again and again.
        Some(Succeeded(_) | Snoozed | Replanned | Returned) | None => false,
    }
}

/// One line. `Display` gives it with colours.
#[derive(Debug)]
pub(crate) struct Line {
    kind: Kind,
    word: String,
    /// Below zero: it took no time of its own.
    seconds: f64,
    number: Option<usize>,
    total: usize,
    tenant: String,
    tenant_width: usize,
    what: String,
}

impl Line {
    /// Whether a person at a terminal wants to find it later.
    pub(crate) fn stays(&self) -> bool {
        stays(self.kind)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let style = style(self.kind);
        write!(f, "{style}{:>12}{style:#} ", self.word)?;
        match self.seconds {
            s if s < 0.0 => write!(f, "{:11} ", "")?,
            s => write!(f, "[{:>9}] ", seconds(s))?,
        }
        let digits = self.total.to_string().len();
        match self.number {
            Some(number) => write!(f, "({number:>digits$}/{}) ", self.total)?,
            None => write!(f, "{:1$} ", "", 2 * digits + 3)?,
        }
        let (tenant, width) = (&self.tenant, self.tenant_width);
        match self.what.as_str() {
            "" => write!(f, "{tenant}"),
            what => write!(f, "{tenant:width$} {what}"),
        }
    }
}

fn what(kind: Kind, event: &Event) -> String {
    let way = || way(event.from.as_deref(), event.to.as_deref());
    let next = || match event.ready_at {
        Some(at) => format!("; next try {}", delay(between(event.at, at))),
        None => String::new(),
    };
    match kind {
        Some(Succeeded(Outcome::Migrated)) => way(),
        Some(Succeeded(Outcome::AlreadyCurrent)) => super::words::revision(event.to.as_deref()).to_owned(),
        Some(Succeeded(Outcome::FoundApplied)) => format!(
            "{} (applied by an earlier attempt whose result was not recorded)",
            way()
        ),
        Some(Failed) => event.error.as_ref().map(why).unwrap_or_default(),
        Some(Retried | Snoozed) | None => {
            let why = event.error.as_ref().map(brief).unwrap_or_default();
            format!("{why}{}", next())
        }
        Some(Replanned) => {
            let why = match &event.error {
                Some(error) => format!("its plan failed, using the migration tool: {}", brief(error)),
                None => "its plan does not fit it; using the migration tool".into(),
            };
            format!("{why}{}", next())
        }
        Some(Returned) => format!("returned by a draining worker{}", next()),
        Some(Rescued) => format!("reclaimed from a lost worker{}", next()),
        Some(Skipped) => match &event.error {
            Some(error) => brief(error),
            None => "no longer in the tenant source".into(),
        },
        Some(Cancelled) => "stopped because the run was cancelled".into(),
    }
}

/// `42: column "x" already exists (42701)`: all that fits into a line.
pub(crate) fn why(error: &JobError) -> String {
    let revision = error
        .revision
        .as_deref()
        .map(|r| format!("{r}: "))
        .unwrap_or_default();
    format!("{revision}{}{}", first_line(&error.message), code(error))
}

/// What passes is told by its kind: `lock timeout (55P03)`.
fn brief(error: &JobError) -> String {
    match error.reason.as_str() {
        "lock_timeout"
        | "deadlock"
        | "statement_timeout"
        | "serialization_failure"
        | "too_many_connections" => {
            format!("{}{}", error.reason.replace('_', " "), code(error))
        }
        _ => why(error),
    }
}

fn code(error: &JobError) -> String {
    error
        .sqlstate
        .as_deref()
        .map(|code| format!(" ({code})"))
        .unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use herder::domain::job::Epoch;

    use super::*;

    /// An event of a made-up run, at a second of its life.
    pub(crate) fn event(job: JobId, epoch: Epoch, tenant: &str, result: &str) -> Event {
        Event {
            at: DateTime::from_timestamp(1_800_000_000 + i64::from(epoch), 0).unwrap_or_default(),
            tenant: tenant.into(),
            attempt: AttemptId { job, epoch },
            wave: 0,
            result: result.into(),
            seconds: 1.204,
            from: Some("41".into()),
            to: Some("43".into()),
            error: None,
            attempts: 1,
            ready_at: None,
        }
    }

    fn failed(
        mut event: Event,
        reason: &str,
        sqlstate: &str,
        message: &str,
        revision: Option<&str>,
    ) -> Event {
        event.error = Some(JobError {
            reason: reason.into(),
            sqlstate: Some(sqlstate.into()),
            message: message.into(),
            revision: revision.map(Into::into),
            ..JobError::default()
        });
        event
    }

    fn told(story: &mut Story, events: &[Event]) -> String {
        let lines: Vec<String> = events
            .iter()
            .filter_map(|event| story.tell(event))
            .map(|line| anstream::adapter::strip_str(&line.to_string()).to_string())
            .collect();
        lines.join("\n")
    }

    #[test]
    fn every_kind_of_event_has_its_line() {
        let mut story = Story::new(412, 12);
        let mut lock = failed(
            event(3, 1, "gamma", "retried"),
            "lock_timeout",
            "55P03",
            "canceling statement due to lock timeout",
            Some("42"),
        );
        lock.ready_at = Some(lock.at + chrono::TimeDelta::seconds(5));
        let mut put_off = failed(
            event(5, 1, "epsilon", "snoozed"),
            "server_starting",
            "57P03",
            "the database system is starting up",
            None,
        );
        put_off.ready_at = Some(put_off.at + chrono::TimeDelta::milliseconds(500));
        let mut fresh = event(12, 1, "new-tenant", "migrated");
        fresh.from = None;
        let mut moved = event(13, 1, "mu", "replanned");
        moved.ready_at = Some(moved.at);
        let opening = story.opening().expect("a line").to_string();
        insta::assert_snapshot!(
            anstream::adapter::strip_str(&opening).to_string(),
            @"     CURRENT             ( 12/412) 12 already current"
        );
        let events = [
            event(1, 1, "acme-prod", "migrated"),
            event(2, 1, "beta-eu", "already_current"),
            lock,
            failed(
                event(4, 2, "delta", "failed"),
                "sql_error",
                "42701",
                "column \"x\" already exists\nDETAIL: more",
                Some("42"),
            ),
            put_off,
            event(6, 1, "zeta", "returned"),
            event(7, 1, "eta", "rescued"),
            event(8, 2, "theta", "found_applied"),
            event(9, 1, "iota", "skipped"),
            event(10, 1, "kappa", "cancelled"),
            event(11, 1, "a-tenant-with-quite-a-long-name-1", "migrated"),
            fresh,
            moved,
            failed(
                event(14, 1, "nu", "replanned"),
                "sql_error",
                "42P07",
                "relation \"n\" already exists",
                Some("43"),
            ),
        ];
        insta::assert_snapshot!(told(&mut story, &events));
    }

    #[test]
    fn an_event_is_told_once_and_a_tenant_counted_once() {
        let mut story = Story::new(2, 0);
        let first = event(1, 1, "a", "failed");
        assert!(story.tell(&first).is_some());
        assert!(story.tell(&first).is_none());
        assert_eq!(story.settled(), 1);
        story.reopen_failed();
        assert_eq!(story.settled(), 0);
        assert!(story.tell(&event(1, 2, "a", "migrated")).is_some());
        assert_eq!(story.settled(), 1);
    }

    #[test]
    fn tries_are_counted_per_tenant() {
        let mut story = Story::new(2, 0);
        let events = [
            event(1, 1, "a", "retried"),
            event(2, 1, "b", "retried"),
            event(1, 2, "a", "rescued"),
            event(1, 3, "a", "retried"),
        ];
        let text = told(&mut story, &events);
        let words: Vec<&str> = text.lines().map(|line| line[..12].trim()).collect();
        assert_eq!(words, ["TRY 1 FAIL", "TRY 1 FAIL", "RESCUED", "TRY 2 FAIL"]);
    }
}
