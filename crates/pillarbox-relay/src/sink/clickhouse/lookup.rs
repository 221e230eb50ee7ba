//! Deciding about an insert whose outcome is unknown: fence the old attempt, then look.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Deserialize;

use super::answer::Fault;
use super::client::Client;
use super::fence::{Fence, Fenced, fence, sync, trouble_at};
use super::partition::Rule;
use super::plan::ClickHousePlan;
use super::settled;
use super::verdict::refuse;
use crate::batch::{Batch, NUMBER_BITS};
use crate::sink::{Doubt, Guarantee, Insert, Look, Resolution, Terms, Trouble};
use crate::verify::Held;

/// After a look that saw nothing, an insert that the fence did not see may still be committing.
const SETTLE: Duration = Duration::from_secs(1);

/// The names of parts that may never have been merged, by their level: engines that merge the rows of an
/// insert begin with 1. A mutation may follow.
const FRESH: &str = "_[0-9]+_[0-9]+_[01](_[0-9]+)?$";

/// What a table holds of a batch in one partition.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Found {
    #[serde(rename = "block_partition")]
    partition: String,
    #[serde(rename = "block_rows", deserialize_with = "quoted")]
    rows: u64,
    #[serde(rename = "block_digest", deserialize_with = "quoted")]
    digest: u64,
    /// How many of the rows lie in parts that may never have been merged.
    #[serde(rename = "block_fresh", deserialize_with = "quoted")]
    fresh: u64,
}

/// What a look found.
pub(super) struct Seen {
    pub(super) look: Look,
    /// Whether a later block of the batch is there.
    is_followed: bool,
    /// Why rows that were not seen may still be somewhere.
    pub(super) gap: Option<Trouble>,
}

/// Whether the table and its views surely still know the block's token.
///
/// Half of the window: `blocks_since` counts what was sealed, and several deliveries may be under way.
/// A block per second of other writers is allowed for, the most that ClickHouse bears well.
fn is_remembered(plan: &ClickHousePlan, batch: &Batch, doubt: Doubt) -> bool {
    // What it is now says nothing about what it was when the block was sent.
    let sealed = batch.terms.as_ref().map(|terms| terms.token_window);
    let now = plan.0.terms.token_window;
    let window = sealed.map_or(now, |sealed| sealed.min(now));
    let later = doubt.blocks_since.saturating_add(batch.blocks.len() as u64);
    let in_count = later.saturating_add(doubt.age.as_secs()) < window.blocks / 2;
    // Zero seconds would mean that a server forgets by time at once.
    let in_time = window
        .seconds
        .is_none_or(|seconds| doubt.age.as_secs() < seconds / 2);
    in_count && in_time
}

/// Decides about a block: by a look where the table has the column `batch`, else by its token, which the
/// table `remembers` as planned or not.
pub(super) async fn resolve(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    insert: &Insert<'_>,
    doubt: Doubt,
    remembers: bool,
) -> Result<Resolution, Trouble> {
    if plan.0.guarantee == Guarantee::AtLeastOnce {
        return Ok(Resolution::Resend);
    }
    let has_token = remembers && is_remembered(plan, insert.batch, doubt);
    if !plan.0.layout.batch {
        return Ok(if has_token {
            Resolution::Resend
        } else {
            Resolution::Undecidable(forgotten(table, insert))
        });
    }
    let strictness = match has_token {
        true => Fence::OfThoseThatAnswer,
        false => Fence::OfAll,
    };
    let seen = examine(client, plan, table, insert, doubt.quiet, strictness).await?;
    Ok(match seen.look {
        // The table has its rows, but a view may still lack them: the token completes it. Not so when
        // the block was settled before: a view that was altered since takes it for another one.
        Look::All(_) if plan.0.has_views && has_token && !seen.is_followed => Resolution::Resend,
        Look::All(server) => Resolution::Delivered(server),
        Look::Nothing if has_token || is_numbered(insert) => Resolution::Resend,
        // Its rows may be there without the number, as they were sealed.
        Look::Nothing => Resolution::Undecidable(unnumbered(table, insert)),
        Look::Other(trouble) => Resolution::Undecidable(trouble),
        Look::Blind | Look::Unchanged => Resolution::Undecidable(forgotten(table, insert)),
    })
}

/// Whether a look at the block's rows finds them if they are there.
pub(super) fn can_look(plan: &ClickHousePlan, insert: &Insert<'_>) -> bool {
    plan.0.layout.batch && is_numbered(insert)
}

/// Fences the block and looks at it; again after a while, when the first look does not see all of it and
/// somebody may have sent it a moment ago.
pub(super) async fn examine(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    insert: &Insert<'_>,
    quiet: Duration,
    strictness: Fence,
) -> Result<Seen, Trouble> {
    let fenced = fence(client, plan, table, insert, strictness).await?;
    let seen = look(client, plan, table, insert, fenced).await?;
    if matches!(seen.look, Look::All(_)) || quiet >= SETTLE {
        return Ok(seen);
    }
    tokio::time::sleep(SETTLE - quiet).await;
    let fenced = fence(client, plan, table, insert, strictness).await?;
    look(client, plan, table, insert, fenced).await
}

