//! What is broken while traffic runs.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use crate::progress::Board;
use crate::stage::Stage;

/// How long the relay stays dead: long enough for a visible lag.
const RELAY_DOWN: Duration = Duration::from_millis(1_500);

/// Kills the relay after a third of `duration`, restarts ClickHouse after two thirds, and ends with
/// `duration`. An error if the relay or the application ends by itself.
pub(crate) async fn make(stage: &mut Stage, duration: Duration, board: &Board) -> Result<()> {
    let started = Instant::now();
    stage.relay.run_for(duration / 3).await?;

    let pid = stage.relay.pid();
    stage.relay.kill().await?;
    board.breaks(&format!("relay killed (kill -9 {pid}); publishers go on"));
    stage.users.run_for(RELAY_DOWN).await?;
    stage.start_relay()?;
    board.mends(&format!("relay started again (pid {})", stage.relay.pid()));
    let left = (started + duration * 2 / 3).saturating_duration_since(Instant::now());
    stage.relay.run_for(left).await?;

    if stage.clickhouse.pid().is_some() {
        board.breaks("clickhouse restarts; publishers go on, the relay retries");
        stage.clickhouse.restart().await?;
        board.mends("clickhouse is back");
    } else {
        board.mends("clickhouse is not ours to restart (it comes from the environment)");
    }
    let left = (started + duration).saturating_duration_since(Instant::now());
    stage.relay.run_for(left).await?;
    stage.check()
}
