//! The list of tenants.

use super::{
    table::Table,
    words::{count, first_line, revision},
};
use crate::commands::tenants::{Report, Row, Status};

/// One line per tenant, and the sums at the end where ledgers were read.
pub(crate) fn render(report: &Report) -> String {
    if report.counts.is_empty() {
        let mut table = Table::new(["TENANT", "ISOLATION", "SERVER", "DATABASE", "SCHEMA"]);
        for row in &report.tenants {
            table.row(place(row));
        }
        return table.render();
    }
    let mut table = Table::new([
        "TENANT",
        "ISOLATION",
        "SERVER",
        "DATABASE",
        "SCHEMA",
        "REVISION",
        "STATUS",
        "WHY",
    ]);
    for row in &report.tenants {
        let [id, isolation, server, database, schema] = place(row);
        table.row([
            id,
            isolation,
            server,
            database,
            schema,
            match row.status {
                Some(Status::Unknown) if row.revision.is_none() => "?".into(),
                _ => revision(row.revision.as_deref()).to_owned(),
            },
            row.status.map(Status::words).unwrap_or_default().to_owned(),
            row.why.as_deref().map(first_line).unwrap_or_default().to_owned(),
        ]);
    }
    let sums: Vec<String> = report
        .counts
        .iter()
        .filter(|(_, n)| **n > 0)
        .map(|(status, n)| format!("{n} {}", status.words()))
        .collect();
    format!(
        "{}\n{}: {}\n",
        table.render(),
        count(report.tenants.len() as u64, "tenant"),
        sums.join(", ")
    )
}

fn place(row: &Row) -> [String; 5] {
    [
        row.id.clone(),
        row.isolation.to_string(),
        row.server.clone(),
        row.database.clone(),
        row.schema.clone().unwrap_or_else(|| "-".into()),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use herder::domain::tenant::Isolation;

    use super::*;

    fn row(id: &str, revision: Option<&str>, status: Status, why: Option<&str>) -> Row {
        Row {
            id: id.into(),
            isolation: Isolation::Schema,
            server: "main".into(),
            database: "app".into(),
            schema: Some(format!("t_{id}")),
            revision: revision.map(Into::into),
            status: Some(status),
            why: why.map(Into::into),
        }
    }

    #[test]
    fn four_cases_are_told_apart() {
        let tenants = vec![
            row("acme", Some("9"), Status::Current, None),
            row("beta", Some("3"), Status::Behind, None),
            row("gamma", None, Status::NeverMigrated, None),
            row(
                "delta",
                None,
                Status::Unknown,
                Some("schema `t_delta` does not exist"),
            ),
            Row {
                schema: None,
                isolation: Isolation::Database,
                ..row(
                    "eps",
                    Some("99"),
                    Status::Unknown,
                    Some("the ledger is at `99`, which is not among these migrations"),
                )
            },
        ];
        let counts = BTreeMap::from([
            (Status::Current, 1),
            (Status::Behind, 1),
            (Status::NeverMigrated, 1),
            (Status::Unknown, 2),
        ]);
        let inspected = render(&Report {
            tenants: tenants.clone(),
            counts,
        });
        insta::assert_snapshot!(anstream::adapter::strip_str(&inspected).to_string());
        let listed = render(&Report {
            tenants,
            counts: BTreeMap::new(),
        });
        insta::assert_snapshot!(anstream::adapter::strip_str(&listed).to_string());
    }
}