/// Whether the block was sealed with the batch number in its rows.
fn is_numbered(insert: &Insert<'_>) -> bool {
    let block = insert.batch.blocks.get(insert.ordinal);
    block.is_some_and(|block| block.is_numbered)
}

fn unnumbered(table: &str, insert: &Insert<'_>) -> Trouble {
    refuse(format!(
        "whether block {} of batch {} is in {table} cannot be told: it was sealed before the table \
         had the column batch, so its rows may be there without a number; look for its events in \
         the table, or run: pillarbox recover",
        insert.ordinal, insert.batch.number
    ))
}

fn forgotten(table: &str, insert: &Insert<'_>) -> Trouble {
    refuse(format!(
        "whether block {} of batch {} is in {table} cannot be told: the deduplication window may have \
         forgotten it, and the table has no column batch; look for its events in the table, or run: \
         pillarbox recover; for later batches: ALTER TABLE {table} ADD COLUMN batch UInt64",
        insert.ordinal, insert.batch.number
    ))
}

/// Counts and digests what the table holds of the batch, at replicas that the fence reached and no
/// other: one that comes back meanwhile may lag. Where there is a gap, each of them is asked for the
/// rows; where what one shows may not stay, the next.
pub(super) async fn look(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    insert: &Insert<'_>,
    fenced: Fenced,
) -> Result<Seen, Trouble> {
    let mut nothing = None;
    let (mut silence, mut unsure) = (None, None);
    for replica in fenced.replicas {
        let (found, server) = match found_at(client, plan, table, insert, replica).await {
            Ok(Shown::ForGood(found, server)) => (found, server),
            Ok(Shown::ForNow(trouble)) => {
                unsure.get_or_insert(trouble);
                continue;
            }
            Err(fault) if fault.is_silence() => {
                silence = Some(trouble_at(client, replica, &fault));
                continue;
            }
            Err(fault) => return Err(trouble_at(client, replica, &fault)),
        };
        let found = found.ok_or_else(|| no_numbers(table))?;
        let seen = Seen {
            look: compare(&found, plan, insert, table, server),
            is_followed: is_followed(&found, insert),
            gap: fenced.gap.clone(),
        };
        // Rows that may not stay are not nothing to a replica that may lag.
        let counts = fenced.gap.is_none() && (fenced.is_synced || unsure.is_none());
        if counts || !matches!(seen.look, Look::Nothing) {
            return Ok(seen);
        }
        nothing = Some(seen);
    }
    match nothing {
        Some(seen) if fenced.is_synced => Ok(seen),
        _ => Err(unsure.or(silence).unwrap_or_else(|| no_numbers(table))),
    }
}

/// What one replica shows of a batch.
enum Shown {
    /// With its name; `None` for an answer that cannot be read.
    ForGood(Option<Vec<Found>>, String),
    /// Rows, and why they may not stay.
    ForNow(Trouble),
}

async fn found_at(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    insert: &Insert<'_>,
    replica: usize,
) -> Result<Shown, Fault> {
    let before = settled::doubt(client, plan, table, replica).await?;
    let statement = look_statement(plan, table, insert);
    let answer = client.query_at(replica, &statement).await?;
    let found = found(&answer.body);
    if found.iter().flatten().any(|found| found.fresh > 0) {
        // Before, for a part that went meanwhile; after, for one that came.
        let doubt = match before {
            Some(doubt) => Some(doubt),
            None => settled::doubt(client, plan, table, replica).await?,
        };
        if let Some(doubt) = doubt {
            return Ok(Shown::ForNow(doubt));
        }
    }
    Ok(Shown::ForGood(found, answer.server))
}

/// By partition: rows that lie where none were sealed must not look like none.
fn look_statement(plan: &ClickHousePlan, table: &str, insert: &Insert<'_>) -> String {
    format!(
        "SELECT {} AS block_partition, count() AS block_rows, {} AS block_digest, \
         countIf(match(_part, '{FRESH}')) AS block_fresh \
         FROM {table} WHERE batch = {} GROUP BY block_partition FORMAT JSON",
        partition_text(plan),
        plan.digest(insert.batch.terms.as_ref()),
        insert.batch.sink_value()
    )
}

fn found(body: &[u8]) -> Option<Vec<Found>> {
    // Says how many rows it has, even when it has none.
    #[derive(Deserialize)]
    struct Answer {
        data: Vec<Found>,
        rows: usize,
    }
    let answer = serde_json::from_slice::<Answer>(body).ok()?;
    (answer.rows == answer.data.len()).then_some(answer.data)
}

/// Whether a later block of the batch is there: blocks are sent one after the other, so this one had
/// been settled before.
fn is_followed(found: &[Found], insert: &Insert<'_>) -> bool {
    let later = insert.batch.blocks.iter().skip(insert.ordinal + 1);
    let is_there = |partition: &str| {
        let mut found = found.iter().filter(|found| found.rows > 0);
        found.any(|found| found.partition == partition)
    };
    later.into_iter().any(|block| is_there(&block.partition))
}

