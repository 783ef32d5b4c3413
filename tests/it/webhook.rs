//! The webhook: told of the start, the halt and the end of real runs; and what a bad receiver costs, which is nothing.

use serde_json::Value;

use crate::{
    fleet::{Fleet, Setup, Tool, steps, tell},
    listener::{Listener, Manner},
};

/// Part of the URL: whoever sees it could write there.
const TOKEN: &str = "T0ken-that-nobody-sees";

fn notify(fleet: &Fleet, listener: &Listener, timeout: &str) {
    let url = listener.url(&format!("/services/{TOKEN}"));
    fleet.configure(|config| {
        let mut notify = toml::Table::new();
        notify.insert("webhook".into(), url.into());
        notify.insert("timeout".into(), timeout.into());
        config.insert("notify".into(), notify.into());
    });
}

/// Event and state of each message.
fn texts(messages: &[Value]) -> Vec<String> {
    let word = |value: &Value| value.as_str().expect("a word").to_owned();
    let both = |m: &Value| word(&m["event"]) + " " + &word(&m["run"]["state"]);
    messages.iter().map(both).collect()
}

async fn messages(listener: &Listener, count: usize) -> Vec<Value> {
    listener
        .wait(count)
        .await
        .iter()
        .map(|heard| heard.json())
        .collect()
}

/// Nothing is left to be told.
async fn all_is_told(fleet: &Fleet) {
    fleet
        .wait_until("all is told", async || {
            fleet.ask::<i64>("select count(*) from herder.notice").await == 0
        })
        .await;
}

#[tokio::test]
async fn the_start_and_the_end_of_a_run_are_told_once() {
    let fleet = Setup::schemas(5).start().await;
    let listener = Listener::start(Manner::Takes).await;
    notify(&fleet, &listener, "20s");
    let workers = [fleet.worker(&[]), fleet.worker(&[])];
    let enqueued = fleet.herder(&["upgrade"]).await.expect(0);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    let told = messages(&listener, 2).await;
    all_is_told(&fleet).await;
    let run = enqueued.stdout.trim();
    assert_eq!(texts(&told), ["start running", "finish succeeded"]);
    for message in &told {
        assert_eq!(message["version"], 1, "{message:#}");
        assert_eq!(message["run"]["id"], run, "{message:#}");
        assert_eq!(message["run"]["tenants"], 5, "{message:#}");
        assert!(
            message["text"].as_str().is_some_and(|t| t.contains(&run[..8])),
            "{message:#}"
        );
    }
    assert_ne!(told[0]["id"], told[1]["id"]);
    assert_eq!(told[1]["counts"]["succeeded"], 5, "{:#}", told[1]);
    let heard = listener.heard();
    assert_eq!(heard.len(), 2, "{heard:#?}");
    assert_eq!(heard[0].path, format!("/services/{TOKEN}"));
    assert_eq!(heard[0].headers["content-type"], "application/json");
    for worker in workers {
        assert!(!worker.log().contains(TOKEN));
        assert_eq!(worker.drain().await, Some(0));
    }
}

/// The client that sends says all of a URL only at the lowest level.
#[tokio::test]
async fn no_level_of_logging_shows_where_a_message_goes() {
    let fleet = Setup::schemas(1).start().await;
    let listener = Listener::start(Manner::Takes).await;
    notify(&fleet, &listener, "20s");
    let worked = fleet.herder(&["-vvv", "upgrade", "--local", "1"]).await.expect(0);
    assert_eq!(messages(&listener, 2).await.len(), 2);
    assert!(worked.stderr.contains("TRACE"), "{}", worked.all());
    let shown = worked.stderr.lines().find(|line| line.contains(TOKEN));
    assert_eq!(shown, None);
}

#[tokio::test]
async fn a_halt_is_told_with_who_failed_and_so_is_the_end_after_a_retry() {
    let fleet = Setup::schemas(6).migrations(Tool::Sql, steps(2)).start().await;
    let listener = Listener::start(Manner::Takes).await;
    notify(&fleet, &listener, "20s");
    tell(&fleet.home, "drop table t001.effects").await;
    // No worker is there: this very process is the only one that can tell.
    let args = ["upgrade", "--local", "1", "--canary", "1"];
    let output = fleet.herder(&args).await.expect(5);
    let told = messages(&listener, 2).await;
    assert_eq!(texts(&told), ["start running", "halt halted"]);
    assert_eq!(told[1]["failed"], serde_json::json!(["t001"]), "{:#}", told[1]);
    assert_eq!(
        told[1]["run"]["reason"], "1 canary tenant failed",
        "{:#}",
        told[1]
    );
    let text = told[1]["text"].as_str().expect("a text");
    assert!(text.contains("t001") && text.contains("herder status"), "{text}");
    assert!(!output.all().contains(TOKEN), "{}", output.all());
    // A person decides to go on without it; the failure stays.
    fleet.herder(&["resume", "--local", "2"]).await.expect(4);
    let told = messages(&listener, 3).await;
    assert_eq!(texts(&told[2..]), ["finish failed"]);
    assert_eq!(told[2]["failed"], serde_json::json!(["t001"]), "{:#}", told[2]);
    all_is_told(&fleet).await;
    assert_eq!(listener.heard().len(), 3);
}

