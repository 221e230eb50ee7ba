//! What people ask about the table's columns, and adding one.

use super::answer::Fault;
use super::client::Client;
use super::column::ColumnType;
use super::columns::{self, ColumnPlan};
use super::config::ClickHouseConfig;
use super::preflight::no_table;
use super::table::{Server, SinkColumn, Table};
use super::verdict::{refuse, trouble};
use super::{propose, sql};
use crate::sink::{OutboxColumn, Trouble};

/// The columns of both sides; see [`columns::plan`].
pub(super) async fn columns(
    client: &Client,
    config: &ClickHouseConfig,
    outbox: &[OutboxColumn],
) -> Result<Vec<ColumnPlan>, Trouble> {
    let asked = async {
        let server = Server::ask(client).await?;
        let table = Table::find(client, &config.database, &config.table).await?;
        let columns = SinkColumn::of(client, &config.database, &config.table).await?;
        Ok((server, table, columns))
    };
    let (server, table, columns) = asked.await.map_err(|fault: Fault| trouble(&fault))?;
    let table = table.ok_or_else(|| no_table(config))?;
    Ok(columns::plan(&table, &columns, outbox, server.dialect()))
}

/// The statement that adds a column.
pub(super) async fn column_statement(
    client: &Client,
    config: &ClickHouseConfig,
    column: &OutboxColumn,
    of: Option<&str>,
) -> Result<String, Trouble> {
    let server = Server::ask(client).await.map_err(|fault| trouble(&fault))?;
    let proposal = || {
        propose::sink_type(column, server.dialect()).ok_or_else(|| {
            refuse(format!(
                "clickhouse {} has no type for {}; say which by --sink-type, or use text",
                server.version, column.type_name
            ))
        })
    };
    let of = of.map_or_else(proposal, |of| Ok(of.to_owned()))?;
    let name = &column.name;
    if ColumnType::parse(&of).is_none() {
        return Err(refuse(format!(
            "the relay cannot write the type {of} of column {name}; docs/TYPES.md lists those that it can"
        )));
    }
    let target = sql::table(&config.database, &config.table);
    Ok(format!(
        "ALTER TABLE {target} ADD COLUMN {} {of}",
        sql::ident(name)
    ))
}

/// Adds a column where the table has none of that name; returns the statement.
pub(super) async fn add_column(
    client: &Client,
    config: &ClickHouseConfig,
    column: &OutboxColumn,
    of: Option<&str>,
) -> Result<String, Trouble> {
    let statement = column_statement(client, config, column, of).await?;
    let columns = SinkColumn::of(client, &config.database, &config.table).await;
    let columns = columns.map_err(|fault| trouble(&fault))?;
    if columns.is_empty() {
        return Err(no_table(config));
    }
    if !columns.iter().any(|known| known.name == column.name) {
        client
            .query(&statement)
            .await
            .map_err(|fault| trouble(&fault))?;
    }
    Ok(statement)
}