fn compare(
    found: &[Found],
    plan: &ClickHousePlan,
    insert: &Insert<'_>,
    table: &str,
    server: String,
) -> Look {
    let batch = insert.batch;
    // Where a proven column was dropped from the table, the number and the count have to do.
    let has_digest = plan.can_prove(batch.terms.as_ref());
    let Some(block) = batch.blocks.get(insert.ordinal) else {
        return Look::Other(refuse(format!(
            "batch {} has no block {}",
            batch.number, insert.ordinal
        )));
    };
    let found = || found.iter().filter(|found| found.rows > 0);
    let is_sealed = |partition: &str| {
        let mut blocks = batch.blocks.iter();
        blocks.any(|block| block.partition == partition)
    };
    if let Some(stray) = found().find(|found| !is_sealed(&found.partition)) {
        return Look::Other(refuse(format!(
            "{table} holds {} rows of batch {} in partition '{}', where none were sealed: the \
             partition expression or a time zone changed, or somebody else wrote them; look at \
             batch = {}",
            stray.rows,
            batch.number,
            stray.partition,
            batch.sink_value()
        )));
    }
    match found().find(|found| found.partition == block.partition) {
        None => Look::Nothing,
        Some(found)
            if found.rows == block.rows && (!has_digest || found.digest == block.digest) =>
        {
            Look::All(server)
        }
        Some(found) => Look::Other(refuse(format!(
            "{table} holds {} rows with digest {:016x} of block {} of batch {}, but {} rows with \
             digest {:016x} were sealed; the relay goes on by itself once the table holds all of them or none",
            found.rows, found.digest, insert.ordinal, batch.number, block.rows, block.digest
        ))),
    }
}

fn no_numbers(table: &str) -> Trouble {
    refuse(format!(
        "clickhouse did not answer a count of {table} with numbers"
    ))
}

/// What the table holds of the batches with these terms whose column `batch` lies between two values.
pub(super) async fn held_between(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    terms: Option<&Terms>,
    values: RangeInclusive<u64>,
) -> Result<Vec<Held>, Trouble> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(deserialize_with = "quoted")]
        block_batch: u64,
        block_partition: String,
        #[serde(deserialize_with = "quoted")]
        block_rows: u64,
        #[serde(deserialize_with = "quoted")]
        block_digest: u64,
    }
    needs_batch(plan, table)?;
    let statement = format!(
        "SELECT batch AS block_batch, {} AS block_partition, count() AS block_rows, \
         {} AS block_digest FROM {table} WHERE batch >= {} AND batch <= {} \
         GROUP BY block_batch, block_partition",
        partition_text(plan),
        plan.digest(terms),
        values.start(),
        values.end()
    );
    let lines = settled::rows::<Line>(client, plan, table, &statement).await?;
    let held = |line: Line| Held {
        sink_value: line.block_batch,
        partition: line.block_partition,
        rows: line.block_rows,
        digest: line.block_digest,
    };
    Ok(lines.into_iter().map(held).collect())
}

/// The partition of a row as a block map has it, as SQL.
fn partition_text(plan: &ClickHousePlan) -> String {
    match plan.0.layout.rule {
        Rule::One => "''".to_owned(),
        Rule::Of { .. } => format!("toString({})", plan.0.partition_key),
    }
}

/// The highest batch number of an origin that any replica holds.
pub(super) async fn highest_number(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    origin: u32,
) -> Result<Option<i64>, Trouble> {
    #[derive(Deserialize)]
    struct Highest {
        #[serde(deserialize_with = "quoted")]
        rows: u64,
        #[serde(deserialize_with = "quoted")]
        highest: u64,
    }
    needs_batch(plan, table)?;
    let first = u64::from(origin) << NUMBER_BITS;
    let last = first | ((1 << NUMBER_BITS) - 1);
    let statement = format!(
        "SELECT count() AS rows, max(batch) AS highest FROM {table} \
         WHERE batch >= {first} AND batch <= {last}"
    );
    let mut highest = None;
    for replica in 0..client.endpoints() {
        sync(client, plan, table, replica).await?;
        let found = client.rows_at::<Highest>(replica, &statement).await;
        let found = found.map_err(|fault| trouble_at(client, replica, &fault))?;
        let held = found.into_iter().find(|found| found.rows > 0);
        highest = highest.max(held.map(|found| (found.highest - first).cast_signed()));
    }
    Ok(highest)
}

fn needs_batch(plan: &ClickHousePlan, table: &str) -> Result<(), Trouble> {
    if plan.0.layout.batch {
        return Ok(());
    }
    Err(refuse(format!(
        "{table} has no column batch, so nobody can tell what it holds of a batch; ALTER TABLE \
         {table} ADD COLUMN batch UInt64"
    )))
}

/// A 64-bit number, which JSON carries as text.
pub(super) fn quoted<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    match Either::deserialize(from)? {
        Either::Number(number) => Ok(number),
        Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}
