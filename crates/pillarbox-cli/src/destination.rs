//! From the configuration to a sink: what to connect to, and what the registry remembers of it.

use std::collections::BTreeMap;
use std::time::Duration;

use pillarbox_relay::config::{self, Column, Compression, Config, Promise, SINK};
use pillarbox_relay::expression::Expression;
use pillarbox_relay::sink::clickhouse::{self, ClickHouse, ClickHouseConfig, ClickHousePlan};
use pillarbox_relay::sink::{Sink as _, Trouble};
use pillarbox_relay::source::postgres::outbox_columns;
use tokio_postgres::Client;

use crate::exit::{Exit, Failure};

/// How long opening a connection to a sink may take: a server that is up answers in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a statement other than an insert may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);

/// A configured sink.
pub(crate) struct Destination {
    pub(crate) name: String,
    pub(crate) sink: ClickHouse,
    /// The sink's configuration, its addresses without user and password, for statements that are only printed.
    pub(crate) config: ClickHouseConfig,
    /// Columns that are computed while events are read.
    pub(crate) expressions: BTreeMap<String, Expression>,
}

impl Destination {
    /// The sink of this name, or the only one, or `clickhouse`.
    pub(crate) fn find(config: &Config, name: Option<&str>) -> Result<Self, Failure> {
        let name = match (name, config.sinks.len()) {
            (Some(name), _) => name,
            (None, 0) => SINK,
            (None, 1) => config.sinks.keys().next().map_or(SINK, String::as_str),
            (None, _) if config.sinks.contains_key(SINK) => SINK,
            (None, _) => {
                let names: Vec<&str> = config.sinks.keys().map(String::as_str).collect();
                return Err(Failure::usage(format!(
                    "several sinks are configured: say which, {}",
                    names.join(" or ")
                )));
            }
        };
        Self::new(name, config.sink(name)?)
    }

    /// Every configured sink.
    pub(crate) fn all(config: &Config) -> Result<Vec<Self>, Failure> {
        let sinks = config.sinks.iter();
        sinks.map(|(name, sink)| Self::new(name, sink)).collect()
    }

    fn new(name: &str, sink: &config::Sink) -> Result<Self, Failure> {
        let addresses = sink.url.addresses(&format!("sinks.{name}.url"))?;
        if addresses.is_empty() {
            return Err(Failure::usage(format!(
                "the sink {name} has no url; set CLICKHOUSE_URL, or url under [sinks.{name}]"
            )));
        }
        let named = addresses.iter().find(|address| address.user.is_some());
        let (user, password) = match named {
            Some(address) => (address.user.clone(), address.password.clone()),
            None => (sink.user.clone(), sink.password.clone()),
        };
        let database = addresses
            .iter()
            .find_map(|address| address.database.clone());
        let config = ClickHouseConfig {
            urls: addresses
                .into_iter()
                .map(|address| address.origin)
                .collect(),
            user: user.unwrap_or_else(|| "default".to_owned()),
            password: password.unwrap_or_default(),
            database: database
                .or_else(|| sink.database.clone())
                .unwrap_or_else(|| "default".to_owned()),
            table: sink.table.clone(),
            compression: match sink.compression {
                Compression::Auto => clickhouse::Compression::Auto,
                Compression::Lz4 => clickhouse::Compression::Lz4,
                Compression::None => clickhouse::Compression::None,
            },
            connect_timeout: CONNECT_TIMEOUT,
            insert_timeout: sink.insert_timeout.0,
            query_timeout: QUERY_TIMEOUT,
            at_least_once_allowed: sink.guarantee == Promise::AtLeastOnce,
            redacted: sink.redact.iter().cloned().map(Into::into).collect(),
        };
        Ok(Self {
            name: name.to_owned(),
            sink: ClickHouse::new(config.clone())?,
            config,
            expressions: expressions(name, &sink.columns)?,
        })
    }

    /// The same sink with a table of the common columns, on its first server.
    pub(crate) fn with_table(&self, table: &str) -> Result<Self, Failure> {
        let mut config = self.config.clone();
        config.urls.truncate(1);
        table.clone_into(&mut config.table);
        Ok(Self {
            name: self.name.clone(),
            sink: ClickHouse::new(config.clone())?,
            config,
            expressions: BTreeMap::new(),
        })
    }

    /// What the registry remembers: the table, not its address, which may change.
    pub(crate) fn fingerprint(&self) -> String {
        format!("clickhouse:{}", self.table())
    }

    /// `database.table`.
    pub(crate) fn table(&self) -> String {
        format!("{}.{}", self.config.database, self.config.table)
    }

    /// The sink's database as a quoted identifier, for statements that are only printed.
    pub(crate) fn database(&self) -> String {
        format!("`{}`", self.config.database.replace('`', "\\`"))
    }

    /// Runs the preflight against the outbox of this session.
    pub(crate) async fn prepare(&self, outbox: &Client) -> Result<ClickHousePlan, Failure> {
        let columns = outbox_columns(outbox, &self.expressions).await?;
        let prepared = self.sink.prepare(&columns).await;
        prepared.map_err(|trouble| self.blame(trouble))
    }

    /// What a sink says, with its name, and with its address where that may be wrong.
    pub(crate) fn blame(&self, trouble: Trouble) -> Failure {
        let name = &self.name;
        let failure = Failure::from(trouble);
        match failure.exit() {
            Exit::Unreachable => {
                failure.of(format!("sink {name} at {}", self.config.urls.join(", ")))
            }
            _ => failure.of(format!("sink {name}")),
        }
    }
}

/// Columns that the relay fills by itself.
const OWN: [&str; 4] = ["slot", "tx", "id", "batch"];

fn expressions(
    sink: &str,
    columns: &BTreeMap<String, Column>,
) -> Result<BTreeMap<String, Expression>, Failure> {
    if let Some(name) = columns.keys().find(|name| OWN.contains(&name.as_str())) {
        return Err(Failure::usage(format!(
            "sinks.{sink}.columns.{name}: the relay fills that column by itself; give it another name"
        )));
    }
    let columns = columns.iter();
    Ok(columns
        .map(|(name, column)| (name.clone(), column.clone().into()))
        .collect())
}
