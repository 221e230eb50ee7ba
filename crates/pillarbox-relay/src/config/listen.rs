//! Where a server listens: an address, or nowhere.

use std::fmt;

use serde::Deserialize;

/// The console's address when nobody said another: for this machine only.
pub const CONSOLE: &str = "127.0.0.1:9187";

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Listen {
    /// `host:port`; port 0 is any free one.
    On(String),
    /// Nowhere.
    Off,
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // An empty variable counts as unset, so there is a word for it too.
        if text.is_empty() || text == "off" {
            return Ok(Self::Off);
        }
        let parts = text.rsplit_once(':');
        let is_address = parts.is_some_and(|(host, port)| {
            let is_bare_v6 = host.contains(':') && !host.starts_with('[');
            !host.is_empty() && !is_bare_v6 && port.parse::<u16>().is_ok()
        });
        match is_address {
            true => Ok(Self::On(text)),
            false => Err(format!(
                "{text:?} is no address to listen on; write host:port such as {CONSOLE}, or off"
            )),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On(address) => f.write_str(address),
            Self::Off => f.write_str("off"),
        }
    }
}
