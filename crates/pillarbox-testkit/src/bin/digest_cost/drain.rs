//! Whole drains of one backlog, with the digest and with one of the time alone in turn: CPU time of the relay,
//! PostgreSQL and ClickHouse, and the relay's memory.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pillarbox_relay::schema::registry::{self, Start};
use pillarbox_relay::schema::{self, settings};
use pillarbox_relay::sink::clickhouse::{ClickHouse as Sink, ClickHouseConfig, CreateOptions};
use pillarbox_testkit::cpu;
use pillarbox_testkit::proof::prove;
use pillarbox_testkit::publish::TYPES;
use pillarbox_testkit::servers::{ClickHouse, Flavour, Postgres, eventually};
use tokio::process::{Child, Command};

use super::figures::{Figures, Share};

/// What the digest may take of a drain, in per cent.
const BOUND: f64 = 5.0;
/// Rows of a transaction of the backlog.
const TRANSACTION: u64 = 50_000;
/// How long a drain may take, on a machine that others use.
const PATIENCE: Duration = Duration::from_secs(600);
/// What a digest covers, as expressions, of which it covers none; but for the time, by which the table is
/// partitioned, and which has to be a plain column for that.
const EXPRESSIONS: &str = r#"{"event_id": "event_id", "event_type": "event_type",
    "environment": "environment", "event_context": "event_context",
    "metadata_version": "metadata_version"}"#;
/// Columns that a digest covers.
const DIGESTED: i32 = 6;
/// Those that it still covers with [`EXPRESSIONS`].
const DIGESTED_STILL: i32 = 1;

/// What is measured.
#[derive(Debug)]
pub(crate) struct Config {
    /// `DIGEST_EVENTS`: events of the backlog. Default a million.
    events: u64,
    /// `DIGEST_ROUNDS`: drains with the digest, and as many without. Default 12, as single rounds differ by
    /// more than the digest takes; 0 for none.
    rounds: u32,
    /// `DIGEST_ENGINE`: 18 (the default) or 26.
    flavour: Flavour,
    /// The program `relay_under_test`, which is next to this one.
    relay: PathBuf,
}

impl Config {
    pub(crate) fn from_env() -> Result<Self> {
        let number = |name: &str, default| match std::env::var(name) {
            Ok(text) => text
                .parse::<u64>()
                .with_context(|| format!("{name} is {text:?}; use a number")),
            Err(_) => Ok(default),
        };
        let flavour = match number("DIGEST_ENGINE", 18)? {
            18 => Flavour::V18,
            26 => Flavour::V26,
            other => bail!("DIGEST_ENGINE is {other}; use 18 or 26"),
        };
        let relay = std::env::current_exe()?.with_file_name("relay_under_test");
        ensure!(
            relay.exists(),
            "{} is not built; run `make digest-cost`",
            relay.display()
        );
        let rounds = u32::try_from(number("DIGEST_ROUNDS", 12)?)?;
        ensure!(
            rounds != 1,
            "DIGEST_ROUNDS is 1, which shows no spread; use 0 or at least 2"
        );
        Ok(Self {
            events: number("DIGEST_EVENTS", 1_000_000)?.max(1),
            rounds,
            flavour,
            relay,
        })
    }
}

/// Drains the same backlog again and again, and prints what the digest takes of it: by the difference, which
/// leaves out the part of the time alone and decides, and by its time in the encoder alone, which is steadier.
///
/// # Errors
/// Also when the pooled share is above [`BOUND`].
pub(crate) async fn report(config: &Config, digest_ns: f64) -> Result<()> {
    if config.rounds == 0 {
        return Ok(());
    }
    let stage = Stage::start(config).await?;
    println!(
        "drain: {} events into ClickHouse {}; CPU seconds per million events",
        config.events,
        match config.flavour {
            Flavour::V18 => "18.16",
            Flavour::V26 => "26.9",
        }
    );
    // The first reader of the backlog writes hint bits.
    stage.drain("warm", true).await?.print("warming up");
    let (mut on, mut off) = (Vec::new(), Vec::new());
    for round in 1..=config.rounds {
        // What one drain leaves to the next one falls on both alike.
        for has_digest in [round % 2 == 0, round % 2 == 1] {
            let word = if has_digest { "with" } else { "without" };
            let figures = stage.drain(&format!("{word}_{round}"), has_digest).await?;
            figures.print(&format!("round {round} {word}"));
            if has_digest { &mut on } else { &mut off }.push(figures);
        }
    }
    let with = Figures::means(&on);
    Figures::means(&off).print("mean without");
    with.print("mean with");
    // Nanoseconds per row are milliseconds per million.
    let encoder = 100.0 * digest_ns / 1e3 / with.total();
    println!("drain: the digest by its time in the encoder alone: {encoder:.1} %");
    let share = Share::new(&on, &off);
    println!("drain: the digest in {} rounds: {share}", config.rounds);
    ensure!(
        share.pooled <= BOUND,
        "the digest takes {:.1} % of a drain, more than {BOUND} %",
        share.pooled
    );
    Ok(())
}

