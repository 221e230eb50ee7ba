//! Dead letters of intakes: their bytes, and a second try.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, IsolationLevel, Transaction};
use uuid::Uuid;

use super::entry::{Body, Reason};
use super::trouble::{IntakeError, in_time};
use super::writing::{self, Item};

/// The largest letter that is read at once: no larger entry can become an event.
const BYTES_MAX: i64 = 256 * 1024 * 1024;

/// What a second try gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retried {
    /// It is this event now.
    Published(Uuid),
    /// It is dead still.
    Dead(Reason),
    /// Somebody has decided about it before.
    Settled,
}

/// Publishes the entry of a dead letter once, if it is an event by now.
///
/// # Errors
/// When PostgreSQL is away or refuses more than the entry.
pub async fn retry(client: &mut Client, dead_letter: i64) -> Result<Retried, IntakeError> {
    const CLAIM: &str = include_str!("sql/letter_claim.sql");
    const PUBLISHED: &str = include_str!("sql/letter_published.sql");
    const STILL_DEAD: &str = include_str!("sql/letter_still_dead.sql");
    let begin = client.build_transaction();
    let transaction = in_time(begin.isolation_level(IsolationLevel::ReadCommitted).start()).await?;
    let Some(row) = in_time(transaction.query_opt(CLAIM, &[&dead_letter])).await? else {
        return Ok(Retried::Settled);
    };
    let (format, size): (String, i64) = (row.get(0), row.get(1));
    let outcome = match size > BYTES_MAX {
        true => Err(Reason(format!(
            "it has {size} bytes, more than any event may have; drop it"
        ))),
        false => publish(&transaction, dead_letter, &format).await?,
    };
    let retried = match outcome {
        Ok(event_id) => {
            let given: &[&(dyn ToSql + Sync)] = &[&dead_letter, &event_id];
            in_time(transaction.execute(PUBLISHED, given)).await?;
            Retried::Published(event_id)
        }
        Err(reason) => {
            let given: &[&(dyn ToSql + Sync)] = &[&dead_letter, &reason.0];
            in_time(transaction.execute(STILL_DEAD, given)).await?;
            Retried::Dead(reason)
        }
    };
    in_time(transaction.commit()).await?;
    Ok(retried)
}

async fn publish(
    transaction: &Transaction<'_>,
    dead_letter: i64,
    format: &str,
) -> Result<Result<Uuid, Reason>, IntakeError> {
    let bytes = bytes(transaction.client(), dead_letter).await?;
    let Some(body) = Body::read(format, bytes) else {
        return Ok(Err(Reason("its bytes cannot be read".to_owned())));
    };
    let given = body.event().ok().and_then(|event| event.event_id);
    let event_id = given.unwrap_or_else(Uuid::now_v7);
    let item = Item {
        place: String::new(),
        body,
        doubt: None,
        event_id: Some(event_id),
    };
    let refused = writing::publish(transaction, std::slice::from_ref(&item)).await?;
    Ok(match refused.into_iter().next() {
        None => Ok(event_id),
        Some(refused) => Err(refused.reason),
    })
}

/// The untouched bytes of a dead letter.
///
/// # Errors
/// When PostgreSQL is away or refuses.
pub async fn bytes(client: &Client, dead_letter: i64) -> Result<Vec<u8>, IntakeError> {
    const PIECES: &str = include_str!("sql/letter_pieces.sql");
    let rows = in_time(client.query(PIECES, &[&dead_letter])).await?;
    let mut bytes = Vec::new();
    for row in &rows {
        bytes.extend_from_slice(row.get(0));
    }
    Ok(bytes)
}
