//! How chaos runs: the environment.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::servers::Flavour;

/// Shorter, not even one take-over from a frozen relay fits.
const SECONDS_MIN: u64 = 20;

/// The comparison keeps about 200 bytes for each event in memory.
const SECONDS_MAX: u64 = 6 * 3600;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// `CHAOS_SEED`: orders and sizes of the faults, and the load. Random unless set.
    pub seed: u64,
    /// `CHAOS_SECONDS`: how long things break. Default 60.
    pub duration: Duration,
    /// `CHAOS_ENGINE`: 26, the current engine (the default), or 18, Debian's real server.
    pub flavour: Flavour,
    /// The program `relay_under_test`.
    pub relay: PathBuf,
    /// `CHAOS_LOGS`: a directory for the logs of the relays, which are kept then.
    pub logs: Option<PathBuf>,
}

impl Config {
    /// Reads the environment. The relay is next to this program.
    ///
    /// # Errors
    /// When a variable is not as it must be.
    pub fn from_env() -> Result<Self> {
        let seed = match variable("CHAOS_SEED")? {
            None => u64::from(rand::random::<u32>()),
            Some(text) => text
                .parse()
                .with_context(|| format!("CHAOS_SEED is {text:?}; use a number"))?,
        };
        let seconds = variable("CHAOS_SECONDS")?.unwrap_or_else(|| "60".to_owned());
        let seconds: u64 = seconds
            .parse()
            .with_context(|| format!("CHAOS_SECONDS is {seconds:?}; use a number of seconds"))?;
        ensure!(
            (SECONDS_MIN..=SECONDS_MAX).contains(&seconds),
            "CHAOS_SECONDS is {seconds}; use {SECONDS_MIN} to {SECONDS_MAX}"
        );
        let flavour = match variable("CHAOS_ENGINE")?.as_deref() {
            None | Some("26") => Flavour::V26,
            Some("18") => Flavour::V18,
            Some(other) => bail!("CHAOS_ENGINE is {other:?}; use 18 or 26"),
        };
        let relay = std::env::current_exe()?.with_file_name("relay_under_test");
        ensure!(
            relay.exists(),
            "{} is not built; run `make chaos`",
            relay.display()
        );
        Ok(Self {
            seed,
            duration: Duration::from_secs(seconds),
            flavour,
            relay,
            logs: variable("CHAOS_LOGS")?.map(PathBuf::from),
        })
    }
}

fn variable(name: &str) -> Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => Ok(Some(value)),
        Ok(_) | Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{name} cannot be read")),
    }
}
