//! Deciding about an insert whose outcome is unknown: fence the old attempt, then look.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::answer::Fault;
use super::client::Client;
use super::plan::ClickHousePlan;
use super::sql;
use super::verdict::{refuse, trouble};
use crate::batch::{Block, NUMBER_BITS};
use crate::sink::{Doubt, Guarantee, Insert, Reaction, Resolution, Trouble};

/// After a look that saw nothing, an insert that the fence did not see may still be committing.
const SETTLE: Duration = Duration::from_secs(1);
/// How long a killed insert may take to end.
const FENCE_MAX: Duration = Duration::from_secs(30);
/// Between two looks at the running statements.
const FENCE_POLL: Duration = Duration::from_millis(100);

/// What a table holds of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    rows: u64,
    digest: u64,
}

/// Whether the table surely still knows the block's token.
///
/// Half of the window: `blocks_since` counts what was sealed, and several deliveries may be under way.
/// Where one can look instead, a block per second of other writers is allowed for, the most that
/// ClickHouse bears well.
pub(super) fn is_remembered(plan: &ClickHousePlan, doubt: Doubt) -> bool {
    let window = plan.0.window;
    let others = if plan.0.layout.batch {
        doubt.age.as_secs()
    } else {
        0
    };
    let in_count = doubt.blocks_since.saturating_add(others) < window.blocks / 2;
    // Zero seconds would mean that a server forgets by time at once.
    let in_time = window
        .seconds
        .is_none_or(|seconds| doubt.age.as_secs() < seconds / 2);
    in_count && in_time
}

/// Decides about a block, by its token or by a look.
pub(super) async fn resolve(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    insert: &Insert<'_>,
    doubt: Doubt,
) -> Result<Resolution, Trouble> {
    match plan.0.guarantee {
        Guarantee::AtLeastOnce => return Ok(Resolution::Resend),
        Guarantee::Token if is_remembered(plan, doubt) => return Ok(Resolution::Resend),
        Guarantee::Token if !plan.0.layout.batch => {
            return Ok(Resolution::Undecidable(forgotten(table, insert)));
        }
        Guarantee::Token | Guarantee::Lookup => {}
    }
    let Some(block) = insert.batch.blocks.get(insert.ordinal) else {
        return Ok(Resolution::Undecidable(refuse(format!(
            "batch {} has no block {}",
            insert.batch.number, insert.ordinal
        ))));
    };
    fence(client, plan, table, insert).await?;
    let (mut found, mut server) = look(client, plan, table, insert, block).await?;
    if found.rows != block.rows || found.digest != block.digest {
        tokio::time::sleep(SETTLE).await;
        fence(client, plan, table, insert).await?;
        (found, server) = look(client, plan, table, insert, block).await?;
    }
    Ok(match found {
        Found { rows: 0, .. } => Resolution::Resend,
        found if found.rows == block.rows && found.digest == block.digest => {
            Resolution::Delivered(server)
        }
        found => Resolution::Undecidable(refuse(format!(
            "{table} holds {} rows with digest {:016x} of block {} of batch {}, but {} rows with \
             digest {:016x} were sealed; run pillarbox verify",
            found.rows, found.digest, insert.ordinal, insert.batch.number, block.rows, block.digest
        ))),
    })
}

fn forgotten(table: &str, insert: &Insert<'_>) -> Trouble {
    refuse(format!(
        "whether block {} of batch {} is in {table} cannot be told: the deduplication window may have \
         forgotten it, and the table has no column batch; look, then run pillarbox recover, and ALTER \
         TABLE {table} ADD COLUMN batch UInt64",
        insert.ordinal, insert.batch.number
    ))
}

/// Makes sure that no earlier attempt of the block is still running on any replica.
async fn fence(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    insert: &Insert<'_>,
) -> Result<(), Trouble> {
    let attempts = sql::text(&format!("{}-{}-%", insert.batch.batch_id, insert.ordinal));
    let running = format!(
        "SELECT count() AS running FROM system.processes WHERE query_id LIKE {attempts} FORMAT JSONEachRow"
    );
    for replica in 0..client.endpoints() {
        let deadline = Instant::now() + FENCE_MAX;
        loop {
            let answer = client.query_at(replica, &running).await;
            let answer = answer.map_err(|fault| trouble(&fault))?;
            if counted(&answer.body) == Some(0) {
                break;
            }
            // A server that cannot kill still ends the insert when its connection is closed.
            let kill = format!("KILL QUERY WHERE query_id LIKE {attempts} ASYNC");
            let _ = client.query_at(replica, &kill).await;
            if Instant::now() >= deadline {
                return Err(Trouble {
                    code: None,
                    reason: format!(
                        "an earlier insert into {table} is still running on the server"
                    ),
                    reaction: Reaction::Backoff,
                    source: None,
                });
            }
            tokio::time::sleep(FENCE_POLL).await;
        }
        if plan.0.replicated {
            // What another replica committed must be here before one looks.
            let sync = format!("SYSTEM SYNC REPLICA {table}");
            client
                .query_at(replica, &sync)
                .await
                .map_err(|fault| trouble(&fault))?;
        }
    }
    Ok(())
}

fn counted(body: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Running {
        #[serde(deserialize_with = "quoted")]
        running: u64,
    }
    serde_json::from_slice::<Running>(body)
        .ok()
        .map(|row| row.running)
}

/// Counts and digests what the table holds of a block.
async fn look(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    insert: &Insert<'_>,
    block: &Block,
) -> Result<(Found, String), Trouble> {
    let mut condition = format!("batch = {}", insert.batch.sink_value());
    if !plan.0.partition_key.is_empty() && !block.partition.is_empty() {
        let value = sql::text(&block.partition);
        condition.push_str(&format!(
            " AND toString({}) = {value}",
            plan.0.partition_key
        ));
    }
    let failed = |fault: Fault| trouble(&fault);
    let statement = statement(plan, table, &condition);
    let answer = client.query(&statement).await.map_err(failed)?;
    let found = found(&answer.body).ok_or_else(|| {
        refuse(format!(
            "clickhouse did not answer a count of {table} with numbers"
        ))
    })?;
    Ok((found, answer.server))
}

fn statement(plan: &ClickHousePlan, table: &str, condition: &str) -> String {
    format!(
        "SELECT count() AS rows, {} AS digest FROM {table} WHERE {condition} FORMAT JSONEachRow",
        plan.0.digest
    )
}

fn found(body: &[u8]) -> Option<Found> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(deserialize_with = "quoted")]
        rows: u64,
        #[serde(deserialize_with = "quoted")]
        digest: u64,
    }
    let line: Line = serde_json::from_slice(body).ok()?;
    Some(Found {
        rows: line.rows,
        digest: line.digest,
    })
}

/// What the table holds of a whole batch: rows and digest.
pub(super) async fn held(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    sink_value: u64,
) -> Result<(u64, u64), Trouble> {
    needs_batch(plan, table)?;
    let statement = statement(plan, table, &format!("batch = {sink_value}"));
    let answer = client
        .query(&statement)
        .await
        .map_err(|fault| trouble(&fault))?;
    let found = found(&answer.body).ok_or_else(|| {
        refuse(format!(
            "clickhouse did not answer a count of {table} with numbers"
        ))
    })?;
    Ok((found.rows, found.digest))
}

/// The highest batch number of an origin.
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
    let found = client
        .rows::<Highest>(&statement)
        .await
        .map_err(|fault| trouble(&fault))?;
    let held = found.into_iter().find(|found| found.rows > 0);
    Ok(held.map(|found| (found.highest - first).cast_signed()))
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
fn quoted<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
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
