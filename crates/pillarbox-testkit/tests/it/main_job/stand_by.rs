//! Stand-bys of relays and of PostgreSQL: relays under different users, and a connection that names
//! several hosts (INV-2).

use anyhow::{Context as _, Result, ensure};
use pillarbox_relay::postgres::{self, parse_url};
use pillarbox_testkit::servers::{Flavour, Postgres, eventually};
use rustix::process::Signal;

use crate::scene::{PATIENCE, Scene};
use crate::traffic::Traffic;

/// Neither user may end the other's sessions: the server ends those of the frozen relay itself.
#[tokio::test]
async fn inv_2_a_frozen_relay_of_another_user_loses_its_lock() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    let roles = "create role first login in role pillarbox_relay;
                 create role second login in role pillarbox_relay";
    scene.postgres.execute(roles).await?;
    let url = |user: &str| scene.postgres.url_for("postgres", user, None);
    let (first, second) = (url("first")?, url("second")?);
    let of = |url: &str| scene.running_with(&[("DATABASE_URL", url), ("TAKEOVER_MS", "2500")]);
    let frozen = of(&first)?;
    frozen.says("the sink is ready").await?;
    let other = of(&second)?;
    // A stand-by says who holds the lock, and that it cannot help itself.
    other.says("another relay is active").await?;
    other.says("user first").await?;
    other.says("this user may not end the sessions").await?;
    let traffic = Traffic::start(&scene.postgres, 2, false).await?;
    traffic.more(40).await?;
    scene.wait_in_flight().await?;
    frozen.signal(Signal::STOP)?;
    other.says("the sink is ready").await?;
    traffic.more(40).await?;
    let lines = frozen.lines();
    frozen.signal(Signal::CONT)?;
    frozen.says_after(lines, "another relay is active").await?;
    traffic.more(20).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    frozen.stop().await?;
    scene.holds(&oracle, other).await?;
    Ok(())
}

fn both(first: &Postgres, second: &Postgres) -> Result<String> {
    Ok(format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres dbname=postgres \
         target_session_attrs=read-write",
        first.port()?,
        second.port()?
    ))
}

/// PostgreSQL fails over under load, and loses nothing: the relay finds the new primary by itself.
#[tokio::test]
async fn inv_2_the_relay_follows_a_failover_to_the_other_host() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    let standby = Postgres::standby_of(&scene.postgres).await?;
    let synchronous = "alter system set synchronous_standby_names = '*'";
    scene.postgres.execute(synchronous).await?;
    scene.postgres.execute("select pg_reload_conf()").await?;
    eventually("the standby to be synchronous", PATIENCE, || async {
        let sync = "select count(*) from pg_stat_replication where sync_state = 'sync'";
        Ok((scene.number(sync).await? == 1).then_some(()))
    })
    .await?;
    let relay = scene.running_with(&[("DATABASE_URL", &both(&standby, &scene.postgres)?)])?;
    relay.says("the sink is ready").await?;
    let traffic = Traffic::start(&scene.postgres, 2, false).await?;
    traffic.more(40).await?;
    scene.wait_in_flight().await?;
    scene.postgres.kill()?;
    let lines = relay.lines();
    standby.promote().await?;
    let oracle = traffic.finish(&standby).await?;
    relay.says_after(lines, "the sink is ready").await?;
    let scene = scene.moved_to(standby);
    let traffic = Traffic::resume(&scene.postgres, 2, false, oracle).await?;
    traffic.more(30).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

/// A host that takes connections and says nothing does not keep the others from being asked.
#[tokio::test]
async fn a_silent_host_is_passed_over() -> Result<()> {
    let (silent, live) =
        tokio::try_join!(Postgres::builder().start(), Postgres::builder().start())?;
    silent.pause()?;
    let config = parse_url(&both(&silent, &live)?)?;
    let session = postgres::connect(&config, "test").await;
    silent.resume()?;
    let session = session.context("the second host answers")?;
    let row = session
        .client()
        .query_one("select inet_server_port()", &[])
        .await?;
    ensure!(row.get::<_, i32>(0) == i32::from(live.port()?));
    Ok(())
}
