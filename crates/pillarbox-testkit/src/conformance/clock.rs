//! What every [`Clock`] does.

use std::time::Duration;

use anyhow::{Result, ensure};
use pillarbox_relay::clock::Clock;

/// Runs the suite.
///
/// # Errors
/// What the clock does not do.
pub async fn clock<C: Clock>(clock: &C) -> Result<()> {
    let wait = Duration::from_millis(20);
    let (now, wall) = (clock.now(), clock.wall());
    clock.sleep(wait).await;
    ensure!(clock.now() >= now + wait, "it slept too short");
    let passed = clock.wall().duration_since(wall)?;
    ensure!(passed >= wait / 2, "the wall clock stands: {passed:?}");
    let again = clock.clone();
    ensure!(again.now() >= now, "a clone has another time");

    let dropped = tokio::time::timeout(wait, clock.sleep(Duration::from_secs(3600))).await;
    ensure!(dropped.is_err(), "an hour passed at once");
    clock.sleep(Duration::ZERO).await;

    let chances: Vec<f64> = (0..1000).map(|_| clock.chance()).collect();
    let in_range = chances.iter().all(|chance| (0.0..1.0).contains(chance));
    ensure!(in_range, "chance is out of its range");
    let below = chances.iter().filter(|chance| **chance < 0.5).count();
    ensure!((350..650).contains(&below), "chance is not even: {below}");
    Ok(())
}
