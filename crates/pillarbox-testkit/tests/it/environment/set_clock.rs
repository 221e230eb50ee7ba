//! PostgreSQL's clock is set under load, forwards and backwards, by hours and over months: lag, retention
//! and take-over count on it, and none of them loses or doubles an event (INV-2).

use anyhow::{Result, ensure};
use pillarbox_testkit::servers::{Flavour, PgVersion, Postgres, eventually};

use crate::scene::{PATIENCE, Scene};
use crate::traffic::Traffic;

const HOUR: i64 = 3_600;

/// Seconds ahead of this machine.
const SHIFTS: [i64; 6] = [HOUR, -2 * HOUR, 0, 40 * 24 * HOUR, -HOUR, 0];

async fn the_clock_is_set(version: PgVersion, flavour: Flavour) -> Result<()> {
    let postgres = Postgres::builder().version(version).own_clock();
    let scene = Scene::on(postgres.start().await?, flavour).await?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    let relay = scene.running()?;
    relay.says("the sink is ready").await?;
    // When the clock goes forward, every session looks silent to the server.
    let other = scene.running()?;
    other.says("standing by").await?;
    let off = "select (extract(epoch from clock_timestamp()))::bigint";
    for shift in SHIFTS {
        traffic.more(30).await?;
        scene.postgres.shift_clock(shift)?;
        let here = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        let there = scene.number(off).await? - i64::try_from(here)?;
        ensure!(
            (there - shift).abs() < 60,
            "the clock is {there} s off, not {shift}"
        );
        traffic.more(30).await?;
        let sealed = scene
            .number("select max(number) from pillarbox.delivery")
            .await?;
        eventually("deliveries to go on", PATIENCE, || async {
            let now = scene
                .number("select max(number) from pillarbox.delivery")
                .await?;
            Ok((now > sealed).then_some(()))
        })
        .await?;
    }
    let oracle = traffic.finish(&scene.postgres).await?;
    let published = oracle.published();
    eventually("all events to arrive", PATIENCE, || async {
        Ok((scene.count().await? >= published).then_some(()))
    })
    .await?;
    ensure!(!other.log().contains("taking over"), "{}", other.log_tail());
    other.stop().await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

#[tokio::test]
async fn inv_2_the_clock_of_postgresql_15_is_set_before_clickhouse_26() -> Result<()> {
    the_clock_is_set(PgVersion::V15, Flavour::V26).await
}

#[tokio::test]
async fn inv_2_the_clock_of_postgresql_15_is_set_before_clickhouse_18() -> Result<()> {
    the_clock_is_set(PgVersion::V15, Flavour::V18).await
}
