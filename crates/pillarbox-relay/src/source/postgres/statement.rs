//! Statements with a deadline, and what their errors mean for a session.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{IsolationLevel, Row as SqlRow, Transaction};

use super::STATEMENT_TIMEOUT;
use crate::postgres::{ConnectError, Session};
use crate::schema::SchemaError;
use crate::source::SourceError;

/// Why a statement gave no answer in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
struct NoAnswer(Duration);

pub(super) async fn begin(session: &mut Session) -> Result<Transaction<'_>, SourceError> {
    let begin = session.client_mut().build_transaction();
    begin
        .isolation_level(IsolationLevel::ReadCommitted)
        .start()
        .await
        .map_err(lost)
}

pub(super) async fn query_one(
    session: &Session,
    statement: &str,
    given: &[&(dyn ToSql + Sync)],
) -> Result<SqlRow, SourceError> {
    in_time(session.client().query_one(statement, given)).await
}

pub(super) async fn in_time<T>(
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, SourceError> {
    timed(async { answer.await.map_err(lost) }).await
}

pub(super) async fn timed<T>(
    answer: impl Future<Output = Result<T, SourceError>>,
) -> Result<T, SourceError> {
    match tokio::time::timeout(STATEMENT_TIMEOUT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(SourceError::Lost(
            "a statement on the ledger was not answered".to_owned(),
            Some(Box::new(NoAnswer(STATEMENT_TIMEOUT))),
        )),
    }
}

/// Whatever goes wrong on a session ends it: what it did last is in the ledger, or it is not.
pub(super) fn lost(error: tokio_postgres::Error) -> SourceError {
    let refused = [SqlState::INSUFFICIENT_PRIVILEGE, SqlState::UNDEFINED_TABLE];
    match error.as_db_error() {
        Some(answer) if refused.contains(answer.code()) => {
            SourceError::from(SchemaError::from(error))
        }
        // The same statement on the same rows fails again. The message may hold an event.
        Some(answer) if ["22", "23"].contains(&&answer.code().code()[..2]) => {
            SourceError::Broken(format!(
                "postgresql refuses a statement, and will again: SQLSTATE {}, its log says more; if dead \
                 letters are to be retried whose columns have changed: pillarbox dead-letters drop",
                answer.code().code()
            ))
        }
        Some(answer) => SourceError::Lost(answer.message().to_owned(), Some(Box::new(error))),
        None => SourceError::Lost("the connection broke".to_owned(), Some(Box::new(error))),
    }
}

impl From<ConnectError> for SourceError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Unreachable { .. } => {
                Self::Lost(error.to_string(), Some(Box::new(error)))
            }
            other => Self::Refused(other.to_string()),
        }
    }
}

impl From<SchemaError> for SourceError {
    fn from(error: SchemaError) -> Self {
        match error {
            SchemaError::Server(error) => error.into(),
            SchemaError::Statement(source) => {
                Self::Lost("a statement failed".to_owned(), Some(Box::new(source)))
            }
            other => Self::Refused(other.to_string()),
        }
    }
}
