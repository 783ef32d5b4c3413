//! The connections of each server.

use super::{
    style::{HINT, WARNING},
    table::Table,
};
use crate::commands::budget::Server;

/// One line per server.
pub(crate) fn render(servers: &[Server]) -> String {
    let mut table = Table::new([
        "SERVER", "BUDGET", "IN USE", "SUSPECT", "WAITING", "NOT OURS", "HEADROOM", "SET",
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
                Some(_) => format!("by hand; the config has {}", known.configured),
            },
        ]);
    }
    table.render()
}

/// What a person should know about some of them.
pub(crate) fn remarks(servers: &[Server]) -> Vec<String> {
    let mut remarks = Vec::new();
    for server in servers {
        let (known, warn) = (&server.known, format!("{WARNING}warning:{WARNING:#}"));
        let name = &known.server;
        if known.above > 0 {
            remarks.push(format!(
                "{HINT}hint:{HINT:#} `{name}` still has {} above its budget, which are given up as soon as they are free",
                known.above
            ));
        }
        if let Some(headroom) = server.headroom.filter(|headroom| *headroom < known.budget) {
            remarks.push(format!(
                "{warn} `{name}` has room for {headroom} now, fewer than its budget"
            ));
        }
        if let Some(why) = &server.unknown {
            remarks.push(format!("{warn} `{name}` could not be asked: {why}"));
        }
    }
    remarks
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
        let text = render(&servers) + &remarks(&servers).join("\n");
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string());
    }
}
