//! No password ever shows, wherever one looks: streams, logs, tables, metrics, and the arguments of processes.

use std::process::Command;

use crate::fleet::{Fleet, Setup, Tenant, Tool, steps, tell};
use crate::server::WITH_PASSWORD;

/// The part of the password that looks the same in every notation.
const CANARY: &str = "hunter2";

/// The password, as SQL takes it.
const PASSWORD: &str = "hunter2-canary @/ü";

/// The password, as a URL takes it.
const IN_URL: &str = "hunter2-canary%20%40%2F%C3%BC";

/// All that was said and written.
#[derive(Default)]
struct Findings(Vec<(String, String)>);

impl Findings {
    fn add(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.0.push((place.into(), text.into()));
    }

    async fn herder(&mut self, fleet: &Fleet, args: &[&str]) -> Option<i32> {
        let output = fleet.herder(args).await;
        self.add(args.join(" "), output.all());
        output.code
    }

    /// Every row of every table of ours.
    async fn tables(&mut self, fleet: &Fleet) {
        let tables = "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname in ('herder', 'apalis')";
        for table in crate::fleet::list(&fleet.control, tables).await {
            let rows = crate::fleet::list(&fleet.control, &format!("select t::text from {table} t")).await;
            self.add(table, rows.join("\n"));
        }
    }

    /// The arguments of all processes below this one.
    fn processes(&mut self) {
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
    }

    fn assert_no_secret(&self) {
        for (place, text) in &self.0 {
            let shown = text.lines().find(|line| line.contains(CANARY));
            assert_eq!(shown, None, "in {place}");
        }
    }
}

/// A fleet that cannot be reached without its password: the control database, the catalog, the server, and a tenant
/// with a URL of its own.
async fn with_password(tool: Tool) -> Fleet {
    let [first, second] = steps(2).try_into().expect("two");
    let fails = "do $$ begin if to_regclass('broken') is not null then raise 'it is broken'; end if; end $$";
    let setup = Setup::schemas(3).migrations(tool, vec![first, second.gated().then(fails)]);
    let mut fleet = setup.start().await;
    tell(&fleet.home, "create table t003.broken ()").await;
    let role = fleet.database("role");
    tell(
        &fleet.home,
        &format!("create role {role} login superuser password '{PASSWORD}' in role {WITH_PASSWORD}"),
    )
    .await;
    let secret = |url: &str| url.replace("postgres@", &format!("{role}:{IN_URL}@"));
    let config = fleet.dir().join("herder.toml");
    let text = std::fs::read_to_string(&config).expect("herder.toml");
    std::fs::write(&config, secret(&text)).expect("herder.toml");
    let home = fleet.cluster.url(&fleet.database("home"));
    fleet.tenants = vec![
        Tenant {
            url: Some(secret(&home)),
            ..Tenant::schema("own url", "own")
        },
        Tenant {
            url: Some(secret(&home).replace("_home", "_nowhere")),
            ..Tenant::schema("no database", "nowhere")
        },
        Tenant {
            url: Some(secret(&home).replace(CANARY, "hunter2-wrong")),
            ..Tenant::schema("wrong password", "wrong")
        },
    ];
    fleet.populate().await;
    fleet
}

async fn no_secret_shows(tool: Tool) {
    let fleet = with_password(tool).await;
    let mut found = Findings::default();
    let gate = fleet.close_gate().await;
    let worker = fleet.worker_with(&["--listen", "127.0.0.1:0"], &[("RUST_LOG", "debug")]);
    for args in [
        &["check"][..],
        &["tenants", "--revisions"],
        &["tenants", "--revisions", "--output-format", "json"],
        &["plan"],
        &["plan", "--output-format", "json"],
        &["upgrade", "-vv"],
    ] {
        let code = found.herder(&fleet, args).await;
        assert!(
            [Some(0), Some(7)].contains(&code),
            "{args:?} ended with {code:?}: {:?}",
            found.0.last()
        );
    }
    fleet.wait_at_gate(4).await;
    found.processes();
    found.tables(&fleet).await;
    gate.open().await;
    assert_eq!(fleet.over().await, "failed", "{}", fleet.last_seen().await);
    assert_eq!(
        (fleet.count("succeeded").await, fleet.count("failed").await),
        (3, 3)
    );
    for args in [
        &["status"][..],
        &["status", "--failed"],
        &["status", "--output-format", "json"],
        &["report"],
        &["runs"],
        &["watch"],
        &["retry", "--wait", "-vv"],
        &["retry", "--local", "2", "-vvv"],
    ] {
        found.herder(&fleet, args).await;
    }
    found.add("metrics", worker.get("/metrics").await.1);
    found.tables(&fleet).await;
    found.add("the worker's log", worker.log());
    // Somebody looked at all of it, and not at nothing.
    assert!(
        found
            .0
            .iter()
            .any(|(place, text)| place == "ps" && text.contains("herder-worker"))
    );
    found.assert_no_secret();
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn no_secret_shows_with_sql() {
    no_secret_shows(Tool::Sql).await;
}

#[tokio::test]
async fn no_secret_shows_with_alembic() {
    no_secret_shows(Tool::Alembic).await;
}

#[tokio::test]
async fn no_secret_shows_with_a_command() {
    no_secret_shows(Tool::Command).await;
}

#[tokio::test]
async fn a_tool_that_tells_all_tells_no_secret() {
    let fleet = with_password(Tool::Command).await;
    fleet.configure(|config| {
        let runner = config["runner"].as_table_mut().expect("[runner]");
        let tells = [
            "sh",
            "-c",
            "env; echo \"$DATABASE_URL\" >&2; echo \"pw $PGPASSWORD\"; exit 1",
        ];
        runner.insert("command".into(), tells.map(str::to_owned).to_vec().into());
    });
    let mut found = Findings::default();
    assert_eq!(
        found.herder(&fleet, &["upgrade", "--local", "2", "-vvv"]).await,
        Some(4)
    );
    found.herder(&fleet, &["status", "--failed"]).await;
    found.tables(&fleet).await;
    assert!(found.0.iter().any(|(_, text)| text.contains("[secret]")));
    found.assert_no_secret();

    let fleet = with_password(Tool::Alembic).await;
    let env = fleet.dir().join("project/env.py");
    let text = std::fs::read_to_string(&env).expect("env.py");
    let tells = "raise RuntimeError(str(_args()) + context.config.get_main_option('sqlalchemy.url'))";
    std::fs::write(&env, text.replace("asyncio.run(run_online())", tells)).expect("env.py");
    let mut found = Findings::default();
    assert_eq!(
        found.herder(&fleet, &["upgrade", "--local", "2", "-vvv"]).await,
        Some(4)
    );
    found.herder(&fleet, &["status", "--failed"]).await;
    found.tables(&fleet).await;
    assert!(found.0.iter().any(|(_, text)| text.contains("RuntimeError")));
    found.assert_no_secret();
}
