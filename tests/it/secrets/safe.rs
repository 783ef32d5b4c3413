//! A fleet that is full of passwords, and all that is said and written about it.

use std::process::Command;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::fleet::{Fleet, Setup, tell};
use crate::server::WITH_PASSWORD;

/// The beginning and the end of each password: they look the same in every notation, and a password that is taken out
/// only up to the first odd character still shows one of them.
const CANARIES: [&str; 2] = ["hunter2", "tr0ub4dor"];

/// The password of a role: with all that some notation has a meaning for.
pub(super) fn password(of: &str) -> String {
    format!("hunter2-{of} @/:%41'\"ü?#&+=$1\\{{}}tr0ub4dor")
}

/// The same in a URL.
pub(super) fn in_url(of: &str) -> String {
    utf8_percent_encode(&password(of), NON_ALPHANUMERIC).to_string()
}

/// All that was said and written.
#[derive(Default)]
pub(super) struct Findings(pub(super) Vec<(String, String)>);

impl Findings {
    pub(super) fn add(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.0.push((place.into(), text.into()));
    }

    pub(super) async fn herder(&mut self, safe: &Safe, args: &[&str]) -> Option<i32> {
        let output = safe.herder(args).await;
        self.add(args.join(" "), output.all());
        output.code
    }

    /// Every row of every table of ours.
    pub(super) async fn tables(&mut self, fleet: &Fleet) {
        let tables = "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname in ('herder', 'apalis')";
        for table in crate::fleet::list(&fleet.control, tables).await {
            let rows = crate::fleet::list(&fleet.control, &format!("select t::text from {table} t")).await;
            self.add(table, rows.join("\n"));
        }
    }

    /// The arguments of all processes below this one; and of those that are not Herder's own, what was given to them that
    /// is no business of theirs. Says how many of these there were.
    pub(super) fn processes(&mut self) -> usize {
        let ps = Command::new("ps")
            .args(["-A", "-o", "pid=,ppid=,args="])
            .output()
            .expect("ps");
        let text = String::from_utf8_lossy(&ps.stdout).into_owned();
        let parse = |line: &str| {
            let mut words = line.split_whitespace();
            let pid: u32 = words.next()?.parse().ok()?;
            Some((pid, words.next()?.parse::<u32>().ok()?, line.to_owned()))
        };
        let all: Vec<(u32, u32, String)> = text.lines().filter_map(parse).collect();
        let mut family = vec![std::process::id()];
        // Each generation finds the next.
        let mut next = 0;
        while next < family.len() {
            let parent = family[next];
            family.extend(
                all.iter()
                    .filter(|(_, ppid, _)| *ppid == parent)
                    .map(|(pid, ..)| *pid),
            );
            next += 1;
        }
        let lines = all
            .iter()
            .filter(|(pid, ..)| family.contains(pid))
            .map(|(.., line)| line.as_str());
        self.add("ps", lines.collect::<Vec<_>>().join("\n"));
        let mut strangers = 0;
        for pid in &family[1..] {
            let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
            let (name, environment) = (read("comm"), read("environ"));
            let environment = String::from_utf8_lossy(&environment).replace('\0', "\n");
            if !name.starts_with(b"herder") && environment.contains(SEEN_BY_CHILDREN) {
                strangers += 1;
                for of in ["control", "catalog"] {
                    let shown = environment
                        .lines()
                        .find(|line| line.contains(&format!("hunter2-{of}")));
                    assert_eq!(
                        shown,
                        None,
                        "in the environment of {}",
                        String::from_utf8_lossy(&name)
                    );
                }
            }
        }
        strangers
    }

    pub(super) fn assert_no_secret(&self) {
        for (place, text) in &self.0 {
            for canary in CANARIES {
                let shown = text.lines().find(|line| line.contains(canary));
                assert_eq!(shown, None, "in {place}");
            }
        }
    }
}

/// A variable that the programs below a worker of ours inherit like any other.
const SEEN_BY_CHILDREN: &str = "HARMLESS=1";

/// A fleet that cannot be reached without passwords. Two of them are in the environment, one is in a file, and some are
/// in the tenant list.
pub(super) struct Safe {
    pub(super) fleet: Fleet,
    env: Vec<(&'static str, String)>,
}

impl std::ops::Deref for Safe {
    type Target = Fleet;

    fn deref(&self) -> &Fleet {
        &self.fleet
    }
}

impl Safe {
    pub(super) async fn new(setup: Setup) -> Self {
        let fleet = setup.start().await;
        let mut env = vec![("HARMLESS", "1".to_owned())];
        let mut lines = Vec::new();
        for (of, section) in [
            ("control", "control"),
            ("catalog", "tenants"),
            ("server", "servers.main"),
        ] {
            let role = fleet.database(of);
            let secret = password(of).replace('\'', "''");
            tell(
                &fleet.home,
                &format!("create role {role} login superuser password '{secret}' in role {WITH_PASSWORD}"),
            )
            .await;
            lines.push((section, role));
        }
        let with =
            |url: &str, role: &str, secret: &str| url.replace("postgres@", &format!("{role}:{secret}@"));
        std::fs::write(fleet.dir().join("password"), in_url("server") + "\n").expect("a file");
        fleet.configure(|config| {
            for (section, role) in lines {
                let table = section.split('.').fold(&mut *config, |table, name| {
                    table[name].as_table_mut().expect("a table")
                });
                let url = table["url"].as_str().expect("a URL");
                let text = match section {
                    "servers.main" => with(url, &role, "${file:password}"),
                    "control" => {
                        env.push(("CONTROL_URL", with(url, &role, &in_url("control"))));
                        "${CONTROL_URL}".to_owned()
                    }
                    _ => {
                        env.push(("CATALOG_URL", with(url, &role, &in_url("catalog"))));
                        "${CATALOG_URL}".to_owned()
                    }
                };
                table.insert("url".into(), text.into());
            }
        });
        Self { fleet, env }
    }

    pub(super) fn env(&self) -> Vec<(&str, &str)> {
        self.env
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect()
    }

    pub(super) async fn herder(&self, args: &[&str]) -> crate::fleet::Output {
        self.fleet.start_herder_with(args, &self.env()).end().await
    }

    pub(super) fn worker(&self, args: &[&str]) -> crate::fleet::Worker {
        let env = [self.env(), vec![("RUST_LOG", "trace")]].concat();
        self.fleet.worker_with(args, &env)
    }
}
