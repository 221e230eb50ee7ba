//! Code 252 is two troubles: parts that merges have not caught up with, and a block of too many
//! partitions.

use anyhow::{Result, ensure};
use pillarbox_testkit::servers::{Flavour, Postgres};

use super::*;
use crate::scene::{SINK, TABLE, version_for};
use crate::traffic::Traffic;

/// The recommended columns of 26.9.
const COLUMNS: &str = "event_id UUID, event_type LowCardinality(String), event_date_time \
                       DateTime64(6, 'UTC'), environment LowCardinality(String), event_context String, \
                       metadata_version UInt64, batch UInt64";

fn columns(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::V18 => OLD_COLUMNS,
        Flavour::V26 => COLUMNS,
    }
}

/// Merges are stopped, and the table refuses what comes on top.
async fn too_many_parts(flavour: Flavour) -> Result<()> {
    let postgres = Postgres::start(version_for(flavour)).await?;
    let scene = Scene::without_table(postgres, flavour).await?;
    let window = match flavour {
        Flavour::V18 => "",
        Flavour::V26 => ", non_replicated_deduplication_window = 1000",
    };
    let create = format!(
        "create table {TABLE} ({}) engine = MergeTree partition by toYYYYMM(event_date_time) \
         order by event_type settings parts_to_throw_insert = 6, parts_to_delay_insert = 5{window}",
        columns(flavour)
    );
    scene.clickhouse.query(&create).await?;
    scene.register(SINK).await?;
    scene.clickhouse.query("system stop merges").await?;
    let relay = scene.running_with(&[("MAX_ROWS", "1000"), STOPPED_MS])?;
    relay.says("the sink is ready").await?;
    let traffic = Traffic::start(&scene.postgres, 2, false).await?;
    relay.says("Code: 252").await?;
    traffic.more(50).await?;
    ensure!(
        stopped_reason(&scene).await?.is_none(),
        "it is no reason to stop"
    );
    ensure!(scene.in_flight().await? > 0);
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.clickhouse.query("system start merges").await?;
    let lift = match flavour {
        Flavour::V18 => format!("optimize table {TABLE}"),
        Flavour::V26 => format!("alter table {TABLE} modify setting parts_to_throw_insert = 3000"),
    };
    scene.clickhouse.query(&lift).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

#[tokio::test]
async fn inv_2_too_many_parts_on_clickhouse_18() -> Result<()> {
    too_many_parts(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_too_many_parts_on_clickhouse_26() -> Result<()> {
    too_many_parts(Flavour::V26).await
}

/// The table was made again, in days, under a relay that sends one block for all of them. It is
/// made again as it was.
#[tokio::test]
async fn inv_2_too_many_partitions_for_a_block() -> Result<()> {
    let postgres = Postgres::start(version_for(Flavour::V26)).await?;
    let scene = Scene::without_table(postgres, Flavour::V26).await?;
    let create = |partition: &str| {
        format!(
            "create table {TABLE} ({COLUMNS}) engine = MergeTree {partition} order by event_type \
             settings non_replicated_deduplication_window = 1000"
        )
    };
    scene.clickhouse.query(&create("")).await?;
    scene.register(SINK).await?;
    let relay = scene.running_with(&[("MAX_ROWS", "1000"), STOPPED_MS])?;
    relay.says("the sink is ready").await?;
    scene
        .clickhouse
        .query(&format!("drop table {TABLE}"))
        .await?;
    let by_day = create("partition by toYYYYMMDD(event_date_time)");
    scene.clickhouse.query(&by_day).await?;
    let oracle = Oracle::new();
    publish(&scene, &oracle, &events(150, DAY_US)).await?;
    relay.says("max_partitions_per_insert_block").await?;
    assert_eq!(scene.count().await?, 0);
    scene
        .clickhouse
        .query(&format!("drop table {TABLE}"))
        .await?;
    scene.clickhouse.query(&create("")).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}
