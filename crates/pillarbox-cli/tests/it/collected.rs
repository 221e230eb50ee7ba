//! What others collect of a relay: its logs as JSON, and errors and traces in Sentry.

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::{ClickHouse, Flavour, PgVersion, Sentry, eventually};
use rustix::process::Signal;
use serde_json::Value;

use crate::program::{DEADLINE, Program, Ran, connect, database, finish, signal};

/// In every payload, and in no log and no report.
const PAYLOAD: &str = "what-nobody-may-see";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
const SETTINGS: &str = "
[relay]
max_age = \"20ms\"
poison_max_rows = 0
[console]
listen = \"off\"
[sentry]
environment = \"trials\"
traces_sample_rate = 1.0
";

/// A relay beside the servers that it works on.
struct Stage {
    program: Program,
    clickhouse: ClickHouse,
    _postgres: pillarbox_testkit::servers::Postgres,
    url: String,
}

impl Stage {
    async fn set() -> Result<Self> {
        let clickhouse = ClickHouse::start(Flavour::V26).await?;
        let (postgres, program, url) = database(PgVersion::V18).await?;
        let program = program.with_clickhouse(&clickhouse)?.file(SETTINGS)?;
        program.done(&["migrate"]).await?;
        program.done(&["sink", "create"]).await?;
        Ok(Self {
            program,
            clickhouse,
            _postgres: postgres,
            url,
        })
    }

    async fn publish(&self, kind: &str) -> Result<()> {
        let client = connect(&self.url).await?;
        let sql = "select pillarbox.publish($1, json_build_object('secret', $2::text), trace_parent => $3)";
        let trace_parent = format!("00-{TRACE}-{SPAN}-01");
        client
            .execute(sql, &[&kind, &PAYLOAD, &trace_parent])
            .await?;
        Ok(())
    }

    async fn delivered(&self) -> Result<()> {
        eventually("the event to arrive", DEADLINE, || async {
            let status = self.program.json(&["status"]).await?;
            Ok((status["sinks"][0]["waiting_events"] == 0).then_some(()))
        })
        .await
    }

    fn start(&self) -> Result<tokio::process::Child> {
        self.program.start(&["relay"])
    }
}

async fn stopped(child: tokio::process::Child) -> Result<Ran> {
    signal(&child, Signal::TERM)?;
    finish(child).await
}

#[tokio::test]
async fn logs_are_one_object_a_batch_and_hold_no_payload() -> Result<()> {
    let stage = Stage::set().await?;
    let stage = Stage {
        program: stage.program.with("PILLARBOX_LOG_FORMAT", "json"),
        ..stage
    };
    let relay = stage.start()?;
    for _ in 0..3 {
        stage.publish("trial").await?;
        stage.delivered().await?;
    }
    let ran = stopped(relay).await?;
    ensure!(!ran.err.contains(PAYLOAD), "{}", ran.err);
    let mut batches = Vec::new();
    for line in ran.err.lines() {
        let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        if line["message"] == "delivered" {
            batches.push(line);
        }
    }
    ensure!(!batches.is_empty() && batches.len() <= 3, "{batches:?}");
    let rows: Option<u64> = batches.iter().map(|line| line["rows"].as_u64()).sum();
    assert_eq!(rows, Some(3));
    for line in &batches {
        ensure!(line["sink"] == "clickhouse", "{line}");
        for number in ["batch", "bytes", "attempts", "took_ms"] {
            ensure!(line[number].is_u64(), "{number} in {line}");
        }
    }
    Ok(())
}

/// The batch is a transaction in the trace of its publisher, with a span for each step.
#[tokio::test]
async fn a_batch_is_a_transaction_in_the_trace_of_its_publisher() -> Result<()> {
    let sentry = Sentry::start().await?;
    let stage = Stage::set().await?;
    let stage = Stage {
        program: stage.program.with("SENTRY_DSN", &sentry.dsn()),
        ..stage
    };
    let relay = stage.start()?;
    stage.publish("trial").await?;
    let transaction = eventually("a transaction", DEADLINE, || async {
        Ok(sentry.items("transaction").into_iter().next())
    })
    .await?;
    let trace = &transaction["contexts"]["trace"];
    assert_eq!(trace["trace_id"], TRACE, "{transaction}");
    assert_eq!(trace["parent_span_id"], SPAN);
    assert_eq!(transaction["environment"], "trials");
    assert_eq!(transaction["tags"]["sink"], "clickhouse");
    assert_eq!(trace["data"]["rows"], 1, "{transaction}");
    let spans = transaction["spans"].as_array().context("spans")?;
    let steps: Vec<&str> = spans
        .iter()
        .filter_map(|span| span["description"].as_str())
        .collect();
    assert_eq!(
        steps,
        ["read", "seal", "insert", "confirm"],
        "{transaction}"
    );
    ensure!(!transaction.to_string().contains(PAYLOAD), "{transaction}");
    stopped(relay).await?;
    Ok(())
}

/// An error tells of which batch it is, and tells it once however often the sink is looked at.
#[tokio::test]
async fn an_error_has_the_context_of_its_batch_and_no_payload() -> Result<()> {
    let sentry = Sentry::start().await?;
    let stage = Stage::set().await?;
    let stage = Stage {
        program: stage.program.with("SENTRY_DSN", &sentry.dsn()),
        ..stage
    };
    let shown = stage.program.json(&["columns"]).await?;
    let table = shown["table"].as_str().context("table")?;
    let refuse =
        format!("alter table {table} add constraint no_poison check event_type != 'poison'");
    stage.clickhouse.query(&refuse).await?;
    let relay = stage.start()?;
    stage.publish("poison").await?;
    let is_of_batch = |event: &&Value| event.to_string().contains("a batch stops its sink");
    let event = eventually("an error", DEADLINE, || async {
        Ok(sentry.items("event").iter().find(is_of_batch).cloned())
    })
    .await?;
    let fields = &event["contexts"]["Rust Tracing Fields"];
    assert_eq!(fields["batch"], 1, "{event}");
    assert_eq!(fields["sink"], "clickhouse", "{event}");
    assert_eq!(event["contexts"]["trace"]["trace_id"], TRACE, "{event}");
    let exceptions = event["exception"]["values"]
        .as_array()
        .context("exceptions")?;
    ensure!(!exceptions.is_empty(), "{event}");
    stopped(relay).await?;
    for event in sentry.items("event") {
        let text = event.to_string();
        ensure!(!text.contains(PAYLOAD), "{text}");
        ensure!(!text.contains(&stage.url), "{text}");
    }
    let same = sentry.items("event").iter().filter(is_of_batch).count();
    assert_eq!(same, 1);
    Ok(())
}

#[tokio::test]
async fn a_dsn_that_is_none_is_refused() -> Result<()> {
    let (_postgres, program, _url) = database(PgVersion::V15).await?;
    let program = program
        .with("SENTRY_DSN", "nowhere")
        .with("CLICKHOUSE_URL", "http://127.0.0.1:1");
    let refused = program.refusal(2, &["relay"]).await?;
    ensure!(refused.contains("https://KEY@HOST/PROJECT"), "{refused}");
    Ok(())
}
