//! Whether the rows that a replica shows will stay.
//!
//! When a replica loses the keeper while it commits an insert, it leaves the part in its table, where
//! every query sees it, and puts it down to be checked later. If the keeper does not know the part, it
//! goes then, or earlier: when the server starts, or when a merge passes over it.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::answer::Fault;
use super::client::Client;
use super::fence::{sync, trouble_at};
use super::lookup::quoted;
use super::plan::ClickHousePlan;
use super::verdict::refuse;
use crate::sink::{Reaction, Trouble};

/// Why rows of a replica in parts that were never merged prove nothing; `None` when all of them stay.
///
/// Who asks before the rows misses a part that comes meanwhile, who asks after them one that goes.
pub(super) async fn doubt(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    replica: usize,
) -> Result<Option<Trouble>, Fault> {
    #[derive(Deserialize)]
    struct Checks {
        #[serde(deserialize_with = "quoted")]
        read_only: u64,
        #[serde(deserialize_with = "quoted")]
        to_check: u64,
    }
    let Some(condition) = &plan.0.in_replicas else {
        return Ok(None);
    };
    let statement = format!(
        "SELECT is_readonly AS read_only, parts_to_check AS to_check FROM system.replicas \
         WHERE {condition}"
    );
    let name = client.name(replica);
    let reason = match client.rows_at::<Checks>(replica, &statement).await?.pop() {
        None => format!(
            "{name} does not show {table} in system.replicas; GRANT SELECT ON system.replicas to the \
             sink's user"
        ),
        Some(checks) if checks.to_check > 0 => format!(
            "{name}: {} parts of {table} are still to be checked there, so their rows may not stay; a \
             server decides that within five minutes, an old one when it is told, unless they are \
             most of the table: SYSTEM RESTART REPLICA {table}",
            checks.to_check
        ),
        Some(checks) if checks.read_only > 0 => format!(
            "{name}: {table} is read-only, so which of its rows stay is not known; look at the keeper; \
             where it is back, an old server has to be told: SYSTEM RESTART REPLICA {table}"
        ),
        Some(_) => return Ok(None),
    };
    Ok(Some(Trouble {
        reaction: Reaction::Soon,
        ..refuse(reason)
    }))
}

/// The rows that a statement gives on the first replica that has caught up and whose rows will stay.
pub(super) async fn rows<T: DeserializeOwned>(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    statement: &str,
) -> Result<Vec<T>, Trouble> {
    let mut first = None;
    for replica in client.in_order() {
        match rows_at(client, plan, table, replica, statement).await {
            Ok(rows) => return Ok(rows),
            Err(trouble) => first.get_or_insert(trouble),
        };
    }
    Err(first.unwrap_or_else(|| refuse(format!("no server was asked for {table}"))))
}

async fn rows_at<T: DeserializeOwned>(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    replica: usize,
    statement: &str,
) -> Result<Vec<T>, Trouble> {
    sync(client, plan, table, replica).await?;
    let failed = |fault: Fault| trouble_at(client, replica, &fault);
    let doubt = doubt(client, plan, table, replica).await;
    match doubt.map_err(failed)? {
        Some(doubt) => Err(doubt),
        None => client.rows_at(replica, statement).await.map_err(failed),
    }
}
