//! Publish events inside your own PostgreSQL transaction.
//!
//! An event written from a request to a second system — a broker, a column store, an HTTP endpoint —
//! is lost when the process dies between the two writes, and lies when the first one rolls back.
//! [`publish`] writes it into the transaction that does the business step instead: **the event is
//! delivered if and only if that transaction commits.** The Pillarbox relay takes it from there.
//!
//! ```no_run
//! # #[cfg(feature = "tokio-postgres")] mod example {
//! #[derive(serde::Serialize)]
//! struct UserCreated { email: String }
//! impl pillarbox::Event for UserCreated { const TYPE: &str = "user_created"; }
//!
//! # async fn create(client: &mut tokio_postgres::Client, email: String) -> Result<(), Box<dyn std::error::Error>> {
//! let mut tx = client.transaction().await?;
//! tx.execute("insert into users (email) values ($1)", &[&email]).await?;
//! let event_id = pillarbox::publish(&mut tx, &UserCreated { email }).await?;
//! tx.commit().await?;
//! # println!("{event_id}"); Ok(())
//! # }
//! # }
//! ```
//!
//! Publishing outside of a transaction does not compile: a client, a connection or a pool is no
//! [`Outbox`].
//!
//! # What is not promised
//!
//! - **Nothing before the commit.** The id returned by [`publish`] may be logged at once; that the
//!   event exists is true only once the transaction has committed.
//! - **Not when it arrives.** Delivery follows the commit by about a second, or by days when the
//!   destination is down. Publishing neither waits for it nor notices.
//! - **No retry.** A statement that failed has aborted the transaction, as any failed statement does
//!   in PostgreSQL; roll back and repeat the whole transaction.
//! - **No deduplication of what you publish.** Two calls are two events, unless you set the
//!   same [`event_id`](Event::event_id) and let the reader decide.
//!
//! # Features
//!
//! | feature | gives |
//! |---|---|
//! | `tokio-postgres` | [`Outbox`] for `tokio_postgres::Transaction` (of `deadpool-postgres`: pass `&mut *tx`) |
//! | `sqlx` | [`Outbox`] for `sqlx::Transaction<'_, sqlx::Postgres>` |
//! | `opentelemetry` | each event carries the W3C trace context of the current span |
//!
//! # Set-up
//!
//! `pillarbox migrate` installs the schema, `pillarbox grant ROLE` lets a role publish.
//!
//! Publishing works at any isolation level and behind PgBouncer in transaction mode. It sends unnamed
//! statements; only on a sqlx connection where the application itself keeps named ones, which tells
//! that they work there, it keeps one too and spares a round trip. For sqlx behind a PgBouncer
//! before 1.21 this means `.persistent(false)` on the application's own queries, with or without
//! Pillarbox.

#![warn(missing_docs, unreachable_pub)]

#[cfg(any(feature = "tokio-postgres", feature = "sqlx"))]
mod adapter;
mod error;
mod event;
mod outbox;
mod publish;
mod recorder;
#[cfg(any(feature = "tokio-postgres", feature = "sqlx"))]
mod statement;
mod timestamp;
mod trace;

pub use error::Error;
pub use event::{Event, Publishable, RawEvent};
pub use outbox::Outbox;
pub use publish::{
    BATCH_BYTES_MAX, BATCH_ROWS_MAX, EVENT_BYTES_MAX_DEFAULT, EVENT_TYPE_CHARS_MAX, Publisher,
    publish, publish_all,
};
pub use recorder::Recorder;
/// The identity of an event, version 7: ids sort by the time they were made.
pub use uuid::Uuid;
