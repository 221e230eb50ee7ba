//! What goes wrong with an intake, and whether waiting helps.

use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use tokio_postgres::error::SqlState;

use crate::postgres::ConnectError;
use crate::schema::SchemaError;

/// How long a statement or a command may take; longer means that the session is as good as lost.
pub(crate) const DEADLINE: Duration = Duration::from_secs(15);

/// Why an intake cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// A server is away, or says that it cannot just now: the same again may succeed.
    #[error("{what}")]
    Away {
        /// Who, and what it says.
        what: String,
        /// What happened.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Somebody has to mend something.
    #[error("{0}")]
    Refused(String),
    /// Another process takes from this intake.
    #[error("another process is active for the intake {0}; stop it, or let it work")]
    NotActive(String),
    /// It was told to stop.
    #[error("stopped")]
    Stopped,
    /// The file cannot be read.
    #[error("{path} cannot be read")]
    Unreadable {
        /// Which one.
        path: String,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// `--strict`, and a line is no event.
    #[error("line {line} is no event: {reason}; nothing of its batch was taken")]
    Malformed {
        /// The line, from 1.
        line: u64,
        /// Why.
        reason: String,
    },
}

impl IntakeError {
    pub(crate) fn away(
        what: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Away {
            what: what.into(),
            source: Some(Box::new(source)),
        }
    }

    pub(crate) fn silent(who: &str) -> Self {
        Self::Away {
            what: format!("{who} did not answer within {DEADLINE:?}"),
            source: None,
        }
    }
}

/// Waits for an answer of PostgreSQL.
pub(crate) async fn timed<T>(
    answer: impl Future<Output = Result<T, IntakeError>>,
) -> Result<T, IntakeError> {
    match tokio::time::timeout(DEADLINE, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(IntakeError::silent("postgresql")),
    }
}

/// The same for a statement.
pub(crate) async fn in_time<T>(
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, IntakeError> {
    timed(async { Ok(answer.await?) }).await
}

fn rights(reason: &str) -> IntakeError {
    IntakeError::Refused(format!(
        "{reason}; an intake publishes and keeps books: pillarbox grant USER --as publisher, and \
         pillarbox grant USER --as relay"
    ))
}

impl From<tokio_postgres::Error> for IntakeError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(answer) = error.as_db_error() else {
            return Self::away("the connection to postgresql broke", error);
        };
        let code = answer.code();
        let is_schema = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME].contains(code);
        match &code.code()[..2] {
            _ if is_schema => SchemaError::from(error).into(),
            _ if *code == SqlState::INSUFFICIENT_PRIVILEGE => rights(answer.message()),
            // Data of ours that is refused again, or a schema that is not ours.
            "22" | "23" | "42" => Self::Refused(format!(
                "postgresql refuses what an intake writes: SQLSTATE {}{}; mend the table \
                 pillarbox.event, the log of postgresql says more",
                code.code(),
                answer
                    .column()
                    .map_or_else(String::new, |column| format!(", column {column}")),
            )),
            // Out of space or memory, shutting down, cancelled, a conflict: all of it passes.
            _ => Self::away(format!("postgresql says: {}", answer.message()), error),
        }
    }
}

impl From<ConnectError> for IntakeError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Unreachable { .. } => Self::away(error.to_string(), error),
            other => Self::Refused(other.to_string()),
        }
    }
}

impl From<SchemaError> for IntakeError {
    fn from(error: SchemaError) -> Self {
        match error {
            SchemaError::Server(error) => error.into(),
            SchemaError::Statement(error) => error.into(),
            SchemaError::Rights { reason, .. } => rights(&reason),
            other => Self::Refused(other.to_string()),
        }
    }
}

/// What an error of Redis means for the queue under `key`. Its own words are left out where they could
/// quote an entry or a password: they are shown by their code.
pub(crate) fn of_redis(error: RedisError, key: &str) -> IntakeError {
    let code = error.code().unwrap_or_default().to_owned();
    let detail = error.detail().unwrap_or_default();
    // What Redis says of a script's own commands; it has no code for that.
    let may_not = "The user executing the script can't";
    let code = match detail.starts_with(may_not) || error.to_string().contains(may_not) {
        true => "NOPERM".to_owned(),
        false => code,
    };
    let refused = |text: String| IntakeError::Refused(text);
    match (error.kind(), code.as_str()) {
        (_, "WRONGTYPE") => refused(format!(
            "the key {key} in redis is of another type (WRONGTYPE); name the right key, or set kind to \
             redis-stream for XADD and redis-list for LPUSH"
        )),
        (ErrorKind::AuthenticationFailed, _) | (_, "NOAUTH" | "WRONGPASS") => refused(
            "redis refuses user or password; put them into the url (REDIS_URL) as \
             redis://user:password@host:6379"
                .to_owned(),
        ),
        (ErrorKind::Server(ServerErrorKind::NoPerm), _) | (_, "NOPERM") => refused(format!(
            "the user of redis may not do what an intake does (NOPERM); as its administrator: ACL SETUSER \
             NAME ~{key} ~{key}:* +@read +@write +@scripting +@connection +scan +time"
        )),
        (ErrorKind::Server(ServerErrorKind::CrossSlot), _) => refused(format!(
            "redis is a cluster; give the key a hash tag, such as {{{key}}}, so that what belongs together \
             stays together"
        )),
        (ErrorKind::Server(ServerErrorKind::ReadOnly), _) => IntakeError::away(
            "redis is a replica now (READONLY); waiting for the url to lead to the primary",
            error,
        ),
        (ErrorKind::InvalidClientConfig, _) => {
            refused("the url of redis cannot be used".to_owned())
        }
        (ErrorKind::Server(ServerErrorKind::BusyLoading), _) => {
            IntakeError::away("redis is loading its data (LOADING)", error)
        }
        (_, "OOM") => IntakeError::away("redis is out of memory (OOM)", error),
        (_, "") => IntakeError::away("redis does not answer", error),
        (_, code) => IntakeError::away(format!("redis answers {code}"), error),
    }
}
