//! Real servers for tests: each on a free loopback port, in a directory of its own, for as long
//! as the value lives.
//!
//! A server ends with the value that started it, and with the process when that is killed
//! (`process.rs` says how). A URL in the environment replaces a started server; then what needs a
//! process of ours (kill, pause, restart) is an error. A component that is not installed is an
//! error naming `make setup`.

mod clickhouse;
mod disk;
mod keeper;
mod pgbouncer;
mod place;
mod postgres;
mod process;
mod program;
mod redis;
mod replicas;
mod sentry;
mod tools;

pub use clickhouse::{ClickHouse, Flavour};
pub use keeper::Keeper;
pub use pgbouncer::{PgBouncer, PoolMode};
pub(crate) use place::Port;
pub use postgres::{Dump, Files, PgVersion, Postgres, PostgresBuilder};
pub use program::Program;
pub use redis::{Persistence, Redis};
pub use replicas::Replicas;
pub use sentry::{Item, Sentry};
pub use tools::client_python;

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a server may take to answer after its start: far above what it needs (< 0.5 s), for
/// machines that run many at once.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// How long a server may take to end when asked to, before that counts as a failure.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// How often a condition is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(5);

/// Waits until `condition` gives a value, looking every 5 ms, and fails after `deadline`.
///
/// `what` completes the message "timed out after … waiting for …". Dropping it is safe.
pub async fn eventually<T, F, Fut>(what: &str, deadline: Duration, mut condition: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let started = Instant::now();
    loop {
        if let Some(value) = condition().await? {
            return Ok(value);
        }
        if started.elapsed() > deadline {
            bail!("timed out after {deadline:?} waiting for {what}");
        }
        tokio::time::sleep(POLL).await;
    }
}
