//! The one error of this crate.

use std::error::Error as StdError;

/// Why an event was not published.
///
/// Only [`Database`](Error::Database) has touched the transaction, and has then aborted it. Every
/// other kind is found before anything is sent, and leaves the transaction as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The serialised context is longer than the limit.
    #[error(
        "event_context of event type {event_type:?} has {size} bytes, more than the limit of {limit}; \
         publish a reference instead of the content, or raise the limit with `pillarbox settings` \
         and Publisher::event_bytes_max"
    )]
    TooLarge {
        /// The type of the event.
        event_type: String,
        /// Bytes of the context as serialised.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },

    /// The event type cannot be stored.
    #[error("event_type is not valid: {reason}; use 1 to 255 characters without NUL")]
    InvalidType {
        /// What is wrong with it.
        reason: &'static str,
    },

    /// A field beside type and context cannot be stored.
    #[error("{field} of event type {event_type:?} is not valid: {reason}")]
    InvalidField {
        /// The type of the event.
        event_type: String,
        /// The column of the outbox.
        field: &'static str,
        /// What is wrong with it, and what is allowed.
        reason: &'static str,
    },

    /// The text given as context is not JSON.
    #[error("event_context of event type {event_type:?} is not JSON; pass one complete JSON value")]
    NotJson {
        /// The type of the event.
        event_type: String,
        /// Where it stops being JSON.
        source: serde_json::Error,
    },

    /// The event's `Serialize` failed.
    #[error(
        "event of type {event_type:?} cannot be serialised to JSON; JSON needs strings as map keys"
    )]
    Serialize {
        /// The type of the event.
        event_type: String,
        /// What `Serialize` answered.
        source: serde_json::Error,
    },

    /// The statement failed, and the transaction with it. Holds the error of the adapter:
    /// `tokio_postgres::Error` or `sqlx::Error`, to be had by `downcast_ref`.
    #[error(
        "publishing failed in the database; roll the transaction back; if the outbox is missing run \
         `pillarbox migrate`, if it may not be written `pillarbox grant USER --as publisher`"
    )]
    Database(#[source] Box<dyn StdError + Send + Sync>),
}
