//! SIGTERM at any moment of a relay's life, again and again under load (INV-2).

use std::time::Duration;

use anyhow::{Result, ensure};
use pillarbox_testkit::servers::Flavour;
use rustix::process::Signal;

use crate::scene::Scene;
use crate::traffic::Traffic;

/// Relays that are terminated.
const TIMES: u32 = 32;

/// Latest moment: starting, taking over, and a few batches take about as long.
const LATEST_MS: u64 = 1_500;

/// A number from a sequence that its seed decides (xorshift, Marsaglia 2003).
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

async fn at_any_moment(flavour: Flavour) -> Result<()> {
    let seed = u64::from(std::process::id()) | 1;
    println!("seed {seed}");
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let scene = Scene::start(flavour).await?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    let mut clean = 0;
    for _ in 0..TIMES {
        let mut relay = scene.running()?;
        // The moment itself is what is random; nothing is waited for.
        tokio::time::sleep(Duration::from_millis(next(&mut state) % LATEST_MS)).await;
        relay.signal(Signal::TERM)?;
        let status = relay.ended().await?;
        use std::os::unix::process::ExitStatusExt as _;
        // Before its first instruction it is ended by the signal itself.
        let too_early = status.signal() == Some(Signal::TERM.as_raw());
        ensure!(
            status.success() || too_early,
            "{status}: {}",
            relay.log_tail()
        );
        clean += u32::from(status.success());
    }
    ensure!(clean > TIMES / 2, "{clean} of {TIMES} had begun");
    traffic.more(20).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    let verdict = scene.holds_when_drained(&oracle).await?;
    ensure!(verdict.published > 100, "{verdict}");
    Ok(())
}

#[tokio::test]
async fn inv_2_terminated_at_any_moment_before_clickhouse_18() -> Result<()> {
    at_any_moment(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_terminated_at_any_moment_before_clickhouse_26() -> Result<()> {
    at_any_moment(Flavour::V26).await
}
