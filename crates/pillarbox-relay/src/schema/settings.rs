//! Settings that live in the database, because publishers and every relay must agree on them.

use tokio_postgres::Client;

use super::SchemaError;
use crate::postgres::quote;

/// Largest limit of an event's context: PostgreSQL cannot store a value above 1 GiB, and a row must
/// fit into memory several times.
pub const EVENT_BYTES_CEILING: i32 = 256 * 1024 * 1024;

/// The settings of an outbox.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Settings {
    /// `environment` of events that name none.
    pub environment: String,
    /// Bytes of an `event_context` at most.
    pub event_bytes_max: i32,
    /// How long a delivered event stays in the outbox, as a PostgreSQL interval.
    pub retention: String,
    /// How long the ledger is kept, as a PostgreSQL interval.
    pub ledger_retention: String,
    /// Size from which the ring turns away from a leaf.
    pub leaf_bytes_max: i64,
    /// Age from which the ring turns away from a leaf, as a PostgreSQL interval.
    pub leaf_age_max: String,
}

/// What to change; `None` leaves a setting as it is.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// `environment` of events that name none.
    pub environment: Option<String>,
    /// Bytes of an `event_context` at most.
    pub event_bytes_max: Option<i32>,
    /// How long a delivered event stays in the outbox, as a PostgreSQL interval.
    pub retention: Option<String>,
    /// How long the ledger is kept, as a PostgreSQL interval.
    pub ledger_retention: Option<String>,
    /// Size from which the ring turns away from a leaf.
    pub leaf_bytes_max: Option<i64>,
    /// Age from which the ring turns away from a leaf, as a PostgreSQL interval.
    pub leaf_age_max: Option<String>,
}

/// Reads the settings.
///
/// # Errors
/// When the schema is missing or may not be read.
pub async fn read(client: &Client) -> Result<Settings, SchemaError> {
    const READ: &str = "
        select
            pillarbox.environment_default(), pillarbox.event_bytes_max(), retention::text,
            ledger_retention::text, leaf_bytes_max, leaf_age_max::text
        from pillarbox.settings";
    let row = client.query_one(READ, &[]).await?;
    Ok(Settings {
        environment: row.get(0),
        event_bytes_max: row.get(1),
        retention: row.get(2),
        ledger_retention: row.get(3),
        leaf_bytes_max: row.get(4),
        leaf_age_max: row.get(5),
    })
}

/// Changes settings, all or none. Publishers do not wait for it.
///
/// # Errors
/// When a value is not allowed or the user is not a member of `pillarbox_owner`.
pub async fn change(client: &mut Client, change: &Change) -> Result<Settings, SchemaError> {
    if let Some(limit) = change.event_bytes_max
        && !(1..=EVENT_BYTES_CEILING).contains(&limit)
    {
        return Err(SchemaError::Invalid(format!(
            "event_bytes_max is {limit}; give it 1 to {EVENT_BYTES_CEILING} bytes"
        )));
    }
    if let Some(environment) = &change.environment
        && (environment.is_empty() || environment.contains('\0'))
    {
        return Err(SchemaError::Invalid(
            "environment must not be empty".to_owned(),
        ));
    }
    let transaction = client.transaction().await?;
    const UPDATE: &str = "
        update pillarbox.settings set
            retention = coalesce($1::text::interval, retention),
            ledger_retention = coalesce($2::text::interval, ledger_retention),
            leaf_bytes_max = coalesce($3, leaf_bytes_max),
            leaf_age_max = coalesce($4::text::interval, leaf_age_max)";
    let Change {
        retention,
        ledger_retention,
        leaf_bytes_max,
        leaf_age_max,
        ..
    } = change;
    transaction
        .execute(
            UPDATE,
            &[retention, ledger_retention, leaf_bytes_max, leaf_age_max],
        )
        .await?;
    if let Some(limit) = change.event_bytes_max {
        transaction
            .batch_execute(&constant("event_bytes_max", "integer", &limit.to_string()))
            .await?;
    }
    if let Some(environment) = &change.environment {
        let literal = quote::literal(environment);
        transaction
            .batch_execute(&constant("environment_default", "text", &literal))
            .await?;
    }
    transaction.commit().await?;
    read(client).await
}

/// A setting that publishers read on each insert is a constant function: the planner inlines it, and
/// replacing it takes no lock on the outbox.
fn constant(name: &str, type_name: &str, literal: &str) -> String {
    format!(
        "create or replace function pillarbox.{name}() returns {type_name}
         language sql immutable parallel safe return {literal}::{type_name};"
    )
}
