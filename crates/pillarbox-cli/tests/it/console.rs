//! What a running relay shows of itself over HTTP.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::{ClickHouse, Flavour, PgVersion, eventually};
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStderr};

use crate::program::{DEADLINE, Program, connect, database, signal};

/// A running relay, its log, and where its console is.
struct Running {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    url: String,
}

impl Running {
    async fn start(program: &Program) -> Result<Self> {
        let mut child = program.start(&["relay"])?;
        let stderr = child.stderr.take().context("no standard error")?;
        let mut log = BufReader::new(stderr).lines();
        let line = line_with(&mut log, "the console listens").await?;
        let line: Value = serde_json::from_str(&line).context(line)?;
        let address = line["address"].as_str().context("no address")?;
        let url = format!("http://{address}");
        Ok(Self { child, log, url })
    }

    async fn get(&self, path: &str) -> Result<(u16, String)> {
        let answer = reqwest::get(format!("{}{path}", self.url)).await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    async fn json(&self, path: &str) -> Result<(u16, Value)> {
        let (status, text) = self.get(path).await?;
        Ok((status, serde_json::from_str(&text).context(text)?))
    }

    /// The series without their label, which must be the sink's.
    async fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        let (status, text) = self.get("/metrics").await?;
        ensure!(status == 200, "{status}: {text}");
        let mut metrics = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("pillarbox_")) {
            let (name, value) = line
                .split_once("{sink=\"clickhouse\"} ")
                .unwrap_or(("", ""));
            if !name.is_empty() {
                metrics.insert(name.to_owned(), value.parse().context(line.to_owned())?);
            } else {
                ensure!(line.contains("_bucket{sink=\"clickhouse\",le="), "{line}");
            }
        }
        Ok(metrics)
    }
}

async fn line_with(log: &mut Lines<BufReader<ChildStderr>>, wanted: &str) -> Result<String> {
    let mut seen = String::new();
    let reading = async {
        while let Some(line) = log.next_line().await? {
            if line.contains(wanted) {
                return Ok(line);
            }
            seen += &line;
        }
        anyhow::bail!("the relay ended without {wanted:?}: {seen}")
    };
    tokio::time::timeout(DEADLINE, reading).await?
}

/// With a console on a free port, logging JSON, and quick small batches.
fn shown(program: Program) -> Program {
    program
        .with("PILLARBOX_CONSOLE__LISTEN", "127.0.0.1:0")
        .with("PILLARBOX_LOG_FORMAT", "json")
        .with("PILLARBOX_RELAY__MAX_AGE", "20ms")
        .with("PILLARBOX_RELAY__MAX_ROWS", "2")
}

