//! Starts the sample application, logs, and stops on SIGTERM or SIGINT.
//!
//! Environment: `DATABASE_URL`, `LISTEN` (127.0.0.1:8080), `USERS_FAIL_RATE` (0), `LOG_FORMAT`
//! (`text` or `json`), `RUST_LOG` (info), `SENTRY_DSN` (none), `SENTRY_TRACES_SAMPLE_RATE` (1).

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};
use users::{Config, LogFormat, Server};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let _collected = start_logs(LogFormat::from_env()?)?;
    let config = Config::from_env()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let server = Server::start(&config).await?;
    tracing::info!(
        fail_rate = config.fail_rate,
        "listening on http://{}",
        server.address()?
    );
    server
        .serve(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await
}

/// Logs go to stdout; `RUST_LOG` chooses what, otherwise `info`. Requests and errors go to Sentry where
/// `SENTRY_DSN` says so, until what this returns is dropped.
fn start_logs(format: LogFormat) -> anyhow::Result<Option<sentry::ClientInitGuard>> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) => EnvFilter::try_new(directives).context("RUST_LOG cannot be read")?,
        Err(_) => EnvFilter::new("info"),
    };
    let logs = tracing_subscriber::fmt::layer();
    let logs = match format {
        LogFormat::Json => logs.json().flatten_event(true).boxed(),
        LogFormat::Text => {
            let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
            logs.with_ansi(is_terminal).boxed()
        }
    };
    let collected = users::collect()?;
    let layers = collected.is_some().then(users::collected);
    tracing_subscriber::registry()
        .with(logs.with_filter(filter))
        .with(layers)
        .init();
    Ok(collected)
}
