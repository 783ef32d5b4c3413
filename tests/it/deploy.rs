//! What stands in `deploy/` and in the operator's docs, against the programs that it is about. What needs no program of
//! ours (schemas, rendering, linting) is checked by `deploy/check`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use herder::{config::Config, throwaway::Settings};
use rustix::process::Signal;

use crate::fleet::{Cluster, Fleet, Setup, Tool, Worker, steps};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect(path)
}

/// A config from `deploy/`, with a URL in place of each variable.
fn load(text: &str) -> Config {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("herder.toml");
    let mut filled = String::new();
    for (n, part) in text.split("${").enumerate() {
        match part.split_once('}') {
            Some((_, rest)) if n > 0 => filled = filled + "postgres://user@host/database" + rest,
            _ => filled += part,
        }
    }
    std::fs::write(&file, &filled).expect("a config");
    Config::load(&file).unwrap_or_else(|e| panic!("{e}\n{filled}"))
}

#[test]
fn the_configs_that_we_ship_can_be_read() {
    let mut values = vec![read("deploy/helm/herder/values.yaml")];
    for file in std::fs::read_dir(root().join("deploy/helm/herder/ci")).expect("examples") {
        values.push(std::fs::read_to_string(file.expect("a file").path()).expect("values"));
    }
    let mut found = 0;
    for values in values {
        let values: serde_yaml_ng::Value = serde_yaml_ng::from_str(&values).expect("YAML");
        if let Some(config) = values.get("config").and_then(|c| c.as_str()) {
            load(config);
            found += 1;
        }
    }
    assert_eq!(found, 2);
    assert_eq!(load(&read("deploy/compose/herder.toml")).servers.len(), 1);
}

/// All values under a key, at any depth.
fn values_of<'a>(key: &str, value: &'a serde_yaml_ng::Value, found: &mut Vec<&'a serde_yaml_ng::Value>) {
    match value {
        serde_yaml_ng::Value::Mapping(map) => {
            for (name, value) in map {
                if name.as_str() == Some(key) {
                    found.push(value);
                }
                values_of(key, value, found);
            }
        }
        serde_yaml_ng::Value::Sequence(list) => list.iter().for_each(|value| values_of(key, value, found)),
        _ => {}
    }
}

#[test]
fn a_pod_has_time_to_drain() {
    use serde::Deserialize;
    let mut drains = Vec::new();
    let text = read("deploy/kubernetes/workers.yaml");
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let document = serde_yaml_ng::Value::deserialize(document).expect("YAML");
        let mut found = Vec::new();
        values_of("terminationGracePeriodSeconds", &document, &mut found);
        for grace in found {
            let mut env = Vec::new();
            values_of("env", &document, &mut env);
            let env = env.iter().filter_map(|env| env.as_sequence()).flatten();
            let drain = env
                .filter(|variable| variable["name"] == "HERDER_DRAIN_TIMEOUT")
                .find_map(|variable| variable["value"].as_str())
                .expect("a drain timeout");
            let drain = humantime::parse_duration(drain).expect("a duration");
            drains.push((drain, Duration::from_secs(grace.as_u64().expect("seconds"))));
        }
    }
    assert_eq!(drains.len(), 1);
    let (drain, grace) = drains[0];
    assert_eq!(grace, drain + Duration::from_secs(5));
}

/// The commands of ours in a text: between backticks, and in code blocks from the beginning of a line, after a prompt
/// or behind ` -- `.
pub(crate) fn commands(text: &str) -> Vec<Vec<String>> {
    let mut pieces: Vec<&str> = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            let line = line.split(" #").next().unwrap_or_default();
            pieces.extend(line.split(['|', ';', '&', ')', '>', '(']));
        } else {
            pieces.extend(line.split('`').skip(1).step_by(2));
        }
    }
    let word = |word: &str| word.trim_matches(['"', '\'']).to_owned();
    let mut found = Vec::new();
    for piece in pieces {
        let piece = piece.rsplit(" -- ").next().unwrap_or_default().trim();
        let piece = ["run: ", "- run: ", "- ", "command: "]
            .iter()
            .find_map(|before| piece.strip_prefix(before))
            .unwrap_or(piece);
        let words: Vec<String> = piece.split_whitespace().map(word).collect();
        let is_ours = matches!(
            words.first().map(String::as_str),
            Some("herder" | "herder-worker")
        );
        if is_ours && words.len() > 1 && !piece.contains('…') {
            found.push(words);
        }
    }
    found
}

fn documents(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        let is = |end: &str| path.extension().is_some_and(|e| e == end);
        match path.is_dir() {
            true => documents(&path, found),
            false if is("md") => found.push(path),
            false => {}
        }
    }
}

