//! What `make digest-cost` runs: what the digest adds to the encoder, and to a whole drain in CPU time.
//!
//! The clock on the wall says little on a machine that others use, so it is instructions and CPU time that
//! count. A drain saturates the machine: the digest's share of its CPU time is what it takes of its rate.
//! Exits with 1 when that is more than it may be. A benchmark, not a test: it wants a quiet machine and minutes.

mod drain;
mod encode;
mod figures;

use std::process::ExitCode;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

/// 128 + SIGINT, as a shell reports it.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    match run_or_signal().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("digest-cost: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// When it returns, every server and child has ended.
async fn run_or_signal() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, work] = arguments.as_slice()
        && command == "encode"
    {
        encode::counted(encode::Work::parse(work)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = drain::Config::from_env()?;
    let digest_ns = encode::report()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        done = drain::report(&config, digest_ns) => done.map(|()| ExitCode::SUCCESS),
        _ = terminate.recv() => Ok(ExitCode::from(INTERRUPTED)),
        _ = interrupt.recv() => Ok(ExitCode::from(INTERRUPTED)),
    }
}
