//! The columns of the outbox, and the expressions that a sink has beside them.

use std::collections::BTreeMap;

use serde_json::Value;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row as SqlRow};

use super::statement::{in_time, lost, timed};
use crate::expression::Expression;
use crate::sink::OutboxColumn;
use crate::source::SourceError;

pub(super) const COLUMNS: &str = include_str!("sql/outbox_columns.sql");

/// The outbox as a sink was told of it.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    /// What the table has.
    pub(super) table: Vec<OutboxColumn>,
    /// What can be read: the table's columns, those left out that an expression stands for, then the
    /// expressions.
    pub(super) given: Vec<OutboxColumn>,
}

impl Outbox {
    pub(super) async fn ask(
        client: &Client,
        expressions: &BTreeMap<String, Expression>,
    ) -> Result<Self, SourceError> {
        let rows = in_time(client.query(COLUMNS, &[])).await?;
        let table: Vec<OutboxColumn> = rows.iter().map(column).collect();
        let mut given = table.clone();
        given.retain(|column| !expressions.contains_key(&column.name));
        if !expressions.is_empty() {
            // A table that is locked must not keep this session, which beats, from its beat.
            let limited = in_time(client.batch_execute("set lock_timeout = '1s'"));
            limited.await?;
            for (name, expression) in expressions {
                given.push(typed(client, name, expression).await?);
            }
            in_time(client.batch_execute("set lock_timeout = 0")).await?;
        }
        Ok(Self { table, given })
    }

    pub(super) fn find(&self, name: &str) -> Option<&OutboxColumn> {
        self.given.iter().find(|column| column.name == name)
    }
}

/// What a sink with these expressions can be given, without being its active relay.
///
/// # Errors
/// When the outbox cannot be asked, or an expression is not valid.
pub async fn outbox_columns(
    client: &Client,
    expressions: &BTreeMap<String, Expression>,
) -> Result<Vec<OutboxColumn>, SourceError> {
    Ok(Outbox::ask(client, expressions).await?.given)
}

pub(super) fn column(row: &SqlRow) -> OutboxColumn {
    OutboxColumn {
        name: row.get(0),
        type_oid: row.get(1),
        type_name: row.get(2),
        not_null: row.get(3),
        expression: None,
    }
}

/// Has the server find out the type of an expression.
async fn typed(
    client: &Client,
    name: &str,
    expression: &Expression,
) -> Result<OutboxColumn, SourceError> {
    const TYPE: &str = include_str!("sql/expression_type.sql");
    let query = format!("select {} from pillarbox.event e", expression.scalar());
    let prepared = timed(async { Ok(client.prepare(&query).await) }).await?;
    let prepared = prepared.map_err(|error| invalid(name, error))?;
    let [of] = prepared.columns() else {
        return Err(refused(name, "it is not one value"));
    };
    let of = in_time(client.query_one(TYPE, &[&of.type_().oid()])).await?;
    if !expression.is_volatile
        && let Some(relation) = other_relation(client, name, &query).await?
    {
        let reason = format!(
            "it reads {relation}, which may have changed when an event is read again; say volatile = true, \
             and missing = \"null\", \"dead-letter\" or \"wait\" for events whose row is not there"
        );
        return Err(refused(name, &reason));
    }
    Ok(OutboxColumn {
        name: name.to_owned(),
        type_oid: of.get(0),
        type_name: of.get(1),
        not_null: false,
        expression: Some(expression.clone()),
    })
}

/// A table other than the outbox that the query reads.
async fn other_relation(
    client: &Client,
    name: &str,
    query: &str,
) -> Result<Option<String>, SourceError> {
    let explain = format!("explain (verbose, costs off, format json) {query}");
    let plan = timed(async { Ok(client.query_one(&explain, &[]).await) }).await?;
    let plan = plan.map_err(|error| invalid(name, error))?;
    let plan: Value = plan.get(0);
    Ok(relation_in(&plan))
}

fn relation_in(plan: &Value) -> Option<String> {
    match plan {
        Value::Array(plans) => plans.iter().find_map(relation_in),
        Value::Object(node) => {
            let text = |key: &str| node.get(key).and_then(Value::as_str);
            let schema = text("Schema").unwrap_or_default();
            let relation = text("Relation Name");
            let of_outbox =
                |relation: &&str| schema == "pillarbox" && relation.starts_with("event");
            match relation.filter(|relation| !of_outbox(relation)) {
                Some(relation) => Some(format!("{schema}.{relation}")),
                None => node.values().find_map(relation_in),
            }
        }
        _ => None,
    }
}

fn invalid(name: &str, error: tokio_postgres::Error) -> SourceError {
    match error.as_db_error() {
        Some(answer) if *answer.code() == SqlState::INSUFFICIENT_PRIVILEGE => {
            let reason = format!(
                "{}; GRANT the relay's user the right to read it",
                answer.message()
            );
            refused(name, &reason)
        }
        // Syntax, names and types, or a constant that cannot be one: no event was read.
        Some(answer) if ["42", "22", "0A"].contains(&&answer.code().code()[..2]) => {
            refused(name, answer.message())
        }
        _ => lost(error),
    }
}

fn refused(name: &str, reason: &str) -> SourceError {
    SourceError::Refused(format!(
        "the expression of column {name}: {reason} (columns.{name} of the sink, in pillarbox.toml)"
    ))
}
