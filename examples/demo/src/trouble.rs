//! What is broken while traffic runs.

use std::time::Duration;

use anyhow::Result;
use pillarbox_testkit::servers::{Postgres, eventually};
use tokio::time::Instant;

use crate::progress::Board;
use crate::stage::Stage;

/// How long the relay stays dead: long enough for a visible lag.
const RELAY_DOWN: Duration = Duration::from_millis(1_500);

/// How long to wait for a batch in flight to kill the relay with: there is one every second.
const IN_FLIGHT_DEADLINE: Duration = Duration::from_secs(5);

/// Kills the relay after a third of `duration`, restarts ClickHouse after two thirds, and ends with
/// `duration`. An error if the relay or the application ends by itself.
pub(crate) async fn make(stage: &mut Stage, duration: Duration, board: &Board) -> Result<()> {
    let started = Instant::now();
    stage.relay.run_for(duration / 3).await?;

    let pid = stage.relay.pid();
    let batch = batch_in_flight(&stage.postgres).await?;
    stage.relay.kill().await?;
    board.breaks(&format!(
        "relay killed (kill -9 {pid}) with batch {batch} in flight; publishers go on"
    ));
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

/// Waits for a batch that is sealed and not confirmed, and gives its number.
async fn batch_in_flight(postgres: &Postgres) -> Result<i64> {
    const OPEN: &str = "select number from pillarbox.open_batch limit 1";
    let admin = postgres.connect_as("demo", "postgres", None).await?;
    let open = eventually("a batch in flight", IN_FLIGHT_DEADLINE, || async {
        let row = admin.query_opt(OPEN, &[]).await?;
        Ok(row.map(|row| row.get(0)))
    });
    open.await
}
