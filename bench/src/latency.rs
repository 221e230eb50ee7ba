//! How long an event takes from its commit until ClickHouse shows it, and how often the relay inserts.
//!
//! An open loop: each event has its time from the start, and is published late rather than not at all. A
//! watcher asks ClickHouse all the time for the rows of new batches. Both use the clock of this process.
//! At 10,000 events/s ten are published in one transaction: two cores do not commit so often and deliver too.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::ClickHouse;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::bench::Bench;
use crate::line::Line;
use crate::report::Report;
use crate::stage::{Outbox, Stage};

const PART: &str = "latency";
/// The relay's `max_age`.
const AGES: [&str; 2] = ["1s", "100ms"];
/// Events per second.
const USUAL: [u32; 1] = [1_000];
const FULL: [u32; 3] = [100, 1_000, 10_000];
/// The rate at which the relay's memory is watched.
const STEADY: u32 = 1_000;
const WARM_UP: Duration = Duration::from_secs(5);
const MEASURED: Duration = Duration::from_secs(40);

/// Sessions that publish.
const PUBLISHERS: u32 = 8;
/// More commits a second need several events each.
const TRANSACTIONS_PER_S_MAX: u32 = 1_000;
/// Between two looks of the watcher.
const LOOK: Duration = Duration::from_millis(5);
/// From the last commit until all are seen.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let rates = if bench.full { &FULL[..] } else { &USUAL };
    let mut memory_max = 0.0_f64;
    for rate in rates {
        for age in AGES {
            let stage = Stage::start(report).await?;
            let seen = measure(&stage, bench, age, *rate).await?;
            if *rate == STEADY {
                memory_max = memory_max.max(seen.memory_mib);
            }
            seen.add(&format!("{age}/{rate}"), report);
        }
    }
    report.add(PART, "memory_steady", "MiB", memory_max);
    Ok(())
}

/// What came out of one run.
struct Seen {
    /// Seconds from commit to sight, ascending.
    latencies: Vec<f64>,
    /// The longest time from when an event should have been published until it was.
    behind: f64,
    inserts_per_s: f64,
    memory_mib: f64,
}

impl Seen {
    fn add(&self, name: &str, report: &mut Report) {
        let percentile = |share: f64| {
            let last = self.latencies.len().saturating_sub(1) as f64;
            let nth = (share * last).ceil() as usize;
            self.latencies.get(nth).copied().unwrap_or(f64::NAN)
        };
        let (p50, p99, max) = (percentile(0.5), percentile(0.99), percentile(1.0));
        report.add(PART, &format!("{name} p50"), "s", p50);
        report.add(PART, &format!("{name} p99"), "s", p99);
        report.add(PART, &format!("{name} max"), "s", max);
        report.add(PART, &format!("{name} behind"), "s", self.behind);
        report.add(PART, &format!("{name} inserts"), "1/s", self.inserts_per_s);
        report.add(PART, &format!("{name} memory"), "MiB", self.memory_mib);
    }
}

/// When events are due.
#[derive(Clone, Copy)]
struct Schedule {
    began: Instant,
    events: u32,
    /// Events of a transaction.
    group: u32,
    /// Between two transactions, of whichever session.
    every: Duration,
}

impl Schedule {
    fn new(began: Instant, measured: Duration, rate: u32) -> Self {
        let group = rate.div_ceil(TRANSACTIONS_PER_S_MAX);
        let seconds = (WARM_UP + measured).as_secs();
        Self {
            began,
            events: u32::try_from(u64::from(rate) * seconds).unwrap_or(u32::MAX),
            group,
            every: Duration::from_secs(1) * group / rate,
        }
    }

    /// When the transaction that begins with event `first` is due.
    fn due(&self, first: u32) -> Instant {
        self.began + self.every * (first / self.group)
    }
}

