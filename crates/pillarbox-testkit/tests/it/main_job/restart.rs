//! PostgreSQL restarted and killed under load, with publishers that commit asynchronously among the
//! others: what was answered as durable arrives once, nothing arrives that the database does not
//! know (INV-1, INV-2).

use anyhow::Result;
use pillarbox_testkit::servers::{Flavour, Postgres};

use crate::scene::{Scene, version_for};
use crate::traffic::Traffic;

#[derive(Clone, Copy)]
enum End {
    Fast,
    Killed,
}

async fn postgres_goes_away(flavour: Flavour, end: End, times: u32) -> Result<()> {
    let postgres = Postgres::builder()
        .version(version_for(flavour))
        .durable()
        // Asynchronous commits stay in memory for longer, so that a crash takes some with it.
        .setting("wal_writer_delay", "500ms")
        .setting("wal_writer_flush_after", "0")
        .start()
        .await?;
    let scene = Scene::on(postgres, flavour).await?;
    let traffic = Traffic::start(&scene.postgres, 6, true).await?;
    let relay = scene.running()?;
    for _ in 0..times {
        traffic.more(60).await?;
        scene.wait_in_flight().await?;
        match end {
            End::Fast => scene.postgres.stop().await?,
            End::Killed => scene.postgres.kill()?,
        }
        scene.postgres.restart().await?;
    }
    traffic.more(60).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    let verdict = scene.holds(&oracle, relay).await?;
    assert!(
        verdict.rolled_back > 0 && verdict.published > 300,
        "{verdict}"
    );
    Ok(())
}

#[tokio::test]
async fn inv_2_postgresql_is_restarted_before_clickhouse_18() -> Result<()> {
    postgres_goes_away(Flavour::V18, End::Fast, 3).await
}

#[tokio::test]
async fn inv_2_postgresql_is_restarted_before_clickhouse_26() -> Result<()> {
    postgres_goes_away(Flavour::V26, End::Fast, 3).await
}

#[tokio::test]
async fn inv_1_and_2_postgresql_is_killed_before_clickhouse_18() -> Result<()> {
    postgres_goes_away(Flavour::V18, End::Killed, 4).await
}

#[tokio::test]
async fn inv_1_and_2_postgresql_is_killed_before_clickhouse_26() -> Result<()> {
    postgres_goes_away(Flavour::V26, End::Killed, 4).await
}
