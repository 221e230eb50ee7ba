//! Logs: to standard error, for people or as JSON.

use std::io::{self, IsTerminal as _};

use pillarbox_relay::config::{Config, LogFormat};
use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

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

/// The logs of a relay: `RUST_LOG`, else warnings only of one that drains, else the configured level. What
/// it returns has to live as long as the relay.
pub(crate) fn relay(config: &Config, once: bool) -> Result<Guard, Failure> {
    let log = &config.log;
    let configured = if once { "warn" } else { &log.level };
    let level = std::env::var("RUST_LOG").unwrap_or_else(|_| configured.to_owned());
    let filter = EnvFilter::builder().parse(&level).map_err(|_| {
        Failure::usage(format!(
            "log.level is {level:?}; give it a level (error, warn, info, debug, trace) \
             or directives such as info,pillarbox_relay=debug"
        ))
    })?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let lines = match log.format {
        LogFormat::Pretty => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let logs = tracing_subscriber::registry().with(lines.with_filter(filter));
    collected(logs, config)
}

/// Keeps what sends errors and traces alive.
#[cfg(feature = "sentry")]
pub(crate) type Guard = Option<sentry::ClientInitGuard>;
/// Nothing is sent.
#[cfg(not(feature = "sentry"))]
pub(crate) type Guard = ();

#[cfg(feature = "sentry")]
fn collected(logs: impl Logs, config: &Config) -> Result<Guard, Failure> {
    use crate::collector;

    let guard = collector::start(config)?;
    let layers = guard.is_some().then(collector::layers);
    let _ = logs.with(layers).try_init();
    Ok(guard)
}

#[cfg(not(feature = "sentry"))]
fn collected(logs: impl Logs, _: &Config) -> Result<Guard, Failure> {
    let _ = logs.try_init();
    if std::env::var_os("SENTRY_DSN").is_some_and(|dsn| !dsn.is_empty()) {
        tracing::warn!("SENTRY_DSN is set, but this program was built without the feature sentry");
    }
    Ok(())
}

/// A subscriber that further layers can be put on.
trait Logs: Subscriber + for<'a> LookupSpan<'a> + Send + Sync {}
impl<S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync> Logs for S {}
