//! How the demo runs: the environment.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pillarbox_testkit::oracle::Precision;
use pillarbox_testkit::servers::Flavour;

/// Shortest run in which the kill, the restart and the recovery of each still fit.
const SECONDS_MIN: u64 = 10;
/// Longest run: the comparison keeps about 200 bytes for each event in memory.
const SECONDS_MAX: u64 = 600;

pub(crate) struct Config {
    /// `DEMO_SECONDS`: how long traffic runs. Default 20.
    pub(crate) duration: Duration,
    /// `DEMO_ENGINE`: 18, Debian's real server (the default), or 26, the current engine.
    pub(crate) flavour: Flavour,
    /// `DEMO_KEEP=1`: keep everything running after the comparison, until Ctrl-C.
    pub(crate) keep: bool,
}

impl Config {
    pub(crate) fn from_env() -> Result<Self> {
        let seconds = variable("DEMO_SECONDS", "20")?;
        let seconds: u64 = seconds
            .parse()
            .with_context(|| format!("DEMO_SECONDS is {seconds:?}; use a number of seconds"))?;
        ensure!(
            (SECONDS_MIN..=SECONDS_MAX).contains(&seconds),
            "DEMO_SECONDS is {seconds}; use {SECONDS_MIN} to {SECONDS_MAX}"
        );
        let flavour = match variable("DEMO_ENGINE", "18")?.as_str() {
            "18" => Flavour::V18,
            "26" => Flavour::V26,
            other => bail!("DEMO_ENGINE is {other:?}; use 18 or 26"),
        };
        let keep = match variable("DEMO_KEEP", "0")?.as_str() {
            "0" => false,
            "1" => true,
            other => bail!("DEMO_KEEP is {other:?}; use 1 to keep everything running"),
        };
        Ok(Self {
            duration: Duration::from_secs(seconds),
            flavour,
            keep,
        })
    }

    /// How fine `event_date_time` is in the table that `pillarbox sink create` makes.
    pub(crate) fn precision(&self) -> Precision {
        match self.flavour {
            Flavour::V18 => Precision::Seconds,
            Flavour::V26 => Precision::Micros,
        }
    }
}

fn variable(name: &str, default: &str) -> Result<String> {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => Ok(value),
        Ok(_) | Err(std::env::VarError::NotPresent) => Ok(default.to_owned()),
        Err(error) => Err(error).with_context(|| format!("{name} cannot be read")),
    }
}
