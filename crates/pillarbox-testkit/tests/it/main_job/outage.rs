//! ClickHouse away for a while under load: publishers do not notice (INV-4), the relay holds no
//! transaction open (INV-5), and afterwards every event is there once (INV-2).

use std::time::Duration;

use anyhow::{Result, ensure};
use pillarbox_testkit::servers::{Flavour, eventually};

use crate::scene::{PATIENCE, Scene};
use crate::traffic::Traffic;

/// Transactions that publishers must complete while ClickHouse is away.
const COMMITS: u64 = 300;

/// How long ClickHouse is away at least, by the clock of the database.
const AWAY: &str = "interval '2 seconds'";

#[derive(Clone, Copy)]
enum Outage {
    Stopped,
    Frozen,
}

async fn away_for_a_while(flavour: Flavour, outage: Outage) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    let variables = [("INSERT_TIMEOUT_MS", "1000")];
    let relay = scene.running_with(&variables)?;
    relay.says("the sink is ready").await?;
    traffic.more(100).await?;
    match outage {
        Outage::Stopped => scene.clickhouse.stop().await?,
        Outage::Frozen => scene.clickhouse.pause()?,
    }
    let began = scene
        .postgres
        .query("select clock_timestamp()", &[])
        .await?;
    let began: std::time::SystemTime = began[0].get(0);
    scene.wait_in_flight().await?;
    traffic.more(COMMITS).await?;
    let sql = format!("select clock_timestamp() > $1::timestamptz + {AWAY}");
    eventually("the outage to last", PATIENCE, || async {
        let rows = scene.postgres.query(&sql, &[&began]).await?;
        Ok(rows[0].get::<_, bool>(0).then_some(()))
    })
    .await?;
    ensure!(
        scene.in_flight().await? > 0,
        "nothing was delivered, and nothing counts as done"
    );
    no_transaction_is_held(&scene).await?;
    match outage {
        Outage::Stopped => scene.clickhouse.restart().await?,
        Outage::Frozen => scene.clickhouse.resume()?,
    }
    traffic.more(50).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

/// INV-5: no session of a relay has had a transaction or a snapshot for more than a moment.
async fn no_transaction_is_held(scene: &Scene) -> Result<()> {
    let held = "select count(*) from pg_stat_activity
                where application_name like 'pillarbox/%'
                    and clock_timestamp() - xact_start > interval '1 second'";
    let sessions =
        "select count(*) from pg_stat_activity where application_name like 'pillarbox/%'";
    ensure!(
        scene.number(sessions).await? >= 3,
        "the relay has its sessions"
    );
    ensure!(
        scene.number(held).await? == 0,
        "the relay holds a transaction while ClickHouse is away"
    );
    Ok(())
}

/// `kill -9` while an insert is under way, again and again.
async fn killed_in_the_middle_of_inserts(flavour: Flavour) -> Result<()> {
    const KILLS: u32 = 5;
    let scene = Scene::start(flavour).await?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    let relay = scene.running_with(&[("MAX_ROWS", "200")])?;
    for _ in 0..KILLS {
        let before = scene
            .number("select count(*) from pillarbox.delivery")
            .await?;
        eventually("the relay to deliver again", PATIENCE, || async {
            let now = scene
                .number("select count(*) from pillarbox.delivery")
                .await?;
            Ok((now > before + 3).then_some(()))
        })
        .await?;
        scene.wait_in_flight().await?;
        scene.clickhouse.kill()?;
        traffic.more(20).await?;
        scene.clickhouse.restart().await?;
    }
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

/// An outage longer than the take-over time is no reason to take over: the sink is away for every
/// relay (DESIGN 4, "Who runs").
async fn no_takeover_while_away(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let variables = [("TAKEOVER_MS", "1500"), ("INSERT_TIMEOUT_MS", "700")];
    let active = scene.running_with(&variables)?;
    active.says("the sink is ready").await?;
    let standby = scene.running_with(&variables)?;
    standby.says("standing by").await?;
    let traffic = Traffic::start(&scene.postgres, 2, false).await?;
    traffic.more(30).await?;
    scene.clickhouse.pause()?;
    scene.wait_in_flight().await?;
    // Four times the take-over time of trouble.
    tokio::time::sleep(Duration::from_secs(6)).await;
    ensure!(scene.in_flight().await? > 0);
    scene.clickhouse.resume()?;
    let oracle = traffic.finish(&scene.postgres).await?;
    let log = standby.log();
    ensure!(
        !log.contains("taking over") && !log.contains("the sink is ready"),
        "{log}"
    );
    standby.stop().await?;
    scene.holds(&oracle, active).await?;
    Ok(())
}

#[tokio::test]
async fn inv_4_and_5_clickhouse_18_is_stopped_for_a_while() -> Result<()> {
    away_for_a_while(Flavour::V18, Outage::Stopped).await
}

#[tokio::test]
async fn inv_4_and_5_clickhouse_26_is_stopped_for_a_while() -> Result<()> {
    away_for_a_while(Flavour::V26, Outage::Stopped).await
}

#[tokio::test]
async fn inv_4_and_5_clickhouse_18_is_frozen_for_a_while() -> Result<()> {
    away_for_a_while(Flavour::V18, Outage::Frozen).await
}

#[tokio::test]
async fn inv_4_and_5_clickhouse_26_is_frozen_for_a_while() -> Result<()> {
    away_for_a_while(Flavour::V26, Outage::Frozen).await
}

#[tokio::test]
async fn inv_2_clickhouse_18_is_killed_in_the_middle_of_inserts() -> Result<()> {
    killed_in_the_middle_of_inserts(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_clickhouse_26_is_killed_in_the_middle_of_inserts() -> Result<()> {
    killed_in_the_middle_of_inserts(Flavour::V26).await
}

#[tokio::test]
async fn clickhouse_18_away_is_no_reason_to_take_over() -> Result<()> {
    no_takeover_while_away(Flavour::V18).await
}

#[tokio::test]
async fn clickhouse_26_away_is_no_reason_to_take_over() -> Result<()> {
    no_takeover_while_away(Flavour::V26).await
}
