//! Adds a column to the outbox beside publishers that never wait for it.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::keeper::{self, Tables};
use super::{BETWEEN_ATTEMPTS, SchemaError, is_missing_right, needs_administrator};
use crate::postgres::quote;

/// Publishers that come while the table is asked for wait as long; there are five tables to lock.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '20ms'";

/// A column that users want to have.
#[derive(Clone, Debug)]
pub struct NewColumn {
    /// Its name.
    pub name: String,
    /// Its type, as SQL writes it.
    pub of: String,
    /// What publishers that do not know it give it.
    pub default: Option<String>,
    /// Whether it refuses null; it needs a default then.
    pub not_null: bool,
}

impl NewColumn {
    /// The statements that add it.
    ///
    /// # Errors
    /// When publishers that do not know it could publish no more.
    pub fn statements(&self) -> Result<[String; 2], SchemaError> {
        let Self { name, of, .. } = self;
        if self.not_null && self.default.is_none() {
            return Err(SchemaError::Invalid(format!(
                "column {name} refuses null and has no default: publishers that do not know it could \
                 publish no more; give it a default"
            )));
        }
        let name = quote::identifier(name);
        let default = self.default.as_ref();
        let default = default.map(|default| format!(" default {}::{of}", quote::literal(default)));
        let not_null = if self.not_null { " not null" } else { "" };
        Ok([
            format!(
                "alter table pillarbox.event add column {name} {of}{}{not_null}",
                default.unwrap_or_default()
            ),
            format!("grant insert ({name}) on pillarbox.event to pillarbox_publisher"),
        ])
    }
}

/// Adds a column to the outbox, and lets publishers fill it. Tries for up to `patience`, each time for
/// milliseconds only: whoever publishes meanwhile waits no longer. `told` hears who is in the way.
///
/// # Errors
/// When the column is there already, the type is not one, the user lacks the rights, or somebody keeps
/// the outbox for too long.
pub async fn add(
    client: &mut Client,
    column: &NewColumn,
    patience: Duration,
    mut told: impl FnMut(&str),
) -> Result<(), SchemaError> {
    let statements = column.statements()?;
    check(client, column).await?;
    let began = tokio::time::Instant::now();
    let mut failures = 0;
    loop {
        match attempt(client, &statements).await {
            Ok(()) => return Ok(()),
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {}
            Err(error) if is_missing_right(&error) => return Err(needs_administrator(&error)),
            Err(error) => return Err(error.into()),
        }
        failures += 1;
        let keepers = keeper::name(client, Tables::Outbox).await?;
        if began.elapsed() >= patience {
            let reason = format!(
                "column {} could not be added: the outbox is in use; {keepers}; then run the command again",
                column.name
            );
            return Err(SchemaError::Invalid(reason));
        }
        told(&keepers);
        tokio::time::sleep(BETWEEN_ATTEMPTS.wait(failures, 1.0)).await;
    }
}

/// Refuses a name that is taken and what is no type; returns the object identifier of the type.
///
/// # Errors
/// When it is refused, or the server cannot be asked.
pub async fn check(client: &Client, column: &NewColumn) -> Result<u32, SchemaError> {
    const TYPE: &str = "select pg_catalog.to_regtype($1)::oid";
    const TAKEN: &str = include_str!("column_taken.sql");
    let NewColumn { name, of, .. } = column;
    let found = match client.query_one(TYPE, &[of]).await {
        Ok(row) => row.get(0),
        // Not even the form of one.
        Err(error) if error.code() == Some(&SqlState::SYNTAX_ERROR) => None,
        Err(error) => return Err(error.into()),
    };
    let found: Option<u32> = found;
    let known =
        found.ok_or_else(|| SchemaError::Invalid(format!("{of} is no type of postgresql")))?;
    if client.query_opt(TAKEN, &[name]).await?.is_some() {
        return Err(SchemaError::Invalid(format!(
            "the outbox has a column {name} already; see: pillarbox columns"
        )));
    }
    Ok(known)
}

async fn attempt(client: &mut Client, statements: &[String; 2]) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    transaction
        .batch_execute("set local role pillarbox_owner")
        .await?;
    transaction.batch_execute(LOCK_TIMEOUT).await?;
    for statement in statements {
        transaction.batch_execute(statement).await?;
    }
    transaction.commit().await
}
