//! A thousand sessions that publish at once (INV-1, INV-2).

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::{Flavour, PgVersion, Postgres, eventually};
use tokio::sync::{Barrier, Semaphore};
use tokio::task::JoinSet;

use crate::scene::{PATIENCE, Scene};
use crate::traffic::{Event, Way};

const NOON_US: i64 = 1_795_176_000_000_000;

const SESSIONS: usize = 1_000;

/// Transactions of each session.
const ROUNDS: usize = 2;

/// Sessions that are being opened at once: what a server's listen queue takes.
const OPENING: usize = 50;

/// One of the thousand: all of them hold a transaction with events open at the same time, then each
/// ends its own.
async fn publisher(
    number: usize,
    scene: Arc<Scene>,
    oracle: Arc<Oracle>,
    opening: Arc<Semaphore>,
    all: Arc<Barrier>,
) -> Result<()> {
    let mut client = {
        let _one = opening.acquire().await?;
        scene.postgres.connect().await?
    };
    for round in 0..ROUNDS {
        let context = format!(r#"{{"session":{number},"round":{round}}}"#);
        let event = |_| Event::at(NOON_US, "crowd", context.clone());
        let events: Vec<Event> = (0..1 + number % 3).map(event).collect();
        let tx = client.transaction().await?;
        Way::ALL[(number + round) % 4].publish(&tx, &events).await?;
        all.wait().await;
        if (number + round).is_multiple_of(7) {
            tx.rollback().await?;
            for event in &events {
                oracle.rolled_back(event.event_id);
            }
        } else {
            tx.commit().await?;
            for event in &events {
                oracle.committed(event.published()?);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn inv_2_a_thousand_sessions_publish_at_once() -> Result<()> {
    let postgres = Postgres::builder()
        .version(PgVersion::V18)
        .setting("max_connections", "1100")
        .start()
        .await?;
    let scene = Arc::new(Scene::on(postgres, Flavour::V26).await?);
    let oracle = Arc::new(Oracle::new());
    let relay = scene.running_with(&[("MAX_ROWS", "300")])?;
    relay.says("the sink is ready").await?;
    let (opening, all) = (
        Arc::new(Semaphore::new(OPENING)),
        Arc::new(Barrier::new(SESSIONS + 1)),
    );
    let mut sessions = JoinSet::new();
    for number in 0..SESSIONS {
        sessions.spawn(publisher(
            number,
            Arc::clone(&scene),
            Arc::clone(&oracle),
            Arc::clone(&opening),
            Arc::clone(&all),
        ));
    }
    for _ in 0..ROUNDS {
        let waiting = "select count(*) from pg_stat_activity where state = 'idle in transaction'";
        eventually("all of them to have published", PATIENCE, || async {
            Ok((scene.number(waiting).await? >= SESSIONS as i64).then_some(()))
        })
        .await?;
        all.wait().await;
    }
    while let Some(ended) = sessions.join_next().await {
        ended??;
    }
    let scene = Arc::into_inner(scene).context("the only holder")?;
    let verdict = scene.holds(&oracle, relay).await?;
    ensure!(verdict.published > 3_000, "{verdict}");
    Ok(())
}
