//! Configuration: defaults, then `pillarbox.toml`, then the environment.
//!
//! What cannot be right is refused here, before anything connects: an unknown key, a value out of
//! its bounds, a URL that cannot be read. Secrets are in [`SecretString`]s, and no error shows one.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::FileFormat;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

pub mod address;
pub mod choice;
pub mod computed;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub mod intake;
pub mod listen;
pub mod quantity;
mod shape;
#[cfg(test)]
mod tests;
mod text;

pub use address::{Address, Urls};
pub use choice::{Compression, LogFormat, Promise, SinkKind};
pub use computed::{Column, RedactedPath};
pub use intake::{Intake, IntakeKind};
pub use listen::Listen;
pub use quantity::{ByteSize, Period};
use text::{check_name, check_syntax};

/// The file that is read when no other is named and it is there.
pub const FILE: &str = "pillarbox.toml";

/// The name of the sink that `CLICKHOUSE_URL` alone configures.
pub const SINK: &str = "clickhouse";

/// Largest `max_rows`: ClickHouse keeps a block of this many rows whole (one part per partition).
pub const ROWS_CEILING: u64 = 1_000_000;

/// Largest `max_bytes`: ClickHouse keeps a block of this size whole.
pub const BYTES_CEILING: u64 = 256 * 1024 * 1024;

/// Most deliveries at once: more than two gain nothing.
pub const IN_FLIGHT_CEILING: u64 = 8;

/// Most bad events that may be set aside within an hour: each is found by a dozen inserts.
pub const POISON_CEILING: u64 = 100_000;

/// Why a configuration cannot be used. Never shows a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration file {path} cannot be read")]
    Unreadable {
        /// The file.
        path: String,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path}, line {line}: {reason}")]
    Syntax {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong, without the text of the line, which may hold a password.
        reason: String,
    },
    /// A key is unknown, or a value is not allowed.
    #[error("{0}")]
    Invalid(String),
}

/// What the programs are told.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the outbox is.
    pub postgres: Postgres,
    /// How batches are made and delivered.
    pub relay: Relay,
    /// Destinations by name.
    pub sinks: BTreeMap<String, Sink>,
    /// Ways in, by name.
    pub intake: BTreeMap<String, Intake>,
    /// Where the relay shows itself.
    pub console: Console,
    /// What is logged.
    pub log: Log,
    /// What errors and traces are sent with.
    pub sentry: Sentry,
    /// The file that was read.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// `[postgres]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Postgres {
    /// `postgresql://user:password@host:5432/database`.
    pub url: Option<SecretString>,
}

/// `[relay]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Relay {
    /// Rows that close a batch.
    pub max_rows: u64,
    /// Bytes that close a batch.
    pub max_bytes: ByteSize,
    /// Age of the oldest event that closes a batch.
    pub max_age: Period,
    /// Deliveries at once, for each sink.
    pub in_flight: u64,
    /// Silence of the active relay after which a stand-by takes over.
    pub takeover_after: Period,
    /// Bad events within an hour, for each sink; with more the sink stops.
    pub poison_max_rows: u64,
    /// Share of bad events in a batch of a hundred or more; with more the sink stops.
    pub poison_max_share: f64,
    /// Shortest wait between two looks at the outbox.
    pub probe_min: Period,
    /// Longest wait between two looks at the outbox.
    pub probe_max: Period,
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            max_rows: 500_000,
            max_bytes: ByteSize(144 * 1024 * 1024),
            max_age: Period(Duration::from_secs(1)),
            in_flight: 2,
            takeover_after: Period(Duration::from_secs(15)),
            poison_max_rows: 100,
            poison_max_share: 0.1,
            probe_min: Period(Duration::from_millis(10)),
            probe_max: Period(Duration::from_millis(250)),
        }
    }
}

/// `[sinks.NAME]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sink {
    /// What kind of database it is.
    pub kind: SinkKind,
    /// Its servers: replicas of one another, the first is preferred.
    pub url: Urls,
    /// User, where the URL names none.
    pub user: Option<String>,
    /// Password, where the URL names no user.
    pub password: Option<SecretString>,
    /// Database, where the URL names none.
    pub database: Option<String>,
    /// Table.
    pub table: String,
    /// Compression on the way.
    pub compression: Compression,
    /// Whether events may arrive twice.
    pub guarantee: Promise,
    /// How long a server may take to answer an insert before its outcome counts as unknown.
    pub insert_timeout: Period,
    /// Columns that are computed while events are read, by name.
    pub columns: BTreeMap<String, Column>,
    /// Values of `event_context` that do not leave, by their place in it.
    pub redact: Vec<RedactedPath>,
}

