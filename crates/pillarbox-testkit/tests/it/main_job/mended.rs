//! What goes wrong with ClickHouse's table or user while the relay runs: the sink stands still and
//! says why, publishers go on (INV-4), and once it is mended everything arrives, once (INV-2), without
//! a restart.

use anyhow::{Result, ensure};
use pillarbox_relay::sink::clickhouse::CreateOptions;
use pillarbox_testkit::servers::{Flavour, eventually};

use crate::scene::{PATIENCE, Running, Scene, TABLE};
use crate::traffic::Traffic;

/// A stopped sink is looked at again after this time.
const STOPPED_MS: (&str, &str) = ("STOPPED_MS", "300");

/// Why the sink stands still, as the registry shows it to `pillarbox status`.
async fn stopped_reason(scene: &Scene) -> Result<Option<String>> {
    let sql = "select stopped_reason from pillarbox.sink";
    Ok(scene.postgres.query(sql, &[]).await?[0].get(0))
}

/// The sink stands still for a reason that holds all the words, and publishers go on.
async fn stands_still(scene: &Scene, traffic: &Traffic, words: &[&str]) -> Result<()> {
    let reason = eventually("the sink to stand still", PATIENCE, || async {
        let reason = stopped_reason(scene).await?.unwrap_or_default();
        let says = words.iter().all(|word| reason.contains(word));
        Ok(says.then_some(reason))
    })
    .await;
    let last = stopped_reason(scene).await?;
    let reason = reason.map_err(|error| error.context(format!("{words:?} is not in {last:?}")))?;
    ensure!(
        !reason.contains("testkit"),
        "the password is shown: {reason}"
    );
    traffic.more(30).await
}

async fn goes_on(scene: &Scene) -> Result<()> {
    eventually("the sink to go on", PATIENCE, || async {
        Ok(stopped_reason(scene).await?.is_none().then_some(()))
    })
    .await
}

async fn start(scene: &Scene) -> Result<(Running, Traffic)> {
    let relay = scene.running_with(&[STOPPED_MS])?;
    relay.says("the sink is ready").await?;
    let traffic = Traffic::start(&scene.postgres, 2, false).await?;
    Ok((relay, traffic))
}

async fn a_table_that_is_dropped(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let relay = scene.running_with(&[STOPPED_MS])?;
    relay.says("the sink is ready").await?;
    // Before the first event: what a dropped table held is nobody's to bring back.
    scene.clickhouse.query("drop table events").await?;
    let traffic = Traffic::start(&scene.postgres, 2, false).await?;
    stands_still(&scene, &traffic, &[TABLE, "pillarbox sink create"]).await?;
    let sink = scene.sink(TABLE)?;
    sink.create(&CreateOptions::default()).await?;
    goes_on(&scene).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

async fn columns_that_do_not_fit(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let (relay, traffic) = start(&scene).await?;
    traffic.more(30).await?;
    let alter = async |rest: &str| {
        let sql = format!("alter table {TABLE} {rest}");
        scene.clickhouse.query(&sql).await
    };
    // A column that the events need, gone; one that they do not have, added.
    alter("add column region Nullable(String)").await?;
    traffic.more(30).await?;
    alter("drop column metadata_version").await?;
    stands_still(&scene, &traffic, &["no column metadata_version"]).await?;
    alter("add column metadata_version UInt64 default 1").await?;
    goes_on(&scene).await?;
    traffic.more(30).await?;
    alter("drop column metadata_version").await?;
    alter("add column metadata_version Array(UInt64)").await?;
    stands_still(&scene, &traffic, &["metadata_version", "Array(UInt64)"]).await?;
    alter("drop column metadata_version").await?;
    alter("add column metadata_version UInt64 default 1").await?;
    goes_on(&scene).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

/// The password changes on the server while the relay runs, and changes back.
async fn a_password_that_changes() -> Result<()> {
    let scene = Scene::start(Flavour::V18).await?;
    let (relay, traffic) = start(&scene).await?;
    traffic.more(30).await?;
    let change = |from: &str, to: &str| {
        let changed = |users: &str| users.replace(from, to);
        scene.clickhouse.change_users(changed)
    };
    change(">testkit<", ">changed<")?;
    stands_still(&scene, &traffic, &["check the sink's user and password"]).await?;
    change(">changed<", ">testkit<")?;
    goes_on(&scene).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

#[tokio::test]
async fn inv_2_a_table_of_clickhouse_18_is_dropped_and_made_again() -> Result<()> {
    a_table_that_is_dropped(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_a_table_of_clickhouse_26_is_dropped_and_made_again() -> Result<()> {
    a_table_that_is_dropped(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_columns_of_clickhouse_18_do_not_fit_for_a_while() -> Result<()> {
    columns_that_do_not_fit(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_columns_of_clickhouse_26_do_not_fit_for_a_while() -> Result<()> {
    columns_that_do_not_fit(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_the_password_of_clickhouse_changes_for_a_while() -> Result<()> {
    a_password_that_changes().await
}
