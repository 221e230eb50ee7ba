//! The second attempt, when the outbox has changed since the first (INV-3).

use std::os::unix::process::ExitStatusExt as _;

use anyhow::{Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::Flavour;

use crate::scene::{KILLED, Scene, TABLE};
use crate::traffic::{Event, Way, commit};

const NOON_US: i64 = 1_795_176_000_000_000;

/// Where a relay may have died: nothing sent, everything written, everything but the record of it.
const STEPS: [&str; 4] = ["sealed", "before-send", "block-answered", "before-confirm"];

fn events(count: i64, note: &str) -> Vec<Event> {
    // Of two months: two blocks in a batch.
    const MONTH_US: i64 = 40 * 86_400_000_000;
    let event = |nth: i64| {
        let context = format!(r#"{{"n":{nth},"note":"{note}"}}"#);
        Event::at(NOON_US + nth % 2 * MONTH_US + nth, "trial", context)
    };
    (0..count).map(event).collect()
}

/// Commits events, and kills the relay that delivers them at `step`.
async fn first_attempt(scene: &Scene, oracle: &Oracle, step: &str) -> Result<()> {
    let mut client = scene.postgres.connect().await?;
    commit(&mut client, oracle, Way::Batch, &events(30, step)).await?;
    let mut relay = scene.spawn(&mut scene.relay("run", &format!("{step}=return"))?)?;
    let status = relay.ended().await?;
    ensure!(status.signal() == Some(KILLED), "{step}: {status}");
    ensure!(scene.in_flight().await? > 0, "{step}: nothing is in doubt");
    Ok(())
}

async fn alter(scene: &Scene, rest: &str) -> Result<()> {
    let sql = format!("alter table {TABLE} {rest}");
    scene.clickhouse.query(&sql).await?;
    Ok(())
}

/// The outbox gets a column, then the table too; the batch that was sealed before has neither.
async fn the_outbox_is_changed(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let oracle = Oracle::new();
    for (nth, step) in STEPS.iter().enumerate() {
        first_attempt(&scene, &oracle, step).await?;
        let add = format!("alter table pillarbox.event add column tenant_{nth} text default 'a'");
        scene.postgres.execute(&add).await?;
        scene.holds_when_drained(&oracle).await?;
        first_attempt(&scene, &oracle, step).await?;
        alter(&scene, &format!("add column tenant_{nth} Nullable(String)")).await?;
        scene.holds_when_drained(&oracle).await?;
    }
    Ok(())
}

#[tokio::test]
async fn inv_3_the_outbox_is_changed_between_two_attempts_at_clickhouse_18() -> Result<()> {
    the_outbox_is_changed(Flavour::V18).await
}

#[tokio::test]
async fn inv_3_the_outbox_is_changed_between_two_attempts_at_clickhouse_26() -> Result<()> {
    the_outbox_is_changed(Flavour::V26).await
}
