use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use pillarbox_relay::config;
use pillarbox_relay::intake::Intake;
use pillarbox_relay::postgres::parse_url;
use pillarbox_relay::pulse::Role;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

/// A console whose recorder is its own, so that tests of one process do not meet in the global one.
async fn console() -> (Console, Vec<Arc<Pulse>>) {
    let recorder = recorder().expect("a recorder");
    let metrics = recorder.handle();
    let pulses = metrics::with_local_recorder(&recorder, || {
        describe(&metrics);
        let queue = config::Intake {
            kind: Some(config::IntakeKind::RedisList),
            url: Some("redis://nowhere".into()),
            key: "queue".to_owned(),
            ..config::Intake::default()
        };
        let postgres = parse_url("postgresql://nowhere/none").expect("a url");
        Intake::new("c", &queue, postgres).expect("an intake");
        let pulse = |sink| Pulse::new(sink, Duration::from_secs(900), Instant::now());
        ["a", "b"].map(|sink| Arc::new(pulse(sink))).to_vec()
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    (Console { listener, metrics }, pulses)
}

async fn ask(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let text = format!("{request} HTTP/1.1\r\nhost: relay\r\n\r\n");
    stream.write_all(text.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status");
    (status.parse().expect("a number"), body.to_owned())
}

/// Answers these requests, in turn.
async fn answers<const N: usize>(requests: [&str; N]) -> [(u16, String); N] {
    let (console, pulses) = console().await;
    let address = console.address().expect("an address");
    let asking = async {
        let mut answers = Vec::new();
        for request in requests {
            answers.push(ask(address, request).await);
        }
        answers.try_into().expect("as many")
    };
    tokio::select! {
        answers = asking => answers,
        never = console.serve(pulses) => match never {},
    }
}

#[tokio::test]
async fn a_starting_process_is_alive_and_not_ready() {
    let [health, ready, head] = answers(["GET /healthz", "GET /readyz", "HEAD /readyz"]).await;
    let body: Value = serde_json::from_str(&health.1).expect("json");
    assert_eq!((health.0, &body["alive"]), (200, &true.into()), "{body}");
    assert_eq!(body["sinks"][1]["sink"], "b");
    let body: Value = serde_json::from_str(&ready.1).expect("json");
    assert_eq!((ready.0, &body["ready"]), (503, &false.into()), "{body}");
    let reason = body["sinks"][0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("starting"), "{body}");
    assert_eq!(head, (503, String::new()));
}

#[tokio::test]
async fn nothing_else_is_served_and_nothing_can_be_changed() {
    let [other, post] = answers(["GET /", "POST /metrics"]).await;
    assert_eq!(other.0, 404);
    assert!(other.1.contains("/healthz"), "{}", other.1);
    assert_eq!(post.0, 405);
}

#[tokio::test]
async fn silent_connections_do_not_keep_others_out() {
    let (console, pulses) = console().await;
    let address = console.address().expect("an address");
    let asking = async {
        let mut silent = Vec::new();
        for _ in 0..server::CONNECTIONS_MAX {
            silent.push(TcpStream::connect(address).await.expect("a connection"));
        }
        ask(address, "GET /healthz").await
    };
    tokio::time::pause();
    let answer = tokio::select! {
        answer = asking => answer,
        never = console.serve(pulses) => match never {},
    };
    assert_eq!(answer.0, 200);
}

#[test]
fn one_stuck_spine_makes_the_process_unhealthy_and_one_stopped_sink_unready() {
    let recorder = recorder().expect("a recorder");
    let pulse = metrics::with_local_recorder(&recorder, || {
        Pulse::new("a", Duration::from_secs(900), Instant::now())
    });
    let plain = Vitals {
        is_ready: true,
        reason: None,
        ..pulse.vitals(Instant::now())
    };
    let stuck = Vitals {
        role: Role::Active,
        is_alive: false,
        progress_age: Duration::from_secs(901),
        ..plain.clone()
    };
    let stopped = Vitals {
        role: Role::Stopped,
        is_ready: false,
        reason: Some("the table is gone".to_owned()),
        ..plain.clone()
    };
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    assert_eq!(health::alive(&[plain.clone(), stuck]).0, unavailable);
    let all = [plain.clone(), stopped];
    assert_eq!(health::alive(&all).0, StatusCode::OK);
    let (status, body) = health::ready(&all);
    assert_eq!(status, unavailable);
    let body = serde_json::to_value(&body.0).expect("json");
    assert_eq!(body["sinks"][1]["reason"], "the table is gone", "{body}");
    assert_eq!(health::ready(&[plain]).0, StatusCode::OK);
}

/// Names with their types, as `/metrics` shows them.
fn exposed(text: &str) -> BTreeMap<String, String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let pairs = types.filter_map(|line| line.split_once(' '));
    pairs
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect()
}

#[tokio::test]
async fn what_is_registered_is_what_the_document_explains() {
    let [(status, text)] = answers(["GET /metrics"]).await;
    assert_eq!(status, 200);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let document = fs::read_to_string(path).expect("docs/metrics.md");
    let rows = document
        .lines()
        .filter(|line| line.starts_with("| `pillarbox_"));
    let mut documented = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, name, kind, unit, meaning, alert, _] = cells[..] else {
            panic!("a row of docs/metrics.md has other than five cells: {row}");
        };
        let name = name.trim_matches('`').to_owned();
        let metric = metric::ALL.iter().find(|metric| metric.name == name);
        let metric = metric.unwrap_or_else(|| panic!("{name} is documented and not registered"));
        assert_eq!(unit, metric.unit, "{name}");
        assert!(!meaning.is_empty() && !alert.is_empty(), "{row}");
        documented.insert(name, kind.to_owned());
    }
    assert_eq!(documented, exposed(&text));
    for metric in metric::ALL {
        let help = format!("# HELP {} {}", metric.name, metric.meaning);
        assert!(text.contains(&help), "{text}");
    }
    for line in text.lines().filter(|line| line.starts_with("pillarbox_")) {
        let labelled = ["sink=\"a\"", "sink=\"b\"", "intake=\"c\""]
            .iter()
            .any(|label| line.contains(label));
        assert!(labelled, "{line}");
    }
}

#[tokio::test]
async fn an_address_that_is_taken_is_an_error_with_the_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let error = Console::bind(&address).await.expect_err("it is taken");
    let text = error.to_string();
    assert!(
        text.contains(&address) && text.contains("console.listen"),
        "{text}"
    );
}
