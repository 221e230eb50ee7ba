//! Looking for events by their identity, for `pillarbox recover`: which of them the table holds,
//! whatever batch brought them.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;
use uuid::Uuid;

use super::client::Client;
use super::fence::{sync, trouble_at};
use super::lookup::quoted;
use super::plan::ClickHousePlan;
use super::settled;
use super::sql;
use super::verdict::refuse;
use crate::sink::{Reaction, Trouble};

/// Events of one statement: 40 bytes each, well below the 256 KiB that a server parses.
const SOUGHT_MAX: usize = 4_000;
/// Types that one statement names to narrow the search; with more of them it does without.
const TYPES_MAX: usize = 200;
/// An insert that a killed relay has just sent may not have begun yet.
const SETTLE: Duration = Duration::from_secs(1);
/// How long an insert that was under way may take to end: far above any insert timeout.
const STILL_MAX: Duration = Duration::from_secs(120);
/// Between two looks at the running statements.
const STILL_POLL: Duration = Duration::from_millis(200);

/// An event to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sought {
    /// Its identity.
    pub event_id: Uuid,
    /// Its type.
    pub event_type: String,
    /// When it happened, in microseconds since 1970.
    pub event_date_time_us: i64,
}

/// Whether the table keeps the identity of events as it was published.
pub(super) fn keeps(plan: &ClickHousePlan) -> bool {
    is_base(plan, "event_id")
}

/// Whether the relay writes the outbox's own value into the column: the digest covers just these.
fn is_base(plan: &ClickHousePlan, name: &str) -> bool {
    let layout = &plan.0.layout;
    let mut base = layout.digest.iter().map(|at| &layout.columns[*at]);
    base.any(|column| column.name == name)
}

/// Waits until no insert into the table is running on any replica, and until each has what another
/// one took: what a look does not see then, was not written.
///
/// # Errors
/// When a server cannot be asked, or an insert does not end.
pub(super) async fn settle(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
) -> Result<(), Trouble> {
    #[derive(Deserialize)]
    struct Running {
        #[serde(deserialize_with = "quoted")]
        running: u64,
    }
    tokio::time::sleep(SETTLE).await;
    let begin = sql::text(&format!("INSERT INTO {table} "));
    let running = format!(
        "SELECT count() AS running FROM system.processes WHERE position(query, {begin}) = 1"
    );
    for replica in 0..client.endpoints() {
        let deadline = Instant::now() + STILL_MAX;
        loop {
            let rows = client.rows_at::<Running>(replica, &running).await;
            let rows = rows.map_err(|fault| trouble_at(client, replica, &fault))?;
            if rows.iter().all(|row| row.running == 0) {
                break;
            }
            if Instant::now() >= deadline {
                return Err(Trouble {
                    code: None,
                    reason: format!(
                        "{}: somebody inserts into {table}; stop every relay that writes to it, \
                         also those of the server that this one replaces",
                        client.name(replica)
                    ),
                    reaction: Reaction::Stop,
                    source: None,
                });
            }
            tokio::time::sleep(STILL_POLL).await;
        }
        sync(client, plan, table, replica).await?;
    }
    Ok(())
}

/// Which of the events the table holds.
///
/// # Errors
/// When the table does not keep identities, or cannot be asked.
pub(super) async fn held(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    sought: &[Sought],
) -> Result<HashSet<Uuid>, Trouble> {
    #[derive(Deserialize)]
    struct Found {
        found: Uuid,
    }
    if !keeps(plan) {
        return Err(refuse(format!("{table} does not keep the column event_id")));
    }
    let mut found = HashSet::new();
    for chunk in sought.chunks(SOUGHT_MAX) {
        let ids: Vec<String> = chunk.iter().map(|one| one.event_id.to_string()).collect();
        let statement = format!(
            "SELECT DISTINCT toString(event_id) AS found FROM {table} WHERE {}toString(event_id) IN \
             ({})",
            narrowed(plan, chunk),
            sql::texts(ids.iter().map(String::as_str)),
        );
        let rows = settled::rows::<Found>(client, plan, table, &statement).await?;
        found.extend(rows.into_iter().map(|row| row.found));
    }
    Ok(found)
}

/// How many rows without an identity lie among those: they may be any of them, written before the
/// table had the column.
///
/// # Errors
/// When the table cannot be asked.
pub(super) async fn unidentified(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    sought: &[Sought],
) -> Result<u64, Trouble> {
    #[derive(Deserialize)]
    struct Counted {
        #[serde(deserialize_with = "quoted")]
        rows: u64,
    }
    if sought.is_empty() {
        return Ok(0);
    }
    let nil = Uuid::nil().to_string();
    let statement = format!(
        "SELECT count() AS rows FROM {table} WHERE {}(toString(event_id) IN ({}) OR isNull(event_id))",
        narrowed(plan, sought),
        sql::texts([nil.as_str(), ""]),
    );
    let rows = settled::rows::<Counted>(client, plan, table, &statement).await?;
    Ok(rows.iter().map(|row| row.rows).sum())
}

/// What all of them have in common, so that a large table is not read whole: types and times.
fn narrowed(plan: &ClickHousePlan, sought: &[Sought]) -> String {
    let mut out = String::new();
    let types: BTreeSet<&str> = sought.iter().map(|one| one.event_type.as_str()).collect();
    if is_base(plan, "event_type") && types.len() <= TYPES_MAX {
        // Writing to a String cannot fail.
        let _ = write!(out, "event_type IN ({}) AND ", sql::texts(types));
    }
    if is_base(plan, "event_date_time") {
        let times = || {
            sought
                .iter()
                .map(|one| one.event_date_time_us.div_euclid(1_000_000))
        };
        // The sink cuts times towards the past, at most to the second.
        if let Some(first) = times().min().and_then(|at| u32::try_from(at).ok()) {
            let _ = write!(out, "event_date_time >= toDateTime({first}) AND ");
        }
        let last = times().max().and_then(|at| u32::try_from(at).ok());
        if let Some(end) = last.and_then(|last| last.checked_add(1)) {
            let _ = write!(out, "event_date_time < toDateTime({end}) AND ");
        }
    }
    out
}