impl Default for Sink {
    fn default() -> Self {
        Self {
            kind: SinkKind::ClickHouse,
            url: Urls::default(),
            user: None,
            password: None,
            database: None,
            table: "events".to_owned(),
            compression: Compression::Auto,
            guarantee: Promise::ExactlyOnce,
            insert_timeout: Period(Duration::from_secs(300)),
            columns: BTreeMap::new(),
            redact: Vec::new(),
        }
    }
}

/// `[sentry]`: used where the variable `SENTRY_DSN` says where to send.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sentry {
    /// Name of the environment; else the variable `SENTRY_ENVIRONMENT`, else `production`.
    pub environment: Option<String>,
    /// Share of the batches of which a transaction is sent, from 0 to 1. Errors are always sent.
    pub traces_sample_rate: f64,
}

impl Default for Sentry {
    fn default() -> Self {
        Self {
            environment: None,
            traces_sample_rate: 0.05,
        }
    }
}

/// `[console]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Console {
    /// Where it listens; `None` when nobody said, so that it may be done without.
    pub listen: Option<Listen>,
}

/// `[log]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// For people or for machines.
    pub format: LogFormat,
    /// A level, or directives as `tracing-subscriber`'s `EnvFilter` reads them.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Pretty,
            level: "info".to_owned(),
        }
    }
}

