//! The part *drain*: one backlog, drained again and again by ours and by the references in turn, and how fast
//! each end could go alone.

pub(crate) mod backlog;
pub(crate) mod contender;
pub(crate) mod content;
pub(crate) mod field;
mod limit;

use anyhow::{Context as _, Result};

use crate::bench::Bench;
use crate::report::Report;
use crate::stage::Stage;
use contender::{Contender, QUEUE, Took};
use field::Field;

const PART: &str = "drain";
const SMALL_ROWS: u64 = 2_000_000;
const SMALL_ROUNDS: usize = 5;
/// Rows of the poller's queue: at its rate two million would take minutes.
const QUEUE_ROWS: u64 = 200_000;
const QUEUE_ROUNDS: usize = 3;
const LIMIT_ROUNDS: usize = 3;
const LARGE_ROUNDS: usize = 3;
/// Name, events and bytes of each.
const LARGE: [(&str, u64, u64); 2] = [("100KB", 20_000, 100_000), ("5MB", 500, 5_000_000)];
/// 18.16 cuts what HTTP brings into blocks by their rows alone, and one of 2.5 GB takes it more than 16 GB of memory.
const CURL_BLOCK_BYTES: u64 = 1_000_000_000;
const MIB: f64 = (1 << 20) as f64;

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    small(bench, report).await.context("small events")?;
    for (name, rows, bytes) in LARGE {
        let rows = bench.count(rows).max(2);
        let large = large(bench, report, name, rows, bytes).await;
        large.with_context(|| format!("events of {name}"))?;
    }
    Ok(())
}

/// Drains by each in turn, and who begins changes from round to round.
async fn rounds(
    field: &mut Field<'_>,
    backlog: &str,
    all: &[Contender],
    rounds: usize,
    report: &mut Report,
) -> Result<()> {
    for round in 0..rounds {
        eprintln!("bench: {PART}: {backlog}: round {} of {rounds}", round + 1);
        for nth in 0..all.len() {
            let by = all[(round + nth) % all.len()];
            let took = field.drain(by, report).await?;
            add(report, backlog, by, field.content.rows, &took);
        }
    }
    Ok(())
}

/// Notes what a drain took; CPU time per million events of the small ones, per GB of the large ones.
fn add(report: &mut Report, backlog: &str, by: Contender, rows: u64, took: &Took) {
    let (name, rows) = (format!("{backlog}/{}", by.name()), rows as f64);
    report.add(PART, &name, "events/s", rows / took.wall_s);
    let mut figure = |what: &str, unit: &str, value: f64| {
        report.note(PART, &format!("{name}{what}"), unit, value);
    };
    figure(" wall", "s", took.wall_s);
    let large = LARGE.iter().find(|(name, ..)| *name == backlog);
    let (unit, whole) = match large {
        Some((_, _, bytes)) => ("s/GB", rows * *bytes as f64 / 1e9),
        None => ("s/M", rows / 1e6),
    };
    figure(" cpu own", unit, took.own_s / whole);
    figure(" cpu postgresql", unit, took.postgres_s / whole);
    figure(" cpu clickhouse", unit, took.clickhouse_s / whole);
    if by == Contender::Pillarbox {
        figure(" memory", "MiB", took.peak_bytes as f64 / MIB);
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        // Nothing that does the same work on these cores could be faster.
        let floor = (took.own_s + took.servers_s) / cores;
        figure(" floor", "of wall", floor / took.wall_s);
    }
}

async fn small(bench: &Bench, report: &mut Report) -> Result<()> {
    let stage = Stage::start(report).await?;
    let outbox = stage.outbox(bench, "small").await?;
    backlog::fill_small(&outbox, 1, bench.count(SMALL_ROWS)).await?;
    let mut field = Field::new(&outbox, "small", report).await?;
    let all = [
        Contender::Pillarbox,
        Contender::Client,
        Contender::Curl(None),
    ];
    rounds(&mut field, "small", &all, SMALL_ROUNDS, report).await?;
    limits(&mut field, report).await?;
    let batches: &[u32] = if bench.full {
        &[100, 1_000, 10_000]
    } else {
        &[1_000]
    };
    queue(bench, &field, batches, report).await
}

/// How fast each end is alone, on the same backlog.
async fn limits(field: &mut Field<'_>, report: &mut Report) -> Result<()> {
    let (stage, rows) = (field.outbox.stage, field.content.rows as f64);
    let (table, _) = field.drain_kept(Contender::Pillarbox).await?;
    let blocks = limit::blocks(stage, &table).await?;
    field.close(Contender::Pillarbox, &table, report).await?;
    for _ in 0..LIMIT_ROUNDS {
        let copy = limit::copy(field.outbox).await?;
        report.add(PART, "small/copy", "events/s", rows / copy);
        let insert = limit::insert(stage, &blocks, &field.five).await?;
        report.add(PART, "small/native", "events/s", rows / insert);
    }
    Ok(())
}

/// The poller, on a queue table of a part of the same events.
async fn queue(
    bench: &Bench,
    field: &Field<'_>,
    batches: &[u32],
    report: &mut Report,
) -> Result<()> {
    let outbox = field.outbox;
    let rows = bench.count(QUEUE_ROWS);
    for round in 0..QUEUE_ROUNDS {
        for nth in 0..batches.len() {
            let by = Contender::Poller(batches[(round + nth) % batches.len()]);
            let client = outbox.connect().await?;
            client.batch_execute(&fill_queue(rows)).await?;
            // Which no transaction can hold.
            client
                .batch_execute(&format!("vacuum analyze {QUEUE}"))
                .await?;
            client.batch_execute("checkpoint").await?;
            let content = content::of_postgres(&client, QUEUE).await?;
            drop(client);
            let table = format!("{QUEUE}_{round}_{nth}");
            let took = by.drain(outbox, &table, &field.five).await?;
            add(report, "small", by, rows, &took);
            field::compare(outbox, content, by, &table, report).await?;
        }
    }
    Ok(())
}

/// A queue table as such tasks have it, with the first events of the backlog.
fn fill_queue(rows: u64) -> String {
    format!(
        "drop table if exists {QUEUE};
         create table {QUEUE} (
             id bigserial primary key,
             event_type text not null,
             event_date_time timestamptz not null,
             environment text not null,
             event_context json not null,
             metadata_version bigint not null
         );
         insert into {QUEUE} (event_type, event_date_time, environment, event_context, metadata_version)
         select event_type, event_date_time, environment, event_context, metadata_version
         from pillarbox.event order by tx, id limit {rows}"
    )
}

async fn large(
    bench: &Bench,
    report: &mut Report,
    name: &str,
    rows: u64,
    bytes: u64,
) -> Result<()> {
    let stage = Stage::start(report).await?;
    let outbox = stage.outbox(bench, "large").await?;
    backlog::fill_large(&outbox, rows, bytes).await?;
    let mut field = Field::new(&outbox, name, report).await?;
    let mut all = vec![Contender::Pillarbox, Contender::Client];
    if bench.full {
        all.push(Contender::Curl(Some(CURL_BLOCK_BYTES / bytes)));
    }
    rounds(&mut field, name, &all, LARGE_ROUNDS, report).await
}
