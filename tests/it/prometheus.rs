//! What a worker exports: against its docs, at the size of a big fleet, and under a real Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use herder::domain::failure::JobError;
use herder::domain::outcome::{Outcome, Settlement};
use herder::metrics::Metrics;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::fleet::{Fleet, Gate, Setup, Tool, Worker, steps};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A fleet in the middle of a run: one tenant waits at the gate, the others are done.
async fn in_the_middle(tenants: usize) -> (Fleet, Worker, Gate) {
    let [first, second] = steps(2).try_into().expect("two");
    let fleet = Setup::schemas(tenants)
        .migrations(Tool::Sql, vec![first, second.gated()])
        .start()
        .await;
    let gate = fleet.close_gate_of("t001").await;
    let worker = fleet.worker(&["--concurrency", "4", "--listen", "127.0.0.1:0"]);
    (fleet, worker, gate)
}

/// Name, type, labels and help text of a metric.
type Row = (String, String, String, String);

/// The rows of the tables in docs/METRICS.md.
fn documented() -> BTreeSet<Row> {
    let docs = std::fs::read_to_string(Path::new(ROOT).join("docs/METRICS.md")).expect("docs/METRICS.md");
    let rows = docs.lines().filter(|line| line.starts_with("| `herder_"));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, help] = cells.try_into().expect("four cells");
        let plain = |text: &str| text.replace(['`', ' '], "");
        (plain(name), plain(kind), plain(labels), help.to_owned())
    })
    .collect()
}

/// The same of a page.
fn exported(page: &str) -> BTreeSet<Row> {
    let mut metrics: BTreeMap<&str, (String, String, BTreeSet<String>)> = BTreeMap::new();
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            metrics.entry(name).or_default().0 = help.to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            metrics.entry(name).or_default().1 = kind.to_owned();
        } else if let Some((name, rest)) = line.split_once('{') {
            let name = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .filter(|base| metrics.contains_key(base))
                .unwrap_or(name);
            let labels = rest.split('}').next().unwrap_or_default().split(',');
            let labels = labels.filter_map(|label| label.split('=').next());
            let labels = labels.filter(|label| *label != "le").map(str::to_owned);
            metrics.entry(name).or_default().2.extend(labels);
        }
    }
    let row = |(name, (help, kind, labels)): (&str, (String, String, BTreeSet<String>))| {
        let labels: Vec<String> = labels.into_iter().collect();
        (name.to_owned(), kind, labels.join(","), help)
    };
    metrics.into_iter().map(row).collect()
}

#[tokio::test]
async fn the_docs_say_what_a_worker_exports() {
    let (fleet, worker, gate) = in_the_middle(3).await;
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.wait_at_gate(1).await;
    // Nothing is there before it has a value: wait for the last of them.
    fleet
        .wait_until("all has a value", async || {
            let page = worker.get("/metrics").await.1;
            page.contains("herder_run_idle_seconds{") && page.contains("_bucket{outcome=\"migrated\"")
        })
        .await;
    let (status, page) = worker.get("/metrics").await;
    assert_eq!(status, 200);
    let (documented, exported) = (documented(), exported(&page));
    let only_docs: Vec<_> = documented.difference(&exported).collect();
    let only_page: Vec<_> = exported.difference(&documented).collect();
    assert!(
        only_docs.is_empty() && only_page.is_empty(),
        "only in the docs: {only_docs:#?}\nonly on the page: {only_page:#?}"
    );
    for tenant in &fleet.tenants {
        assert!(!page.contains(&tenant.id), "a tenant's name is on the page");
    }
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded");
    fleet
        .wait_until(
            "nothing is open but the worker's own two connections",
            async || {
                worker.metric("herder_jobs").await == 0.0
                    && worker.metric("herder_connections_in_use").await == 2.0
            },
        )
        .await;
    let page = worker.get("/metrics").await.1;
    assert!(!page.contains("herder_run_info{"), "the run is over: {page}");
    assert_eq!(worker.metric("herder_workers").await, 1.0);
}

