//! Large transactions, large events, a long backlog: all arrive once, and the relay's memory stays
//! within what its configuration allows (INV-7). That is a matter of the relay: one engine each.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pillarbox_relay::schema::settings;
use pillarbox_testkit::oracle::{Content, Oracle, Published};
use pillarbox_testkit::servers::{Flavour, eventually};
use uuid::Uuid;

use crate::scene::{Running, SINK, Scene};
use crate::traffic::{Event, Way, commit};

const MIB: u64 = 1024 * 1024;

/// Deliveries at once, by default.
const IN_FLIGHT: u64 = 2;

/// What the program takes beside its batches: code, runtime, sessions and their buffers.
const BASE_BYTES: u64 = 48 * MIB;

/// What a relay may hold: a batch for each delivery and one that is being read; the event at hand, as
/// PostgreSQL's message, as a row and as what the digest hashes. As much again is left for the C
/// library's allocator, which gives freed pages back late (with 12 MiB batches and 8 MiB events it
/// holds 172 MiB, where 101 MiB are in use).
fn memory_max(batch_bytes: u64, event_bytes: u64) -> u64 {
    BASE_BYTES + 2 * ((IN_FLIGHT + 1) * (batch_bytes + event_bytes) + 2 * event_bytes)
}

/// The most memory that a process ever had, in bytes (proc(5)).
fn peak_memory(relay: &Running) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmHWM")?.parse::<u64>()? * 1024)
}