#[test]
fn every_command_in_the_docs_is_one_that_we_have() {
    let mut files = vec![root().join("docs/CI.md"), root().join("docs/OPERATIONS.md")];
    documents(&root().join("deploy"), &mut files);
    let own = std::env::current_exe().expect("this test's program");
    let target = own.parent().and_then(Path::parent).expect("the target folder");
    let mut count = 0;
    for file in files {
        for command in commands(&std::fs::read_to_string(&file).expect("a document")) {
            count += 1;
            // With --help, arguments are read, and nothing is done.
            let output = std::process::Command::new(target.join(&command[0]))
                .args(&command[1..])
                .arg("--help")
                .output()
                .expect("a run");
            assert!(
                output.status.success(),
                "{}: {command:?}\n{}",
                file.display(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    assert!(count > 40, "{count} commands");
}

#[test]
fn commands_are_found_where_docs_have_them() {
    let text = "herder is one: `herder retry RUN`. See\n```sh\nkubectl exec deploy/herder -- herder runs --limit 3 # all\n```\n";
    assert_eq!(
        commands(text),
        [
            vec!["herder", "retry", "RUN"],
            vec!["herder", "runs", "--limit", "3"]
        ]
    );
}

/// What a Deployment does to its pods, on one machine: names, environment, SIGTERM, and SIGKILL for a lost node.
struct Deployment<'a> {
    fleet: &'a Fleet,
    pods: Vec<Worker>,
    made: usize,
}

impl Deployment<'_> {
    fn scale_up(&mut self, pods: usize) {
        for _ in 0..pods {
            self.made += 1;
            let name = format!("herder-{}", self.made);
            let args = ["--name", &name, "--concurrency", "2", "--listen", "127.0.0.1:0"];
            let pod = self
                .fleet
                .worker(&[&args[..], &["--drain-timeout", "30s"]].concat());
            self.pods.push(pod);
        }
    }

    /// SIGTERM, as to a pod that is to go. It must end by itself, well.
    async fn remove(&mut self) {
        let pod = self.pods.remove(0);
        assert_eq!(pod.drain().await, Some(0), "{}", self.fleet.last_seen().await);
    }

    async fn is_ready(&self) -> bool {
        for pod in &self.pods {
            if pod.get("/readyz").await.0 != 200 {
                return false;
            }
        }
        true
    }
}

#[tokio::test]
async fn a_deployment_scales_loses_a_node_and_rolls_while_a_run_goes_on() {
    let [first, second] = steps(2).try_into().expect("two");
    // On a server of its own, so that the whole budget is for tenants.
    let control = Cluster::own(Settings::default()).await;
    let fleet = Setup::schemas(60)
        .migrations(Tool::Sql, vec![first, second.gated()])
        .control_on(&control)
        .set("servers.main.budget", 5)
        .start()
        .await;
    let mut deployment = Deployment {
        fleet: &fleet,
        pods: Vec::new(),
        made: 0,
    };
    deployment.scale_up(2);
    fleet
        .wait_until("both are ready", async || deployment.is_ready().await)
        .await;
    let gate = fleet.close_gate().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    // A budget of five is four for jobs, and one is kept: more pods change nothing about it.
    fleet.wait_at_gate(4).await;
    deployment.scale_up(2);
    fleet
        .wait_until("all are ready", async || deployment.is_ready().await)
        .await;
    assert_eq!(fleet.at_gate().await, 4);

    // A node is lost, with its pod in the middle of migrations. The slots of both come back after its lease.
    deployment.pods.remove(0).kill().await;
    deployment.scale_up(1);
    fleet
        .wait_until("its jobs were taken back", async || {
            let rescued = "select count(*) from herder.attempt where result = 'rescued'";
            fleet.ask::<i64>(rescued).await == 2
        })
        .await;
    fleet.wait_at_gate(4).await;
    gate.open().await;

    // A new image: one more, one less, until all are new.
    for _ in 0..4 {
        deployment.scale_up(1);
        fleet
            .wait_until("the new one is ready", async || deployment.is_ready().await)
            .await;
        deployment.remove().await;
    }
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;

    // Down to none: nothing is left that says somebody is there.
    for pod in &deployment.pods {
        pod.signal(Signal::TERM);
    }
    while !deployment.pods.is_empty() {
        let mut pod = deployment.pods.remove(0);
        assert_eq!(pod.end().await.code(), Some(0), "{}", pod.log());
    }
    let live = "select count(*) from herder.worker where lease_until >= now()";
    assert_eq!(fleet.ask::<i64>(live).await, 0);
}
