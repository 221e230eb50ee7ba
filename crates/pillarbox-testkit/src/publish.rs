//! Events as tests publish them, in each of the four ways, and as the oracle is told of them.

use std::pin::pin;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use serde_json::value::RawValue;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{Json, ToSql, Type};
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use crate::oracle::{Content, Oracle, Published};

/// Types of the events that benchmarks publish.
pub const TYPES: [&str; 5] = [
    "user_created",
    "order_placed",
    "payment_captured",
    "session_started",
    "document_viewed",
];

/// JSON that is only equal byte for byte: spaces, key order, doubled keys, escapes, numbers.
pub const ODD_CONTEXTS: [&str; 6] = [
    r#"{"total": 12.50, "currency" :"EUR"}"#,
    r#"{"b":1,"a":2,"b":3}"#,
    r#"{"nul":"\u0000","tab":"\t","slash":"\/","back":"\\N"}"#,
    "{\n\t\"lines\": [1e400, -0.0, 1E+2]\n}",
    r#"{"name":"Zoë 📮 Łódź","quote":"\"it's\""}"#,
    r#"[null, true, "text", 18446744073709551616]"#,
];

const COPY: &str = "copy pillarbox.event (event_id, event_type, event_date_time, environment, \
                    event_context, metadata_version) from stdin (format binary)";

/// One event, as it is published and as it must arrive.
#[derive(Clone, Debug)]
pub struct Event {
    pub event_id: Uuid,
    pub event_type: String,
    pub at: SystemTime,
    pub context: String,
}

impl Event {
    /// Microseconds since 1970 decide its month.
    pub fn at(time_us: i64, event_type: &str, context: String) -> Self {
        let since = Duration::from_micros(time_us.unsigned_abs());
        Self {
            event_id: Uuid::now_v7(),
            event_type: event_type.to_owned(),
            at: SystemTime::UNIX_EPOCH + since,
            context,
        }
    }

    /// What the oracle is told.
    pub fn published(&self) -> Result<Published> {
        let content = Content {
            event_type: &self.event_type,
            environment: "production",
            event_context: self.context.as_bytes(),
            metadata_version: 1,
        };
        let since = self.at.duration_since(SystemTime::UNIX_EPOCH)?;
        let time_us = i64::try_from(since.as_micros())?;
        Ok(Published::new(self.event_id, &content, time_us))
    }
}

/// How to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Function,
    Batch,
    Insert,
    Copy,
}

impl Way {
    pub const ALL: [Self; 4] = [Self::Function, Self::Batch, Self::Insert, Self::Copy];

    pub async fn publish(self, tx: &Transaction<'_>, events: &[Event]) -> Result<()> {
        match self {
            Self::Function => {
                let sql = "select pillarbox.publish($1, $2::text::json, $3, event_id => $4)";
                each(tx, sql, events).await
            }
            Self::Insert => {
                let sql = "insert into pillarbox.event \
                           (event_type, event_context, event_date_time, event_id) \
                           values ($1, $2::text::json, $3, $4)";
                each(tx, sql, events).await
            }
            Self::Batch => batch(tx, events).await,
            Self::Copy => copy(tx, events).await,
        }
    }
}

async fn each(tx: &Transaction<'_>, sql: &str, events: &[Event]) -> Result<()> {
    let statement = tx.prepare(sql).await?;
    for event in events {
        let given: [&(dyn ToSql + Sync); 4] = [
            &event.event_type,
            &event.context,
            &event.at,
            &event.event_id,
        ];
        tx.execute(&statement, &given).await?;
    }
    Ok(())
}

async fn batch(tx: &Transaction<'_>, events: &[Event]) -> Result<()> {
    let types: Vec<&str> = events
        .iter()
        .map(|event| event.event_type.as_str())
        .collect();
    let contexts: Vec<&str> = events.iter().map(|event| event.context.as_str()).collect();
    let times: Vec<SystemTime> = events.iter().map(|event| event.at).collect();
    let ids: Vec<Uuid> = events.iter().map(|event| event.event_id).collect();
    let sql = "select pillarbox.publish_batch($1, $2::text[]::json[], $3, event_ids => $4)";
    tx.execute(sql, &[&types, &contexts, &times, &ids]).await?;
    Ok(())
}

async fn copy(tx: &Transaction<'_>, events: &[Event]) -> Result<()> {
    let types = [
        Type::UUID,
        Type::TEXT,
        Type::TIMESTAMPTZ,
        Type::TEXT,
        Type::JSON,
        Type::INT8,
    ];
    let mut rows = pin!(BinaryCopyInWriter::new(tx.copy_in(COPY).await?, &types));
    for event in events {
        let context: &RawValue = serde_json::from_str(&event.context)?;
        let row: [&(dyn ToSql + Sync); 6] = [
            &event.event_id,
            &event.event_type,
            &event.at,
            &"production",
            &Json(context),
            &1_i64,
        ];
        rows.as_mut().write(&row).await?;
    }
    rows.as_mut().finish().await?;
    Ok(())
}

/// Commits events one way, in a transaction of their own, and records it.
pub async fn commit(
    client: &mut Client,
    oracle: &Oracle,
    way: Way,
    events: &[Event],
) -> Result<()> {
    let tx = client.transaction().await?;
    way.publish(&tx, events).await?;
    tx.commit().await?;
    for event in events {
        oracle.committed(event.published()?);
    }
    Ok(())
}

/// Whether the server ended the session or has no room left, as opposed to refusing a statement.
pub fn session_lost(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<tokio_postgres::Error>();
    cause.is_some_and(|cause| {
        let class = cause.code().map_or("08", |code| code.code());
        cause.is_closed()
            || ["57", "08", "53"]
                .iter()
                .any(|lost| class.starts_with(lost))
    })
}
