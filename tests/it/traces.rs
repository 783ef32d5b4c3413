//! A run's trace: whoever makes it hands it on, and every attempt says in its log where it belongs.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::fleet::{Fleet, Setup};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The lines of a log that tell of a migrated tenant.
fn migrated(log: &str) -> Vec<&str> {
    log.lines()
        .filter(|line| line.contains("Migrated tenant"))
        .collect()
}

async fn stored(fleet: &Fleet) -> String {
    fleet
        .ask("select coalesce(traceparent, 'none') from herder.run order by created_at desc limit 1")
        .await
}

#[tokio::test]
async fn every_attempt_says_in_json_where_it_belongs() {
    let fleet = Setup::schemas(3).start().await;
    let worker = fleet.worker(&["--log-format", "json"]);
    let env = [("TRACEPARENT", TRACEPARENT)];
    let output = fleet.herder_with(&["upgrade", "--wait"], &env).await.expect(0);
    assert_eq!(stored(&fleet).await, TRACEPARENT);
    let log = worker.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .filter(|line: &Value| line["fields"]["outcome"] == "migrated")
        .collect();
    assert_eq!(lines.len(), 3, "{log}");
    let mut tenants = BTreeSet::new();
    for line in &lines {
        let span = &line["span"];
        assert_eq!(span["name"], "attempt", "{line:#}");
        assert_eq!(span["run.id"], output.stdout.trim(), "{line:#}");
        assert_eq!(span["trace_id"], TRACE, "{line:#}");
        assert_eq!(span["attempt"], 1, "{line:#}");
        assert!(span["job.id"].is_i64(), "{line:#}");
        tenants.insert(span["tenant.id"].as_str().expect("a tenant"));
    }
    assert_eq!(tenants.into_iter().collect::<Vec<_>>(), ["t001", "t002", "t003"]);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_run_without_a_trace_gets_a_new_one() {
    let fleet = Setup::schemas(2).start().await;
    let worker = fleet.worker(&[]);
    // What makes no sense is passed over, as the standard wants it.
    let env = [("TRACEPARENT", "00-nonsense")];
    fleet.herder_with(&["upgrade", "--wait"], &env).await.expect(0);
    let context: herder::domain::trace::TraceContext = stored(&fleet).await.parse().expect("a context");
    let log = worker.log();
    let lines = migrated(&log);
    assert_eq!(lines.len(), 2, "{log}");
    for line in lines {
        assert!(line.contains(&format!("trace_id={}", context.trace())), "{line}");
        for field in ["run.id=", "job.id=", "tenant.id=t00", "attempt=1"] {
            assert!(line.contains(field), "no {field} in {line}");
        }
    }
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn the_command_line_logs_in_json_as_well() {
    let fleet = Setup::schemas(1).start().await;
    let env = [("TRACEPARENT", TRACEPARENT)];
    let args = ["upgrade", "--local", "1", "-v", "--log-format", "json"];
    let output = fleet.herder_with(&args, &env).await.expect(0);
    let lines: Vec<Value> = output
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let line = lines.iter().find(|line| line["fields"]["outcome"] == "migrated");
    let line = line.unwrap_or_else(|| panic!("{}", output.all()));
    assert_eq!(line["span"]["trace_id"], TRACE, "{line:#}");
}
