//! Programs and servers that are not the right ones, and a publisher that tries more than it may:
//! refused beside the traffic, which arrives once (INV-1, INV-2).

use anyhow::{Context as _, Result, ensure};
use pillarbox_relay::schema::{self, Migrated};
use pillarbox_testkit::servers::{Flavour, PgVersion, Postgres};
use tokio_postgres::error::SqlState;

use crate::scene::Scene;
use crate::traffic::Traffic;

/// Programs that install at once.
const INSTALLATIONS: usize = 8;

async fn install_at_once(postgres: &Postgres) -> Result<usize> {
    let mut running = Vec::new();
    for _ in 0..INSTALLATIONS {
        let mut client = postgres.connect().await?;
        running.push(tokio::spawn(
            async move { schema::migrate(&mut client).await },
        ));
    }
    let mut installed = 0;
    for migration in running {
        installed += usize::from(migration.await?? == Migrated::Installed);
    }
    Ok(installed)
}

#[tokio::test]
async fn inv_2_eight_install_at_once_before_and_under_traffic() -> Result<()> {
    let postgres = Postgres::start(PgVersion::V15).await?;
    ensure!(install_at_once(&postgres).await? == 1);
    let scene = Scene::on(postgres, Flavour::V26).await?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    let relay = scene.running()?;
    for _ in 0..3 {
        traffic.more(30).await?;
        ensure!(install_at_once(&scene.postgres).await? == 0);
    }
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

/// A relay that is older than the schema does not start; the one that runs goes on.
#[tokio::test]
async fn inv_2_a_relay_older_than_the_schema_is_refused() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    let relay = scene.running()?;
    relay.says("the sink is ready").await?;
    let newer = "insert into pillarbox.schema_version values (99)";
    scene.postgres.execute(newer).await?;
    let mut older = scene.running()?;
    ensure!(!older.ended().await?.success());
    let log = older.log();
    ensure!(log.contains("install a newer pillarbox"), "{log}");
    traffic.more(40).await?;
    let back = "delete from pillarbox.schema_version where version = 99";
    scene.postgres.execute(back).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

/// A relay that is pointed at a standby does not start.
#[tokio::test]
async fn inv_2_a_relay_on_a_standby_is_refused() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    let standby = Postgres::standby_of(&scene.postgres).await?;
    standby.caught_up_with(&scene.postgres).await?;
    let relay = scene.running()?;
    let mut lost = scene.running_with(&[("DATABASE_URL", standby.url())])?;
    ensure!(!lost.ended().await?.success());
    let log = lost.log();
    ensure!(log.contains("connect to the primary"), "{log}");
    traffic.more(40).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

/// A publisher that tries to forge, read, confirm, delete and move the ring, beside the others.
#[tokio::test]
async fn inv_2_a_publisher_that_tries_more_than_it_may() -> Result<()> {
    const TRIES: [&str; 14] = [
        "insert into pillarbox.event (tx, event_type, event_context) values ('5', 't', '{}')",
        "insert into pillarbox.event (id, event_type, event_context) values (1, 't', '{}')",
        "insert into pillarbox.event (slot, event_type, event_context) values (3, 't', '{}')",
        "insert into pillarbox.event_1 (event_type, event_context) values ('t', '{}')",
        "copy pillarbox.event (tx, event_type, event_context) from stdin",
        "select event_context from pillarbox.event",
        "update pillarbox.event set event_type = 'x'",
        "delete from pillarbox.event",
        "truncate pillarbox.event_0",
        "insert into pillarbox.delivery (sink, number, outcome, rows, attempts, server)
             select 1, n, 'delivered', 0, 1, 'x' from generate_series(1, 1000) n",
        "delete from pillarbox.batch",
        "update pillarbox.sink set retired_at = now()",
        "select nextval('pillarbox.ring_position')",
        "select setval('pillarbox.ring_position', 2)",
    ];
    let scene = Scene::start(Flavour::V26).await?;
    let app = "create role app login; grant pillarbox_publisher to app";
    scene.postgres.execute(app).await?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    let relay = scene.running()?;
    let app = scene.postgres.connect_as("postgres", "app", None).await?;
    for _ in 0..3 {
        traffic.more(20).await?;
        for tried in TRIES {
            let refused = app.batch_execute(tried).await.err().context(tried)?;
            ensure!(
                refused.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE),
                "{tried}: {refused:?}"
            );
        }
    }
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}
