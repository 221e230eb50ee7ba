//! `relay --once` as a library call: delivers what is committed, returns, and says so when another
//! relay is active.

use anyhow::{Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::Flavour;

use crate::scene::{PATIENCE, Scene};
use crate::traffic::{Event, Way, commit};

const NOON_US: i64 = 1_795_176_000_000_000;

async fn drains(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let oracle = Oracle::new();
    let mut client = scene.postgres.connect().await?;
    for way in Way::ALL {
        let event = |nth| Event::at(NOON_US + nth, "trial", format!(r#"{{"n":{nth}}}"#));
        let events: Vec<Event> = (0..75).map(event).collect();
        commit(&mut client, &oracle, way, &events).await?;
    }
    // A transaction that is open is not committed: the drain does not wait for it.
    let tx = client.transaction().await?;
    let late = [Event::at(NOON_US, "late", "{}".to_owned())];
    Way::Function.publish(&tx, &late).await?;
    let drained = scene.drain().await?;
    assert_eq!(drained, "drained 8 batches, 300 rows");
    assert_eq!(scene.drain().await?, "drained 0 batches, 0 rows");
    tx.commit().await?;
    oracle.committed(late[0].published()?);

    let relay = scene.running()?;
    relay.says("the sink is ready").await?;
    let second = tokio::time::timeout(PATIENCE, scene.relay("drain", "")?.output()).await??;
    let log = String::from_utf8_lossy(&second.stderr);
    ensure!(
        !second.status.success() && log.contains("another relay is active for this sink"),
        "{log}"
    );
    scene.holds(&oracle, relay).await?;
    assert_eq!(scene.drain().await?, "drained 0 batches, 0 rows");
    Ok(())
}

#[tokio::test]
async fn inv_2_a_drain_delivers_what_is_committed_to_clickhouse_18() -> Result<()> {
    drains(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_a_drain_delivers_what_is_committed_to_clickhouse_26() -> Result<()> {
    drains(Flavour::V26).await
}