/// Servers, and an outbox with a backlog that stays.
struct Stage<'a> {
    config: &'a Config,
    postgres: Postgres,
    clickhouse: ClickHouse,
    logs: tempfile::TempDir,
}

impl<'a> Stage<'a> {
    async fn start(config: &'a Config) -> Result<Self> {
        let postgres = Postgres::builder()
            .setting("shared_buffers", "2GB")
            .setting("max_wal_size", "8GB")
            .start()
            .await?;
        let mut client = postgres.connect().await?;
        schema::migrate(&mut client).await?;
        let change = settings::Change {
            retention: Some("10 days".to_owned()),
            leaf_bytes_max: Some(1 << 40),
            ..settings::Change::default()
        };
        settings::change(&mut client, &change).await?;
        let stage = Self {
            config,
            postgres,
            clickhouse: ClickHouse::start(config.flavour).await?,
            logs: tempfile::TempDir::new()?,
        };
        stage.fill().await?;
        Ok(stage)
    }

    /// Publishes the backlog: contexts of 314 bytes, times within one month.
    async fn fill(&self) -> Result<()> {
        let types = TYPES.map(|of| format!("'{of}'")).join(", ");
        let client = self.postgres.connect().await?;
        for first in (1..=self.config.events).step_by(TRANSACTION as usize) {
            let last = self.config.events.min(first + TRANSACTION - 1);
            let insert = format!(
                "insert into pillarbox.event
                     (event_type, event_date_time, environment, event_context)
                 select
                     (array[{types}])[1 + n % {}], to_timestamp(1795176000 + n * 0.01), 'production',
                     (left('{{\"user_id\": ' || n || ', \"path\": \"/api/v1/orders/' || n || '\", \"trace\": \"'
                         || md5(n::text) || md5('a' || n) || md5('b' || n) || md5('c' || n) || md5('d' || n)
                         || md5('e' || n) || md5('f' || n) || md5('g' || n), 312) || '\"}}')::json
                 from generate_series({first}, {last}) n",
                TYPES.len()
            );
            client.batch_execute(&insert).await?;
        }
        client.batch_execute("checkpoint").await?;
        Ok(())
    }

    /// One drain of the whole backlog by a sink of its own into a table of its own.
    async fn drain(&self, name: &str, has_digest: bool) -> Result<Figures> {
        let table = format!("events_{name}");
        let url = self.clickhouse.url_with_credentials()?;
        let sink = Sink::new(ClickHouseConfig::new(
            url,
            self.clickhouse.database(),
            &table,
        ))?;
        sink.create(&CreateOptions::default()).await?;
        let client = self.postgres.connect().await?;
        registry::register(&client, &table, "test", Start::Outbox).await?;
        drop(client);
        self.wait_for_silence().await?;
        let before = self.server_times()?;
        let started = Instant::now();
        let (relay, peak) = self.run_relay(&table, has_digest).await?;
        let elapsed = started.elapsed();
        self.wait_for_silence().await?;
        let after = self.server_times()?;
        let verify = self.check(&sink, &table, has_digest).await?;
        self.clickhouse
            .query(&format!("drop table {table}"))
            .await?;
        let per_million = |time: Duration| time.as_secs_f64() * 1e6 / self.config.events as f64;
        Ok(Figures {
            relay: per_million(relay),
            postgres: per_million(after.0 - before.0),
            clickhouse: per_million(after.1 - before.1),
            verify: per_million(verify),
            events_per_s: self.config.events as f64 / elapsed.as_secs_f64(),
            peak_mib: peak as f64 / f64::from(1 << 20),
        })
    }

