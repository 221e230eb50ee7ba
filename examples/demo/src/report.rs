//! The end: what ClickHouse holds against what the generators know, latencies, a sample query.

use std::collections::HashMap;

use anyhow::{Context, Result};
use pillarbox_testkit::oracle::{Precision, Verdict, read_clickhouse};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::record::Record;
use crate::stage::Stage;
use crate::traffic::settle;

/// The table that `pillarbox sink create` makes.
const TABLE: &str = "events";

/// Below this, a run has shown nothing.
const PUBLISHED_MIN: u64 = 1_000;

/// Bits of the column `batch` that hold the batch's number; above them is the origin.
const NUMBER_BITS: u32 = 40;

/// What a reader of ClickHouse would ask first.
pub(crate) const SAMPLE: &str = "\
select toString(toStartOfMinute(event_date_time)) as minute, toString(event_type) as type,
       count() as events, formatReadableSize(sum(length(event_context))) as context
from events group by minute, type order by minute, type";

pub(crate) struct Report {
    verdict: Verdict,
    p50_ms: i64,
    p99_ms: i64,
    inserts: u64,
}

impl Report {
    /// Compares. The sink must be at rest.
    pub(crate) async fn make(stage: &Stage, record: &Record, precision: Precision) -> Result<Self> {
        let admin = stage.postgres.connect_as("demo", "postgres", None).await?;
        record.resolve(&admin).await?;
        settle(record, &admin, &stage.users.log()?).await?;
        let found = read_clickhouse(&stage.clickhouse, TABLE, precision).await?;
        // There are no dead letters to read: a row that was set aside would count as lost.
        let verdict = record.oracle.verdict(&found, &[]);
        let (p50_ms, p99_ms) = latencies(stage, record, &admin).await?;
        Ok(Self {
            verdict,
            p50_ms,
            p99_ms,
            inserts: inserts(stage).await?,
        })
    }

    /// Whether everything arrived once, and there was enough of it.
    pub(crate) fn holds(&self) -> bool {
        self.verdict.holds() && self.verdict.published > PUBLISHED_MIN
    }

    /// What is wrong, with a few ids; empty when nothing is.
    pub(crate) fn explain(&self) -> String {
        let mut text = self.verdict.explain();
        if self.verdict.published <= PUBLISHED_MIN {
            text.push_str(&format!(
                "only {} events were published, {PUBLISHED_MIN} are too few; raise DEMO_SECONDS\n",
                self.verdict.published
            ));
        }
        text
    }

    pub(crate) fn rolled_back(&self) -> u64 {
        self.verdict.rolled_back
    }

    /// The last line.
    pub(crate) fn line(&self) -> String {
        format!(
            "demo: {} p50_ms={} p99_ms={} inserts={}",
            self.verdict, self.p50_ms, self.p99_ms, self.inserts
        )
    }
}

/// Percentiles, over all events, of the time from COMMIT to a confirmed delivery.
///
/// The start is when COMMIT returned to the generator (over HTTP: when the answer did); an event in
/// a long transaction does not exist before. The end is the ledger's `delivered_at`: ClickHouse had
/// answered before, so the event was visible then or earlier, also where a killed relay never heard
/// the answer. All clocks are this machine's. The time while relay or ClickHouse is down counts.
async fn latencies(stage: &Stage, record: &Record, admin: &Client) -> Result<(i64, i64)> {
    const DELIVERED: &str = "
        select number, (extract(epoch from delivered_at) * 1000000)::bigint
        from pillarbox.delivery";
    let delivered = admin.query(DELIVERED, &[]).await?;
    let delivered: HashMap<u64, i64> = delivered
        .iter()
        .map(|row| (row.get::<_, i64>(0).cast_unsigned(), row.get(1)))
        .collect();
    let text = stage
        .clickhouse
        .query(&format!("select toString(event_id), batch from {TABLE}"))
        .await?;
    let mut visible: HashMap<Uuid, i64> = HashMap::new();
    for line in text.lines() {
        let (event_id, batch) = line.split_once('\t').context("reading batches")?;
        let number = batch.parse::<u64>()? & ((1 << NUMBER_BITS) - 1);
        if let Some(at_us) = delivered.get(&number) {
            visible.insert(event_id.parse()?, *at_us);
        }
    }
    let mut all: Vec<i64> = record
        .commits()
        .into_iter()
        .filter_map(|(event_id, at_us)| Some((visible.get(&event_id)? - at_us).max(0) / 1_000))
        .collect();
    all.sort_unstable();
    let percentile = |share: usize| all.get(all.len() * share / 100).copied().unwrap_or(0);
    Ok((percentile(50), percentile(99)))
}

/// Blocks that inserts have written: ClickHouse numbers them in each table, across restarts, and
/// every insert of the relay is one block.
async fn inserts(stage: &Stage) -> Result<u64> {
    let sql = format!(
        "select max(max_block_number) from system.parts where database = '{}' and table = '{TABLE}'",
        stage.clickhouse.database()
    );
    let text = stage.clickhouse.query(&sql).await?;
    text.trim()
        .parse()
        .with_context(|| format!("{sql} gave {text:?}"))
}

/// Events per type and minute, as a table.
pub(crate) async fn sample(stage: &Stage) -> Result<String> {
    let text = stage.clickhouse.query(SAMPLE).await?;
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["minute", "event_type", "events", "event_context"]);
    for line in text.lines() {
        table.add_row(line.split('\t'));
    }
    Ok(table.to_string())
}
