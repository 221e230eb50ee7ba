//! PostgreSQL's clock is set under load, forwards and backwards, by hours and over months: lag and
//! retention count on it, and none of them loses or doubles an event; who lives keeps its lock (INV-2).

use anyhow::{Result, ensure};
use pillarbox_testkit::servers::{Flavour, PgVersion, Postgres, eventually};
use rustix::process::Signal;

use crate::scene::{PATIENCE, Scene};
use crate::traffic::Traffic;

const HOUR: i64 = 3_600;

/// Seconds ahead of this machine.
const SHIFTS: [i64; 6] = [HOUR, -2 * HOUR, 0, 40 * 24 * HOUR, -HOUR, 0];

/// The names of the relay that is active and of the one that stands by, once both have sessions: a
/// stand-by may be connecting again.
async fn roles(scene: &Scene) -> Result<(String, String)> {
    eventually("two relays", PATIENCE, || seen(scene)).await
}

async fn seen(scene: &Scene) -> Result<Option<(String, String)>> {
    let sql = "select a.application_name from pg_stat_activity a
               left join pg_locks l on l.pid = a.pid and l.locktype = 'advisory' and l.objid <> 0
               where a.application_name like 'pillarbox/%'
               group by 1 order by bool_or(coalesce(l.granted, false)) desc";
    let rows = scene.postgres.query(sql, &[]).await?;
    let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let two = <[String; 2]>::try_from(names).ok();
    Ok(two.map(|[active, standby]| (active, standby)))
}

/// Waits until the stand-by has asked for the lock, and for who holds it, and what was on its way to the
/// server has arrived there.
async fn looks(scene: &Scene, standby: &str) -> Result<()> {
    let sql = "select query_start::text from pg_stat_activity where application_name = $1";
    let mut last: Option<String> = None;
    for _ in 0..4 {
        let seen = last.clone();
        last = eventually("the stand-by to look", PATIENCE, || async {
            let rows = scene.postgres.query(sql, &[&standby]).await?;
            let now: Option<String> = rows.first().map(|row| row.get(0));
            Ok((now != seen).then_some(now))
        })
        .await?;
    }
    Ok(())
}

async fn the_clock_is_set(version: PgVersion, flavour: Flavour) -> Result<()> {
    let postgres = Postgres::builder().version(version).own_clock();
    let scene = Scene::on(postgres.start().await?, flavour).await?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    let relay = scene.running()?;
    relay.says("the sink is ready").await?;
    let other = scene.running()?;
    other.says("standing by").await?;
    let (active, standby) = roles(&scene).await?;
    let off = "select (extract(epoch from clock_timestamp()))::bigint";
    for shift in SHIFTS {
        traffic.more(30).await?;
        // Its last sign of life is one of the old time for as long as the stand-by needs to see it.
        relay.signal(Signal::STOP)?;
        looks(&scene, &standby).await?;
        scene.postgres.shift_clock(shift)?;
        looks(&scene, &standby).await?;
        relay.signal(Signal::CONT)?;
        let here = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        let there = scene.number(off).await? - i64::try_from(here)?;
        ensure!(
            (there - shift).abs() < 60,
            "the clock is {there} s off, not {shift}"
        );
        traffic.more(30).await?;
        let now = roles(&scene).await?.0;
        ensure!(now == active, "{active} was displaced at {shift} s");
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
