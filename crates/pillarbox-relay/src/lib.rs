//! The relay: seals committed events of the outbox into batches and delivers each exactly once.
//!
//! An event passes through `source` (PostgreSQL), `batch`, and `sink`, driven by `relay`, the spine,
//! which owns every branch, retry and stop decision. `schema` installs the PostgreSQL side.

pub mod backoff;
pub mod batch;
pub mod body;
pub mod clock;
pub mod config;
pub mod expression;
pub mod failpoint;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod identity;
pub mod intake;
pub mod metric;
pub mod postgres;
pub mod pulse;
pub mod recover;
pub mod redaction;
pub mod relay;
pub mod schema;
pub mod sink;
pub mod snapshot;
pub mod source;
pub mod trace;
pub mod verify;
