//! Sessions of relay and publishers are ended by an administrator, and there are none left to be had
//! when the relay comes back (INV-2, INV-4).

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::{Flavour, Postgres, eventually};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::scene::{PATIENCE, Scene};
use crate::traffic::Traffic;

/// Each of the relay's sessions is ended so often.
const ROUNDS: i64 = 2;

async fn sessions_are_ended(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let admin = scene.postgres.connect().await?;
    let traffic = Traffic::start(&scene.postgres, 4, false).await?;
    let relay = scene.running()?;
    for kill in 0..ROUNDS * 3 {
        traffic.more(20).await?;
        let before = scene
            .number("select count(*) from pillarbox.delivery")
            .await?;
        eventually("the relay to deliver", PATIENCE, || async {
            let now = scene
                .number("select count(*) from pillarbox.delivery")
                .await?;
            Ok((now > before).then_some(()))
        })
        .await?;
        // The session with the lock, the reader, the one for the ring; and with it a publisher's.
        eventually("a session of the relay to be ended", PATIENCE, || async {
            // Chosen first: what is skipped would be ended too.
            let end = "select pg_terminate_backend(chosen.pid, 10000)
                       from (
                           select pid from pg_stat_activity
                           where application_name like 'pillarbox/%'
                           order by pid in (
                               select pid from pg_locks where locktype = 'advisory' and objid <> 0
                           ) desc, backend_start
                           offset $1 limit 1
                       ) chosen";
            let ended = admin.query_opt(end, &[&(kill % 3)]).await?;
            Ok(ended.filter(|row| row.get(0)).map(drop))
        })
        .await?;
        let publisher = "select pg_terminate_backend(pid) from pg_stat_activity
                         where pid <> pg_backend_pid() and application_name = ''
                             and backend_type = 'client backend'
                         order by random() limit 1";
        admin.query(publisher, &[]).await?;
    }
    traffic.more(20).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

/// Takes sessions until the server has none left for anybody.
async fn take_all(scene: &Scene, taken: &mut Vec<Client>) -> Result<()> {
    loop {
        match scene.postgres.connect().await {
            Ok(client) => taken.push(client),
            Err(error) => {
                let cause = error.downcast_ref::<tokio_postgres::Error>();
                let code = cause.and_then(tokio_postgres::Error::code);
                ensure!(code == Some(&SqlState::TOO_MANY_CONNECTIONS), "{error:?}");
                return Ok(());
            }
        }
    }
}

async fn no_session_is_left(flavour: Flavour) -> Result<()> {
    let postgres = Postgres::builder().setting("max_connections", "20");
    let scene = Scene::on(postgres.start().await?, flavour).await?;
    let admin = scene.postgres.connect().await?;
    let traffic = Traffic::start(&scene.postgres, 4, false).await?;
    let relay = scene.running()?;
    relay.says("the sink is ready").await?;
    traffic.more(40).await?;
    let lines = relay.lines();
    let mut taken = Vec::new();
    let end = "select count(pg_terminate_backend(pid, 10000)) from pg_stat_activity
               where application_name like 'pillarbox/%'";
    // The places of the ended sessions are taken before the relay is back.
    let mut refused = false;
    for _ in 0..200 {
        take_all(&scene, &mut taken).await?;
        admin.query_one(end, &[]).await?;
        take_all(&scene, &mut taken).await?;
        let log = relay.log();
        refused = log
            .lines()
            .skip(lines)
            .any(|line| line.contains("too many clients") || line.contains("slots are reserved"));
        if refused {
            break;
        }
    }
    ensure!(refused, "{}", relay.log_tail());
    // Who has a session publishes on.
    traffic.more(40).await?;
    drop(taken);
    relay
        .says_after(lines, "the sink is ready")
        .await
        .context("it comes back")?;
    traffic.more(20).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

#[tokio::test]
async fn inv_2_sessions_are_ended_before_clickhouse_18() -> Result<()> {
    sessions_are_ended(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_sessions_are_ended_before_clickhouse_26() -> Result<()> {
    sessions_are_ended(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_and_4_no_session_is_left_when_the_relay_comes_back() -> Result<()> {
    no_session_is_left(Flavour::V26).await
}
