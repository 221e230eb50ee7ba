//! First step of an event's way: checked, serialised, and inserted by the caller's transaction.

use uuid::Uuid;

use crate::outbox::Row;
use crate::timestamp::Timestamp;
use crate::{Error, Outbox, Publishable, RawEvent, trace};

/// Bytes of an event context allowed unless [`Publisher::event_bytes_max`] says otherwise: the
/// default of the outbox, `pillarbox.event_bytes_max()`.
pub const EVENT_BYTES_MAX_DEFAULT: usize = 1 << 20;

/// Characters of an event type allowed, as by the outbox.
pub const EVENT_TYPE_CHARS_MAX: usize = 255;

/// Characters of a trace parent allowed, as by the outbox.
const TRACE_PARENT_CHARS_MAX: usize = 255;

/// Events that [`publish_all`] sends in one statement. More of them save no round trip worth
/// having, and make the statement's arrays longer to hold on both sides.
pub const BATCH_ROWS_MAX: usize = 4_096;

/// Bytes of context that [`publish_all`] sends in one statement, unless one event alone has more. Far
/// below PostgreSQL's 1 GiB for a parameter; the server holds it about three times.
pub const BATCH_BYTES_MAX: usize = 8 << 20;

/// Publishes one event in the caller's transaction and returns its id.
///
/// The event exists if and only if that transaction commits; the id can be logged before. One
/// round trip, two with sqlx where nothing can stay prepared; no other network work, nothing spawned.
///
/// # Errors
///
/// [`Error::Database`] when the statement failed: the transaction is aborted, roll it back. Any
/// other kind means that the event is not valid; nothing was sent and the transaction can go on.
///
/// # Cancellation
///
/// Safe to drop before the transaction is rolled back, not before it is committed: when the future
/// is dropped mid-way, the event may or may not be part of the transaction.
pub async fn publish<O, E>(outbox: &mut O, event: &E) -> Result<Uuid, Error>
where
    O: Outbox,
    E: Publishable + ?Sized,
{
    Publisher::new().publish(outbox, event).await
}

/// Publishes many events in the caller's transaction and returns their ids, in the order given.
///
/// One round trip for each [`BATCH_ROWS_MAX`] events or [`BATCH_BYTES_MAX`] of context. Holds the
/// serialised contexts of all events in memory. Events of different types: map each through
/// [`RawEvent::from_event`].
///
/// ```no_run
/// # #[cfg(feature = "sqlx")] mod example {
/// # #[derive(serde::Serialize)] struct Imported { line: u32 }
/// # impl pillarbox::Event for Imported { const TYPE: &str = "imported"; }
/// # async fn import(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = pool.begin().await?;
/// let events: Vec<Imported> = (1..=10_000).map(|line| Imported { line }).collect();
/// let event_ids = pillarbox::publish_all(&mut tx, &events).await?;
/// tx.commit().await?;
/// # assert_eq!(event_ids.len(), 10_000); Ok(()) }
/// # }
/// ```
///
/// # Errors
///
/// As [`publish`]. All events are checked before the first is sent: one that is not valid leaves the
/// transaction as it was.
///
/// # Cancellation
///
/// As [`publish`]: after dropping the future mid-way, roll back.
pub async fn publish_all<O, E>(outbox: &mut O, events: &[E]) -> Result<Vec<Uuid>, Error>
where
    O: Outbox,
    E: Publishable,
{
    Publisher::new().publish_all(outbox, events).await
}

/// Publishes events with settings that are the same for all of them.
///
/// Cheap to make and to clone; keep one for the process.
///
/// ```no_run
/// # #[cfg(feature = "sqlx")] mod example {
/// # #[derive(serde::Serialize)] struct UserCreated;
/// # impl pillarbox::Event for UserCreated { const TYPE: &str = "user_created"; }
/// # async fn f(tx: &mut sqlx::Transaction<'_, sqlx::Postgres>) -> Result<(), pillarbox::Error> {
/// let publisher = pillarbox::Publisher::new().environment("staging");
/// publisher.publish(tx, &UserCreated).await?;
/// # Ok(()) }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Publisher {
    environment: Option<String>,
    event_bytes_max: usize,
}

impl Default for Publisher {
    fn default() -> Self {
        Self::new()
    }
}

impl Publisher {
    /// The settings that [`publish`] uses.
    pub const fn new() -> Self {
        Self {
            environment: None,
            event_bytes_max: EVENT_BYTES_MAX_DEFAULT,
        }
    }

    /// Sets the environment of every event that brings none. Otherwise the outbox fills in the one
    /// it was installed with.
    #[must_use]
    pub fn environment(self, environment: impl Into<String>) -> Self {
        Self {
            environment: Some(environment.into()),
            ..self
        }
    }

    /// Sets the bytes of context allowed, for an outbox whose limit `pillarbox settings` changed.
    ///
    /// The outbox holds the limit in any case. This one is checked before anything is sent, so that
    /// an event that is too large does not abort the transaction.
    #[must_use]
    pub const fn event_bytes_max(mut self, event_bytes_max: usize) -> Self {
        self.event_bytes_max = event_bytes_max;
        self
    }

