//! INV-8 with two real sinks of one outbox: a leaf is never emptied while a row of it is undone for
//! either, and both end with every event once.

use anyhow::{Context as _, Result, ensure};
use pillarbox_relay::sink::clickhouse::{ClickHouse as Sink, ClickHouseConfig, CreateOptions};
use pillarbox_testkit::oracle::{Precision, read_clickhouse};
use pillarbox_testkit::servers::{ClickHouse, Flavour, eventually};

use crate::scene::{PATIENCE, Running, Scene, TABLE};
use crate::traffic::Traffic;

/// The second sink, on an old server.
const AUDIT: &str = "audit";

async fn audit() -> Result<ClickHouse> {
    let server = ClickHouse::start(Flavour::V18).await?;
    let config = ClickHouseConfig::new(server.url_with_credentials()?, server.database(), TABLE);
    Sink::new(config)?.create(&CreateOptions::default()).await?;
    Ok(server)
}

fn audit_relay(scene: &Scene, audit: &ClickHouse) -> Result<Running> {
    let url = audit.url_with_credentials()?;
    scene.running_with(&[("SINK", AUDIT), ("CLICKHOUSE_URL", &url)])
}

async fn held(server: &ClickHouse) -> Result<u64> {
    let count = server
        .query(&format!("select count() from {TABLE}"))
        .await?;
    Ok(count.trim().parse()?)
}

/// Leaves that hold rows.
async fn full_leaves(scene: &Scene) -> Result<i64> {
    scene
        .number("select count(distinct tableoid) from pillarbox.event")
        .await
}

#[tokio::test]
async fn inv_8_a_leaf_waits_for_each_of_two_sinks() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    let audit = audit().await?;
    scene.register(AUDIT).await?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    let main = scene.running()?;
    // The other sink has no relay: whatever the first one delivers stays in the outbox.
    traffic.more(200).await?;
    eventually("the ring to turn", PATIENCE, || async {
        Ok((full_leaves(&scene).await? >= 2).then_some(()))
    })
    .await?;
    let emptied = "a leaf of the ring was emptied";
    let rows = scene.number("select count(*) from pillarbox.event").await?;
    let published = i64::try_from(traffic.oracle.published())?;
    ensure!(rows >= published - 50 && !main.log().contains(emptied));

    // Now both deliver and each is away for a while; the ring turns and empties on.
    let mut other = audit_relay(&scene, &audit)?;
    eventually("a leaf to be emptied", PATIENCE, || async {
        let logs = [main.log(), other.log()];
        Ok(logs.iter().any(|log| log.contains(emptied)).then_some(()))
    })
    .await?;
    for _ in 0..2 {
        other.kill().await?;
        traffic.more(60).await?;
        other = audit_relay(&scene, &audit)?;
        scene.clickhouse.pause()?;
        traffic.more(60).await?;
        scene.clickhouse.resume()?;
        traffic.more(30).await?;
    }
    let oracle = traffic.finish(&scene.postgres).await?;
    let published = oracle.published();
    eventually("the second sink", PATIENCE, || async {
        Ok((held(&audit).await? >= published).then_some(()))
    })
    .await
    .with_context(|| other.log_tail())?;
    scene.holds(&oracle, main).await?;
    other.stop().await?;
    let found = read_clickhouse(&audit, TABLE, Precision::Seconds).await?;
    let verdict = oracle.verdict(&found, &[]);
    ensure!(verdict.holds(), "{verdict}\n{}", verdict.explain());
    let rows = scene.number("select count(*) from pillarbox.event").await?;
    ensure!(
        u64::try_from(rows)? < published / 2,
        "{rows} of {published} are left"
    );
    Ok(())
}
