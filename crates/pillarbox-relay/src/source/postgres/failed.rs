//! Which row it was that the server could not compute a value of: a COPY does not tell.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Error, Transaction};

use super::lost;
use super::read::{Reading, bounded, lock, queries, store, value};
use crate::postgres::Session;
use crate::sink::RowError;
use crate::snapshot::Cut;
use crate::source::SourceError;

/// Classes of SQLSTATE that are the fault of a value: cardinality, data, constraints, functions of users
/// that raise in any language, limits of a value.
const OF_ROW: [&str; 8] = ["21", "22", "23", "2F", "38", "39", "54", "P0"];

/// Classes whose messages name objects and servers, and no value.
const OF_NO_VALUE: [&str; 7] = ["08", "40", "42", "53", "55", "57", "58"];

/// Whether the server could not compute a value, as against not do its work.
pub(super) fn is_of_row(error: &Error) -> bool {
    let code = error.code().map(SqlState::code).unwrap_or_default();
    OF_ROW.iter().any(|class| code.starts_with(class))
}

/// What an error means for the session, without its text where that may quote an event.
pub(super) fn untold(error: Error) -> SourceError {
    let code = error.code().map(|code| code.code().to_owned());
    match code {
        Some(code) if !OF_NO_VALUE.iter().any(|class| code.starts_with(class)) => {
            let what =
                format!("an expression failed with SQLSTATE {code}; the server's log says more");
            SourceError::Lost(what, None)
        }
        _ => lost(error),
    }
}

/// The first row of the reading, with the column whose expression fails for it. Rows are computed in the
/// order in which they are read, so it is the one that ended a COPY.
pub(super) async fn locate(
    reader: &mut Session,
    reading: &Reading<'_>,
    error: Error,
) -> Result<RowError, SourceError> {
    let transaction = bounded(lock(reader, reading.outbox)).await?;
    let at = bounded(first(&transaction, reading)).await?;
    let Some(at) = at else {
        return Err(untold(error));
    };
    for name in reading.columns {
        let computed = bounded(compute(&transaction, reading, at, name)).await?;
        if let Err(error) = computed {
            // The message may hold a part of the event.
            let code = error.code().map(SqlState::code).unwrap_or_default();
            let reason = format!("its expression fails with SQLSTATE {code}");
            return Ok(RowError {
                tx: at.tx,
                id: at.id,
                column: name.clone(),
                reason,
            });
        }
    }
    // It has another value by now.
    Err(untold(error))
}

async fn first(
    transaction: &Transaction<'_>,
    reading: &Reading<'_>,
) -> Result<Option<Cut>, SourceError> {
    let keys = Reading {
        columns: &[],
        ..*reading
    };
    for query in queries(&keys) {
        let Some(query) = query(&keys, 1) else {
            continue;
        };
        let first = format!("select r.tx::text, r.id from ({query}) r limit 1");
        if let Some(row) = transaction.query_opt(&first, &[]).await.map_err(lost)? {
            let tx: &str = row.get(0);
            let tx = tx
                .parse()
                .map_err(|_| SourceError::Broken(format!("{tx} is no transaction")))?;
            return Ok(Some(Cut { tx, id: row.get(1) }));
        }
    }
    Ok(None)
}

/// Computes one value of a row; the transaction is void when that fails.
async fn compute(
    transaction: &Transaction<'_>,
    reading: &Reading<'_>,
    at: Cut,
    name: &str,
) -> Result<Result<(), Error>, SourceError> {
    let (value, store) = (value(name, reading), store(reading));
    let query = format!(
        "select {value} from {store} e where e.tx = '{}'::xid8 and e.id = {}",
        at.tx, at.id
    );
    match transaction.query(&query, &[]).await {
        Ok(_) => Ok(Ok(())),
        Err(error) if is_of_row(&error) => Ok(Err(error)),
        Err(error) => Err(untold(error)),
    }
}