    /// Publishes one event: as [`publish()`], with these settings.
    ///
    /// # Errors
    ///
    /// As [`publish()`].
    ///
    /// # Cancellation
    ///
    /// As [`publish()`]: after dropping the future mid-way, roll back.
    pub async fn publish<O, E>(&self, outbox: &mut O, event: &E) -> Result<Uuid, Error>
    where
        O: Outbox,
        E: Publishable + ?Sized,
    {
        let trace_parent = trace::current_parent();
        let row = self.row(event, trace_parent.as_deref())?;
        outbox.insert(std::slice::from_ref(&row)).await?;
        Ok(row.event.event_id)
    }

    /// Publishes many events: as [`publish_all()`], with these settings.
    ///
    /// # Errors
    ///
    /// As [`publish_all()`].
    ///
    /// # Cancellation
    ///
    /// As [`publish_all()`]: after dropping the future mid-way, roll back.
    pub async fn publish_all<O, E>(&self, outbox: &mut O, events: &[E]) -> Result<Vec<Uuid>, Error>
    where
        O: Outbox,
        E: Publishable,
    {
        let trace_parent = trace::current_parent();
        let rows = events
            .iter()
            .map(|event| self.row(event, trace_parent.as_deref()))
            .collect::<Result<Vec<_>, _>>()?;
        for chunk in chunks(&rows, |row| row.event.event_context.len()) {
            outbox.insert(chunk).await?;
        }
        Ok(rows.iter().map(|row| row.event.event_id).collect())
    }

    /// Checks all that the outbox would refuse, because its refusal aborts the transaction.
    fn row<'a, E>(&'a self, event: &'a E, current_span: Option<&'a str>) -> Result<Row<'a>, Error>
    where
        E: Publishable + ?Sized,
    {
        let event = event.to_raw()?;
        check_type(&event.event_type)?;
        let (size, limit) = (event.event_context.len(), self.event_bytes_max);
        if size > limit {
            return Err(Error::TooLarge {
                event_type: event.event_type.clone(),
                size,
                limit,
            });
        }
        let row = Row {
            event_date_time: event_date_time(&event)?,
            metadata_version: metadata_version(&event)?,
            default_environment: self.environment.as_deref(),
            default_trace_parent: current_span,
            event,
        };
        check_text(&row.event, "environment", row.environment())?;
        check_text(&row.event, "trace_parent", row.trace_parent())?;
        check_trace_parent(&row)?;
        Ok(row)
    }
}

fn check_type(event_type: &str) -> Result<(), Error> {
    let reason = match event_type.chars().count() {
        0 => "it is empty",
        chars if chars > EVENT_TYPE_CHARS_MAX => "it has more than 255 characters",
        _ if event_type.contains('\0') => "it contains NUL",
        _ => return Ok(()),
    };
    Err(Error::InvalidType { reason })
}

fn check_text(event: &RawEvent, field: &'static str, text: Option<&str>) -> Result<(), Error> {
    match text {
        Some(text) if text.contains('\0') => Err(invalid(
            event,
            field,
            "PostgreSQL's text cannot hold NUL; remove it",
        )),
        _ => Ok(()),
    }
}

fn check_trace_parent(row: &Row<'_>) -> Result<(), Error> {
    match row.trace_parent() {
        Some(text) if text.chars().count() > TRACE_PARENT_CHARS_MAX => {
            let reason = "it has more than 255 characters; use the W3C traceparent";
            Err(invalid(&row.event, "trace_parent", reason))
        }
        _ => Ok(()),
    }
}

fn event_date_time(event: &RawEvent) -> Result<Option<Timestamp>, Error> {
    let Some(time) = event.event_date_time else {
        return Ok(None);
    };
    match Timestamp::new(time) {
        None => Err(invalid(
            event,
            "event_date_time",
            "use a time between 4714 BC and 294276 AD",
        )),
        timestamp => Ok(timestamp),
    }
}

fn metadata_version(event: &RawEvent) -> Result<i64, Error> {
    i64::try_from(event.metadata_version)
        .map_err(|_| invalid(event, "metadata_version", "use at most 9223372036854775807"))
}

fn invalid(event: &RawEvent, field: &'static str, reason: &'static str) -> Error {
    Error::InvalidField {
        event_type: event.event_type.clone(),
        field,
        reason,
    }
}

/// Cuts rows into chunks within [`BATCH_ROWS_MAX`] and [`BATCH_BYTES_MAX`]; a row with more bytes goes
/// alone.
fn chunks<T>(mut rows: &[T], bytes: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let mut total = 0;
        let fitting = rows.iter().take(BATCH_ROWS_MAX).take_while(|row| {
            total += bytes(row);
            total <= BATCH_BYTES_MAX
        });
        let (chunk, rest) = rows.split_at(fitting.count().max(1).min(rows.len()));
        rows = rest;
        (!chunk.is_empty()).then_some(chunk)
    })
}

#[cfg(test)]
mod tests;