#[tokio::test]
async fn metrics_agree_with_the_ledger() -> Result<()> {
    for (flavour, guarantee) in [(Flavour::V18, 1.0), (Flavour::V26, 2.0)] {
        let (_postgres, program, url) = database(PgVersion::V15).await?;
        let clickhouse = ClickHouse::start(flavour).await?;
        let program = shown(program.with_clickhouse(&clickhouse)?);
        program.done(&["migrate"]).await?;
        program.done(&["sink", "create"]).await?;
        let outbox = connect(&url).await?;
        let relay = Running::start(&program).await?;
        let publish = "select pillarbox.publish('user_created', '{}') from generate_series(1, 7)";
        outbox.batch_execute(publish).await?;
        let metrics = eventually("seven rows", DEADLINE, || async {
            let metrics = relay.metrics().await?;
            let is_idle = metrics["pillarbox_lag_seconds"] == 0.0
                && metrics["pillarbox_in_flight_deliveries"] == 0.0;
            let is_done = metrics["pillarbox_delivered_rows_total"] == 7.0 && is_idle;
            Ok(is_done.then_some(metrics))
        })
        .await?;
        let ledger = "select count(*), sum(b.rows)::bigint, sum(b.bytes)::bigint,
                sum(d.attempts)::bigint
            from pillarbox.batch b join pillarbox.delivery d using (sink, number)
            where b.kind = 'window'";
        let row = outbox.query_one(ledger, &[]).await?;
        let recorded = |column: usize| -> f64 {
            let number: i64 = row.get(column);
            number.to_string().parse().unwrap_or(f64::NAN)
        };
        assert_eq!(recorded(1), 7.0);
        for (name, column) in [
            ("pillarbox_delivered_batches_total", 0),
            ("pillarbox_delivered_rows_total", 1),
            ("pillarbox_delivered_bytes_total", 2),
            ("pillarbox_inserts_total", 3),
            ("pillarbox_seal_duration_seconds_count", 0),
            ("pillarbox_delivery_duration_seconds_count", 0),
        ] {
            assert_eq!(metrics[name], recorded(column), "{name}: {metrics:?}");
        }
        for (name, value) in [
            ("pillarbox_unknown_deliveries_total", 0.0),
            ("pillarbox_retries_total", 0.0),
            ("pillarbox_active", 1.0),
            ("pillarbox_stopped", 0.0),
            ("pillarbox_guarantee", guarantee),
        ] {
            assert_eq!(metrics[name], value, "{name}: {metrics:?}");
        }
        assert!(metrics["pillarbox_outbox_bytes"] > 0.0, "{metrics:?}");
        let (status, health) = relay.json("/healthz").await?;
        let sink = &health["sinks"][0];
        assert_eq!((status, &sink["role"]), (200, &"active".into()), "{health}");
        assert_eq!((&sink["rows"], &sink["lag_ms"]), (&7.into(), &0.into()));
        assert_eq!(relay.json("/readyz").await?.0, 200);
        a_stand_by_is_healthy(&program).await?;
    }
    Ok(())
}

async fn a_stand_by_is_healthy(program: &Program) -> Result<()> {
    let mut other = Running::start(program).await?;
    let line = line_with(&mut other.log, "standing by").await?;
    let line: Value = serde_json::from_str(&line)?;
    assert_eq!(line["span"]["sink"], "clickhouse", "{line}");
    let (status, health) = other.json("/healthz").await?;
    assert_eq!(status, 200, "{health}");
    assert_eq!(health["sinks"][0]["role"], "standby", "{health}");
    assert_eq!(other.metrics().await?["pillarbox_active"], 0.0);
    signal(&other.child, Signal::TERM)?;
    Ok(())
}

#[tokio::test]
async fn a_clickhouse_that_is_away_is_healthy_and_a_table_that_is_gone_is_not_ready() -> Result<()>
{
    let (_postgres, program, _url) = database(PgVersion::V15).await?;
    let clickhouse = ClickHouse::start(Flavour::V18).await?;
    let program = shown(program.with_clickhouse(&clickhouse)?);
    program.done(&["migrate"]).await?;
    program.done(&["sink", "create"]).await?;
    let relay = Running::start(&program).await?;
    eventually("the relay to be ready", DEADLINE, || async {
        Ok((relay.json("/readyz").await?.0 == 200).then_some(()))
    })
    .await?;

    clickhouse.kill()?;
    program.done(&["publish", "while_away", "{}"]).await?;
    eventually("lag and retries", DEADLINE, || async {
        let metrics = relay.metrics().await?;
        let lag = metrics["pillarbox_lag_seconds"];
        Ok((lag > 1.0 && metrics["pillarbox_retries_total"] > 0.0).then_some(()))
    })
    .await?;
    let (status, health) = relay.json("/healthz").await?;
    assert_eq!(status, 200, "{health}");
    clickhouse.restart().await?;
    eventually("the event to arrive", DEADLINE, || async {
        let metrics = relay.metrics().await?;
        Ok((metrics["pillarbox_lag_seconds"] == 0.0).then_some(()))
    })
    .await?;

    clickhouse
        .query(&format!("drop table {}", program.table))
        .await?;
    program.done(&["publish", "nowhere", "{}"]).await?;
    let body = eventually("the sink to stand still", DEADLINE, || async {
        let (status, body) = relay.json("/readyz").await?;
        Ok((status == 503).then_some(body))
    })
    .await?;
    let sink = &body["sinks"][0];
    assert_eq!(
        (&body["ready"], &sink["role"]),
        (&false.into(), &"stopped".into())
    );
    let reason = sink["reason"].as_str().context("no reason")?;
    assert!(reason.contains(&program.table), "{body}");
    assert_eq!(relay.json("/healthz").await?.0, 200);
    let metrics = relay.metrics().await?;
    let roles = (metrics["pillarbox_stopped"], metrics["pillarbox_active"]);
    assert_eq!(roles, (1.0, 0.0));
    Ok(())
}