async fn measure(stage: &Stage, bench: &Bench, age: &str, rate: u32) -> Result<Seen> {
    let line = Line::start(stage, bench, &[("MAX_AGE", age)]).await?;
    let measured = MEASURED.mul_f64(bench.share);
    let schedule = Schedule::new(Instant::now() + Duration::from_secs(1), measured, rate);
    let mut publishers = JoinSet::new();
    for nth in 0..PUBLISHERS {
        publishers.spawn(publisher(&line.outbox, nth, schedule).await?);
    }
    let watch = watch(&stage.clickhouse, schedule);
    let aside = observe(&line, schedule);
    let publish = async {
        let mut commits = Vec::new();
        while let Some(ended) = publishers.join_next().await {
            commits.extend(ended??);
        }
        anyhow::Ok(commits)
    };
    let (seen, (inserts_per_s, memory_mib), commits) =
        tokio::try_join!(watch, aside, publish).with_context(|| line.relay_log())?;
    line.wait_for_delivery(schedule.events.into()).await?;
    line.check_exactly_once(schedule.events.into()).await?;
    check_inserts(&line).await?;
    let measured = commits
        .iter()
        .filter(|commit| schedule.due(commit.first) >= schedule.began + WARM_UP);
    let mut latencies = Vec::new();
    let mut behind = 0.0_f64;
    for commit in measured {
        let late = commit
            .at
            .saturating_duration_since(schedule.due(commit.first));
        behind = behind.max(late.as_secs_f64());
        for nth in commit.first..commit.first + schedule.group {
            let sight = seen.get(nth as usize).copied().flatten();
            let sight = sight.with_context(|| format!("event {nth} was never seen"))?;
            latencies.push(sight.saturating_duration_since(commit.at).as_secs_f64());
        }
    }
    latencies.sort_by(f64::total_cmp);
    Ok(Seen {
        latencies,
        behind,
        inserts_per_s,
        memory_mib,
    })
}

/// A committed transaction.
struct Commit {
    /// The number of its first event.
    first: u32,
    at: Instant,
}

/// Publishes every eighth transaction of the schedule on a session of its own.
async fn publisher(
    outbox: &Outbox<'_>,
    nth: u32,
    schedule: Schedule,
) -> Result<impl Future<Output = Result<Vec<Commit>>> + use<>> {
    // One time for all, so that each batch is one block.
    const PUBLISH: &str = "
        insert into pillarbox.event (event_type, event_date_time, event_context)
        select 'order_placed', '2026-11-15 12:00:00+00', context::json from unnest($1::text[]) context";
    let client = outbox.connect().await?;
    let publish = client.prepare(PUBLISH).await?;
    Ok(async move {
        let mut commits = Vec::new();
        let (first, step) = (nth * schedule.group, PUBLISHERS * schedule.group);
        for first in (first..schedule.events).step_by(step as usize) {
            let contexts: Vec<String> = (first..first + schedule.group).map(context).collect();
            sleep_until(schedule.due(first)).await;
            client.execute(&publish, &[&contexts]).await?;
            let at = Instant::now();
            commits.push(Commit { first, at });
        }
        Ok(commits)
    })
}

