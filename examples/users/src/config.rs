//! The configuration: the environment, nothing else.

use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};

/// How the application runs.
#[derive(Clone)]
pub struct Config {
    /// `DATABASE_URL`: the PostgreSQL that holds the users and the outbox.
    pub database_url: String,
    /// `LISTEN`: the address to serve on; port 0 takes a free one. Default 127.0.0.1:8080.
    pub listen: SocketAddr,
    /// `USERS_FAIL_RATE`: fault injection for the demo. This share of requests, 0 to 1, fails
    /// after publishing and before the commit: the transaction is rolled back and the answer is 500.
    /// Default 0.
    pub fail_rate: f64,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object for each line.
    Json,
}

impl Config {
    /// Reads the environment.
    ///
    /// # Errors
    ///
    /// Names the variable that is missing or cannot be read.
    pub fn from_env() -> anyhow::Result<Self> {
        let Some(database_url) = variable("DATABASE_URL")? else {
            bail!("DATABASE_URL is not set; set it to postgresql://USER@HOST/DATABASE");
        };
        let listen = variable("LISTEN")?.unwrap_or_else(|| "127.0.0.1:8080".to_owned());
        let fail_rate = variable("USERS_FAIL_RATE")?.unwrap_or_else(|| "0".to_owned());
        Ok(Self {
            database_url,
            listen: listen
                .parse()
                .with_context(|| format!("LISTEN is {listen:?}; use ADDRESS:PORT"))?,
            fail_rate: parse_rate(&fail_rate)?,
        })
    }
}

impl LogFormat {
    /// Reads `LOG_FORMAT`.
    ///
    /// # Errors
    ///
    /// When it is neither `json` nor `text`.
    pub fn from_env() -> anyhow::Result<Self> {
        match variable("LOG_FORMAT")?.as_deref() {
            None | Some("text") => Ok(Self::Text),
            Some("json") => Ok(Self::Json),
            Some(other) => bail!("LOG_FORMAT is {other:?}; use json or text"),
        }
    }
}

/// Without the database URL, which may hold a password.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("listen", &self.listen)
            .field("fail_rate", &self.fail_rate)
            .finish_non_exhaustive()
    }
}

fn variable(name: &str) -> anyhow::Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{name} cannot be read")),
    }
}

fn parse_rate(text: &str) -> anyhow::Result<f64> {
    let wanted = || format!("USERS_FAIL_RATE is {text:?}; use a number from 0 to 1");
    let rate: f64 = text.parse().with_context(wanted)?;
    ensure!((0.0..=1.0).contains(&rate), wanted());
    Ok(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fail_rate_is_a_share() {
        assert_eq!(parse_rate("0.25").unwrap(), 0.25);
        assert_eq!(parse_rate("1").unwrap(), 1.0);
        for text in ["", "x", "-0.1", "1.1", "NaN", "inf"] {
            let error = parse_rate(text).unwrap_err();
            assert!(error.to_string().contains("USERS_FAIL_RATE"), "{error}");
        }
    }
}
