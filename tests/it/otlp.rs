//! Spans, as a collector gets them. Only with the feature: `just otlp`.

use std::collections::BTreeMap;

use crate::{
    fleet::{Setup, tell},
    listener::{Heard, Listener, Manner},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A span.
#[derive(Debug)]
struct Span {
    service: String,
    trace: String,
    id: String,
    parent: String,
    name: String,
    attributes: BTreeMap<String, String>,
    /// 2: an error.
    status: u64,
}

/// A message of protobuf, field by field: few enough that no code need be made for it.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn number(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (first, rest) = bytes.split_first().expect("a number");
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            shift += 7;
            if first & 0x80 == 0 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = number(&mut bytes);
        let length = match key & 7 {
            0 => {
                let value = number(&mut bytes);
                found.push((key >> 3, value.to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => usize::try_from(number(&mut bytes)).expect("a length"),
            5 => 4,
            kind => panic!("a field of kind {kind}"),
        };
        let (value, rest) = bytes.split_at(length);
        found.push((key >> 3, value.to_vec()));
        bytes = rest;
    }
    found
}

fn all(message: &[u8], field: u64) -> Vec<Vec<u8>> {
    let of = fields(message).into_iter().filter(|(number, _)| *number == field);
    of.map(|(_, value)| value).collect()
}

fn one(message: &[u8], field: u64) -> Vec<u8> {
    all(message, field).pop().unwrap_or_default()
}

fn text(message: &[u8], field: u64) -> String {
    String::from_utf8(one(message, field)).expect("UTF-8")
}

fn hex(message: &[u8], field: u64) -> String {
    one(message, field)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn int(message: &[u8], field: u64) -> u64 {
    one(message, field)
        .try_into()
        .map(u64::from_le_bytes)
        .unwrap_or_default()
}

/// Key and value: texts and whole numbers.
fn attributes(message: &[u8], field: u64) -> BTreeMap<String, String> {
    let value = |value: Vec<u8>| match fields(&value).first() {
        Some((1, _)) => text(&value, 1),
        _ => int(&value, 3).to_string(),
    };
    let pairs = all(message, field).into_iter();
    pairs.map(|pair| (text(&pair, 1), value(one(&pair, 2)))).collect()
}

fn spans(heard: &[Heard]) -> Vec<Span> {
    let mut spans = Vec::new();
    for resource in heard.iter().flat_map(|heard| all(&heard.body, 1)) {
        let service = attributes(&one(&resource, 1), 1)["service.name"].clone();
        for span in all(&resource, 2).iter().flat_map(|scope| all(scope, 2)) {
            spans.push(Span {
                service: service.clone(),
                trace: hex(&span, 1),
                id: hex(&span, 2),
                parent: hex(&span, 4),
                name: text(&span, 5),
                attributes: attributes(&span, 9),
                status: int(&one(&span, 15), 3),
            });
        }
    }
    spans
}

#[tokio::test]
async fn the_attempts_of_a_worker_are_children_of_the_run_in_the_trace_of_its_caller() {
    let fleet = Setup::schemas(3).start().await;
    let collector = Listener::start(Manner::Takes).await;
    let endpoint = collector.url("");
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=ours"),
        ("TRACEPARENT", traceparent.as_str()),
    ];
    tell(&fleet.home, "drop table t003.effects").await;
    let worker = fleet.worker_with(&[], &env[..2]);
    let output = fleet.herder_with(&["upgrade", "--wait"], &env).await.expect(4);
    assert_eq!(worker.drain().await, Some(0));

    let heard = collector.wait(2).await;
    for request in &heard {
        assert_eq!(request.path, "/v1/traces");
        assert_eq!(request.headers["x-tenant"], "ours");
        assert_eq!(request.headers["content-type"], "application/x-protobuf");
    }
    let spans = spans(&heard);
    let enqueue: Vec<&Span> = spans.iter().filter(|span| span.name == "enqueue").collect();
    let attempts: Vec<&Span> = spans.iter().filter(|span| span.name == "attempt").collect();
    assert_eq!(
        (enqueue.len(), attempts.len(), spans.len()),
        (1, 3, 4),
        "{spans:#?}"
    );
    let run = output.stdout.trim();
    let enqueue = enqueue[0];
    assert_eq!(
        (&*enqueue.service, &*enqueue.trace, &*enqueue.parent),
        ("herder", TRACE, CALLER)
    );
    assert_eq!(enqueue.attributes["run.id"], run);
    let mut failed = Vec::new();
    for attempt in attempts {
        assert_eq!((&*attempt.service, &*attempt.trace), ("herder-worker", TRACE));
        assert_eq!(attempt.parent, enqueue.id);
        assert_eq!(attempt.attributes["run.id"], run);
        assert_eq!(attempt.attributes["attempt"], "1");
        assert!(attempt.attributes.contains_key("job.id"), "{attempt:#?}");
        if attempt.status == 2 {
            failed.push(&*attempt.attributes["tenant.id"]);
        }
    }
    assert_eq!(failed, ["t003"]);
}

#[tokio::test]
async fn a_collector_that_hangs_holds_up_nobody() {
    let fleet = Setup::schemas(1).start().await;
    let collector = Listener::start(Manner::Hangs).await;
    let endpoint = collector.url("/v1/traces");
    let env = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "600000"),
    ];
    let output = fleet
        .herder_with(&["upgrade", "--local", "1"], &env)
        .await
        .expect(0);
    assert!(!output.stdout.is_empty(), "{}", output.all());
    assert_eq!(collector.wait(1).await.len(), 1);
}
