//! The short form of `make chaos`: random faults of all kinds, at once, on real servers under load.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use pillarbox_testkit::chaos::{Config, run};
use pillarbox_testkit::servers::Flavour;

/// Enough for most kinds to happen once.
const DURATION: Duration = Duration::from_secs(20);

/// Fewer faults than this have shown nothing. A machine that is busy with other tests comes to seven: what
/// hits a relay that is not active yet does not count.
const FAULTS_MIN: u32 = 5;

async fn everything_breaks(flavour: Flavour, seed: u64) -> Result<()> {
    let config = Config {
        seed,
        duration: DURATION,
        flavour,
        relay: PathBuf::from(env!("CARGO_BIN_EXE_relay_under_test")),
        logs: None,
    };
    let outcome = run(&config).await?;
    println!("{outcome}");
    let (verdict, broken) = (outcome.verdict(), outcome.broken_promises());
    ensure!(verdict.holds(), "{outcome}\n{}", verdict.explain());
    ensure!(broken.is_empty(), "{outcome}\n{}", broken.join("\n"));
    ensure!(verdict.published >= 333 && verdict.dead > 0, "{outcome}");
    ensure!(outcome.faults() >= FAULTS_MIN, "{outcome}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inv_1_and_2_everything_breaks_before_clickhouse_18() -> Result<()> {
    everything_breaks(Flavour::V18, 18).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inv_1_and_2_everything_breaks_before_clickhouse_26() -> Result<()> {
    everything_breaks(Flavour::V26, 26).await
}
