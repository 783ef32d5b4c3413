//! The SQL that a run would execute, as a script: all that is not SQL is a comment.

use super::{
    plan::{manner, members, sums},
    words::{first_line, way},
};
use crate::commands::plan::{Group, Report, Step};

/// How many revisions of a step are named in its heading. All stand in its SQL.
const NAMED: usize = 3;

/// A part for each group that has something to do, the tenants that cannot be planned for, and the sums.
pub(crate) fn render(report: &Report) -> String {
    let mut text = String::new();
    let groups: Vec<&Group> = report.groups.iter().filter(|group| !group.current).collect();
    if groups.iter().any(|group| needs_schema(group, report)) {
        text += &comment(&format!(
            "\"{}\" stands for the tenant's schema",
            report.schema_placeholder
        ));
        text += "\n";
    }
    for group in groups {
        text += &part(group);
    }
    for unknown in &report.unknown {
        text += &comment(&format!(
            "{}: unknown: {}",
            unknown.tenant,
            first_line(&unknown.why)
        ));
    }
    text + &comment(&sums(report))
}

fn needs_schema(group: &Group, report: &Report) -> bool {
    let mut sql = group.steps.iter().filter_map(|step| step.sql.as_deref());
    sql.any(|sql| sql.contains(report.schema_placeholder))
}

fn part(group: &Group) -> String {
    let (tenants, named) = members(group);
    let way = way(group.from.as_deref(), group.to.as_deref());
    let mut text = comment(&format!("{way}  {tenants}: {named}"));
    text += &comment(&manner(group).unwrap_or_default());
    let steps = group.steps.len();
    for (n, step) in group.steps.iter().enumerate() {
        text += &format!("\n{}", comment(&heading(step, n + 1, steps)));
        let sql = step.sql.as_deref().unwrap_or_default();
        text += &match step.transactional {
            true => format!("BEGIN;\n{sql}COMMIT;\n"),
            false => sql.to_owned(),
        };
    }
    text + "\n"
}

fn heading(step: &Step, number: usize, steps: usize) -> String {
    let place = match step.transactional {
        true => "in a transaction",
        false => "outside a transaction",
    };
    match step.revisions.as_slice() {
        [] => format!("step {number} of {steps}, {place}"),
        [first, .., last] if step.revisions.len() > NAMED => {
            let revisions = step.revisions.len();
            format!("step {number} of {steps}, {place}: {first} to {last}, {revisions} revisions")
        }
        revisions => format!("step {number} of {steps}, {place}: {}", revisions.join(", ")),
    }
}

/// A tenant's name, or an error's text, may hold anything: it must not leave the comment.
fn comment(text: &str) -> String {
    format!("-- {}\n", text.replace(['\n', '\r'], " "))
}

#[cfg(test)]
mod tests {
    use herder::domain::revision::Direction;

    use super::*;
    use crate::commands::plan::{By, Unknown};

    #[test]
    fn a_plan_reads_as_a_script() {
        let step = |revision: &str, transactional, sql: &str| Step {
            revisions: vec![revision.into()],
            transactional,
            sql: Some(sql.into()),
        };
        let group = |by, why: Option<&str>, steps| Group {
            from: Some("7".into()),
            to: Some("9".into()),
            tenants: vec!["acme".into(), "be\nta".into()],
            current: false,
            pending: vec![],
            by: Some(by),
            why: why.map(str::to_owned),
            plan: None,
            steps,
        };
        let report = Report {
            direction: Direction::Upgrade,
            target: "head".into(),
            revision: Some("9".into()),
            current: 0,
            pending: 4,
            groups: vec![
                group(
                    By::Plan,
                    None,
                    vec![
                        step("8", true, "create table \"Herder:Tenant\".t ();\n"),
                        step("9", false, "create index concurrently i on t (x);\n"),
                    ],
                ),
                group(By::Live, Some("revision 8: it inspects the database"), vec![]),
            ],
            unknown: vec![Unknown {
                tenant: "delta".into(),
                why: "schema `t_delta` does not exist".into(),
                hint: None,
            }],
            schema_placeholder: "Herder:Tenant",
        };
        insta::assert_snapshot!(render(&report));
    }
}