/// A process that is there and does nothing: whoever asks for its health gets no answer, and a stand-by
/// has taken over when it goes on.
#[tokio::test]
async fn a_frozen_relay_gives_no_answer_about_its_health() -> Result<()> {
    let (_postgres, program, _url) = database(PgVersion::V15).await?;
    let clickhouse = ClickHouse::start(Flavour::V18).await?;
    let program =
        shown(program.with_clickhouse(&clickhouse)?).with("PILLARBOX_RELAY__TAKEOVER_AFTER", "13s");
    program.done(&["migrate"]).await?;
    program.done(&["sink", "create"]).await?;
    let relay = Running::start(&program).await?;
    let ready = async |relay: &Running| {
        eventually("the relay to be active", DEADLINE, || async {
            let (_, health) = relay.json("/healthz").await?;
            Ok((health["sinks"][0]["role"] == "active").then_some(()))
        })
        .await
    };
    ready(&relay).await?;
    let other = Running::start(&program).await?;
    signal(&relay.child, Signal::STOP)?;
    let asked = reqwest::Client::new()
        .get(format!("{}/healthz", relay.url))
        .timeout(std::time::Duration::from_secs(2));
    let answer = asked.send().await;
    ensure!(answer.is_err_and(|error| error.is_timeout()));
    ready(&other).await?;
    signal(&relay.child, Signal::CONT)?;
    eventually("the thawed one to stand by", DEADLINE, || async {
        let (status, health) = relay.json("/healthz").await?;
        Ok((status == 200 && health["sinks"][0]["role"] == "standby").then_some(()))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_postgresql_that_is_away_is_healthy_and_not_ready() -> Result<()> {
    let program = shown(Program::on("postgresql://postgres@127.0.0.1:1/app")?)
        .with("CLICKHOUSE_URL", "http://127.0.0.1:1");
    let relay = Running::start(&program).await?;
    assert_eq!(relay.json("/healthz").await?.0, 200);
    let (status, body) = relay.json("/readyz").await?;
    assert_eq!(status, 503, "{body}");
    let reason = body["sinks"][0]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("postgresql"), "{body}");
    Ok(())
}

#[tokio::test]
async fn a_port_that_is_taken_is_refused_if_asked_for_and_done_without_if_not() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0").await?;
    let address = taken.local_addr()?.to_string();
    let program = Program::on("postgresql://postgres@127.0.0.1:1/app")?
        .with("CLICKHOUSE_URL", "http://127.0.0.1:1");
    let program = program.with("PILLARBOX_CONSOLE__LISTEN", &address);
    let text = program.refusal(3, &["relay"]).await?;
    let wanted = format!("the console cannot listen on {address}; free it, or set console.listen");
    assert!(text.starts_with(&wanted), "{text}");

    // Somebody else on this machine may have it: that is what the test needs.
    let _default = TcpListener::bind("127.0.0.1:9187").await;
    let program = program.with("PILLARBOX_CONSOLE__LISTEN", "");
    let mut relay = program.start(&["relay"])?;
    let stderr = relay.stderr.take().context("no standard error")?;
    let mut log = BufReader::new(stderr).lines();
    let line = line_with(&mut log, "going on without a console").await?;
    assert!(line.contains("127.0.0.1:9187"), "{line}");
    line_with(&mut log, "waiting for postgresql").await?;
    Ok(())
}
