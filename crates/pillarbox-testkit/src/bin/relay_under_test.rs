//! The relay with failpoints, for tests that kill it: the real spine, source and sink.
//!
//! `FAILPOINTS` names the step at which it ends as by `kill -9`; the other variables say what it
//! works on; `FREEZE_AT` names one at which it stops as by `kill -STOP`. Exits with 0 after a clean stop or a whole drain. Where `COUNTS` names a file, each
//! increment of a counter is a line of it, which outlives a kill.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result};
use metrics::{Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder};
use metrics::{SharedString, Unit};
use pillarbox_relay::batch::Limits;
use pillarbox_relay::clock::SystemClock;
use pillarbox_relay::config::Column;
use pillarbox_relay::expression::Expression;
use pillarbox_relay::postgres::parse_url;
use pillarbox_relay::recover::{Destination, Doubtful, Recovery};
use pillarbox_relay::relay::{Options, Poison, Relay};
use pillarbox_relay::sink::clickhouse::{ClickHouse, ClickHouseConfig, Compression};
use pillarbox_relay::source::postgres::PostgresSource;
use pillarbox_testkit::proof;
use rustix::process::{Signal, getpid, kill_process};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<()> {
    let _failpoints = fail::FailScenario::setup();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    if let Ok(path) = std::env::var("COUNTS") {
        let file = File::options().create(true).append(true).open(path)?;
        let set = metrics::set_global_recorder(Counts(Arc::new(file)));
        set.map_err(|_| anyhow::anyhow!("a recorder of metrics is set"))?;
    }
    if let Ok(step) = std::env::var("FREEZE_AT") {
        freeze_at(&step)?;
    }
    let takeover_after = Duration::from_millis(number("TAKEOVER_MS", 15_000)?);
    let postgres = parse_url(&variable("DATABASE_URL")?)?;
    let source = PostgresSource::new(postgres.clone(), &variable("SINK")?, takeover_after)
        .computing(expressions()?);
    let mut sink = ClickHouseConfig::new(
        variable("CLICKHOUSE_URL")?,
        variable("CLICKHOUSE_DATABASE")?,
        variable("CLICKHOUSE_TABLE")?,
    );
    // Several are the replicas of one table.
    sink.urls = sink.urls[0].split(',').map(str::to_owned).collect();
    sink.insert_timeout = Duration::from_millis(number("INSERT_TIMEOUT_MS", 10_000)?);
    sink.query_timeout = Duration::from_millis(number("QUERY_TIMEOUT_MS", 60_000)?);
    if number("LZ4", 0)? == 1 {
        sink.compression = Compression::Lz4;
    }
    sink.at_least_once_allowed = number("AT_LEAST_ONCE", 0)? == 1;
    if let Ok(paths) = std::env::var("REDACT") {
        let path = |path: &str| path.split('.').map(str::to_owned).collect();
        sink.redacted = paths.split(',').map(path).collect();
    }
    let options = Options {
        limits: Limits {
            rows_max: number("MAX_ROWS", 500)?,
            bytes_max: number("MAX_BYTES", 32 * 1024 * 1024)?,
        },
        poison: Poison {
            rows_max: number("POISON_ROWS", 100)?,
            share_max: 0.1,
        },
        age_max: Duration::from_millis(number("MAX_AGE_MS", 50)?),
        tend_every: Duration::from_millis(number("TEND_MS", 100)?),
        stopped_for: Duration::from_millis(number("STOPPED_MS", 30_000)?),
        ..Options::default()
    };
    if variable("MODE")? == "recover" {
        return recover(postgres, ClickHouse::new(sink)?).await;
    }
    let relay = Relay::new(source, ClickHouse::new(sink)?, SystemClock, options);
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let stopper = stop.clone();
    tokio::spawn(async move {
        terminate.recv().await;
        stopper.cancel();
    });
    if variable("MODE")? == "drain" {
        let drained = relay.drain(&stop).await?;
        println!("drained {} batches, {} rows", drained.batches, drained.rows);
    } else {
        relay.run(&stop).await?;
    }
    Ok(())
}

/// What `EXPRESSIONS` says, as JSON: by column, what `pillarbox.toml` says of it.
fn expressions() -> Result<BTreeMap<String, Expression>> {
    let Ok(columns) = std::env::var("EXPRESSIONS") else {
        return Ok(BTreeMap::new());
    };
    let columns: BTreeMap<String, Column> = serde_json::from_str(&columns)?;
    Ok(columns
        .into_iter()
        .map(|(name, column)| (name, column.into()))
        .collect())
}

/// Stops the process where it first comes to a step; it goes on from there after SIGCONT.
fn freeze_at(step: &str) -> Result<()> {
    let (resumed, resumes) = mpsc::channel();
    let mut resume = signal(SignalKind::from_raw(Signal::CONT.as_raw()))?;
    tokio::spawn(async move {
        resume.recv().await;
        // Nobody waits where the step was not come to.
        let _ = resumed.send(());
    });
    let resumes = Mutex::new(Some(resumes));
    let freeze = move || {
        let first = resumes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(resumes) = first {
            // The other threads may stop before this one does: it must not go on meanwhile.
            let _ = kill_process(getpid(), Signal::STOP);
            let _ = resumes.recv();
        }
    };
    let set = fail::cfg_callback(step, freeze);
    set.map_err(|error| anyhow::anyhow!("{step}: {error}"))
}

/// Recovers the outbox of the one sink, and prints what was found.
async fn recover(postgres: tokio_postgres::Config, sink: ClickHouse) -> Result<()> {
    let session = pillarbox_relay::postgres::connect(&postgres, "test").await?;
    let plan = proof::plan(session.client(), &sink).await?;
    let destinations = [Destination {
        name: &variable("SINK")?,
        fingerprint: "test",
        sink: &sink,
        plan: &plan,
        doubtful: Doubtful::Refuse,
    }];
    let recovery = Recovery::begin(&postgres, &destinations).await?;
    let findings = recovery.judge(|_, _| ()).await?;
    let published_again = recovery.rewrite(&findings).await?;
    println!("{published_again} {}", serde_json::to_string(&findings)?);
    Ok(())
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set"))
}

fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{name} is not a number: {text}")),
        Err(_) => Ok(default),
    }
}

/// Writes counters, and nothing else, to a file.
struct Counts(Arc<File>);

/// One of them.
struct Count {
    name: String,
    file: Arc<File>,
}

impl CounterFn for Count {
    fn increment(&self, value: u64) {
        // In one write, so that lines stay whole; a count that cannot be written is not counted.
        let line = format!("{} {value}\n", self.name);
        let _ = (&*self.file).write_all(line.as_bytes());
    }

    fn absolute(&self, _value: u64) {}
}

impl Recorder for Counts {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(Count {
            name: key.name().to_owned(),
            file: Arc::clone(&self.0),
        }))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