impl Config {
    /// Reads `path`, or the file that `PILLARBOX_CONFIG` names, or `pillarbox.toml` where it is
    /// there; then the variables of `environment`.
    ///
    /// # Errors
    /// When a named file is missing, or anything in it or in the environment is not as it must be.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let environment: HashMap<String, String> = environment.into_iter().collect();
        let named = path.map(Path::to_path_buf).or_else(|| {
            let named = environment.get("PILLARBOX_CONFIG")?;
            (!named.is_empty()).then(|| PathBuf::from(named))
        });
        let file = named.or_else(|| Some(PathBuf::from(FILE)).filter(|path| path.exists()));
        let text = match &file {
            Some(path) => std::fs::read_to_string(path).map_err(|source| {
                let path = path.display().to_string();
                ConfigError::Unreadable { path, source }
            })?,
            None => String::new(),
        };
        let shown = file
            .as_ref()
            .map_or_else(String::new, |path| path.display().to_string());
        let mut config = Self::merge(&text, &shown, &environment)?;
        config.file = file;
        Ok(config)
    }

    /// Merges the text of a file, called `file` in errors, with the environment.
    fn merge(
        text: &str,
        file: &str,
        environment: &HashMap<String, String>,
    ) -> Result<Self, ConfigError> {
        check_syntax(text, file)?;
        let variables = shape::variables(environment)?;
        let set = |name: &str| environment.get(name).filter(|value| !value.is_empty());
        let mut builder = config::Config::builder()
            .add_source(config::File::from_str(text, FileFormat::Toml))
            .set_override_option("postgres.url", set("DATABASE_URL").cloned())
            .map_err(|error| invalid(&error, file))?;
        let lone = address::lone_sink(text);
        if let Some(url) = set("CLICKHOUSE_URL") {
            builder = builder
                .set_override(format!("sinks.{lone}.url"), url.clone())
                .map_err(|error| invalid(&error, file))?;
        }
        for key in intake::without_url(text) {
            builder = builder
                .set_override_option(key, set("REDIS_URL").cloned())
                .map_err(|error| invalid(&error, file))?;
        }
        // After the well-known variables: what names Pillarbox outranks what every program reads.
        for (key, value) in variables {
            builder = builder
                .set_override(key, value)
                .map_err(|error| invalid(&error, file))?;
        }
        let merged = builder.build().map_err(|error| invalid(&error, file))?;
        shape::check_keys(&merged.cache, file)?;
        let config: Self = merged
            .try_deserialize()
            .map_err(|error| invalid(&error, file))?;
        config.check()?;
        Ok(config)
    }

    /// Refuses values out of their bounds.
    fn check(&self) -> Result<(), ConfigError> {
        let relay = &self.relay;
        quantity::within("relay.max_rows", relay.max_rows, 1, ROWS_CEILING)?;
        let (bytes, ceiling) = (relay.max_bytes, ByteSize(BYTES_CEILING));
        quantity::within("relay.max_bytes", bytes, ByteSize(1024), ceiling)?;
        quantity::within("relay.in_flight", relay.in_flight, 1, IN_FLIGHT_CEILING)?;
        let period = |key: &str, value, lowest, highest| {
            let lowest = Period(Duration::from_millis(lowest));
            quantity::within(key, value, lowest, Period(Duration::from_millis(highest)))
        };
        period("relay.max_age", relay.max_age, 1, 3_600_000)?;
        // Below, a relay that lost its session could still be sending while another one takes over: it
        // notices after the deadline of a statement on the ledger.
        period(
            "relay.takeover_after",
            relay.takeover_after,
            13_000,
            600_000,
        )?;
        quantity::within(
            "relay.poison_max_rows",
            relay.poison_max_rows,
            0,
            POISON_CEILING,
        )?;
        quantity::within("relay.poison_max_share", relay.poison_max_share, 0.0, 1.0)?;
        let rate = self.sentry.traces_sample_rate;
        quantity::within("sentry.traces_sample_rate", rate, 0.0, 1.0)?;
        period("relay.probe_min", relay.probe_min, 1, 10_000)?;
        period("relay.probe_max", relay.probe_max, 1, 60_000)?;
        if relay.probe_max < relay.probe_min {
            return Err(ConfigError::Invalid(format!(
                "relay.probe_max is {}, below relay.probe_min ({}); make it longer",
                relay.probe_max, relay.probe_min
            )));
        }
        for (name, sink) in &self.sinks {
            check_name("a sink", name)?;
            let key = format!("sinks.{name}.insert_timeout");
            period(&key, sink.insert_timeout, 1_000, 600_000)?;
            for address in sink.url.addresses(&format!("sinks.{name}.url"))? {
                tracing::trace!(sink = name, server = address.origin, "configured");
            }
            if sink.table.is_empty() {
                return Err(ConfigError::Invalid(format!("sinks.{name}.table is empty")));
            }
        }
        intake::check(&self.intake)
    }

    /// How to connect to PostgreSQL.
    ///
    /// # Errors
    /// When no URL is configured, or it cannot be read.
    pub fn postgres(&self) -> Result<tokio_postgres::Config, ConfigError> {
        let url = self.postgres.url.as_ref().ok_or_else(|| {
            ConfigError::Invalid(format!(
                "no postgresql url is configured; set DATABASE_URL, or url under [postgres] in {FILE}"
            ))
        })?;
        // The reason of the parser would quote a part of the URL, maybe of the password.
        crate::postgres::parse_url(url.expose_secret()).map_err(|_| {
            ConfigError::Invalid(
                "postgres.url cannot be read; write postgresql://user:password@host:5432/database, \
                 with special characters of the password percent-encoded"
                    .to_owned(),
            )
        })
    }

    /// The configured sink of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn sink(&self, name: &str) -> Result<&Sink, ConfigError> {
        self.sinks.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.sinks.keys().map(String::as_str).collect();
            let known = match known.is_empty() {
                true => "no sink is configured".to_owned(),
                false => format!("configured: {}", known.join(", ")),
            };
            ConfigError::Invalid(format!(
                "the sink {name} is not configured ({known}); \
                 set CLICKHOUSE_URL, or add [sinks.{name}] to {FILE}"
            ))
        })
    }
}

fn invalid(error: &config::ConfigError, file: &str) -> ConfigError {
    let place = match file {
        "" => "the environment".to_owned(),
        file => format!("{file} or the environment"),
    };
    ConfigError::Invalid(format!("{error} (in {place})"))
}

/// The names of all keys, for checks that documents and examples show each.
pub fn keys() -> impl Iterator<Item = &'static str> {
    let sections = shape::SECTIONS.iter().flat_map(|(_, keys)| keys.iter());
    let named = shape::NAMED.iter().flat_map(|(_, keys)| keys.iter());
    sections.chain(named).copied()
}
