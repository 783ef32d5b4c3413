//! The recipes of docs/CI.md: taken from the page, and run as the CI would run them, on a fleet with a worker.

use std::path::PathBuf;

use serde_yaml_ng::Value;

use crate::fleet::{Fleet, Setup, Tool, steps, tell};

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CI.md");
    std::fs::read_to_string(path).expect("docs/CI.md")
}

/// The blocks of a kind, in their order.
fn blocks(kind: &str) -> Vec<String> {
    let (page, fence) = (page(), format!("```{kind}\n"));
    let blocks = page.split(&fence).skip(1);
    let block = |rest: &str| rest.split("\n```\n").next().expect("an end").to_owned() + "\n";
    blocks.map(block).collect()
}

fn recipe(name: &str) -> Value {
    let find = |text: String| {
        let value: Value = serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        (value.get(name).is_some() || value["jobs"].get(name).is_some()).then_some(value)
    };
    let mut found: Vec<Value> = blocks("yaml").into_iter().filter_map(find).collect();
    assert!(!found.is_empty(), "no recipe with the job {name}");
    found.remove(0)
}

/// One script of a CI.
struct Script {
    text: String,
    /// Whether it is run after a failure as well.
    always: bool,
}

/// A fleet with its worker, and a folder for the job.
struct Job {
    fleet: Fleet,
    _worker: crate::fleet::Worker,
}

/// What became of a job.
struct Ended {
    code: i32,
    said: String,
}

impl Job {
    /// So many tenants, of which these cannot have any revision. Canaries, and rehearsals of three out of ten, do not come
    /// to `t002`, `t003` and `t009`.
    async fn start(tenants: usize, failing: &[&str]) -> Self {
        let fleet = Setup::schemas(tenants)
            .migrations(Tool::Sql, steps(2))
            .start()
            .await;
        let worker = fleet.worker(&[]);
        for tenant in failing {
            tell(&fleet.home, &format!("drop table {tenant}.effects")).await;
        }
        Self {
            fleet,
            _worker: worker,
        }
    }

    /// Runs the scripts as a CI does: the first failure is the job's, and only what is for always comes after it.
    async fn run(&self, scripts: &[Script], github: bool) -> Ended {
        let mut ended = Ended {
            code: 0,
            said: String::new(),
        };
        for script in scripts {
            if ended.code != 0 && !script.always {
                continue;
            }
            assert!(
                !script.text.contains("${{"),
                "an expression in a script: {}",
                script.text
            );
            let mut env = vec![];
            let summary = self.path("summary.md").display().to_string();
            if github {
                env = vec![("GITHUB_ACTIONS", "true"), ("GITHUB_STEP_SUMMARY", &summary)];
            }
            let output = self.fleet.shell(&script.text, &env).await;
            ended.said += &output.all();
            match (ended.code, output.code) {
                (0, code) => ended.code = code.expect("a code"),
                (_, code) => assert_eq!(code, Some(0), "{}", output.all()),
            }
        }
        ended
    }

    fn path(&self, name: &str) -> PathBuf {
        self.fleet.dir().join(name)
    }

    fn read(&self, name: &str) -> String {
        let path = self.path(name);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }
}

fn shell() -> Vec<Script> {
    let text = blocks("sh").remove(0);
    vec![Script { text, always: false }]
}

fn github(job: &str) -> Vec<Script> {
    let recipe = recipe(job);
    let steps = recipe["jobs"][job]["steps"].as_sequence().expect("steps").clone();
    let script = |step: &Value| {
        Some(Script {
            text: step.get("run")?.as_str()?.to_owned(),
            always: step
                .get("if")
                .is_some_and(|when| when.as_str() == Some("always()")),
        })
    };
    steps.iter().filter_map(script).collect()
}

