//! Addresses of a sink's servers, taken apart: what may be shown, and what may not.

use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use url::Url;

use super::ConfigError;

/// One URL, several in a list, or several in one text with commas between them. Each may hold a
/// password, so none is ever shown.
#[derive(Clone, Debug, Default)]
pub struct Urls(Vec<SecretString>);

/// A server of a sink.
#[derive(Clone, Debug)]
pub struct Address {
    /// `http://host:8123`, without user, password, path and query.
    pub origin: String,
    /// User in the URL.
    pub user: Option<String>,
    /// Password in the URL.
    pub password: Option<SecretString>,
    /// Database in the URL: its path, or its parameter `database`.
    pub database: Option<String>,
}

impl Urls {
    /// Whether there is no URL.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The URLs, taken apart.
    ///
    /// # Errors
    /// When one cannot be read; names `key` and never the URL.
    pub fn addresses(&self, key: &str) -> Result<Vec<Address>, ConfigError> {
        let read = |url: &SecretString| Address::read(url.expose_secret(), key);
        self.0.iter().map(read).collect()
    }
}

impl From<&str> for Urls {
    fn from(text: &str) -> Self {
        let parts = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        Self(parts.map(SecretString::from).collect())
    }
}

impl Address {
    fn read(text: &str, key: &str) -> Result<Self, ConfigError> {
        let refuse = |reason: &str| {
            ConfigError::Invalid(format!(
                "{key} {reason}; write http://user:password@host:8123/database"
            ))
        };
        let url = Url::parse(text).map_err(|_| refuse("cannot be read as a url"))?;
        if !["http", "https"].contains(&url.scheme()) {
            return Err(refuse("is not a url of the http interface"));
        }
        let Some(host) = url.host_str() else {
            return Err(refuse("names no host"));
        };
        let port = match (url.port(), url.scheme()) {
            (Some(port), _) => port,
            // The ports of ClickHouse, not those of the web.
            (None, "https") => 8443,
            (None, _) => 8123,
        };
        let decoded = |part: &str| {
            let pair = format!("v={}", part.replace('+', "%2B").replace('&', "%26"));
            let decoded = url::form_urlencoded::parse(pair.as_bytes());
            decoded.map(|(_, value)| value.into_owned()).next()
        };
        let named = |part: &str| decoded(part).filter(|name| !name.is_empty());
        let path = url.path().trim_matches('/');
        let parameter = |name: &str| {
            let found = url.query_pairs().find(|(key, _)| key == name);
            found.map(|(_, value)| value.into_owned())
        };
        Ok(Self {
            origin: format!("{}://{host}:{port}", url.scheme()),
            user: named(url.username()).or_else(|| parameter("user")),
            password: url
                .password()
                .and_then(decoded)
                .or_else(|| parameter("password"))
                .map(SecretString::from),
            database: parameter("database").or_else(|| named(path)),
        })
    }
}

/// The sink that `CLICKHOUSE_URL` is for: the only one in the file, else `clickhouse`.
pub(super) fn lone_sink(text: &str) -> String {
    let table: toml::Table = text.parse().unwrap_or_default();
    let sinks = table.get("sinks").and_then(toml::Value::as_table);
    match sinks.map(|sinks| sinks.keys().collect::<Vec<_>>()) {
        Some(names) if names.len() == 1 => names[0].clone(),
        _ => super::SINK.to_owned(),
    }
}

impl<'de> Deserialize<'de> for Urls {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Urls;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a url or a list of urls")
            }

            fn visit_str<E>(self, value: &str) -> Result<Urls, E> {
                Ok(Urls::from(value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Urls, A::Error> {
                let mut urls = Vec::new();
                while let Some(url) = list.next_element::<String>()? {
                    urls.push(SecretString::from(url));
                }
                Ok(Urls(urls))
            }
        }
        from.deserialize_any(OneOrMany)
    }
}
