//! The table forgets a token before the block is settled: by count, by time, by other writers. With
//! the column `batch` the relay looks; without it, it stands still rather than guess (INV-2).

use anyhow::{Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::{Flavour, Postgres};

use super::*;
use crate::scene::{SINK, TABLE, version_for};

/// The recommended columns without the one that lets a relay look.
const BLIND_COLUMNS: &str = "event_id UUID, event_type String, event_date_time DateTime64(6, 'UTC'), \
                             environment String, event_context String, metadata_version UInt64";

/// More blocks of another writer than the table remembers tokens. (INSERT … SELECT would leave none.)
async fn crowd_out(scene: &Scene, blocks: u32) -> Result<()> {
    for nth in 0..blocks {
        let sql = format!(
            "insert into {TABLE} (event_id, event_type, event_date_time, environment) values \
             (generateUUIDv4(), 'n{nth}', toDateTime64({}, 6, 'UTC'), 'other')",
            NOON_US / 1_000_000
        );
        scene.clickhouse.query(&sql).await?;
    }
    let sql = format!("create view own as select * from {TABLE} where environment <> 'other'");
    scene.clickhouse.query(&sql).await?;
    Ok(())
}

/// A table on 26.9 that remembers few tokens.
async fn forgetful(columns: &str, window: u32) -> Result<Scene> {
    let postgres = Postgres::start(version_for(Flavour::V26)).await?;
    let scene = Scene::without_table(postgres, Flavour::V26).await?;
    let create = format!(
        "create table {TABLE} ({columns}) engine = MergeTree partition by toYYYYMM(event_date_time) \
         order by event_type settings non_replicated_deduplication_window = {window}"
    );
    scene.clickhouse.query(&create).await?;
    scene.register(SINK).await?;
    Ok(scene)
}

fn seeing() -> String {
    format!("{BLIND_COLUMNS}, batch UInt64")
}

#[tokio::test]
async fn inv_2_a_token_is_evicted_by_other_writers() -> Result<()> {
    let scene = forgetful(&seeing(), 10).await?;
    let oracle = Oracle::new();
    publish(&scene, &oracle, &events(20, 1)).await?;
    killed_at(&scene, "block-answered").await?;
    crowd_out(&scene, 30).await?;
    scene.drain().await?;
    let verdict = scene.verdict_of("own", &oracle).await?;
    ensure!(verdict.holds(), "{verdict}\n{}", verdict.explain());
    Ok(())
}

/// What the column `batch` is for, where others write many blocks: the token was evicted, and the
/// relay cannot know that it was.
#[tokio::test]
async fn negative_control_without_the_column_batch_other_writers_double() -> Result<()> {
    let scene = forgetful(BLIND_COLUMNS, 100).await?;
    let oracle = Oracle::new();
    publish(&scene, &oracle, &events(20, 1)).await?;
    killed_at(&scene, "block-answered").await?;
    crowd_out(&scene, 250).await?;
    // Within the half of a hundred seconds that the sink allows for; on a machine slower than that,
    // it stands still.
    let relay = scene.running_with(&[STOPPED_MS])?;
    let doubled_or_stopped = eventually("the block to be settled", PATIENCE, || async {
        let settled = scene.in_flight().await? == 0;
        Ok((settled || stopped_reason(&scene).await?.is_some()).then_some(()))
    });
    doubled_or_stopped.await?;
    let is_stopped = stopped_reason(&scene).await?.is_some();
    relay.stop().await?;
    let verdict = scene.verdict_of("own", &oracle).await?;
    ensure!(is_stopped || verdict.duplicated.count == 20, "{verdict}");
    ensure!(verdict.lost.count + verdict.phantom.count == 0, "{verdict}");
    Ok(())
}

/// The window is widened after the table forgot a token: what it is now says nothing about what it was
/// when the block was sent.
#[tokio::test]
async fn inv_2_a_window_is_widened_after_it_forgot() -> Result<()> {
    let scene = forgetful(BLIND_COLUMNS, 2).await?;
    let oracle = Oracle::new();
    publish(&scene, &oracle, &events(20, 1)).await?;
    killed_at(&scene, "block-answered").await?;
    crowd_out(&scene, 10).await?;
    let widen =
        format!("alter table {TABLE} modify setting non_replicated_deduplication_window = 10000");
    scene.clickhouse.query(&widen).await?;
    let relay = scene.running_with(&[STOPPED_MS])?;
    stands_still(&scene, &relay, &["ADD COLUMN batch UInt64"]).await?;
    relay.stop().await?;
    let verdict = scene.verdict_of("own", &oracle).await?;
    ensure!(verdict.holds(), "{verdict}\n{}", verdict.explain());
    Ok(())
}

/// A batch of more blocks than the table remembers tokens of, killed after each.
#[tokio::test]
async fn inv_2_a_token_is_evicted_by_count() -> Result<()> {
    const MONTHS: i64 = 8;
    let scene = forgetful(&seeing(), 2).await?;
    let oracle = Oracle::new();
    publish(&scene, &oracle, &events(MONTHS, 31 * DAY_US)).await?;
    for block in 1..=MONTHS {
        killed_at(&scene, "block-answered").await?;
        assert_eq!(scene.count().await?, block.unsigned_abs());
    }
    scene.holds_when_drained(&oracle).await?;
    Ok(())
}

/// The relay was away for ten days after it had sealed a batch, and sent it or not.
async fn away_for_ten_days(flavour: Flavour) -> Result<()> {
    for (step, rows) in [("block-answered", 20), ("before-send", 0)] {
        let scene = Scene::start(flavour).await?;
        let oracle = Oracle::new();
        publish(&scene, &oracle, &events(20, 1)).await?;
        killed_at(&scene, step).await?;
        assert_eq!(scene.count().await?, rows);
        ten_days_ago(&scene).await?;
        scene.holds_when_drained(&oracle).await?;
        let sql = "select sum(attempts) from pillarbox.delivery";
        let attempts = scene.number(sql).await?;
        assert_eq!(attempts, i64::from(rows == 0), "{step}");
    }
    Ok(())
}

async fn ten_days_ago(scene: &Scene) -> Result<()> {
    let sql = "update pillarbox.batch set sealed_at = sealed_at - interval '10 days'";
    scene.postgres.execute(sql).await?;
    Ok(())
}

#[tokio::test]
async fn inv_2_the_window_of_clickhouse_18_expires_before_the_resend() -> Result<()> {
    away_for_ten_days(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_the_window_of_clickhouse_26_expires_before_the_resend() -> Result<()> {
    away_for_ten_days(Flavour::V26).await
}

/// Without the column `batch` nobody can tell: the sink stands still and nothing is sent.
#[tokio::test]
async fn inv_2_an_expired_token_without_the_column_batch_stops_the_sink() -> Result<()> {
    for window in [2, 10_000] {
        let scene = forgetful(BLIND_COLUMNS, window).await?;
        let oracle = Oracle::new();
        publish(&scene, &oracle, &events(20, 1)).await?;
        killed_at(&scene, "block-answered").await?;
        ten_days_ago(&scene).await?;
        let relay = scene.running_with(&[STOPPED_MS])?;
        stands_still(&scene, &relay, &["ADD COLUMN batch UInt64"]).await?;
        relay.stop().await?;
        let verdict = scene.verdict(&oracle).await?;
        ensure!(verdict.holds(), "{verdict}\n{}", verdict.explain());
    }
    Ok(())
}
