//! Batches over many partitions: one block each, and the relay killed between them.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::{Flavour, PgVersion, Postgres};

use super::*;
use crate::scene::{SINK, TABLE};

async fn across_a_month(flavour: Flavour) -> Result<()> {
    const MONTH_END_US: i64 = 1_793_491_200_000_000; // 2026-11-01 00:00:00 UTC
    let scene = Scene::start(flavour).await?;
    let oracle = Oracle::new();
    // The last and the first second of three months, by turns.
    let event = |nth: i64| {
        let at = MONTH_END_US + (nth % 3 - 1) * 30 * DAY_US + nth % 2 * 1_000_000 - 1_000_000;
        Event::at(at, "trial", format!(r#"{{"n":{nth}}}"#))
    };
    let events: Vec<Event> = (0..30).map(event).collect();
    publish(&scene, &oracle, &events).await?;
    let sql = "select jsonb_array_length(blocks)::bigint from pillarbox.batch where number = 1";
    let mut counts = BTreeSet::new();
    killed_at(&scene, "block-answered").await?;
    let blocks = scene.number(sql).await?;
    ensure!(blocks >= 3, "{blocks} blocks");
    counts.insert(scene.count().await?);
    for _ in 1..blocks {
        killed_at(&scene, "block-answered").await?;
        counts.insert(scene.count().await?);
    }
    assert_eq!(
        counts.len() as i64,
        blocks,
        "one more block each time: {counts:?}"
    );
    killed_at(&scene, "before-confirm").await?;
    let verdict = scene.holds_when_drained(&oracle).await?;
    assert_eq!(verdict.delivered, 30);
    Ok(())
}

#[tokio::test]
async fn inv_2_killed_between_the_blocks_of_a_batch_on_clickhouse_18() -> Result<()> {
    across_a_month(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_killed_between_the_blocks_of_a_batch_on_clickhouse_26() -> Result<()> {
    across_a_month(Flavour::V26).await
}

/// Dates all over, in an order that no two neighbours share a partition.
async fn over_many_partitions(scene: &Scene, partitions: i64, apart_us: i64) -> Result<()> {
    let oracle = Oracle::new();
    let spread = |nth: i64| {
        let at = nth * 997 % partitions * apart_us + 15 * DAY_US;
        Event::at(at, "spread", format!(r#"{{"n":{nth}}}"#))
    };
    let spread: Vec<Event> = (0..partitions).map(spread).collect();
    publish(scene, &oracle, &spread).await?;
    publish(scene, &oracle, &events(100, 1)).await?;
    let relay = scene.running_with(&[("MAX_ROWS", "5000")])?;
    // An insert for each partition takes its time, and so does counting thousands of parts: the
    // ledger is looked at, and each few batches have the patience of one wait.
    let rows = "select coalesce(sum(rows), 0)::bigint from pillarbox.delivery";
    for hundred in 1..=partitions / 100 {
        let delivered = eventually("a hundred more to be delivered", PATIENCE, || async {
            Ok((scene.number(rows).await? >= hundred * 100).then_some(()))
        });
        delivered
            .await
            .map_err(|error| error.context(relay.log_tail()))?;
    }
    eventually("the rest to be delivered", PATIENCE, || async {
        Ok((scene.number(rows).await? >= partitions + 100).then_some(()))
    })
    .await?;
    let verdict = scene.holds(&oracle, relay).await?;
    assert_eq!(verdict.delivered, partitions.unsigned_abs() + 100);
    let widest = "select max(jsonb_array_length(blocks))::bigint from pillarbox.batch";
    assert_eq!(scene.number(widest).await?, 32);
    let sql =
        format!("select uniqExact(partition) from system.parts where table = '{TABLE}' and active");
    let held: i64 = scene.clickhouse.query(&sql).await?.trim().parse()?;
    ensure!(held >= partitions, "{held} partitions");
    Ok(())
}

#[tokio::test]
async fn inv_7_dates_over_two_thousand_days_of_clickhouse_18() -> Result<()> {
    let postgres = Postgres::start(PgVersion::V15).await?;
    let scene = Scene::without_table(postgres, Flavour::V18).await?;
    let create = format!(
        "create table {TABLE} ({OLD_COLUMNS}) engine = MergeTree \
         partition by toYYYYMMDD(event_date_time) order by event_type"
    );
    scene.clickhouse.query(&create).await?;
    scene.register(SINK).await?;
    over_many_partitions(&scene, 2_100, DAY_US).await
}

#[tokio::test]
async fn inv_7_dates_over_two_hundred_months_of_clickhouse_26() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    over_many_partitions(&scene, 200, 31 * DAY_US).await
}