fn settlements() -> Vec<Settlement> {
    let succeeded = |outcome| Settlement::Succeeded {
        outcome,
        from: None,
        to: None,
    };
    let retry = |counts| Settlement::Retry {
        error: JobError::default(),
        delay: Duration::ZERO,
        counts,
    };
    vec![
        succeeded(Outcome::Migrated),
        succeeded(Outcome::AlreadyCurrent),
        succeeded(Outcome::FoundApplied),
        Settlement::Failed(JobError::default()),
        retry(true),
        retry(false),
        Settlement::live(""),
        Settlement::Returned,
        Settlement::Skipped(JobError::default()),
        Settlement::Cancelled,
    ]
}

#[tokio::test]
async fn fifty_thousand_tenants_fit_into_five_hundred_series() {
    let fleet = Setup::schemas(1).start().await;
    fleet
        .tell(
            "insert into herder.server (name, address, budget, configured) select 's' || n, 'h' || n, 10, 10 from generate_series(1, 600) n;
             insert into herder.slot (server, number) select 's' || n, 1 from generate_series(1, 600) n;
             insert into herder.run (id, direction, target, runner, checksum, connections, state, tenants, waves)
             select lpad(n::text, 32, '0')::uuid, 'upgrade', 'head', 'sql', '', 1, 'running', 500, 1 from generate_series(1, 100) n;
             insert into herder.job (run_id, tenant, isolation, server, database, schema, state, resolved, connections)
             select lpad((1 + n % 100)::text, 32, '0')::uuid, 't' || n, 'schema', 's' || (1 + n % 600), 'd', 't' || n, 'ready', false, 1
             from generate_series(1, 50000) n;
             analyze herder.job;",
        )
        .await;
    let metrics = Metrics::new().expect("metrics");
    metrics.refresh(&fleet.control).await.expect("gauges");
    for settlement in settlements() {
        metrics.settled(&settlement, Duration::from_secs(1));
    }
    // More reasons than there are.
    for n in 0..50 {
        metrics.failed(&JobError {
            reason: format!("reason_{n}"),
            ..JobError::default()
        });
    }
    let page = metrics.page().expect("a page");
    assert!(page.contains("herder_jobs{state=\"ready\"} 50000"), "{page}");
    let series = page.lines().filter(|line| !line.starts_with('#')).count();
    assert!(series <= 500, "{series} series:\n{page}");
}

/// A program of Debian's package `prometheus`. None: say so, and skip.
fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: no `{program}` on PATH (Debian, Ubuntu: apt-get install prometheus)");
    }
    found
}

/// Where a worker serves its page.
async fn address(worker: &Worker) -> String {
    worker.says("on http://").await;
    let log = worker.log();
    let (_, rest) = log.split_once("on http://").expect("an address");
    rest.split_whitespace().next().expect("an address").to_owned()
}

async fn promtool(args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new("promtool")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool");
    let mut input = child.stdin.take().expect("its input");
    input.write_all(stdin.as_bytes()).await.expect("a page");
    drop(input);
    child.wait_with_output().await.expect("its end")
}

/// A Prometheus that scrapes one worker every second, with the rules of `deploy/`.
struct Prometheus {
    _child: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    fn start(program: &Path, worker: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("herder-prometheus-")
            .tempdir()
            .expect("a folder");
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: ['{ROOT}/deploy/prometheus/rules/*.yaml']\n\
             scrape_configs: [{{ job_name: herder, static_configs: [{{ targets: ['{worker}'] }}] }}]\n"
        );
        let file = dir.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("a config");
        // It does not say which port it took if it may choose.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let address = port.expect("a port").to_string();
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let child = Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("prometheus");
        Self {
            _child: child,
            address,
            _dir: dir,
        }
    }

    /// The answer to a question. None: not yet.
    async fn ask(&self, path: &str) -> Option<Value> {
        let mut stream = tokio::net::TcpStream::connect(&self.address).await.ok()?;
        // 1.0: an answer in one piece.
        let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        // It says so while it starts.
        if head.contains(" 503 ") {
            return None;
        }
        let body: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"));
        assert_eq!(body["status"], "success", "{path}: {body:#}");
        Some(body["data"].clone())
    }

    /// What a query gives now.
    async fn query(&self, query: &str) -> Vec<Value> {
        let query: String = url::form_urlencoded::byte_serialize(query.as_bytes()).collect();
        let data = self.ask(&format!("/api/v1/query?query={query}")).await;
        data.and_then(|data| data["result"].as_array().cloned())
            .unwrap_or_default()
    }
}

