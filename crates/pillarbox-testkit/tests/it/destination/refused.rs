//! The user may not write for a while, or the table is another one than before.

use anyhow::{Result, ensure};
use pillarbox_relay::sink::clickhouse::CreateOptions;
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::Flavour;

use super::*;
use crate::scene::TABLE;
use crate::traffic::Traffic;

/// The user becomes read-only under a running relay, and may write again.
#[tokio::test]
async fn inv_2_the_user_is_read_only_for_a_while() -> Result<()> {
    let scene = Scene::start(Flavour::V18).await?;
    let relay = scene.running_with(&[STOPPED_MS])?;
    relay.says("the sink is ready").await?;
    let traffic = Traffic::start(&scene.postgres, 2, false).await?;
    traffic.more(30).await?;
    profile(&scene.clickhouse, &[("readonly", "1")]).await?;
    stands_still(&scene, &relay, &["readonly = 0"]).await?;
    traffic.more(30).await?;
    profile(&scene.clickhouse, &[]).await?;
    goes_on(&scene).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

/// A block was written, its answer is lost, and the table is made again, empty: it remembers
/// nothing, and the block is sent again.
async fn made_again_under_a_doubt(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let oracle = Oracle::new();
    publish(&scene, &oracle, &events(20, 1)).await?;
    killed_at(&scene, "block-answered").await?;
    ensure!(scene.count().await? == 20);
    scene
        .clickhouse
        .query(&format!("drop table {TABLE}"))
        .await?;
    scene.sink(TABLE)?.create(&CreateOptions::default()).await?;
    let verdict = scene.holds_when_drained(&oracle).await?;
    assert_eq!(verdict.delivered, 20);
    Ok(())
}

#[tokio::test]
async fn inv_2_a_table_of_clickhouse_18_is_made_again_under_a_doubt() -> Result<()> {
    made_again_under_a_doubt(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_a_table_of_clickhouse_26_is_made_again_under_a_doubt() -> Result<()> {
    made_again_under_a_doubt(Flavour::V26).await
}

/// The rows of a block in doubt are deleted while the table remembers its token: a resend would be
/// dropped, so the sink stands still until the table forgets.
#[tokio::test]
async fn inv_2_rows_in_doubt_are_deleted_under_their_token() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    let oracle = Oracle::new();
    publish(&scene, &oracle, &events(20, 1)).await?;
    killed_at(&scene, "block-answered").await?;
    let delete = format!("alter table {TABLE} delete where 1 settings mutations_sync = 2");
    scene.clickhouse.query(&delete).await?;
    let relay = scene.running_with(&[STOPPED_MS])?;
    stands_still(&scene, &relay, &["remembers their token"]).await?;
    let setting = "non_replicated_deduplication_window";
    let forget = format!("alter table {TABLE} modify setting {setting} = 0");
    scene.clickhouse.query(&forget).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}
