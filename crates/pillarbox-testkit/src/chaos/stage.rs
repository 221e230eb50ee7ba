//! Two servers, two relays, and a proxy between each relay and each server.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pillarbox_relay::schema::registry::{self, Start};
use pillarbox_relay::schema::{self, settings};
use pillarbox_relay::sink::clickhouse::{ClickHouse as Sink, ClickHouseConfig, CreateOptions};
use pillarbox_relay::sink::{Guarantee, Plan as _};
use pillarbox_relay::verify::Proof;
use tempfile::TempDir;
use tokio::time::sleep;

use super::config::Config;
use super::kind::Side;
use super::poison;
use crate::oracle::Precision;
use crate::proof;
use crate::proxy::Proxy;
use crate::servers::{ClickHouse, Flavour, Postgres, Program};

pub(super) const TABLE: &str = "events";
pub(super) const SINK: &str = "clickhouse";

/// The shortest that the configuration permits.
pub(super) const TAKEOVER_AFTER: Duration = Duration::from_secs(13);

/// What a relay waits for the answer to an insert: short, so that many are unknown.
pub(super) const INSERT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Largest event; a batch holds two of them.
pub(super) const EVENT_BYTES_MAX: usize = 4 << 20;

/// The counter of inserts with an unknown outcome.
const UNKNOWN: &str = "pillarbox_unknown_deliveries_total";

/// In the head of an insert, and of no other request.
pub(super) const INSERT: &[u8] = b"query=INSERT";

/// How often what is left is drained before the run counts as failed.
const DRAINS_MAX: u32 = 5;

/// How often the log of a relay is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How often each block was sent, by batch and ordinal.
type Sends = Arc<Mutex<HashMap<String, u32>>>;

/// A relay, what stands between it and the servers, and what it has written.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) name: &'static str,
    pub(super) program: Program,
    pub(super) postgres: Proxy,
    pub(super) clickhouse: Proxy,
    counts: PathBuf,
    /// Bytes of the log when its present life began.
    began: AtomicUsize,
    /// Held while it is down on purpose.
    pub(super) down: tokio::sync::Mutex<()>,
    /// How often it ended by itself.
    pub(super) endings: AtomicU32,
}

impl Relay {
    pub(super) fn start(&self) -> Result<()> {
        self.began
            .store(self.program.log().len(), Ordering::Relaxed);
        self.program.start()
    }

    /// Whether it holds the sink's lock and has a plan, by its log.
    pub(super) fn is_active(&self) -> bool {
        let log = self.program.log();
        let life = log
            .get(self.began.load(Ordering::Relaxed)..)
            .unwrap_or_default();
        let is_ready = |line: &&str| line.contains("the sink is ready");
        let is_not = |line: &str| {
            line.contains("the tenure ended") || line.contains("another relay is active")
        };
        let mut last = life.lines().rev();
        let telling = last.find(|line| is_ready(line) || is_not(line));
        telling.as_ref().is_some_and(is_ready)
    }

    pub(super) fn proxy(&self, side: Side) -> &Proxy {
        match side {
            Side::ClickHouse => &self.clickhouse,
            Side::Postgres => &self.postgres,
        }
    }

    /// Inserts with an unknown outcome, over all its lives.
    fn unknown(&self) -> u64 {
        let text = std::fs::read_to_string(&self.counts).unwrap_or_default();
        let counted = text.lines().filter_map(|line| line.split_once(' '));
        let unknown = counted.filter(|(name, _)| *name == UNKNOWN);
        unknown
            .filter_map(|(_, value)| value.parse::<u64>().ok())
            .sum()
    }
}

/// Everything that can break.
#[derive(Debug)]
pub(super) struct Stage {
    // Declared in the order of their end.
    pub(super) relays: [Relay; 2],
    pub(super) clickhouse: ClickHouse,
    pub(super) postgres: Postgres,
    pub(super) flavour: Flavour,
    began: Instant,
    sends: Sends,
    drain: Program,
    _dir: TempDir,
}