fn gitlab() -> Vec<Script> {
    let recipe = recipe("stages");
    let lines = |job: &str, key: &str| {
        let lines = recipe[job][key].as_sequence().cloned().unwrap_or_default();
        let lines = lines.iter().map(|line| line.as_str().expect("a line"));
        lines.fold(String::new(), |text, line| text + line + "\n")
    };
    let script = |job, key, always| Script {
        text: lines(job, key),
        always,
    };
    vec![
        script("plan", "script", false),
        script("migrate", "script", false),
        script("migrate", "after_script", true),
    ]
}

#[tokio::test]
async fn the_recipe_for_a_plain_shell() {
    let job = Job::start(10, &[]).await;
    let ended = job.run(&shell(), false).await;
    assert_eq!(ended.code, 0, "{}", ended.said);
    assert!(ended.said.contains("all tenants are at head"), "{}", ended.said);
    assert!(job.read("report.md").contains("10 tenants: 10 migrated"));
    assert!(
        job.read("plan.txt").contains("10 tenants"),
        "{}",
        job.read("plan.txt")
    );

    let job = Job::start(50, &["t009"]).await;
    let ended = job.run(&shell(), false).await;
    assert_eq!(ended.code, 4, "{}", ended.said);
    assert!(ended.said.contains("some tenants failed"), "{}", ended.said);
    assert!(
        job.read("report.md").contains("| t009 |"),
        "{}",
        job.read("report.md")
    );
}

#[tokio::test]
async fn the_recipe_for_github() {
    let job = Job::start(50, &["t002", "t003"]).await;
    let ended = job.run(&github("migrate"), true).await;
    assert_eq!(ended.code, 5, "{}", ended.said);
    assert!(
        ended
            .said
            .contains("::error title=Failed to migrate tenant t003::"),
        "{}",
        ended.said
    );
    assert!(job.read("report.xml").contains("failures=\"2\""));
    assert_eq!(job.read("report.csv").lines().count(), 51);
    let summary = job.read("summary.md");
    assert!(
        summary.contains("### ❌ Herder: upgrade to head") && summary.contains("| t003 |"),
        "{summary}"
    );
    // A check that stops the job starts no run, and reports none.
    std::fs::remove_file(job.path("report.xml")).expect("a report");
    std::fs::remove_file(job.path("run.txt")).expect("an id");
    job.fleet.tell("drop table tenants").await;
    let ended = job.run(&github("migrate"), true).await;
    assert_eq!(ended.code, 7, "{}", ended.said);
    assert!(!job.path("report.xml").exists());
}

#[tokio::test]
async fn the_recipe_for_a_pull_request() {
    let job = Job::start(4, &[]).await;
    let mut scripts = github("plan");
    let comment = scripts.pop().expect("the comment");
    assert!(
        comment.always && comment.text.starts_with("gh pr comment"),
        "{}",
        comment.text
    );
    let ended = job.run(&scripts, true).await;
    assert_eq!(ended.code, 0, "{}", ended.said);
    assert!(
        job.read("comment.md").contains("4 tenants"),
        "{}",
        job.read("comment.md")
    );
    // It has started nothing.
    assert_eq!(job.fleet.state().await, "none");
    tell(&job.fleet.home, "drop table t001.effects").await;
    let ended = job.run(&scripts, true).await;
    assert_eq!(ended.code, 7, "{}", ended.said);
    assert!(
        job.read("comment.md").contains("t001"),
        "{}",
        job.read("comment.md")
    );
}

#[tokio::test]
async fn the_recipe_for_gitlab() {
    let job = Job::start(50, &["t009"]).await;
    let ended = job.run(&gitlab(), false).await;
    assert_eq!(ended.code, 4, "{}", ended.said);
    assert!(job.read("report.xml").contains("<testcase name=\"t009\""));
    assert!(ended.said.contains("| t009 |"), "{}", ended.said);
    assert!(!job.path("summary.md").exists());
}

#[test]
fn every_yaml_block_is_yaml() {
    let blocks = blocks("yaml");
    assert_eq!(blocks.len(), 3);
    for block in blocks {
        let _: Value = serde_yaml_ng::from_str(&block).unwrap_or_else(|e| panic!("{e}\n{block}"));
    }
}
