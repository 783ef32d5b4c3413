//! docs/OPERATIONS.md, done: every block of commands in it, in its order, and every row of its table for the night, on
//! a fleet of real workers. Where it asks Kubernetes or Helm, the test does to processes what those do to pods; whether
//! the arguments are right for them is `deploy/check`'s business.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use herder::throwaway::Settings;
use sqlx::PgPool;
use tokio::process::Command;

use crate::deploy::{commands, read};
use crate::fleet::{Cluster, Fleet, Setup, Tool, Worker, ask, list, steps};

/// A block of code.
struct Block {
    language: String,
    text: String,
}

/// The blocks of a section.
fn blocks(docs: &str, section: &str) -> VecDeque<Block> {
    let start = docs.find(&format!("\n## {section}\n")).expect(section) + 1;
    let text = &docs[start..];
    let end = text[3..].find("\n## ").map_or(text.len(), |end| end + 3);
    let mut found = VecDeque::new();
    let mut block: Option<Block> = None;
    for line in text[..end].lines().map(str::trim) {
        match (line.strip_prefix("```"), &mut block) {
            (Some(language), None) => {
                block = Some(Block {
                    language: language.to_owned(),
                    text: String::new(),
                });
            }
            (Some(_), Some(_)) => found.extend(block.take()),
            (None, Some(block)) => block.text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    found
}

/// Whoever does what the docs say, with what is at hand: a shell, and two workers or none.
struct Operator {
    fleet: Fleet,
    /// Where the programs are.
    path: String,
    control: String,
    workers: Vec<Worker>,
    /// What was typed.
    typed: Vec<String>,
}

impl Operator {
    async fn new() -> Self {
        let cluster = Cluster::own(Settings::default()).await;
        let fleet = Setup::schemas(6)
            .on(&cluster)
            .control_on(&cluster)
            .migrations(Tool::Sql, steps(2))
            .set("servers.main.budget", 21)
            .set("control.url", "${HERDER_CONTROL_URL}")
            .start()
            .await;
        let own = std::env::current_exe().expect("this test's program");
        let target = own.parent().and_then(Path::parent).expect("the target folder");
        let postgres = cluster.program("psql");
        let path = std::env::var("PATH").expect("PATH");
        Self {
            path: format!(
                "{}:{}:{path}",
                target.display(),
                postgres.parent().expect("a folder").display()
            ),
            control: cluster.url("herder").replace("postgres@", "herder:secret@"),
            fleet,
            workers: Vec::new(),
            typed: Vec::new(),
        }
    }

    /// Types a line, whatever comes of it.
    async fn shell(&mut self, line: &str) -> Output {
        self.typed.push(line.to_owned());
        let running = Command::new("bash")
            .args(["-ceu", line])
            .current_dir(self.fleet.dir())
            .env("PATH", &self.path)
            .env("HERDER_CONTROL_URL", &self.control)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let limit = std::time::Duration::from_secs(300);
        let ended = tokio::time::timeout(limit, running).await;
        ended
            .unwrap_or_else(|_| panic!("`{line}` does not end"))
            .expect("bash")
    }

    /// Types a line that must end with this code. Returns what it said.
    async fn type_for(&mut self, code: i32, line: &str) -> String {
        let output = self.shell(line).await;
        let said = [&output.stdout[..], &output.stderr]
            .map(String::from_utf8_lossy)
            .join("\n");
        assert_eq!(
            output.status.code(),
            Some(code),
            "`{line}`\n{said}\n{}",
            self.fleet.last_seen().await
        );
        said
    }

    /// The same for one that must do well.
    async fn types(&mut self, line: &str) -> String {
        self.type_for(0, line).await
    }

    /// So many workers, as a Deployment would have them.
    async fn scale(&mut self, replicas: usize) {
        while self.workers.len() > replicas {
            let worker = self.workers.remove(0);
            assert_eq!(worker.drain().await, Some(0), "{}", self.fleet.last_seen().await);
        }
        while self.workers.len() < replicas {
            let args = ["--concurrency", "2", "--listen", "127.0.0.1:0"];
            let worker = self
                .fleet
                .worker_with(&args, &[("HERDER_CONTROL_URL", &self.control)]);
            self.workers.push(worker);
        }
    }

    /// Does a line of the docs.
    async fn follow(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["kubectl", "-n", "herder", "exec", "deploy/herder", "--", ..] => {
                let (_, inside) = line.split_once(" -- ").expect("a command");
                self.types(inside).await;
            }
            ["kubectl", "-n", "herder", "scale", "deployment/herder", replicas] => {
                let replicas = replicas.strip_prefix("--replicas=").expect("a number");
                self.scale(replicas.parse().expect("a number")).await;
            }
            [
                "kubectl",
                "-n",
                "herder",
                "rollout",
                "status",
                "deployment/herder",
            ] => {
                let workers = &self.workers;
                let ready = async || {
                    for worker in workers {
                        if worker.get("/readyz").await.0 != 200 {
                            return false;
                        }
                    }
                    true
                };
                self.fleet.wait_until("all workers are ready", ready).await;
            }
            // New ones come before old ones go.
            ["kubectl", "-n", "herder", "set", "image", "deployment/herder", ..] => {
                let old = self.workers.len();
                self.scale(old + 2).await;
                self.scale(2).await;
            }
            ["kubectl", "create", "namespace", ..] | ["kubectl", "-n", "herder", "create", "secret", ..] => {}
            // The chart runs the set-up before the workers.
            ["helm", "upgrade", "--install", ..] => {
                self.types("herder setup").await;
                self.scale(2).await;
            }
            ["helm", "uninstall", "herder", ..] => self.scale(0).await,
            ["herder" | "psql" | "pg_dump" | "pg_restore", ..] => {
                self.types(line).await;
            }
            _ => panic!("nobody knows how to do this here: {line}"),
        }
    }

    /// Does a block of the docs.
    async fn follows(&mut self, block: Option<Block>) {
        let Block { language, text } = block.expect("a block");
        // What the reader is to fill in.
        let text = text.replace("\\\n", " ").replace('…', "secret");
        match language.as_str() {
            "sql" => {
                let file = self.fleet.dir().join("block.sql");
                std::fs::write(&file, text).expect("a file");
                let url = self.fleet.cluster.url("postgres");
                let file = file.display();
                self.types(&format!("psql -X -v ON_ERROR_STOP=1 {url} -f {file}"))
                    .await;
            }
            "sh" => {
                for line in text.lines() {
                    let line = line.split(" #").next().unwrap_or_default().trim();
                    if !line.is_empty() {
                        self.follow(line).await;
                    }
                }
            }
            other => panic!("a block of {other}"),
        }
    }

    fn config(&self) -> PathBuf {
        self.fleet.dir().join("herder.toml")
    }

    async fn over(&self, state: &str) {
        assert_eq!(self.fleet.over().await, state, "{}", self.fleet.last_seen().await);
    }
}

async fn first_installation(operator: &mut Operator, docs: &str) {
    let mut blocks = blocks(docs, "First installation");
    operator.follows(blocks.pop_front()).await;
    let superuser = PgPool::connect(&operator.fleet.cluster.url("postgres"))
        .await
        .expect("a pool");
    // What the application has already.
    crate::fleet::tell(&superuser, "create role app_owner").await;
    crate::fleet::tell(&superuser, "create database app owner app_owner").await;
    operator.follows(blocks.pop_front()).await;
    let limit = "select rolconnlimit from pg_roles where rolname = 'herder_migrator'";
    assert_eq!(ask::<i32>(&superuser, limit).await, 48);

    // What it writes can be read; then ours, with tenants that there are.
    let (ours, kept) = (operator.config(), operator.fleet.dir().join("kept.toml"));
    std::fs::rename(&ours, &kept).expect("a move");
    operator.follows(blocks.pop_front()).await;
    assert!(ours.exists());
    std::fs::rename(&kept, &ours).expect("a move");

    operator.fleet.control = PgPool::connect(&operator.control).await.expect("a pool");
    for block in blocks {
        operator.follows(Some(block)).await;
    }
    operator.over("succeeded").await;
    operator
        .fleet
        .assert_effects(&["up 20250101", "up 20250102"])
        .await;

    // A role of their own for those who work.
    crate::fleet::tell(&superuser, "create role herder_work login").await;
    operator.types("herder setup --grant herder_work").await;
}

async fn upgrading(operator: &mut Operator, docs: &str) {
    operator.fleet.project().rewrite(&steps(3));
    operator.scale(0).await;
    operator.types("herder upgrade").await;
    for block in blocks(docs, "Upgrading Herder, and rolling out new migrations") {
        operator.follows(Some(block)).await;
    }
    assert_eq!(operator.workers.len(), 2);
    operator.over("succeeded").await;
}

/// The rows of the table, by what one types.
async fn at_night(operator: &mut Operator, docs: &str) {
    for block in blocks(docs, "A half-migrated fleet at night") {
        operator.follows(Some(block)).await;
    }
    operator.types("herder plan --check").await;
    // Without a terminal there is nobody to ask.
    operator.type_for(2, "herder downgrade --to -1 --wait").await;
    operator.types("herder downgrade --to -1 --wait --yes").await;
    operator.type_for(7, "herder plan --check").await;

    // No worker is running.
    operator.scale(0).await;
    operator.types("herder upgrade").await;
    let said = operator.types("herder status").await;
    assert!(said.contains("no worker is running"), "{said}");
    operator.types("herder resume --local 8").await;
    operator.over("succeeded").await;

    // Halted by the canary; gone on with; failed; mended; taken up.
    let mut broken = steps(4);
    broken[3] = broken[3].clone().then("select 1/0");
    operator.fleet.project().rewrite(&broken);
    operator
        .type_for(5, "herder upgrade --canary 1 --local 2 --wait")
        .await;
    let said = operator.types("herder status --failed").await;
    assert!(said.contains("division by zero"), "{said}");
    operator.scale(2).await;
    operator.types("herder resume").await;
    operator.over("failed").await;
    let said = operator.types("herder status --failed").await;
    assert_eq!(said.matches("division by zero").count(), 6, "{said}");
    operator.fleet.project().rewrite(&steps(4));
    operator.types("herder retry").await;
    operator.over("succeeded").await;

    // The server is full: the budget is lowered, and what the config says counts again later.
    operator.types("herder budget main --set 20").await;
    operator.types("herder budget main --set config").await;

    // It harms the application; nobody remembers why; it goes on; it is watched.
    operator.types("herder downgrade --to -1 --wait --yes").await;
    operator.scale(0).await;
    operator.types("herder upgrade").await;
    operator.types("herder pause").await;
    let said = operator.types("herder runs").await;
    assert!(said.contains("paused"), "{said}");
    operator.types("herder resume").await;
    operator.scale(2).await;
    operator.types("herder watch").await;
    operator.types("herder downgrade --to -1 --wait --yes").await;
    operator.scale(0).await;
    operator.types("herder upgrade").await;
    operator.types("herder cancel --yes").await;
    operator.over("cancelled").await;

    // The control database is gone.
    let control = std::mem::replace(&mut operator.control, "postgres://nobody@127.0.0.1:1/gone".into());
    let said = operator.types("herder tenants").await;
    assert!(said.contains("t006"), "{said}");
    operator.type_for(3, "herder tenants --revisions").await;
    operator.control = control;
}

async fn backup_and_restore(operator: &mut Operator, docs: &str) {
    let mut blocks = blocks(docs, "Backup and restore");
    operator.scale(0).await;
    operator.types("herder upgrade").await;
    operator.follows(blocks.pop_front()).await;
    // The run goes on after the backup, which does not know it.
    operator.scale(2).await;
    operator.over("succeeded").await;
    for block in blocks {
        operator.follows(Some(block)).await;
    }
    operator.over("succeeded").await;
    let outcomes = list(
        &operator.fleet.control,
        "select distinct outcome from herder.job where run_id = (select id from herder.run order by created_at desc limit 1)",
    )
    .await;
    assert_eq!(outcomes, ["already_current"]);
}

async fn forgetting(operator: &mut Operator, docs: &str) {
    // A run whose attempt may still have a session stays. The backup may have known some: they are asked for, and freed.
    let held = "select count(*) from herder.slot where job_id is not null";
    operator
        .fleet
        .wait_until("no session is left of any attempt", async || {
            operator.fleet.ask::<i64>(held).await == 0
        })
        .await;
    operator
        .fleet
        .tell("update herder.run set created_at = created_at - interval '100 days', settled_at = settled_at - interval '100 days'
               where id <> (select id from herder.run order by created_at desc limit 1)")
        .await;
    for block in blocks(docs, "Forgetting old runs") {
        operator.follows(Some(block)).await;
    }
    assert_eq!(
        operator.fleet.ask::<i64>("select count(*) from herder.run").await,
        1
    );
}

async fn removing(operator: &mut Operator, docs: &str) {
    for block in blocks(docs, "Removing Herder") {
        operator.follows(Some(block)).await;
    }
    assert!(operator.workers.is_empty());
    let left = "select count(*) from pg_namespace where nspname in ('herder', 'apalis')";
    assert_eq!(operator.fleet.ask::<i64>(left).await, 0);
    // The tenants' own history, with sqlx's ledger, and nothing of ours.
    let home = &operator.fleet.home;
    assert_eq!(ask::<i64>(home, left).await, 0);
    assert_eq!(
        ask::<i64>(home, "select count(*) from t001._sqlx_migrations").await,
        4
    );
    operator.fleet.assert_public_untouched().await;
}

#[tokio::test]
async fn an_operator_can_do_what_the_docs_say_from_the_first_day_to_the_last() {
    let docs = read("docs/OPERATIONS.md");
    let mut operator = Operator::new().await;
    first_installation(&mut operator, &docs).await;
    upgrading(&mut operator, &docs).await;
    at_night(&mut operator, &docs).await;
    backup_and_restore(&mut operator, &docs).await;
    forgetting(&mut operator, &docs).await;
    removing(&mut operator, &docs).await;

    // Nothing stands there that was not done.
    for command in commands(&docs) {
        let command = command.join(" ");
        assert!(
            operator.typed.iter().any(|typed| typed.starts_with(&command)),
            "the docs say `{command}`, which this test never does"
        );
    }
}

/// What the table under *Sizing* is made of. `cargo test --test it sizing -- --ignored --nocapture` says it.
#[tokio::test]
#[ignore = "a measurement: it takes 20 s, and says nothing on a busy machine"]
async fn the_sizing_table_is_true() {
    let [first] = steps(1).try_into().expect("one");
    let fleet = Setup::schemas(200)
        .migrations(Tool::Sql, vec![first.then("select pg_sleep(1)")])
        // One is kept for inspection, and the two workers have two each to the control database, which is there, too.
        .set("servers.main.budget", 15)
        .start()
        .await;
    let _workers = [0; 2].map(|_| fleet.worker(&["--concurrency", "8"]));
    fleet.herder(&["upgrade"]).await.expect(0);
    assert_eq!(fleet.over().await, "succeeded");
    let took = "select extract(epoch from settled_at - created_at)::float8 from herder.run";
    let took: f64 = fleet.ask(took).await;
    let bytes = "select (pg_total_relation_size('herder.job') + pg_total_relation_size('herder.attempt')
                         + pg_total_relation_size('apalis.jobs')) / 200";
    let bytes: i64 = fleet.ask(bytes).await;
    eprintln!("200 tenants, 1 s each, 10 at a time: {took:.1} s (20 s by the table); {bytes} bytes a tenant");
    assert!((20.0..40.0).contains(&took), "{took}");
}
