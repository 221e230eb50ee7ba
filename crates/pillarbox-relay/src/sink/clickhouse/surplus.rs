//! Whether the table holds batches that the ledger has never sealed.

use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::client::Client;
use super::config::ClickHouseConfig;
use super::lookup::quoted;
use super::plan::ClickHousePlan;
use super::sql;
use super::verdict::trouble;
use crate::sink::Trouble;

/// How far the clocks of both servers may be apart.
const SKEW: Duration = Duration::from_secs(3600);

/// The highest of these values of the column `batch` that the table holds; `None` also where it has no
/// such column.
///
/// What was written after `since` lies in parts that were made after it. Older parts are left out by
/// name, so that a part that a merge makes meanwhile is read.
pub(super) async fn highest(
    client: &Client,
    plan: &ClickHousePlan,
    config: &ClickHouseConfig,
    values: RangeInclusive<u64>,
    since: SystemTime,
) -> Result<Option<u64>, Trouble> {
    #[derive(Deserialize)]
    struct Highest {
        #[serde(deserialize_with = "quoted")]
        rows: u64,
        #[serde(deserialize_with = "quoted")]
        highest: u64,
    }
    if !plan.0.layout.batch {
        return Ok(None);
    }
    let since = since.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default().saturating_sub(SKEW).as_secs();
    let statement = format!(
        "SELECT count() AS rows, max(batch) AS highest FROM {} WHERE batch >= {} AND batch <= {} AND \
         _part NOT IN (SELECT name FROM system.parts WHERE database = {} AND table = {} AND \
         modification_time < toDateTime({since}))",
        sql::table(&config.database, &config.table),
        values.start(),
        values.end(),
        sql::text(&config.database),
        sql::text(&config.table),
    );
    let found = client.rows::<Highest>(&statement).await;
    let found = found.map_err(|fault| trouble(&fault))?;
    let held = found.into_iter().find(|found| found.rows > 0);
    Ok(held.map(|found| found.highest))
}
