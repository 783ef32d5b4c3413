//! What a rehearsal found.

use herder::flow::rehearse::{Forecast, Tried};

use super::{
    events::why,
    style::{ERROR, GOOD, HINT, STRONG, WARNING},
    words::{count, first_line, seconds, way},
};
use crate::commands::rehearse::{Live, Report};

/// A line for each tenant that was tried, what was left out, and the sums.
pub(crate) fn render(report: &Report) -> String {
    let mut text = String::new();
    let width = report.tenants.iter().map(|t| t.tenant.chars().count()).max();
    for tried in &report.tenants {
        text += &line(tried, width.unwrap_or_default());
    }
    for unknown in &report.unknown {
        text += &format!(
            "{WARNING}{:>13}{WARNING:#} {}: {}\n",
            "UNKNOWN",
            unknown.tenant,
            first_line(&unknown.why)
        );
    }
    text += &left_out(&report.tenants);
    for live in &report.live {
        text += &live_line(live);
    }
    text + &sums(report)
}

fn line(tried: &Tried, width: usize) -> String {
    let (style, word) = match tried.forecast {
        Forecast::WouldSucceed => (GOOD, "WOULD SUCCEED"),
        Forecast::WouldFail => (ERROR, "WOULD FAIL"),
        Forecast::NotRehearsed => (WARNING, "NOT REHEARSED"),
    };
    let held = match tried.held_ms {
        Some(ms) => format!("[{:>9}]", seconds(ms / 1e3)),
        None => format!("{:11}", ""),
    };
    let way = way(tried.from.as_deref(), tried.to.as_deref());
    let mut text = format!("{style}{word:>13}{style:#} {held} {:width$}  {way}", tried.tenant);
    let mut more = String::new();
    if let Some(error) = &tried.error {
        let again = if tried.may_pass { "; a run would retry" } else { "" };
        text += &format!("  {}{again}", why(error));
        if let Some(statement) = &error.statement {
            more += &format!("{:14}statement: {}\n", "", first_line(statement));
        }
        if let Some(hint) = &error.hint {
            more += &format!("{:14}{HINT}hint:{HINT:#} {}\n", "", first_line(hint));
        }
    } else if tried.forecast == Forecast::NotRehearsed
        && let Some(why) = &tried.why
    {
        text += &format!("  {}", first_line(why));
    }
    format!("{}\n{more}", text.trim_end())
}

/// The revisions that were left out in tenants that were tried, each set of them once.
fn left_out(tenants: &[Tried]) -> String {
    let mut said: Vec<(&[String], &str)> = Vec::new();
    for tried in tenants {
        let why = tried.why.as_deref().unwrap_or_default();
        let left = (tried.left_out.as_slice(), why);
        if tried.forecast == Forecast::WouldSucceed && !tried.left_out.is_empty() && !said.contains(&left) {
            said.push(left);
        }
    }
    said.into_iter()
        .map(|(revisions, why)| {
            let revisions = revisions.join(", ");
            format!("{WARNING}{:>13}{WARNING:#} {revisions}: {why}\n", "LEFT OUT")
        })
        .collect()
}

fn live_line(live: &Live) -> String {
    let way = way(live.from.as_deref(), live.to.as_deref());
    let tenants = count(live.tenants.len() as u64, "tenant");
    format!(
        "{WARNING}{:>13}{WARNING:#} {way}  {tenants}, not rehearsed: {}\n",
        "LIVE",
        first_line(&live.why)
    )
}

fn sums(report: &Report) -> String {
    let fine = report.count(Forecast::WouldSucceed);
    let failing = report.count(Forecast::WouldFail);
    let mut text = format!(
        "────────────\n{STRONG}{:>13}{STRONG:#} {} of {} rehearsed: {fine} would succeed, {failing} would fail",
        "Summary",
        fine + failing,
        count(report.pending as u64, "pending tenant"),
    );
    let left = report.count(Forecast::NotRehearsed);
    if left > 0 {
        text += &format!(", {left} could not be rehearsed");
    }
    if !report.unknown.is_empty() {
        text += &format!(", {} unknown", report.unknown.len());
    }
    text += "\n";
    let mut held: Vec<(f64, &str)> = report
        .tenants
        .iter()
        .filter_map(|t| Some((t.held_ms?, t.tenant.as_str())))
        .collect();
    held.sort_by(|a, b| a.0.total_cmp(&b.0));
    if let (Some((median, _)), Some((most, tenant))) = (held.get(held.len() / 2), held.last()) {
        text += &format!(
            "{:>13} for {} (median), {} (maximum, {tenant})\n",
            "Locks held",
            seconds(median / 1e3),
            seconds(most / 1e3)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use herder::domain::{failure::JobError, revision::Direction};

    use super::*;
    use crate::commands::plan::Unknown;

    #[test]
    fn it_says_who_would_fail_and_what_was_left_out() {
        let tried = |tenant: &str, forecast, held_ms| Tried {
            tenant: tenant.into(),
            server: "main".into(),
            from: Some("7".into()),
            to: Some("9".into()),
            forecast,
            rehearsed: vec!["8".into()],
            left_out: vec!["9".into()],
            why: Some("what runs outside a transaction cannot be rolled back".into()),
            held_ms,
            error: None,
            may_pass: false,
        };
        let report = Report {
            direction: Direction::Upgrade,
            target: "head".into(),
            revision: Some("9".into()),
            pending: 40,
            current: 2,
            counts: [
                (Forecast::WouldSucceed, 2),
                (Forecast::WouldFail, 2),
                (Forecast::NotRehearsed, 1),
            ]
            .into(),
            tenants: vec![
                tried("acme", Forecast::WouldSucceed, Some(4.218)),
                tried("beta", Forecast::WouldSucceed, Some(6.0)),
                Tried {
                    error: Some(JobError {
                        reason: "sql_error".into(),
                        sqlstate: Some("23505".into()),
                        message: "could not create unique index \"users_email_key\"".into(),
                        revision: Some("8".into()),
                        statement: Some("CREATE UNIQUE INDEX users_email_key\nON users (email)".into()),
                        hint: None,
                    }),
                    ..tried("delta", Forecast::WouldFail, Some(31.5))
                },
                Tried {
                    error: Some(JobError {
                        reason: "lock_timeout".into(),
                        sqlstate: Some("55P03".into()),
                        message: "canceling statement due to lock timeout".into(),
                        revision: Some("8".into()),
                        statement: None,
                        hint: Some("it waited 1s for a lock".into()),
                    }),
                    may_pass: true,
                    ..tried("eagle", Forecast::WouldFail, Some(1003.0))
                },
                Tried {
                    why: Some("another session is migrating it".into()),
                    ..tried("fjord", Forecast::NotRehearsed, None)
                },
            ],
            live: vec![Live {
                from: None,
                to: Some("9".into()),
                why: "revision 3: it reads what a statement found".into(),
                tenants: vec!["late".into()],
            }],
            unknown: vec![Unknown {
                tenant: "gone".into(),
                why: "schema `t_gone` does not exist".into(),
                hint: None,
            }],
        };
        insta::assert_snapshot!(anstream::adapter::strip_str(&render(&report)).to_string());
    }
}
