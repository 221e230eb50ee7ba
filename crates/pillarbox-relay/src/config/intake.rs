//! `[intake.NAME]`: queues in Redis from which events come in.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::choice::word;
use super::{ByteSize, ConfigError, Period, check_name, quantity};

/// Largest `max_rows` of an intake: what one call of `publish_batch` takes with ease.
const ROWS_CEILING: u64 = 100_000;

/// Largest `max_bytes` of an intake.
const BYTES_CEILING: u64 = 256 * 1024 * 1024;

/// `[intake.NAME]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Intake {
    /// What kind of queue it is.
    pub kind: Option<IntakeKind>,
    /// `redis://user:password@host:6379/0`, or `rediss://` for TLS.
    pub url: Option<SecretString>,
    /// The key of the stream or the list.
    pub key: String,
    /// Entries taken in one transaction.
    pub max_rows: u64,
    /// Their bytes; a larger entry becomes a dead letter.
    pub max_bytes: ByteSize,
    /// How long an entry waits before it is taken.
    pub max_age: Period,
    /// How long entries are remembered after they were taken: as old as a Redis may be that comes back.
    pub remember: Period,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            kind: None,
            url: None,
            key: String::new(),
            max_rows: 5_000,
            max_bytes: ByteSize(8 * 1024 * 1024),
            max_age: Period(Duration::from_secs(1)),
            remember: Period(Duration::from_secs(2 * 3_600)),
        }
    }
}

/// A kind of queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum IntakeKind {
    /// A stream that producers XADD to.
    RedisStream,
    /// A list that producers LPUSH to.
    RedisList,
}

impl IntakeKind {
    /// The word in the configuration and in PostgreSQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RedisStream => "redis-stream",
            Self::RedisList => "redis-list",
        }
    }
}

impl TryFrom<String> for IntakeKind {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let known = [Self::RedisStream, Self::RedisList].map(|kind| (kind.as_str(), kind));
        word(&text, &known)
    }
}

impl Intake {
    /// A client of its Redis, which has not connected yet.
    ///
    /// # Errors
    /// When no URL is configured, or it cannot be read; never shows it.
    pub fn client(&self, name: &str) -> Result<redis::Client, ConfigError> {
        let url = self.url.as_ref().ok_or_else(|| {
            ConfigError::Invalid(format!(
                "intake.{name}.url is missing; write redis://host:6379, or set REDIS_URL"
            ))
        })?;
        redis::Client::open(url.expose_secret()).map_err(|_| {
            ConfigError::Invalid(format!(
                "intake.{name}.url cannot be read; write redis://user:password@host:6379/0, or \
                 rediss:// for tls, with special characters of the password percent-encoded"
            ))
        })
    }

    fn check(&self, name: &str) -> Result<(), ConfigError> {
        let missing = |key: &str, remedy: &str| {
            ConfigError::Invalid(format!("intake.{name}.{key} is missing; {remedy}"))
        };
        if self.kind.is_none() {
            return Err(missing("kind", "write redis-stream or redis-list"));
        }
        if self.key.is_empty() {
            return Err(missing("key", "name the key that producers write to"));
        }
        if self.url.is_some() {
            self.client(name)?;
        }
        let key = |key: &str| format!("intake.{name}.{key}");
        quantity::within(&key("max_rows"), self.max_rows, 1, ROWS_CEILING)?;
        let (lowest, highest) = (ByteSize(1024), ByteSize(BYTES_CEILING));
        quantity::within(&key("max_bytes"), self.max_bytes, lowest, highest)?;
        let period = |s| Period(Duration::from_secs(s));
        let lowest = Period(Duration::from_millis(1));
        quantity::within(&key("max_age"), self.max_age, lowest, period(3_600))?;
        let month = period(30 * 86_400);
        quantity::within(&key("remember"), self.remember, period(60), month)
    }
}

/// The keys that `REDIS_URL` sets: the url of the intakes of the file that name none, or the only one.
pub(super) fn without_url(text: &str) -> Vec<String> {
    let table: toml::Table = text.parse().unwrap_or_default();
    let Some(intakes) = table.get("intake").and_then(toml::Value::as_table) else {
        return Vec::new();
    };
    let is_lone = intakes.len() == 1;
    let named = |intake: &toml::Value| intake.get("url").is_some();
    let found = intakes
        .iter()
        .filter(|(_, intake)| is_lone || !named(intake));
    found
        .map(|(name, _)| format!("intake.{name}.url"))
        .collect()
}

/// Refuses what is missing or out of its bounds.
pub(super) fn check(intakes: &BTreeMap<String, Intake>) -> Result<(), ConfigError> {
    for (name, intake) in intakes {
        check_name("an intake", name)?;
        intake.check(name)?;
    }
    Ok(())
}
