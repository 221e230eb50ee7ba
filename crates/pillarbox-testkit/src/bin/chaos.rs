//! What `make chaos` runs: random faults of all kinds on real servers under load. Its last line says
//! what it came to; it exits with 1 when an event was lost, doubled, altered or made up, or when the
//! run has shown too little.

use std::process::ExitCode;

use anyhow::Result;
use pillarbox_testkit::chaos::{Config, Outcome, run};
use tokio::signal::unix::{SignalKind, signal};

/// 128 + SIGINT, as a shell reports it.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    match run_or_signal().await {
        Ok(Some(outcome)) => {
            let complaints = outcome.complaints();
            for complaint in &complaints {
                eprintln!("chaos: {complaint}");
            }
            println!("{outcome}");
            ExitCode::from(u8::from(!complaints.is_empty()))
        }
        Ok(None) => {
            eprintln!("chaos: interrupted; nothing is left running");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// When it returns, every server and child has ended.
async fn run_or_signal() -> Result<Option<Outcome>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let config = Config::from_env()?;
    println!("chaos: seed={}", config.seed);
    tokio::select! {
        outcome = run(&config) => outcome.map(Some),
        _ = terminate.recv() => Ok(None),
        _ = interrupt.recv() => Ok(None),
    }
}
