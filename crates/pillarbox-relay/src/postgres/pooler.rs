//! Finds a connection pooler between a program and PostgreSQL.
//!
//! A pooler that hands its server connections on between transactions breaks what a relay stands on,
//! the session lock, and passes settings of ours on to whoever comes next. So nothing here leaves a
//! trace in a session: no setting, no prepared statement, no lock.

use std::time::{Duration, Instant};

use tokio_postgres::{Config, SimpleQueryMessage};

use super::{ConnectError, Session, open, refusal, target};

/// A session on the server may be this much older than we know it to be; what is more is proof. Far
/// above the drift of two clocks within the time of opening a connection.
const AGE_TOLERANCE: Duration = Duration::from_secs(2);

/// Looks of each kind: under load, a pooler hands out another connection sooner or later.
const LOOKS: usize = 8;

/// How long one look may take: a server that is up answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// What to do about a pooler.
pub const REMEDY: &str = "give pillarbox the address of the server itself, in DATABASE_URL or \
    postgres.url; applications publish through the pooler as before";

/// A pooler was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooler {
    /// It gives a server connection to others between two transactions.
    Transaction,
    /// It gives out server connections that are older than the session; whether also between two
    /// transactions was not seen.
    Session,
}

/// Who serves a session, and since when.
struct Backend {
    pid: String,
    /// Time since the server started it.
    age: Duration,
}

/// Looks for a pooler behind `config` with two sessions, which end with this call.
///
/// A pooler that keeps a server connection for each session from its start to its end, and opens a
/// fresh one for it, looks like the server, and does no harm.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn find(config: &Config, application_name: &str) -> Result<Option<Pooler>, ConnectError> {
    let began = Instant::now();
    let one = open(config, application_name).await?;
    let first = backend(config, &one).await?;
    let mut pooled = is_older(&first, began);
    let began = Instant::now();
    let other = open(config, application_name).await?;
    for _ in 0..LOOKS {
        // In a transaction it keeps its server connection, so that the first session cannot have it.
        simple(config, &other, "begin").await?;
        let held = backend(config, &other).await?;
        if held.pid == first.pid {
            return Ok(Some(Pooler::Transaction));
        }
        // A pool that has no other connection makes it wait: then nothing is seen.
        let seen = tokio::time::timeout(PATIENCE, backend(config, &one)).await;
        if matches!(seen, Ok(Ok(seen)) if seen.pid != first.pid) {
            return Ok(Some(Pooler::Transaction));
        }
        simple(config, &other, "rollback").await?;
        pooled |= is_older(&held, began);
    }
    Ok(pooled.then_some(Pooler::Session))
}

/// Whether the server connection of `session` was there before it, so that a pooler must have kept it.
/// `began` is when opening the session began.
pub(super) async fn is_shown(
    config: &Config,
    session: &Session,
    began: Instant,
) -> Result<bool, ConnectError> {
    Ok(is_older(&backend(config, session).await?, began))
}

fn is_older(backend: &Backend, began: Instant) -> bool {
    backend.age > began.elapsed() + AGE_TOLERANCE
}

async fn backend(config: &Config, session: &Session) -> Result<Backend, ConnectError> {
    const BACKEND: &str = include_str!("backend.sql");
    let messages = simple(config, session, BACKEND).await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let text = |index| row.and_then(|row| row.get(index)).unwrap_or_default();
    let age: f64 = text(1).parse().unwrap_or(0.0);
    Ok(Backend {
        pid: text(0).to_owned(),
        age: Duration::try_from_secs_f64(age).unwrap_or_default(),
    })
}

async fn simple(
    config: &Config,
    session: &Session,
    statement: &str,
) -> Result<Vec<SimpleQueryMessage>, ConnectError> {
    let answer = session.client().simple_query(statement).await;
    answer.map_err(|error| refusal(target(config), error))
}
