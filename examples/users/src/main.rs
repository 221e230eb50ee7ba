//! Starts the sample application, logs, and stops on SIGTERM or SIGINT.
//!
//! Environment: `DATABASE_URL`, `LISTEN` (127.0.0.1:8080), `USERS_FAIL_RATE` (0), `LOG_FORMAT`
//! (`text` or `json`), `RUST_LOG` (info).

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use users::{Config, LogFormat, Server};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    start_logs(LogFormat::from_env()?)?;
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

/// Logs go to stdout; `RUST_LOG` chooses what, otherwise `info`.
fn start_logs(format: LogFormat) -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) => EnvFilter::try_new(directives).context("RUST_LOG cannot be read")?,
        Err(_) => EnvFilter::new("info"),
    };
    let logs = tracing_subscriber::fmt().with_env_filter(filter);
    match format {
        LogFormat::Json => logs.json().flatten_event(true).init(),
        LogFormat::Text => {
            logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stdout()))
                .init();
        }
    }
    Ok(())
}
