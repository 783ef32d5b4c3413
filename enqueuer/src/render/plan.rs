//! What a run would do.

use super::{
    style::{DIM, HINT, STRONG, WARNING},
    words::{count, first_line, revision, way},
};
use crate::commands::plan::{Group, Report};

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
    let target = match &report.revision {
        Some(revision) if *revision != report.target => format!("{} ({revision})", report.target),
        _ => report.target.clone(),
    };
    text + &format!(
        "\n{} to {target}: {} pending, {} current, {} unknown\n",
        report.direction,
        report.pending,
        report.current,
        report.unknown.len()
    )
}

fn block(group: &Group) -> String {
    let tenants = count(group.tenants.len() as u64, "tenant");
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
    if group.current {
        let at = revision(group.from.as_deref());
        return format!("{STRONG}{at}{STRONG:#}  {tenants}, nothing to do: {DIM}{named}{DIM:#}\n");
    }
    let way = way(group.from.as_deref(), group.to.as_deref());
    let mut text = format!("{STRONG}{way}{STRONG:#}  {tenants}: {DIM}{named}{DIM:#}\n");
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
    use crate::commands::plan::{Pending, Unknown};

    #[test]
    fn tenants_with_the_same_way_stand_together() {
        let pending = |id: &str, label: &str| Pending {
            id: id.into(),
            label: label.into(),
            file: Some(format!("000{id}_{label}.up.sql")),
        };
        let report = Report {
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
                    pending: vec![pending("8", "tags_and_settings"), pending("9", "open_tasks")],
                },
                Group {
                    from: Some("9".into()),
                    to: Some("9".into()),
                    tenants: vec!["acme".into()],
                    current: true,
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
