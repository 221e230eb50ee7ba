//! An event of the fake outbox, and its columns as PostgreSQL's binary COPY gives them.

use std::time::{Duration, SystemTime};

use pillarbox_relay::sink::OutboxColumn;
use uuid::Uuid;

use super::encoder::digest;

/// PostgreSQL counts time from here: 2000-01-01 UTC.
const POSTGRES_EPOCH_S: u64 = 946_684_800;

/// The base columns of the outbox: name, type, oid of the type, not null.
const COLUMNS: [(&str, &str, u32, bool); 11] = [
    ("slot", "smallint", 21, true),
    ("tx", "xid8", 5069, true),
    ("id", "bigint", 20, true),
    ("event_id", "uuid", 2950, true),
    ("event_type", "text", 25, true),
    ("event_date_time", "timestamp with time zone", 1184, true),
    ("environment", "text", 25, true),
    ("event_context", "json", 114, true),
    ("metadata_version", "bigint", 20, true),
    ("trace_parent", "text", 25, false),
    ("published_at", "timestamp with time zone", 1184, true),
];

/// The columns that a publisher sets.
const SAID: [&str; 7] = [
    "event_id",
    "event_type",
    "event_date_time",
    "environment",
    "event_context",
    "metadata_version",
    "trace_parent",
];

/// The columns of an outbox to which nobody added any.
pub fn outbox_columns() -> Vec<OutboxColumn> {
    let column = |(name, type_name, type_oid, not_null): (&str, &str, u32, bool)| OutboxColumn {
        name: name.to_owned(),
        type_oid,
        type_name: type_name.to_owned(),
        not_null,
        expression: None,
    };
    COLUMNS.into_iter().map(column).collect()
}

/// What a publisher says about an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeEvent {
    /// Its identity.
    pub event_id: Uuid,
    /// Its type.
    pub event_type: String,
    /// When it happened.
    pub event_date_time: SystemTime,
    /// Where.
    pub environment: String,
    /// The payload.
    pub event_context: Vec<u8>,
    /// The version of its shape.
    pub metadata_version: i64,
    /// The publisher's trace.
    pub trace_parent: Option<String>,
}

impl FakeEvent {
    /// An event of type `happened` in `test`.
    pub fn new(event_id: Uuid, at: SystemTime, event_context: impl Into<Vec<u8>>) -> Self {
        Self {
            event_id,
            event_type: "happened".to_owned(),
            event_date_time: at,
            environment: "test".to_owned(),
            event_context: event_context.into(),
            metadata_version: 1,
            trace_parent: None,
        }
    }

    /// A base column in binary format; `None` when it is null or the outbox does not have it.
    pub fn field(&self, column: &str, published_at: SystemTime) -> Option<Vec<u8>> {
        match column {
            "event_id" => Some(self.event_id.as_bytes().to_vec()),
            "event_type" => Some(self.event_type.clone().into_bytes()),
            "event_date_time" => Some(micros(self.event_date_time)),
            "environment" => Some(self.environment.clone().into_bytes()),
            "event_context" => Some(self.event_context.clone()),
            "metadata_version" => Some(self.metadata_version.to_be_bytes().to_vec()),
            "trace_parent" => self.trace_parent.clone().map(String::into_bytes),
            "published_at" => Some(micros(published_at)),
            _ => None,
        }
    }

    /// Hash of what the publisher said: every column but `published_at`, which the server sets.
    pub fn content(&self) -> u64 {
        let owned = SAID.map(|column| self.field(column, self.event_date_time));
        let mut owned = owned.iter().map(Option::as_deref);
        content(|_| owned.next().flatten())
    }

    /// Bytes that it takes on disk, about.
    pub(super) fn bytes(&self) -> u64 {
        (self.event_context.len() + self.event_type.len() + 96) as u64
    }
}

/// Hash of the columns that a publisher sets, each asked for once, in order.
pub(super) fn content<'a>(mut get: impl FnMut(&str) -> Option<&'a [u8]>) -> u64 {
    let values = SAID.map(&mut get);
    digest(&values)
}

/// A `timestamptz`: microseconds since 2000, signed.
fn micros(time: SystemTime) -> Vec<u8> {
    let epoch = SystemTime::UNIX_EPOCH + Duration::from_secs(POSTGRES_EPOCH_S);
    let micros = |distance: Duration| i64::try_from(distance.as_micros()).unwrap_or(i64::MAX);
    let value = match time.duration_since(epoch) {
        Ok(after) => micros(after),
        Err(before) => -micros(before.duration()),
    };
    value.to_be_bytes().to_vec()
}