/// 300 bytes with the number of the event, without a space, as `visitParamExtractUInt` wants it.
fn context(nth: u32) -> String {
    let start = format!(r#"{{"nth":{nth}, "path": "/api/v1/orders/{nth}", "trace": ""#);
    let pad = "5eed0123456789abcdef".repeat(15);
    let room = 300_usize.saturating_sub(start.len() + 2);
    format!("{start}{}\"}}", pad.get(..room).unwrap_or_default())
}

/// When each event was seen first, by its number.
async fn watch(clickhouse: &ClickHouse, schedule: Schedule) -> Result<Vec<Option<Instant>>> {
    let mut seen = vec![None; schedule.events as usize];
    let mut left = seen.len();
    let mut batches = Batches::default();
    let end = schedule.due(schedule.events) + PATIENCE;
    while left > 0 {
        let look = format!(
            "select batch, visitParamExtractUInt(event_context, 'nth') from events where batch > {}",
            batches.floor()
        );
        let rows = clickhouse
            .query_with(&look, &[("max_threads", "1")])
            .await?;
        let now = Instant::now();
        for row in rows.lines() {
            let (batch, nth) = row.split_once('\t').context("a row of two columns")?;
            let nth: usize = nth.parse()?;
            let first = seen.get_mut(nth).with_context(|| format!("event {nth}"))?;
            if first.is_none() {
                *first = Some(now);
                left -= 1;
            }
            batches.add(batch.parse()?);
        }
        ensure!(now < end, "{left} events were not seen in time");
        sleep(LOOK).await;
    }
    Ok(seen)
}

/// Which batches were seen. They may arrive in another order than that of their numbers.
#[derive(Default)]
struct Batches {
    /// All up to this one; 0 at the start.
    last: u64,
    later: std::collections::BTreeSet<u64>,
}

impl Batches {
    /// The number in the column `batch` has the origin of the sink above these bits.
    const NUMBER_BITS: u64 = (1 << 40) - 1;

    fn add(&mut self, batch: u64) {
        if self.last == 0 {
            // The genesis.
            self.last = batch & !Self::NUMBER_BITS;
        }
        if batch > self.last {
            self.later.insert(batch);
        }
        while self.later.remove(&(self.last + 1)) {
            self.last += 1;
        }
    }

    fn floor(&self) -> u64 {
        self.last
    }
}

/// Inserts per second, and the most memory that the relay had in MiB, looked at every second: both after the
/// warm-up.
async fn observe(line: &Line<'_>, schedule: Schedule) -> Result<(f64, f64)> {
    sleep_until(schedule.began + WARM_UP).await;
    let began = SystemTime::now();
    let mut memory_max = 0.0_f64;
    while Instant::now() + Duration::from_secs(1) < schedule.due(schedule.events) {
        memory_max = memory_max.max(resident_mib(line.relay_pid()?)?);
        sleep(Duration::from_secs(1)).await;
    }
    // From the first insert to the last one: a window of its own would catch one more or less.
    const RATE: &str = "
        select (count(*) - 1) / extract(epoch from max(d.delivered_at) - min(d.delivered_at))::float8
        from pillarbox.delivery d where d.delivered_at > $1";
    let client = line.outbox.connect().await?;
    let rate = client.query_one(RATE, &[&began]).await?;
    Ok((rate.try_get(0)?, memory_max))
}

/// An error unless ClickHouse counts as many inserts as the ledger has blocks, so that none is hidden.
async fn check_inserts(line: &Line<'_>) -> Result<()> {
    const BLOCKS: &str = "
        select coalesce(sum(pg_catalog.jsonb_array_length(b.blocks)), 0)::bigint
        from pillarbox.batch b";
    const INSERTS: &str = "select value from system.events where event = 'InsertQuery'";
    let client = line.outbox.connect().await?;
    let blocks: i64 = client.query_one(BLOCKS, &[]).await?.get(0);
    let inserts = line.outbox.stage.clickhouse.query(INSERTS).await?;
    ensure!(
        inserts.trim() == blocks.to_string(),
        "the ledger has {blocks} blocks, ClickHouse counts {} inserts",
        inserts.trim()
    );
    Ok(())
}

/// `VmRSS` of proc(5).
fn resident_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next());
    let kib: f64 = kib.context("a process without memory")?.parse()?;
    Ok(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_rises_when_no_batch_is_missing_below() {
        let origin = 7 << 40;
        let mut batches = Batches::default();
        assert_eq!(batches.floor(), 0);
        batches.add(origin + 2);
        assert_eq!(batches.floor(), origin);
        batches.add(origin + 1);
        assert_eq!(batches.floor(), origin + 2);
        batches.add(origin + 1);
        batches.add(origin + 3);
        assert_eq!(batches.floor(), origin + 3);
    }

    #[test]
    fn a_schedule_gives_each_event_its_time() {
        let began = Instant::now();
        let schedule = Schedule::new(began, MEASURED, 1_000);
        assert_eq!((schedule.events, schedule.group), (45_000, 1));
        assert_eq!(schedule.due(1_500), began + Duration::from_millis(1_500));
        let schedule = Schedule::new(began, MEASURED, 10_000);
        assert_eq!((schedule.events, schedule.group), (450_000, 10));
        assert_eq!(schedule.due(15_000), began + Duration::from_millis(1_500));
    }

    #[test]
    fn a_context_is_json_of_300_bytes() {
        for nth in [0, 449_999] {
            assert_eq!(context(nth).len(), 300);
            let value: serde_json::Value = serde_json::from_str(&context(nth)).unwrap();
            assert_eq!(value["nth"], nth);
        }
    }
}
