//! Code 243 and "no space left on device": the server's disk is full for a while.

use anyhow::{Result, ensure};
use pillarbox_relay::sink::clickhouse::CreateOptions;
use pillarbox_testkit::servers::{Flavour, Postgres};

use super::*;
use crate::scene::{SINK, TABLE, version_for};
use crate::traffic::Traffic;

async fn full_for_a_while(flavour: Flavour) -> Result<()> {
    let (clickhouse, postgres) = tokio::try_join!(
        ClickHouse::start_on_small_disk(flavour),
        Postgres::start(version_for(flavour))
    )?;
    let scene = Scene::beside(postgres, clickhouse).await?;
    scene.sink(TABLE)?.create(&CreateOptions::default()).await?;
    scene.register(SINK).await?;
    let relay = scene.running_with(&[STOPPED_MS])?;
    relay.says("the sink is ready").await?;
    let traffic = Traffic::start(&scene.postgres, 2, false).await?;
    traffic.more(30).await?;
    relay.says("delivered batch=").await?;
    scene.clickhouse.fill_disk()?;
    relay.says("not delivered yet").await?;
    traffic.more(50).await?;
    ensure!(scene.in_flight().await? > 0);
    scene.clickhouse.free_disk()?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

#[tokio::test]
async fn inv_2_the_disk_of_clickhouse_18_is_full_for_a_while() -> Result<()> {
    full_for_a_while(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_the_disk_of_clickhouse_26_is_full_for_a_while() -> Result<()> {
    full_for_a_while(Flavour::V26).await
}

/// The table refuses inserts while less than this is free.
#[tokio::test]
async fn inv_2_a_table_keeps_space_free() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    let keep = |bytes: u64| {
        let setting = "min_free_disk_bytes_to_perform_insert";
        format!("alter table {TABLE} modify setting {setting} = {bytes}")
    };
    let relay = scene.running_with(&[STOPPED_MS])?;
    relay.says("the sink is ready").await?;
    let traffic = Traffic::start(&scene.postgres, 2, false).await?;
    traffic.more(30).await?;
    scene.clickhouse.query(&keep(u64::MAX / 2)).await?;
    relay.says("Code: 243").await?;
    traffic.more(30).await?;
    scene.clickhouse.query(&keep(0)).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}
