//! Tables that live as long as a benchmark, beside the one of the sink.

use serde::Deserialize;

use super::client::Client;
use super::config::ClickHouseConfig;
use super::create::{self, CreateOptions, Dialect};
use super::sql;
use super::verdict::trouble;
use crate::sink::Trouble;

/// Creates the table alone: a database that is not there stays so.
pub(super) async fn create(client: &Client, config: &ClickHouseConfig) -> Result<(), Trouble> {
    let dialect = create::dialect(client).await?;
    let statement = create::table_statement(config, &CreateOptions::default(), dialect, "");
    let created = client.query(&statement).await;
    created.map(|_| ()).map_err(|fault| trouble(&fault))
}

/// Drops a table where it is there, and its rows with it.
pub(super) async fn drop(
    client: &Client,
    config: &ClickHouseConfig,
    table: &str,
) -> Result<(), Trouble> {
    // Current servers keep the rows of a dropped table for minutes unless they are told not to.
    let now = match create::dialect(client).await? {
        Dialect::Current => " SYNC",
        Dialect::Old => "",
    };
    let table = sql::table(&config.database, table);
    let statement = format!("DROP TABLE IF EXISTS {table}{now}");
    let dropped = client.query(&statement).await;
    dropped.map(|_| ()).map_err(|fault| trouble(&fault))
}

/// The names of all tables of the sink's database.
pub(super) async fn list(
    client: &Client,
    config: &ClickHouseConfig,
) -> Result<Vec<String>, Trouble> {
    #[derive(Deserialize)]
    struct Row {
        name: String,
    }
    let names = format!(
        "SELECT name FROM system.tables WHERE database = {} ORDER BY name",
        sql::text(&config.database)
    );
    let rows: Vec<Row> = client.rows(&names).await.map_err(|fault| trouble(&fault))?;
    Ok(rows.into_iter().map(|row| row.name).collect())
}
