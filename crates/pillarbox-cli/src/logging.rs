//! Logs: to standard error, for people or as JSON.

use std::io::{self, IsTerminal as _};

use pillarbox_relay::config::{Log, LogFormat};
use tracing_subscriber::EnvFilter;

use crate::exit::Failure;

/// Warnings only, unless `RUST_LOG` says otherwise: what a command has to say is its output.
pub(crate) fn quiet() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time();
    // Somebody else's subscriber, such as a test's, is as good.
    let _ = lines.try_init();
}

/// The logs of a daemon: `RUST_LOG`, else the configured level.
pub(crate) fn daemon(log: &Log) -> Result<(), Failure> {
    let level = std::env::var("RUST_LOG").unwrap_or_else(|_| log.level.clone());
    let filter = EnvFilter::builder().parse(&level).map_err(|_| {
        Failure::usage(format!(
            "log.level is {level:?}; give it a level (error, warn, info, debug, trace) \
             or directives such as info,pillarbox_relay=debug"
        ))
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let _ = match log.format {
        LogFormat::Pretty => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    Ok(())
}
