//! The registry of sinks: the only list of who must have received an event before it is truncated.

use rand::RngExt as _;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::SchemaError;

/// Origins have 23 bits: the sink's column `batch` holds them above a number of 40 bits, and stays
/// positive as a signed number.
const ORIGIN_END: u32 = 1 << 23;

/// A registered sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its number.
    pub sink: i32,
    /// Its name.
    pub name: String,
    /// What it writes to; a change is refused, because the ledger would speak of another place.
    pub fingerprint: String,
    /// Whether a person has paused it.
    pub paused: bool,
    /// Why its relay has stopped it.
    pub stopped_reason: Option<String>,
    /// Whether it was retired.
    pub retired: bool,
}

/// Where a new sink starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With everything that the outbox still holds.
    Outbox,
    /// With what commits from now on.
    Now,
}

/// Random bits for a registration.
pub fn random_origin() -> i32 {
    rand::rng().random_range(1..ORIGIN_END).cast_signed()
}

/// Registers a sink. Waits for a leaf that is being truncated.
///
/// # Errors
/// When the name is taken or invalid, or rights are missing.
pub async fn register(
    client: &Client,
    name: &str,
    fingerprint: &str,
    start: Start,
) -> Result<i32, SchemaError> {
    const REGISTER: &str = "select pillarbox.register_sink($1, $2, $3, $4)";
    let from_now = start == Start::Now;
    let arguments: &[&(dyn tokio_postgres::types::ToSql + Sync)] =
        &[&name, &fingerprint, &random_origin(), &from_now];
    match client.query_one(REGISTER, arguments).await {
        Ok(row) => Ok(row.get(0)),
        Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => Err(
            SchemaError::Invalid(format!("a sink named {name} is registered already")),
        ),
        Err(error) if error.code() == Some(&SqlState::CHECK_VIOLATION) => {
            Err(SchemaError::Invalid(format!(
                "{name:?} cannot name a sink; use a lower-case word of at most 32 letters, \
                 digits, - and _"
            )))
        }
        Err(error) => Err(error.into()),
    }
}

/// All sinks ever registered, by number.
///
/// # Errors
/// When the schema is missing or may not be read.
pub async fn list(client: &Client) -> Result<Vec<Registration>, SchemaError> {
    const LIST: &str = "
        select sink, name, fingerprint, paused, stopped_reason, retired_at is not null
        from pillarbox.sink
        order by sink";
    let rows = client.query(LIST, &[]).await?;
    let read = |row: &tokio_postgres::Row| Registration {
        sink: row.get(0),
        name: row.get(1),
        fingerprint: row.get(2),
        paused: row.get(3),
        stopped_reason: row.get(4),
        retired: row.get(5),
    };
    Ok(rows.iter().map(read).collect())
}

/// The sink of that name.
///
/// # Errors
/// When there is none, or it was retired.
pub async fn find(client: &Client, name: &str) -> Result<Registration, SchemaError> {
    let sinks = list(client).await?;
    match sinks.into_iter().find(|sink| sink.name == name) {
        None => Err(SchemaError::Invalid(format!(
            "no sink named {name} is registered; run: pillarbox sink create {name}"
        ))),
        Some(sink) if sink.retired => Err(SchemaError::Invalid(format!(
            "the sink {name} was retired; register a new one under another name"
        ))),
        Some(sink) => Ok(sink),
    }
}

/// Retires a sink: events are no longer kept for it, and its relay stops.
///
/// # Errors
/// When there is no such sink.
pub async fn retire(client: &Client, name: &str) -> Result<(), SchemaError> {
    const RETIRE: &str = "
        update pillarbox.sink set retired_at = pg_catalog.clock_timestamp()
        where name = $1 and retired_at is null";
    match client.execute(RETIRE, &[&name]).await? {
        0 => Err(SchemaError::Invalid(format!(
            "no sink named {name} is registered"
        ))),
        _ => Ok(()),
    }
}