#[tokio::test]
async fn a_cancelled_run_is_told_of_and_events_can_be_chosen() {
    let fleet = Setup::schemas(2).start().await;
    let listener = Listener::start(Manner::Takes).await;
    notify(&fleet, &listener, "20s");
    fleet.configure(|config| {
        let notify = config["notify"].as_table_mut().expect("a section");
        notify.insert("events".into(), toml::Value::Array(vec!["finish".into()]));
    });
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    let told = messages(&listener, 1).await;
    assert_eq!(texts(&told), ["finish cancelled"]);
}

#[tokio::test]
async fn what_its_enqueuer_could_not_tell_a_worker_tells() {
    let fleet = Setup::schemas(3).start().await;
    // This one has no webhook, as one has none that dies too soon.
    fleet.herder(&["upgrade"]).await.expect(0);
    let listener = Listener::start(Manner::Takes).await;
    notify(&fleet, &listener, "20s");
    let worker = fleet.worker(&[]);
    let told = messages(&listener, 2).await;
    assert_eq!(texts(&told), ["start running", "finish succeeded"]);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_up_no_run_and_changes_no_exit_code() {
    let fleet = Setup::schemas(3).start().await;
    let listener = Listener::start(Manner::Hangs).await;
    notify(&fleet, &listener, "1min");
    let worker = fleet.worker(&[]);
    let enqueuer = fleet.start_herder(&["upgrade"]);
    listener.wait(1).await;
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    // Nobody got an answer: whoever asked waits still, or was not needed.
    let untold: i64 = fleet.ask("select count(*) from herder.notice").await;
    assert_eq!(untold, 2, "{}", fleet.last_seen().await);
    enqueuer.kill().await;
    // Nor does it hold up a drain for long.
    assert_eq!(worker.drain().await, Some(0));

    notify(&fleet, &listener, "1s");
    let output = fleet.herder(&["upgrade", "--local", "1"]).await.expect(0);
    assert!(
        output.stderr.contains("not all notifications"),
        "{}",
        output.all()
    );
    assert!(!output.all().contains(TOKEN), "{}", output.all());
    assert_eq!(output.stdout.lines().count(), 1, "{}", output.all());
}

#[tokio::test]
async fn a_receiver_that_refuses_is_asked_three_times_and_no_more() {
    let fleet = Setup::schemas(2).start().await;
    let listener = Listener::start(Manner::Refuses).await;
    notify(&fleet, &listener, "2s");
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    all_is_told(&fleet).await;
    let told = messages(&listener, 6).await;
    let (start, finish) = ("start running", "finish succeeded");
    assert_eq!(texts(&told), [start, start, start, finish, finish, finish]);
    let log = worker.log();
    assert!(!log.contains(TOKEN), "{log}");
    assert!(
        log.contains("Gave up notifying the webhook of the finish of run"),
        "{log}"
    );
    assert!(log.contains("it answered 500"), "{log}");
    assert_eq!(worker.drain().await, Some(0));
    assert_eq!(listener.heard().len(), 6);
}

#[tokio::test]
async fn a_message_that_comes_late_says_what_was_true_when_it_was_made() {
    let fleet = Setup::schemas(3).migrations(Tool::Sql, steps(2)).start().await;
    tell(&fleet.home, "drop table t001.effects; drop table t002.effects").await;
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(4);
    tell(
        &fleet.home,
        "create table t002.effects (like t003.effects including all)",
    )
    .await;
    fleet.herder(&["retry", "--local", "1"]).await.expect(4);
    fleet.herder(&["retry"]).await.expect(0);
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    // Only now somebody has a webhook.
    let listener = Listener::start(Manner::Takes).await;
    notify(&fleet, &listener, "20s");
    let worker = fleet.worker(&[]);
    let told = messages(&listener, 4).await;
    let finish = "finish failed";
    assert_eq!(
        texts(&told),
        ["start running", finish, finish, "finish cancelled"]
    );
    let said: Vec<String> = told
        .iter()
        .map(|m| format!("{} {}", m["counts"], m["failed"]))
        .collect();
    assert_eq!(
        said,
        [
            r#"{"ready":3} []"#,
            r#"{"failed":2,"succeeded":1} ["t001","t002"]"#,
            r#"{"failed":1,"succeeded":2} ["t001"]"#,
            r#"{"cancelled":1,"succeeded":2} []"#,
        ]
    );
    assert_eq!(worker.drain().await, Some(0));
}
