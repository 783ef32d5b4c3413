//! The connections of each server.

use super::table::Table;
use crate::commands::budget::Server;

/// One line per server.
pub(crate) fn render(servers: &[Server]) -> String {
    let mut table = Table::new([
        "SERVER", "BUDGET", "IN USE", "SUSPECT", "WAITING", "OTHERS", "HEADROOM", "OVERRIDE",
    ]);
    for server in servers {
        let known = &server.known;
        let live = |value: Option<i32>| value.map_or_else(|| "-".to_owned(), |n| n.to_string());
        table.row([
            known.server.clone(),
            known.budget.to_string(),
            known.in_use.to_string(),
            known.suspect.to_string(),
            known.waiting.to_string(),
            live(server.not_ours),
            live(server.headroom),
            match known.overridden {
                None => String::new(),
                Some(_) => format!("yes; configured: {}", known.configured),
            },
        ]);
    }
    table.render()
}

/// What a person should know about one of them, if it passes by itself.
pub(crate) fn hint(server: &Server) -> Option<String> {
    let (name, above) = (&server.known.server, server.known.above);
    (above > 0).then(|| {
        format!(
            "`{name}` still has {above} connections above its budget, which are released when their jobs end"
        )
    })
}

/// What is wrong with one of them.
pub(crate) fn warnings(server: &Server) -> impl Iterator<Item = String> {
    let (name, budget) = (&server.known.server, server.known.budget);
    let headroom = server.headroom.filter(|headroom| *headroom < budget);
    let narrow =
        headroom.map(|n| format!("`{name}` has only {n} connections available now, fewer than its budget"));
    let unknown = server.unknown.as_ref();
    let unknown = unknown.map(|why| format!("cannot query `{name}`: {why}"));
    narrow.into_iter().chain(unknown)
}

#[cfg(test)]
mod tests {
    use herder::store::server::BudgetView;

    use super::*;

    fn server(name: &str, overridden: Option<i32>, headroom: Option<i32>) -> Server {
        Server {
            known: BudgetView {
                server: name.into(),
                address: "db.example:5432".into(),
                budget: overridden.unwrap_or(48),
                configured: 48,
                overridden,
                in_use: 12,
                suspect: 1,
                above: overridden.map_or(0, |_| 4),
                waiting: 388,
            },
            headroom,
            not_ours: headroom.map(|_| 31),
            max_connections: headroom.map(|_| 100),
            reserved: headroom.map(|_| 3),
            unknown: headroom
                .is_none()
                .then(|| "db.example:5432 did not answer".into()),
        }
    }

    #[test]
    fn servers_stand_in_columns() {
        let servers = [
            server("eu", None, Some(66)),
            server("us", Some(8), None),
            server("asia", None, Some(20)),
        ];
        insta::assert_snapshot!(anstream::adapter::strip_str(&render(&servers)).to_string());
        let said = servers
            .iter()
            .flat_map(|server| hint(server).into_iter().chain(warnings(server)));
        insta::assert_snapshot!(said.collect::<Vec<_>>().join("\n"), @r"
        `us` still has 4 connections above its budget, which are released when their jobs end
        cannot query `us`: db.example:5432 did not answer
        `asia` has only 20 connections available now, fewer than its budget
        ");
    }
}
