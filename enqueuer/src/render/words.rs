//! How numbers, times and revisions are put into words.

use std::time::Duration;

use chrono::{DateTime, Utc};
use herder::{
    domain::{revision::Position, run::RunState},
    store::view::JobView,
};

/// `1.204s`, `12m 04s`, `3h 07m`: as exact as anybody wants it.
pub(crate) fn duration(duration: Duration) -> String {
    // Rounded before it is split, or 59.9996 s would read `60.000s`.
    let ms = (duration.as_secs_f64() * 1000.0).round() / 1000.0;
    if ms < 60.0 {
        return format!("{ms:.3}s");
    }
    let seconds = ms.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, minutes, seconds) => format!("{minutes}m {seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h {minutes:02}m"),
    }
}

/// The same from seconds, as the database gives them.
pub(crate) fn seconds(seconds: f64) -> String {
    duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// A delay, without fractions that nobody waits for: `5s`, `12m 04s`.
pub(crate) fn delay(delay: Duration) -> String {
    let whole = delay.as_secs_f64().round();
    match delay {
        d if d < Duration::from_millis(100) => "at once".into(),
        d if d < Duration::from_secs(1) => format!("in {:.1}s", d.as_secs_f64()),
        d if d < Duration::from_secs(60) => format!("in {whole}s"),
        d => format!("in {}", duration(d)),
    }
}

/// From a moment to another, none of it negative.
pub(crate) fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> Duration {
    (to - from).to_std().unwrap_or_default()
}

/// A moment, for people.
pub(crate) fn moment(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// `1 tenant`, `2 tenants`.
pub(crate) fn count(n: impl TryInto<u64>, noun: &str) -> String {
    match n.try_into().unwrap_or_default() {
        1 => format!("1 {noun}"),
        n => format!("{n} {noun}s"),
    }
}

/// `41 → 43`, with a word for the empty database.
pub(crate) fn way(from: Option<&str>, to: Option<&str>) -> String {
    format!("{} → {}", revision(from), revision(to))
}

/// The same of a job: a ledger that could not be read is not the empty database's.
pub(crate) fn way_of(job: &JobView) -> String {
    format!("{} → {}", position(&job.from), position(&job.to))
}

fn position(position: &Position) -> &str {
    match position {
        Position::Unknown => "?",
        known => revision(known.revision()),
    }
}

/// A text without what turns the direction of all that follows it in its line: that would show other ids than there are.
pub(crate) fn upright(text: &str) -> String {
    let turns = |c| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let chars = text.chars();
    chars
        .map(|c| {
            if turns(c) {
                c.escape_unicode().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

/// How many tenants of one place are named behind the first: in a schema that is shared there may be thousands.
const MEMBERS: usize = 3;

/// The tenants of a job: `acme (with beta, gamma, delta and 7 more)`.
pub(crate) fn tenants_of(job: &JobView) -> String {
    if job.members.is_empty() {
        return job.tenant.clone();
    }
    let named = job.members.iter().take(MEMBERS).map(String::as_str);
    let named = named.collect::<Vec<_>>().join(", ");
    match job.members.len().saturating_sub(MEMBERS) {
        0 => format!("{} (with {named})", job.tenant),
        rest => format!("{} (with {named} and {rest} more)", job.tenant),
    }
}

/// How a run ended, or where it stands, as the end of "the run …".
pub(crate) fn run_is(state: RunState) -> &'static str {
    match state {
        RunState::Running => "is running",
        RunState::Succeeded => "has succeeded",
        RunState::Failed => "has ended, and some of its tenants failed",
        RunState::Paused => "is paused",
        RunState::Halted => "is halted",
        RunState::Cancelled => "was cancelled",
    }
}

/// A worker's id without most of the random digits that tell its starts apart: `pod-1-5e0f`.
pub(crate) fn worker(id: &str) -> String {
    match id.rsplit_once('-') {
        Some((name, random)) if random.len() == 32 => format!("{name}-{}", random.get(..4).unwrap_or(random)),
        _ => id.to_owned(),
    }
}

/// A revision, or the word for none.
pub(crate) fn revision(revision: Option<&str>) -> &str {
    revision.unwrap_or("base")
}

/// The first line of a text: what fits into a row.
pub(crate) fn first_line(text: &str) -> &str {
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_as_exact_as_anybody_wants() {
        let ms = |ms| duration(Duration::from_millis(ms));
        assert_eq!(ms(31), "0.031s");
        assert_eq!(ms(1_204), "1.204s");
        assert_eq!(ms(59_999), "59.999s");
        assert_eq!(duration(Duration::from_secs_f64(59.9996)), "1m 00s");
        assert_eq!(ms(724_000), "12m 04s");
        assert_eq!(ms(11_220_000), "3h 07m");
        assert_eq!(seconds(-1.0), "0.000s");
    }

    #[test]
    fn delays_have_no_fractions_that_nobody_waits_for() {
        let ms = |ms| delay(Duration::from_millis(ms));
        assert_eq!(ms(20), "at once");
        assert_eq!(ms(740), "in 0.7s");
        assert_eq!(ms(4_871), "in 5s");
        assert_eq!(ms(65_000), "in 1m 05s");
    }

    #[test]
    fn a_worker_is_known_by_its_name() {
        assert_eq!(worker("pod-1-d9a2691a31e242bab4b6d6db77a3435f"), "pod-1-d9a2");
        assert_eq!(worker("w1"), "w1");
    }

    #[test]
    fn a_line_keeps_its_direction() {
        assert_eq!(upright("a\u{202e}cba ü"), "a\\u{202e}cba ü");
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(count(1, "tenant"), "1 tenant");
        assert_eq!(count(0, "tenant"), "0 tenants");
    }
}