    /// CPU time and peak memory of a relay that drains with the limits of the program `pillarbox`.
    async fn run_relay(&self, name: &str, has_digest: bool) -> Result<(Duration, u64)> {
        let log = self.logs.path().join(name);
        let mut command = Command::new(&self.config.relay);
        command
            .env("DATABASE_URL", self.postgres.url())
            .env("SINK", name)
            .env("CLICKHOUSE_URL", self.clickhouse.url_with_credentials()?)
            .env("CLICKHOUSE_DATABASE", self.clickhouse.database())
            .env("CLICKHOUSE_TABLE", name)
            .env("MODE", "drain")
            .env("MAX_ROWS", "500000")
            .env("MAX_BYTES", "150994944")
            .env("TEND_MS", "5000")
            .env("INSERT_TIMEOUT_MS", "300000")
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .kill_on_drop(true);
        if !has_digest {
            command.env("EXPRESSIONS", EXPRESSIONS);
        }
        let mut child = command.spawn()?;
        let (time, peak) = watch(&child).await?;
        let status = child.wait().await?;
        ensure!(
            status.success(),
            "the drain failed with {status}:\n{}",
            std::fs::read_to_string(&log)?
        );
        Ok((time, peak))
    }

    /// CPU times of PostgreSQL and of ClickHouse.
    fn server_times(&self) -> Result<(Duration, Duration)> {
        let of = |pid: Option<u32>| cpu::of_family(pid.context("a server of our own")?);
        Ok((of(self.postgres.pid())?, of(self.clickhouse.pid())?))
    }

    /// Waits for the sessions of a relay to end, and for merges: they belong to the drain that caused them.
    async fn wait_for_silence(&self) -> Result<()> {
        let others = "select count(*) from pg_stat_activity
                      where backend_type = 'client backend' and pid <> pg_backend_pid()";
        eventually("silence", PATIENCE, || async {
            let sessions: i64 = self.postgres.query(others, &[]).await?[0].get(0);
            let merges = self
                .clickhouse
                .query("select count() from system.merges")
                .await?;
            Ok((sessions == 0 && merges.trim() == "0").then_some(()))
        })
        .await
    }

    /// Proves the drain as `verify` does, and gives what that cost ClickHouse.
    async fn check(&self, sink: &Sink, name: &str, has_digest: bool) -> Result<Duration> {
        const SEALED: &str = "
            select sum(b.rows)::bigint, array_agg(distinct jsonb_array_length(b.terms::jsonb -> 'proven'))
            from pillarbox.batch b join pillarbox.sink s using (sink)
            where s.name = $1 and b.kind = 'window'";
        let client = self.postgres.connect().await?;
        let sealed = client.query_one(SEALED, &[&name]).await?;
        let rows = sealed.get::<_, i64>(0).cast_unsigned();
        ensure!(rows == self.config.events, "{rows} events were sealed");
        let covered: Vec<i32> = sealed.get(1);
        let expected = if has_digest { DIGESTED } else { DIGESTED_STILL };
        ensure!(
            covered == [expected],
            "the digests cover {covered:?} columns, not {expected}"
        );
        let before = self.server_times()?.1;
        let proof = prove(&client, sink, name).await?;
        let cost = self.server_times()?.1 - before;
        ensure!(proof.rows == rows && proof.unprovable == 0, "{proof:?}");
        Ok(cost)
    }
}

/// Waits for the end of a child, and gives its CPU time and peak memory. It is not reaped.
async fn watch(child: &Child) -> Result<(Duration, u64)> {
    let pid = child.id().context("it has ended")?;
    let mut peak = 0;
    eventually("the drain to end", PATIENCE, || {
        peak = cpu::peak_memory(pid).unwrap_or(peak);
        let ended = cpu::has_ended(pid);
        async move { Ok(ended?.then_some(())) }
    })
    .await?;
    Ok((cpu::of_family(pid)?, peak))
}