impl Stage {
    /// Starts the servers; the relays not yet. Dropping the future ends what was started.
    pub(super) async fn start(config: &Config) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("pillarbox-chaos-")
            .tempdir()?;
        let postgres = Postgres::builder()
            .durable()
            // Asynchronous commits stay in memory for longer, so that a crash takes some with it.
            .setting("wal_writer_delay", "500ms")
            .setting("wal_writer_flush_after", "0");
        let (postgres, clickhouse) =
            tokio::try_join!(postgres.start(), ClickHouse::start(config.flavour))?;
        install(&postgres, &clickhouse).await?;
        let sends = Sends::default();
        let logs = config.logs.as_deref().unwrap_or(dir.path());
        std::fs::create_dir_all(logs)?;
        let relay = |name| relay(name, config, logs, &postgres, &clickhouse, &sends);
        let relays = [relay("a")?, relay("b")?];
        let mut environment = environment(&clickhouse, INSERT_TIMEOUT)?;
        environment.push(("DATABASE_URL".to_owned(), postgres.url().to_owned()));
        environment.push((
            "CLICKHOUSE_URL".to_owned(),
            clickhouse.url_with_credentials()?,
        ));
        environment.push(("MODE".to_owned(), "drain".to_owned()));
        let log = logs.join("drain.log");
        let drain = Program::new("the drain", &config.relay, environment, &log);
        Ok(Self {
            relays,
            clickhouse,
            postgres,
            flavour: config.flavour,
            began: Instant::now(),
            sends,
            drain,
            _dir: dir,
        })
    }

    /// Prints a line of progress.
    pub(super) fn say(&self, text: &str) {
        println!("{:>6.1} s  {text}", self.began.elapsed().as_secs_f64());
    }

    pub(super) fn active(&self) -> Option<&Relay> {
        self.relays.iter().find(|relay| relay.is_active())
    }

    /// Waits until `relay` is active; `false` when it is not within `deadline`.
    pub(super) async fn becomes_active(
        &self,
        is_it: impl Fn(&Relay) -> bool,
        deadline: Duration,
    ) -> bool {
        let began = Instant::now();
        loop {
            if self
                .relays
                .iter()
                .any(|relay| is_it(relay) && relay.is_active())
            {
                return true;
            }
            if began.elapsed() > deadline {
                return false;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Ends every fault that may be at work.
    pub(super) async fn heal(&self) -> Result<()> {
        for relay in &self.relays {
            for side in [Side::ClickHouse, Side::Postgres] {
                let proxy = relay.proxy(side);
                proxy.cut_all(crate::proxy::Close::Reset);
                proxy.heal().await?;
            }
        }
        self.clickhouse.wait_ready().await?;
        self.postgres.wait_ready().await
    }

    /// Delivers what is left, with a relay of its own. One that loses its session is started again, as
    /// cron does: on a busy machine the cancellation of a COPY may come so late that it costs a tenure.
    pub(super) async fn drain(&self) -> Result<()> {
        for drain in 1.. {
            self.drain.start()?;
            let ended = self.drain.wait().await?;
            if ended.success() {
                break;
            }
            let tail = self.drain.log_tail();
            ensure!(drain < DRAINS_MAX, "the drain: {ended}{tail}");
            self.say(&format!("the drain: {ended}; again"));
        }
        Ok(())
    }

    /// What `verify` says of every batch.
    pub(super) async fn prove(&self) -> Result<Proof> {
        let client = self.postgres.connect().await?;
        proof::prove(&client, &sink(&self.clickhouse)?, SINK).await
    }

    /// Rows in the table.
    pub(super) async fn rows(&self) -> Result<u64> {
        let count = format!("select count() from {TABLE}");
        Ok(self.clickhouse.query(&count).await?.trim().parse()?)
    }

    pub(super) fn precision(&self) -> Precision {
        match self.flavour {
            Flavour::V18 => Precision::Seconds,
            Flavour::V26 => Precision::Micros,
        }
    }

    pub(super) fn unknown(&self) -> u64 {
        self.relays.iter().map(Relay::unknown).sum()
    }

    /// Inserts of blocks that had been sent before, by any relay.
    pub(super) fn resent(&self) -> u64 {
        let sends = self.sends.lock().unwrap_or_else(PoisonError::into_inner);
        sends.values().map(|count| u64::from(*count) - 1).sum()
    }

    /// How often another relay went on sealing.
    pub(super) async fn takeovers(&self) -> Result<u64> {
        const CHANGES: &str = "
            select count(*) from (
                select relay, lag(relay) over (order by number) as before
                from pillarbox.batch where kind <> 'genesis'
            ) as batch
            where before <> relay";
        let rows = self.postgres.query(CHANGES, &[]).await?;
        Ok(rows
            .first()
            .map_or(0, |row| row.get::<_, i64>(0))
            .cast_unsigned())
    }

    /// Ends the relays, each of which must end well.
    pub(super) async fn stop_relays(&self) -> Result<()> {
        for relay in &self.relays {
            let _down = relay.down.lock().await;
            let ended = relay.program.stop().await?;
            let tail = relay.program.log_tail();
            ensure!(
                ended.success(),
                "relay {}, SIGTERM: {ended}{tail}",
                relay.name
            );
        }
        Ok(())
    }
}

fn sink(clickhouse: &ClickHouse) -> Result<Sink> {
    let url = clickhouse.url_with_credentials()?;
    let config = ClickHouseConfig::new(url, clickhouse.database(), TABLE);
    Ok(Sink::new(config)?)
}

/// The schema, the table, the sink, and a ring that turns at every look.
async fn install(postgres: &Postgres, clickhouse: &ClickHouse) -> Result<()> {
    let mut client = postgres.connect().await?;
    schema::migrate(&mut client).await?;
    let change = settings::Change {
        retention: Some("1 second".to_owned()),
        leaf_bytes_max: Some(256 * 1024),
        event_bytes_max: Some(i32::try_from(EVENT_BYTES_MAX)?),
        ..settings::Change::default()
    };
    settings::change(&mut client, &change).await?;
    let sink = sink(clickhouse)?;
    sink.create(&CreateOptions::default()).await?;
    registry::register(&client, SINK, "chaos", Start::Outbox).await?;
    poison::refuse(clickhouse).await?;
    // Which faults it has to bear depends on it.
    let expected = match clickhouse.flavour() {
        Flavour::V18 => Guarantee::Lookup,
        Flavour::V26 => Guarantee::Token,
    };
    let guarantee = proof::plan(&client, &sink).await?.guarantee();
    ensure!(guarantee == expected, "{guarantee:?} is not {expected:?}");
    Ok(())
}

fn relay(
    name: &'static str,
    config: &Config,
    logs: &Path,
    postgres: &Postgres,
    clickhouse: &ClickHouse,
    sends: &Sends,
) -> Result<Relay> {
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let sends = Arc::clone(sends);
    let to_clickhouse = Proxy::start_watched(local(clickhouse.port()?), move |head| {
        if let Some(block) = block_of(head) {
            let mut sends = sends.lock().unwrap_or_else(PoisonError::into_inner);
            *sends.entry(block).or_default() += 1;
        }
    })?;
    let to_postgres = Proxy::start(local(postgres.port()?))?;
    let counts = logs.join(format!("{name}.counts"));
    let log = logs.join(format!("{name}.log"));
    let mut environment = environment(clickhouse, INSERT_TIMEOUT)?;
    let own = [
        ("DATABASE_URL", to_postgres.url(postgres.url())?),
        (
            "CLICKHOUSE_URL",
            to_clickhouse.url(&clickhouse.url_with_credentials()?)?,
        ),
        ("COUNTS", counts.display().to_string()),
        ("MODE", "run".to_owned()),
    ];
    environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
    Ok(Relay {
        name,
        program: Program::new(&format!("relay {name}"), &config.relay, environment, &log),
        postgres: to_postgres,
        clickhouse: to_clickhouse,
        counts,
        began: AtomicUsize::new(0),
        down: tokio::sync::Mutex::new(()),
        endings: AtomicU32::new(0),
    })
}

fn environment(clickhouse: &ClickHouse, insert_timeout: Duration) -> Result<Vec<(String, String)>> {
    let variables = [
        ("SINK", SINK.to_owned()),
        ("CLICKHOUSE_DATABASE", clickhouse.database().to_owned()),
        ("CLICKHOUSE_TABLE", TABLE.to_owned()),
        ("TAKEOVER_MS", TAKEOVER_AFTER.as_millis().to_string()),
        ("INSERT_TIMEOUT_MS", insert_timeout.as_millis().to_string()),
        ("MAX_ROWS", "500".to_owned()),
        ("MAX_BYTES", (2 * EVENT_BYTES_MAX).to_string()),
        ("MAX_AGE_MS", "100".to_owned()),
        ("TEND_MS", "100".to_owned()),
        ("STOPPED_MS", "1000".to_owned()),
        ("POISON_ROWS", poison::ROWS_MAX.to_string()),
        ("LZ4", "1".to_owned()),
    ];
    let owned = variables.map(|(name, value)| (name.to_owned(), value));
    Ok(owned.to_vec())
}

/// Batch and ordinal of the block that an insert carries, from its query id.
fn block_of(head: &[u8]) -> Option<String> {
    let end = head.iter().position(|byte| *byte == b'\r')?;
    let line = std::str::from_utf8(&head[..end]).ok()?;
    if !line.contains("query=INSERT") {
        return None;
    }
    let (_, rest) = line.split_once("query_id=")?;
    let id = rest.split(['&', ' ']).next()?;
    let (block, _attempt) = id.rsplit_once('-')?;
    Some(block.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_of_an_insert_is_in_its_head() {
        let head = b"POST /?query_id=0b5e-11-0-3&x=1&query=INSERT+INTO HTTP/1.1\r\nhost: x\r\n\r\n";
        assert_eq!(block_of(head), Some("0b5e-11-0".to_owned()));
        assert_eq!(block_of(b"POST /?query_id=0b5e-11-0-3 HTTP/1.1\r\n"), None);
        assert_eq!(block_of(b"\xff\xff"), None);
    }
}