/// All queries of the dashboard, with the panel that each stands in.
fn dashboard() -> Vec<(String, String)> {
    let file = Path::new(ROOT).join("deploy/grafana/herder.json");
    let text = std::fs::read_to_string(file).expect("the dashboard");
    let json: Value = serde_json::from_str(&text).expect("JSON");
    let panels = json["panels"].as_array().expect("panels").iter();
    panels
        .flat_map(|panel| {
            let title = panel["title"].as_str().expect("a title");
            let targets = panel["targets"].as_array().cloned().unwrap_or_default();
            targets.into_iter().map(move |target| {
                let query = target["expr"].as_str().expect("a query");
                (title.to_owned(), query.replace("$__rate_interval", "1m"))
            })
        })
        .collect()
}

#[tokio::test]
async fn a_prometheus_finds_data_for_every_panel_and_fires_an_alert() {
    let Some(program) = installed("prometheus") else {
        return;
    };
    let (fleet, worker, gate) = in_the_middle(40).await;
    let prometheus = Prometheus::start(&program, &address(&worker).await);
    // A rate needs two samples: so the first scrape must be over before anything is counted.
    fleet
        .wait_until("it was scraped", async || {
            !prometheus.query("herder_build_info").await.is_empty()
        })
        .await;
    fleet.herder(&["upgrade"]).await.expect(0);
    let queries = dashboard();
    assert!(queries.len() > 20, "{queries:?}");
    for (panel, query) in &queries {
        fleet
            .wait_until(&format!("the panel `{panel}` has data for {query}"), async || {
                !prometheus.query(query).await.is_empty()
            })
            .await;
    }
    let migrated = "sum(herder_job_attempts_total{outcome=\"migrated\"})";
    fleet
        .wait_until("39 tenants are counted", async || {
            prometheus.query(migrated).await[0]["value"][1] == "39"
        })
        .await;

    // All rules are loaded, and can be evaluated against what a worker really exports.
    let groups = prometheus.ask("/api/v1/rules").await.expect("rules");
    let groups = groups["groups"].as_array().expect("groups").clone();
    let files = std::fs::read_dir(Path::new(ROOT).join("deploy/prometheus/rules")).expect("rules");
    assert_eq!(groups.len(), files.count());
    fleet
        .wait_until("all rules were evaluated", async || {
            let rules = prometheus.ask("/api/v1/rules").await.expect("rules");
            let groups = rules["groups"].as_array().expect("groups").clone();
            groups.iter().all(|group| group["rules"][0]["health"] == "ok")
        })
        .await;
    let firing = "ALERTS{alertname=\"HerderRunHalted\",alertstate=\"firing\"}";
    assert!(prometheus.query(firing).await.is_empty());

    // As the failure limit does it.
    fleet
        .tell("update herder.run set state = 'halted', reason = 'a test'")
        .await;
    fleet
        .wait_until("the alert fires", async || {
            !prometheus.query(firing).await.is_empty()
        })
        .await;
    fleet.herder(&["resume"]).await.expect(0);
    fleet
        .wait_until("the alert resolves", async || {
            prometheus.query(firing).await.is_empty()
        })
        .await;
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded");

    if installed("promtool").is_some() {
        let page = worker.get("/metrics").await.1;
        let linted = promtool(&["check", "metrics"], &page).await;
        let said =
            String::from_utf8_lossy(&linted.stderr).into_owned() + &String::from_utf8_lossy(&linted.stdout);
        assert!(linted.status.success() && said.trim().is_empty(), "{said}");
    }
}
