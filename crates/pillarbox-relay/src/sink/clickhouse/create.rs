//! The best table that a server knows, for `pillarbox sink create`.

use super::answer::Fault;
use super::client::Client;
use super::config::ClickHouseConfig;
use super::preflight::WINDOW_BLOCKS;
use super::sql;
use super::table::Server;
use super::verdict::{refuse, trouble};
use crate::sink::Trouble;

/// A token is also remembered this long by replicated tables; the server's default is an hour.
const WINDOW_SECONDS: u64 = 7 * 24 * 3600;

/// What the caller of `sink create` may choose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// Make it a ReplicatedMergeTree.
    pub replicated: bool,
    /// Create it on every server of this cluster.
    pub cluster: Option<String>,
    /// Let the server parse `event_context` into its JSON type, which does not keep the bytes.
    pub json: bool,
}

/// What a server can do, as far as the table is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Tokens, codecs, DateTime64.
    Current,
    /// 18.16 and its contemporaries.
    Old,
}

/// The statements that create database and table, in order.
pub fn statements(
    config: &ClickHouseConfig,
    options: &CreateOptions,
    dialect: Dialect,
) -> Vec<String> {
    let cluster = options.cluster.as_deref();
    let cluster = cluster.map(|name| format!(" ON CLUSTER {}", sql::ident(name)));
    let cluster = cluster.unwrap_or_default();
    let database = sql::ident(&config.database);
    vec![
        format!("CREATE DATABASE IF NOT EXISTS {database}{cluster}"),
        table_statement(config, options, dialect, &cluster),
    ]
}

pub(super) fn table_statement(
    config: &ClickHouseConfig,
    options: &CreateOptions,
    dialect: Dialect,
    cluster: &str,
) -> String {
    let target = sql::table(&config.database, &config.table);
    let columns = match dialect {
        Dialect::Current if options.json => &CURRENT_COLUMNS.replace(STRING_CONTEXT, JSON_CONTEXT),
        Dialect::Current => CURRENT_COLUMNS,
        Dialect::Old => OLD_COLUMNS,
    };
    let arrival = match dialect {
        Dialect::Current => ",\n    inserted_at DateTime64(3) DEFAULT now64(3)",
        // Without tokens, replicas know a block by its content, of which this would be a part: the
        // same block a second later would be another one.
        Dialect::Old if options.replicated => "",
        Dialect::Old => ",\n    inserted_at DateTime DEFAULT now()",
    };
    let engine = engine(config, options, dialect);
    let windows = match dialect {
        Dialect::Current if options.replicated => format!(
            "\nSETTINGS replicated_deduplication_window = {WINDOW_BLOCKS}, \
             replicated_deduplication_window_seconds = {WINDOW_SECONDS}"
        ),
        Dialect::Current => {
            format!("\nSETTINGS non_replicated_deduplication_window = {WINDOW_BLOCKS}")
        }
        Dialect::Old => String::new(),
    };
    format!(
        "CREATE TABLE {target}{cluster}\n(\n{columns}{arrival}\n)\nENGINE = {engine}\n\
         PARTITION BY toYYYYMM(event_date_time)\n\
         ORDER BY (event_type, toStartOfHour(event_date_time), environment, event_date_time){windows}"
    )
}

fn engine(config: &ClickHouseConfig, options: &CreateOptions, dialect: Dialect) -> String {
    if !options.replicated {
        return "MergeTree".to_owned();
    }
    // Current servers have a default path with the table's own id in it; old ones want one.
    match dialect {
        Dialect::Current => "ReplicatedMergeTree".to_owned(),
        Dialect::Old => {
            let path = format!(
                "/clickhouse/tables/{{shard}}/{}.{}",
                config.database, config.table
            );
            format!("ReplicatedMergeTree({}, '{{replica}}')", sql::text(&path))
        }
    }
}

const CURRENT_COLUMNS: &str = "    event_id UUID,
    event_type LowCardinality(String),
    event_date_time DateTime64(6, 'UTC'),
    environment LowCardinality(String),
    event_context String CODEC(ZSTD(1)),
    metadata_version UInt64,
    batch UInt64 CODEC(T64, ZSTD(1))";

/// The context in [`CURRENT_COLUMNS`], and instead of it.
const STRING_CONTEXT: &str = "event_context String CODEC(ZSTD(1))";
const JSON_CONTEXT: &str = "event_context JSON";

const OLD_COLUMNS: &str = "    event_id UUID,
    event_type String,
    event_date_time DateTime('UTC'),
    environment String,
    event_context String,
    metadata_version UInt64,
    batch UInt64";

/// What the server speaks.
pub(super) async fn dialect(client: &Client) -> Result<Dialect, Trouble> {
    let server = Server::ask(client).await.map_err(|fault| trouble(&fault))?;
    Ok(server.dialect())
}

/// Runs the statements and returns them.
pub(super) async fn create(
    client: &Client,
    config: &ClickHouseConfig,
    options: &CreateOptions,
) -> Result<Vec<String>, Trouble> {
    let dialect = dialect(client).await?;
    if options.json && dialect == Dialect::Old {
        return Err(refuse(
            "this server has no type JSON; leave --json-context out: contexts are kept as String"
                .to_owned(),
        ));
    }
    let statements = statements(config, options, dialect);
    let failed = |fault: Fault| trouble(&fault);
    for statement in &statements {
        client.query(statement).await.map_err(failed)?;
    }
    Ok(statements)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replicated_table_on_a_cluster() {
        let config = ClickHouseConfig::new("http://localhost:8123", "logs", "events");
        let options = CreateOptions {
            replicated: true,
            cluster: Some("main".to_owned()),
            json: false,
        };
        let [database, table] = statements(&config, &options, Dialect::Current)
            .try_into()
            .unwrap();
        assert_eq!(
            database,
            "CREATE DATABASE IF NOT EXISTS `logs` ON CLUSTER `main`"
        );
        assert!(table.starts_with("CREATE TABLE `logs`.`events` ON CLUSTER `main`\n(\n"));
        assert!(table.contains("ENGINE = ReplicatedMergeTree\n"));
        assert!(table.contains("replicated_deduplication_window_seconds = 604800"));
        assert!(table.contains("inserted_at DateTime64(3) DEFAULT now64(3)\n)"));
    }

    #[test]
    fn an_old_replica_knows_a_block_by_its_content() {
        let config = ClickHouseConfig::new("http://localhost:8123", "logs", "events");
        let created = |replicated| {
            let options = CreateOptions {
                replicated,
                cluster: None,
                json: false,
            };
            statements(&config, &options, Dialect::Old).concat()
        };
        assert!(created(false).contains("inserted_at DateTime DEFAULT now()\n)"));
        assert!(!created(true).contains("now()"));
        assert!(created(true).contains("batch UInt64\n)"));
    }
}
