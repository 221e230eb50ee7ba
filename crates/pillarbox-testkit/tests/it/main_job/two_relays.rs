//! Two relays of one sink: one is active, the other takes over when that one is gone or frozen, and
//! a frozen one that comes back does no harm (INV-2).

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::{Flavour, eventually};
use rustix::process::Signal;

use crate::scene::{PATIENCE, Running, Scene};
use crate::traffic::Traffic;

/// The instances that hold a sink's lock.
async fn holders(scene: &Scene) -> Result<Vec<String>> {
    let sql =
        "select distinct a.application_name from pg_locks l join pg_stat_activity a using (pid)
               where l.locktype = 'advisory' and l.granted and l.objid <> 0
                   and a.application_name like 'pillarbox/%'";
    let rows = scene.postgres.query(sql, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn the_holder(scene: &Scene) -> Result<String> {
    eventually("one relay to be active", PATIENCE, || async {
        Ok(<[String; 1]>::try_from(holders(scene).await?).ok())
    })
    .await
    .map(|[holder]| holder)
}

async fn pair(scene: &Scene, variables: &[(&str, &str)]) -> Result<(Running, Running)> {
    let active = scene.running_with(variables)?;
    active.says("the sink is ready").await?;
    let standby = scene.running_with(variables)?;
    standby.says("another relay is active").await?;
    Ok((active, standby))
}

async fn the_other_goes_on_when_one_is_killed(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let (mut active, mut standby) = pair(&scene, &[]).await?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    for _ in 0..3 {
        traffic.more(60).await?;
        let holder = the_holder(&scene).await?;
        scene.wait_in_flight().await?;
        active.kill().await?;
        standby.says("the sink is ready").await?;
        ensure!(the_holder(&scene).await? != holder);
        active = standby;
        standby = scene.running()?;
        standby.says("another relay is active").await?;
    }
    traffic.more(30).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    standby.stop().await.context("the stand-by")?;
    scene.holds(&oracle, active).await?;
    Ok(())
}

/// Frozen in the middle of its work, displaced with all its sessions, thawed: it finds its sessions
/// gone and stands by.
async fn a_frozen_relay_is_displaced(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let variables = [("TAKEOVER_MS", "2500")];
    let (mut active, mut standby) = pair(&scene, &variables).await?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    for _ in 0..2 {
        traffic.more(60).await?;
        let frozen = the_holder(&scene).await?;
        scene.wait_in_flight().await?;
        let lines = standby.lines();
        active.signal(Signal::STOP)?;
        standby
            .says_after(lines, "taking over from a frozen relay")
            .await?;
        standby.says_after(lines, "the sink is ready").await?;
        ensure!(the_holder(&scene).await? != frozen);
        let sessions = "select count(*) from pg_stat_activity where application_name = $1";
        let rows = scene.postgres.query(sessions, &[&frozen]).await?;
        ensure!(rows[0].get::<_, i64>(0) == 0, "{frozen} has sessions left");
        traffic.more(60).await?;
        let lines = active.lines();
        active.signal(Signal::CONT)?;
        active.says_after(lines, "another relay is active").await?;
        (active, standby) = (standby, active);
    }
    let oracle = traffic.finish(&scene.postgres).await?;
    standby.stop().await.context("the stand-by")?;
    scene.holds(&oracle, active).await?;
    Ok(())
}

#[tokio::test]
async fn inv_2_a_killed_relay_is_replaced_on_clickhouse_18() -> Result<()> {
    the_other_goes_on_when_one_is_killed(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_a_killed_relay_is_replaced_on_clickhouse_26() -> Result<()> {
    the_other_goes_on_when_one_is_killed(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_a_frozen_relay_is_displaced_and_does_no_harm_on_clickhouse_26() -> Result<()> {
    a_frozen_relay_is_displaced(Flavour::V26).await
}
