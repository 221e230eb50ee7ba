//! Where events go: the sealed trait, and the rows it takes.

use std::borrow::Cow;

use crate::RawEvent;
use crate::timestamp::Timestamp;

/// Where events are published: an open transaction, or a [`Recorder`](crate::Recorder) in a unit test.
///
/// Implemented for `tokio_postgres::Transaction` (feature `tokio-postgres`) and
/// `sqlx::Transaction<'_, sqlx::Postgres>` (feature `sqlx`), savepoints included. It is sealed: what
/// makes an event atomic is that this is a transaction, and no other crate can vouch for that.
///
/// Business code that takes `&mut impl Outbox` runs in a transaction and in a unit test alike; see
/// [`Recorder`](crate::Recorder).
#[diagnostic::on_unimplemented(
    message = "events are published in a transaction, and `{Self}` is none",
    label = "pass `&mut tx`, an open transaction",
    note = "open one with `client.transaction()` (tokio-postgres) or `pool.begin()` (sqlx), and \
            enable the feature `tokio-postgres` or `sqlx` of the crate `pillarbox`"
)]
pub trait Outbox: sealed::Insert {}

pub(crate) mod sealed {
    use super::Row;
    use crate::Error;

    pub trait Insert: Send {
        /// Inserts the rows in one round trip. `rows` is never empty.
        fn insert(&mut self, rows: &[Row<'_>]) -> impl Future<Output = Result<(), Error>> + Send;
    }
}

/// One event as it is sent: checked, and with what the publisher adds to it.
#[derive(Debug)]
#[cfg_attr(
    not(any(feature = "tokio-postgres", feature = "sqlx")),
    expect(dead_code, reason = "the adapters read it")
)]
pub struct Row<'a> {
    pub(crate) event: Cow<'a, RawEvent>,
    pub(crate) event_date_time: Option<Timestamp>,
    pub(crate) metadata_version: i64,
    pub(crate) default_environment: Option<&'a str>,
    pub(crate) default_trace_parent: Option<&'a str>,
}

impl Row<'_> {
    pub(crate) fn environment(&self) -> Option<&str> {
        self.event.environment().or(self.default_environment)
    }

    pub(crate) fn trace_parent(&self) -> Option<&str> {
        self.event.trace_parent().or(self.default_trace_parent)
    }
}
