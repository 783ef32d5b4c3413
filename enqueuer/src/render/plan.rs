//! What a run would do.

use super::{
    style::{DIM, HINT, STRONG, WARNING},
    words::{count, first_line, revision, way},
};
use crate::commands::plan::{By, Group, Report};

/// How many tenants of a group are named: enough to recognise it. JSON has them all.
const NAMED: usize = 5;

/// A block per group, the tenants that cannot be planned for, and the sums.
pub(crate) fn render(report: &Report) -> String {
    let mut text = String::new();
    for group in &report.groups {
        text += &block(group);
    }
    for unknown in &report.unknown {
        text += &format!(
            "{WARNING}{}{WARNING:#}: unknown: {}\n",
            unknown.tenant,
            first_line(&unknown.why)
        );
        if let Some(hint) = &unknown.hint {
            text += &format!("  {HINT}hint:{HINT:#} {}\n", first_line(hint));
        }
    }
    text + &format!("\n{}\n", sums(report))
}

/// Where to, and how many tenants are how far.
pub(super) fn sums(report: &Report) -> String {
    let target = match &report.revision {
        Some(revision) if *revision != report.target => format!("{} ({revision})", report.target),
        _ => report.target.clone(),
    };
    format!(
        "{} to {target}: {} pending, {} current, {} unknown",
        report.direction,
        report.pending,
        report.current,
        report.unknown.len()
    )
}

/// How many tenants of a group there are, and who the first ones are.
pub(super) fn members(group: &Group) -> (String, String) {
    let mut named = group
        .tenants
        .iter()
        .take(NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if group.tenants.len() > NAMED {
        named += &format!(" and {} more", group.tenants.len() - NAMED);
    }
    (count(group.tenants.len() as u64, "tenant"), named)
}

/// How a group is migrated.
pub(super) fn manner(group: &Group) -> Option<String> {
    Some(match group.by? {
        By::Live => format!("live: {}", first_line(group.why.as_deref().unwrap_or_default())),
        By::Plan => {
            let outside = group.steps.iter().filter(|step| !step.transactional).count();
            let inside = count((group.steps.len() - outside) as u64, "transaction");
            match outside {
                0 => format!("by plan: {inside}"),
                _ => format!(
                    "by plan: {inside}, {} outside a transaction",
                    count(outside as u64, "step")
                ),
            }
        }
    })
}

fn block(group: &Group) -> String {
    let (tenants, named) = members(group);
    if group.current {
        let at = revision(group.from.as_deref());
        return format!("{STRONG}{at}{STRONG:#}  {tenants}, nothing to do: {DIM}{named}{DIM:#}\n");
    }
    let way = way(group.from.as_deref(), group.to.as_deref());
    let mut text = format!("{STRONG}{way}{STRONG:#}  {tenants}: {DIM}{named}{DIM:#}\n");
    if let Some(manner) = manner(group) {
        text += &format!("    {manner}\n");
    }
    let width = |f: &dyn Fn(&crate::commands::plan::Pending) -> usize| {
        group.pending.iter().map(f).max().unwrap_or_default()
    };
    let ids = width(&|p| p.id.chars().count());
    let labels = width(&|p| p.label.chars().count());
    for pending in &group.pending {
        let file = pending.file.as_deref().unwrap_or_default();
        let line = format!("    {:ids$}  {:labels$}  {file}", pending.id, pending.label);
        text += &format!("{}\n", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use herder::domain::revision::Direction;

    use super::*;
    use crate::commands::plan::{Pending, Step, Unknown};

    #[test]
    fn tenants_with_the_same_way_stand_together() {
        let pending = |id: &str, label: &str| Pending {
            id: id.into(),
            label: label.into(),
            file: Some(format!("000{id}_{label}.up.sql")),
        };
        let step = |transactional| Step {
            revisions: vec![],
            transactional,
            sql: None,
        };
        let report = Report {
            schema_placeholder: "Herder:Tenant",
            direction: Direction::Upgrade,
            target: "head".into(),
            revision: Some("9".into()),
            current: 1,
            pending: 7,
            groups: vec![
                Group {
                    from: Some("7".into()),
                    to: Some("9".into()),
                    tenants: (1..=7).map(|n| format!("t{n}")).collect(),
                    current: false,
                    by: Some(By::Plan),
                    why: None,
                    plan: Some("5a1c".into()),
                    steps: vec![step(true), step(false)],
                    pending: vec![pending("8", "tags_and_settings"), pending("9", "open_tasks")],
                },
                Group {
                    from: Some("9".into()),
                    to: Some("9".into()),
                    tenants: vec!["acme".into()],
                    current: true,
                    by: None,
                    why: None,
                    plan: None,
                    steps: vec![],
                    pending: vec![],
                },
                Group {
                    from: None,
                    to: Some("9".into()),
                    tenants: vec!["late".into()],
                    current: false,
                    by: Some(By::Live),
                    why: Some("revision 8: it reads what a statement found".into()),
                    plan: None,
                    steps: vec![],
                    pending: vec![],
                },
            ],
            unknown: vec![Unknown {
                tenant: "delta".into(),
                why: "schema `t_delta` does not exist".into(),
                hint: Some("create it".into()),
            }],
        };
        insta::assert_snapshot!(anstream::adapter::strip_str(&render(&report)).to_string());
    }
}
