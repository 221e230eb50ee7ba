//! One check in the place of five, which the outbox of an older version has.

use tokio_postgres::{Client, Error};

use super::keeper::{self, Tables};
use super::{BETWEEN_ATTEMPTS, SchemaError, is_missing_right, needs_administrator};

const ATTEMPTS_MAX: u32 = 5;

/// Sees to it that what an event must be is one check, so that publishing costs less. Tries a few times, each
/// for milliseconds only: whoever publishes meanwhile waits no longer. Returns what was in the way.
/// Dropping the future rolls back.
///
/// # Errors
/// When the server fails.
pub async fn unite(client: &mut Client) -> Result<Option<String>, SchemaError> {
    const IS_ONE: &str = "select exists (
        select from pg_catalog.pg_constraint
        where conrelid = 'pillarbox.event'::regclass and conname = 'event_is_checked')";
    if client.query_one(IS_ONE, &[]).await?.get(0) {
        return Ok(None);
    }
    for attempts in 1..=ATTEMPTS_MAX {
        match attempt(client).await {
            Ok(true) => return Ok(None),
            Ok(false) => tokio::time::sleep(BETWEEN_ATTEMPTS.wait(attempts, 1.0)).await,
            Err(error) if is_missing_right(&error) => {
                return Ok(Some(needs_administrator(&error).to_string()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(keeper::name(client, Tables::Outbox).await?))
}

async fn attempt(client: &mut Client) -> Result<bool, Error> {
    let transaction = client.transaction().await?;
    transaction
        .batch_execute("set local role pillarbox_owner")
        .await?;
    let is_one = transaction
        .query_one("select pillarbox.unite_checks()", &[])
        .await?
        .get(0);
    transaction.commit().await?;
    Ok(is_one)
}
