//! Redis itself is killed under load, with every persistence: what it has kept arrives once, and what was
//! taken over before is not taken again.

use anyhow::{Result, ensure};
use pillarbox_testkit::servers::{Flavour, Persistence, Redis, eventually};

use super::queue::{Kind, Load, PATIENCE, Queue, intake};
use crate::scene::{Scene, TABLE};

async fn killed(kind: Kind, persistence: Persistence, kills: usize) -> Result<()> {
    let queue = Queue::start(kind, persistence).await?;
    let load = Load::start(&queue, 3);
    let intake = queue.running()?;
    for kill in 0..kills {
        let before = queue.rows().await?;
        load.more(60).await?;
        if persistence == Persistence::Rdb {
            load.save(&queue.redis).await?;
            // The snapshot grows old, by more or by less.
            load.more(1 + kill * 40).await?;
        }
        eventually("rows", PATIENCE, || async {
            Ok((queue.rows().await? > before).then_some(()))
        })
        .await?;
        load.kill(&queue.redis).await?;
    }
    load.more(30).await?;
    let oracle = load.finish(persistence).await?;
    intake.stop().await?;
    queue.drain().await?;
    ensure!(queue.waiting().await? == 0, "the drain left something");
    let published = queue.outbox_holds(&oracle).await?;
    ensure!(published > 50, "{published} events");
    ensure!(
        queue.reasons().await?.is_empty(),
        "{:?}",
        queue.reasons().await?
    );
    Ok(())
}

/// The whole way: from a Redis and an intake that are killed, through a relay, to the rows of the table.
#[tokio::test]
async fn inv_2_and_14_everything_is_killed_between_redis_and_clickhouse_26() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    let redis = Redis::start(Persistence::AppendAlways).await?;
    let load = Load::on(&redis, Kind::Stream, 2);
    let take = |mode| intake(scene.postgres.url(), &redis.url(), Kind::Stream, mode);
    for _ in 0..4 {
        let (intake, relay) = (scene.spawn(&mut take("run"))?, scene.running()?);
        load.more(150).await?;
        load.kill(&redis).await?;
        load.more(50).await?;
        intake.kill().await?;
        relay.kill().await?;
    }
    let oracle = load.finish(Persistence::AppendAlways).await?;
    eventually("the lock of the intake", PATIENCE, || async {
        let drained = take("drain").output().await?;
        Ok(drained.status.success().then_some(()))
    })
    .await?;
    // Of a write that Redis did not answer nobody knows but by its row; the outbox has forgotten some.
    scene.drain().await?;
    for id in oracle.unresolved() {
        let sql = format!("select count() from {TABLE} where event_id = '{id}'");
        let count = scene.clickhouse.query(&sql).await?;
        oracle.resolve(id, count.trim() != "0");
    }
    scene.holds_when_drained(&oracle).await?;
    Ok(())
}

#[tokio::test]
async fn inv_14_redis_is_killed_beneath_a_stream_and_appends() -> Result<()> {
    killed(Kind::Stream, Persistence::AppendAlways, 6).await
}

#[tokio::test]
async fn inv_14_redis_is_killed_beneath_a_list_and_appends() -> Result<()> {
    killed(Kind::List, Persistence::AppendAlways, 6).await
}

#[tokio::test]
async fn inv_14_redis_is_killed_beneath_a_stream_and_comes_back_older() -> Result<()> {
    killed(Kind::Stream, Persistence::Rdb, 6).await
}

#[tokio::test]
async fn inv_14_redis_is_killed_beneath_a_list_and_comes_back_older() -> Result<()> {
    killed(Kind::List, Persistence::Rdb, 6).await
}

#[tokio::test]
async fn inv_14_redis_is_killed_beneath_a_stream_and_comes_back_empty() -> Result<()> {
    killed(Kind::Stream, Persistence::None, 4).await
}

#[tokio::test]
async fn inv_14_redis_is_killed_beneath_a_list_and_comes_back_empty() -> Result<()> {
    killed(Kind::List, Persistence::None, 4).await
}