async fn ten_thousand_events_in_one_transaction(flavour: Flavour) -> Result<()> {
    // From the last days of October 2026 to the first of March 2027.
    const FIRST_US: i64 = 1_793_000_000_000_000;
    const STEP_US: i64 = 1_123_456_789;
    let scene = Scene::start(flavour).await?;
    let oracle = Oracle::new();
    let mut client = scene.postgres.connect().await?;
    let event = |nth: i64| {
        let context = format!(r#"{{"n":{nth}}}"#);
        Event::at(FIRST_US + nth * STEP_US, "import", context)
    };
    let events: Vec<Event> = (0..10_000).map(event).collect();
    commit(&mut client, &oracle, Way::Batch, &events).await?;
    // Either side of each midnight that begins a month.
    for midnight in [
        1_793_491_200,
        1_796_083_200,
        1_798_761_600,
        1_801_440_000_i64,
    ] {
        let at = |us: i64| Event::at(midnight * 1_000_000 + us, "edge", "{}".to_owned());
        let edge = [at(-1), at(0), at(1)];
        commit(&mut client, &oracle, Way::Copy, &edge).await?;
    }
    scene.drain_with(&[("MAX_ROWS", "3000")]).await?;
    let verdict = scene.holds_when_drained(&oracle).await?;
    assert_eq!(verdict.delivered, 10_012);
    let months = "select uniqExact(toYYYYMM(event_date_time)) from events";
    let months: u32 = scene.clickhouse.query(months).await?.trim().parse()?;
    ensure!(months >= 5, "{months}");
    Ok(())
}

/// How long a backlog may take with a relay that is not optimised, on a machine that is busy.
const BACKLOG_PATIENCE: Duration = Duration::from_secs(150);

/// Lets a relay deliver the backlog, and gives the most memory it had.
async fn deliver(
    scene: &Scene,
    oracle: &Oracle,
    variables: &[(&str, &str)],
    patience: Duration,
) -> Result<u64> {
    let relay = scene.running_with(variables)?;
    let published = oracle.published();
    eventually("the backlog to be delivered", patience, || async {
        Ok((scene.count().await? >= published).then_some(()))
    })
    .await
    .map_err(|error| error.context(relay.log_tail()))?;
    let peak = peak_memory(&relay)?;
    let verdict = scene.holds(oracle, relay).await?;
    println!("{verdict} peak={} MiB", peak / MIB);
    Ok(peak)
}

async fn events_of_megabytes(flavour: Flavour) -> Result<()> {
    const EVENTS: i64 = 30;
    const BATCH: u64 = 8 * MIB;
    let scene = Scene::start(flavour).await?;
    let mut client = scene.postgres.connect().await?;
    let change = settings::Change {
        event_bytes_max: Some(8 * 1024 * 1024),
        ..settings::Change::default()
    };
    settings::change(&mut client, &change).await?;
    let oracle = Oracle::new();
    let mut backlog = 0;
    for nth in 0..EVENTS {
        // 5 to 8 MiB, the last one exactly the limit; not all the same bytes.
        let bytes = usize::try_from(5 * MIB)? + usize::try_from(nth % 4)? * 1024 * 1024;
        let fill = format!("{nth:08}").repeat(bytes / 8);
        let context = format!("\"{}\"", &fill[..bytes - 2]);
        backlog += context.len() as u64;
        let event = Event::at(1_795_176_000_000_000 + nth, "large", context);
        commit(&mut client, &oracle, Way::Insert, &[event]).await?;
    }
    let bytes = BATCH.to_string();
    let peak = deliver(&scene, &oracle, &[("MAX_BYTES", &bytes)], BACKLOG_PATIENCE).await?;
    let bound = memory_max(BATCH, 8 * MIB);
    ensure!(backlog > bound, "the backlog shows nothing");
    ensure!(peak <= bound, "{} MiB, not {}", peak / MIB, bound / MIB);
    Ok(())
}

/// A backlog of so many events, and the bytes of a batch that must do for it.
struct Backlog {
    events: u32,
    batch_bytes: u64,
    patience: Duration,
}

/// Events of a transaction of the backlog.
const TRANSACTION: u32 = 100_000;

impl Backlog {
    const AT_US: i64 = 1_795_176_000_000_000;

    fn pad() -> String {
        "y".repeat(200)
    }

    async fn publish(&self, scene: &Scene) -> Result<Oracle> {
        let pad = Self::pad();
        let client = scene.postgres.connect().await?;
        let oracle = Oracle::new();
        for first in (1..=self.events).step_by(TRANSACTION as usize) {
            let last = self.events.min(first + TRANSACTION - 1);
            let insert = format!(
                "insert into pillarbox.event (event_id, event_type, event_date_time, event_context)
                 select lpad(to_hex(n), 32, '0')::uuid, 'small', to_timestamp({}),
                     ('{{\"n\": ' || n || ', \"pad\": \"{pad}\"}}')::json
                 from generate_series({first}, {last}) n",
                Self::AT_US / 1_000_000
            );
            client.batch_execute(&insert).await?;
            for n in first..=last {
                let context = format!(r#"{{"n": {n}, "pad": "{pad}"}}"#);
                let content = Content {
                    event_type: "small",
                    environment: "production",
                    event_context: context.as_bytes(),
                    metadata_version: 1,
                };
                let id = Uuid::from_u128(u128::from(n));
                oracle.committed(Published::new(id, &content, Self::AT_US));
            }
        }
        Ok(oracle)
    }

    /// Delivered whole, by a relay whose memory stays within what its configuration allows.
    async fn is_delivered(&self, flavour: Flavour) -> Result<()> {
        let scene = Scene::start(flavour).await?;
        let oracle = self.publish(&scene).await?;
        let bytes = self.batch_bytes.to_string();
        let variables = [("MAX_BYTES", bytes.as_str()), ("MAX_ROWS", "200000")];
        let peak = deliver(&scene, &oracle, &variables, self.patience).await?;
        let bound = memory_max(self.batch_bytes, MIB);
        println!(
            "events={} peak={} MiB bound={} MiB",
            self.events,
            peak / MIB,
            bound / MIB
        );
        ensure!(peak <= bound, "{} MiB, not {}", peak / MIB, bound / MIB);
        let batches = format!(
            "select count(*) from pillarbox.batch where kind = 'window' and sink = \
                               (select sink from pillarbox.sink where name = '{SINK}')"
        );
        ensure!(
            scene.number(&batches).await? >= 20,
            "batches were larger than allowed"
        );
        Ok(())
    }
}

#[tokio::test]
async fn ten_thousand_events_over_months_into_clickhouse_18() -> Result<()> {
    ten_thousand_events_in_one_transaction(Flavour::V18).await
}

#[tokio::test]
async fn ten_thousand_events_over_months_into_clickhouse_26() -> Result<()> {
    ten_thousand_events_in_one_transaction(Flavour::V26).await
}

#[tokio::test]
async fn inv_7_events_of_megabytes_into_clickhouse_26() -> Result<()> {
    events_of_megabytes(Flavour::V26).await
}

#[tokio::test]
async fn inv_7_a_backlog_of_small_events_into_clickhouse_18() -> Result<()> {
    let backlog = Backlog {
        events: 300_000,
        batch_bytes: 4 * MIB,
        patience: BACKLOG_PATIENCE,
    };
    backlog.is_delivered(Flavour::V18).await
}

/// A backlog of hours, seventeen times as long as the one above, with batches of 32 MiB.
/// Run it with `cargo nextest run --all-features --run-ignored only five_million`.
#[tokio::test]
#[ignore = "a measurement of many minutes and 10 GB of disk"]
async fn inv_7_a_backlog_of_five_million_events_into_clickhouse_26() -> Result<()> {
    let backlog = Backlog {
        events: 5_000_000,
        batch_bytes: 32 * MIB,
        patience: 20 * BACKLOG_PATIENCE,
    };
    backlog.is_delivered(Flavour::V26).await
}
