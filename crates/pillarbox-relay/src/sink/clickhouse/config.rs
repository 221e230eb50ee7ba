//! How to reach the destination table, as `pillarbox.toml` and the environment say it.

use std::fmt;
use std::time::Duration;

use secrecy::SecretString;
use url::{Host, Url};

use crate::redaction::Path;

/// Where the table is and how to reach it.
#[derive(Clone)]
pub struct ClickHouseConfig {
    /// `http://` or `https://` addresses of one server, or of the replicas of one replicated table,
    /// tried in turn. A user, password and database in an address win over the fields below.
    pub urls: Vec<String>,
    /// User.
    pub user: String,
    /// Password; empty for none.
    pub password: SecretString,
    /// Database of the table.
    pub database: String,
    /// The table.
    pub table: String,
    /// How inserts are compressed.
    pub compression: Compression,
    /// Limit of opening a connection, TLS included.
    pub connect_timeout: Duration,
    /// Limit of one insert, from the first byte to the end of the answer.
    pub insert_timeout: Duration,
    /// Limit of any other statement.
    pub query_timeout: Duration,
    /// Accept a table that cannot keep an insert from being written twice.
    pub at_least_once_allowed: bool,
    /// Values of `event_context` that do not leave, by their place in it.
    pub redacted: Vec<Path>,
}

/// How inserts are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// By LZ4, but not at all to a server on this machine, where a core is worth more than the way.
    #[default]
    Auto,
    /// By ClickHouse's own frames of LZ4 blocks.
    Lz4,
    /// Not at all.
    None,
}

impl Compression {
    /// Whether what is sent to this server is compressed.
    pub(super) fn is_for(self, url: &Url) -> bool {
        match self {
            Self::Lz4 => true,
            Self::None => false,
            Self::Auto => match url.host() {
                Some(Host::Domain(name)) => name != "localhost",
                Some(Host::Ipv4(address)) => !address.is_loopback(),
                Some(Host::Ipv6(address)) => !address.is_loopback(),
                None => true,
            },
        }
    }
}

impl ClickHouseConfig {
    /// A table named `database.table` at `url`, with the default user and limits.
    pub fn new(
        url: impl Into<String>,
        database: impl Into<String>,
        table: impl Into<String>,
    ) -> Self {
        Self {
            urls: vec![url.into()],
            user: "default".to_owned(),
            password: SecretString::from(String::new()),
            database: database.into(),
            table: table.into(),
            compression: Compression::Auto,
            connect_timeout: Duration::from_secs(5),
            insert_timeout: Duration::from_secs(300),
            query_timeout: Duration::from_secs(60),
            at_least_once_allowed: false,
            redacted: Vec::new(),
        }
    }
}

impl fmt::Debug for ClickHouseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let urls: Vec<String> = self.urls.iter().map(|url| without_secrets(url)).collect();
        f.debug_struct("ClickHouseConfig")
            .field("urls", &urls)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("table", &self.table)
            .field("compression", &self.compression)
            .field("connect_timeout", &self.connect_timeout)
            .field("insert_timeout", &self.insert_timeout)
            .field("query_timeout", &self.query_timeout)
            .field("at_least_once_allowed", &self.at_least_once_allowed)
            .field("redacted", &self.redacted)
            .finish_non_exhaustive()
    }
}

/// Scheme, host and port of an address. Its user, password and query are never shown.
pub(super) fn without_secrets(url: &str) -> String {
    match Url::parse(url) {
        Ok(url) => {
            let host = url.host_str().unwrap_or("?");
            let port = url.port().map(|port| format!(":{port}"));
            format!("{}://{host}{}", url.scheme(), port.unwrap_or_default())
        }
        Err(_) => "(not an address)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_on_this_machine_is_not_compressed() {
        let is_compressed = |url: &str| Compression::Auto.is_for(&Url::parse(url).unwrap());
        for here in [
            "http://127.0.0.1:8123",
            "http://localhost",
            "https://[::1]:8443",
        ] {
            assert!(!is_compressed(here), "{here}");
        }
        for away in [
            "http://10.0.0.7:8123",
            "https://clickhouse.example",
            "http://[2001:db8::1]",
        ] {
            assert!(is_compressed(away), "{away}");
        }
    }
}
