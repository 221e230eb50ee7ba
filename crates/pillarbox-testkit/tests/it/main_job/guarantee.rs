//! Exactly once, or a refusal (INV-2); and what the guarantee is for: without it, lost answers double
//! events.

use std::os::unix::process::ExitStatusExt as _;

use anyhow::{Result, ensure};
use pillarbox_testkit::oracle::{Oracle, Verdict};
use pillarbox_testkit::servers::{Flavour, Postgres};

use crate::scene::{KILLED, PATIENCE, SINK, Scene, TABLE, version_for};
use crate::traffic::{Event, Way, commit};

const NOON_US: i64 = 1_795_176_000_000_000;

/// The recommended columns, without the one that lets a relay look.
const COLUMNS: &str = "event_id UUID, event_type String, event_date_time DateTime64(6, 'UTC'), \
                       environment String, event_context String, metadata_version UInt64";

async fn scene(flavour: Flavour, window: u32) -> Result<Scene> {
    let postgres = Postgres::start(version_for(flavour)).await?;
    let scene = Scene::without_table(postgres, flavour).await?;
    let (columns, settings) = match flavour {
        Flavour::V18 => (
            COLUMNS.replace("DateTime64(6, 'UTC')", "DateTime"),
            String::new(),
        ),
        Flavour::V26 => (
            COLUMNS.to_owned(),
            format!("settings non_replicated_deduplication_window = {window}"),
        ),
    };
    let create = format!(
        "create table {TABLE} ({columns}) engine = MergeTree order by event_date_time {settings}"
    );
    scene.clickhouse.query(&create).await?;
    scene.register(SINK).await?;
    Ok(scene)
}

/// Publishes 200 events, and kills the relay each time when the answer to a block has arrived.
async fn with_lost_answers(scene: &Scene, at_least_once: &str) -> Result<Verdict> {
    let oracle = Oracle::new();
    let mut client = scene.postgres.connect().await?;
    let event = |nth| Event::at(NOON_US + nth, "trial", format!(r#"{{"n":{nth}}}"#));
    let events: Vec<Event> = (0..200).map(event).collect();
    commit(&mut client, &oracle, Way::Batch, &events).await?;
    for _ in 0..3 {
        let mut command = scene.relay("drain", "block-answered=return")?;
        command.env("AT_LEAST_ONCE", at_least_once);
        let output = tokio::time::timeout(PATIENCE, command.output()).await??;
        let log = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.signal() == Some(KILLED), "{log}");
    }
    scene
        .drain_with(&[("AT_LEAST_ONCE", at_least_once)])
        .await?;
    scene.verdict(&oracle).await
}

#[tokio::test]
async fn negative_control_at_least_once_doubles_what_a_window_does_not() -> Result<()> {
    let forgetful = scene(Flavour::V26, 0).await?;
    let doubled = with_lost_answers(&forgetful, "1").await?;
    ensure!(doubled.duplicated.count > 0, "{doubled}");
    ensure!(doubled.lost.count + doubled.phantom.count == 0, "{doubled}");

    // The same, allowed or not, in a table that remembers tokens.
    for at_least_once in ["0", "1"] {
        let remembering = scene(Flavour::V26, 100).await?;
        let verdict = with_lost_answers(&remembering, at_least_once).await?;
        ensure!(verdict.holds(), "{verdict}\n{}", verdict.explain());
    }
    Ok(())
}

#[tokio::test]
async fn negative_control_clickhouse_18_without_the_column_batch_doubles() -> Result<()> {
    let blind = scene(Flavour::V18, 0).await?;
    let doubled = with_lost_answers(&blind, "1").await?;
    ensure!(doubled.duplicated.count > 0, "{doubled}");
    ensure!(doubled.lost.count + doubled.phantom.count == 0, "{doubled}");
    Ok(())
}

/// INV-2: where a table cannot keep the promise, the relay says so before it sends a byte; the
/// remedy it names makes the events arrive.
async fn refused_with_the_remedy(flavour: Flavour, remedy: &str) -> Result<()> {
    let scene = scene(flavour, 0).await?;
    let oracle = Oracle::new();
    let mut client = scene.postgres.connect().await?;
    let events = [Event::at(NOON_US, "trial", "{}".to_owned())];
    commit(&mut client, &oracle, Way::Function, &events).await?;
    for mode in ["run", "drain"] {
        let refused = tokio::time::timeout(PATIENCE, scene.relay(mode, "")?.output()).await??;
        let log = String::from_utf8_lossy(&refused.stderr);
        ensure!(!refused.status.success(), "{mode}: {log}");
        ensure!(log.contains(remedy), "{mode}: {log}");
    }
    assert_eq!(scene.count().await?, 0);
    scene.clickhouse.query(remedy).await?;
    scene.holds_when_drained(&oracle).await?;
    Ok(())
}

#[tokio::test]
async fn inv_2_clickhouse_18_without_the_column_batch_is_refused() -> Result<()> {
    let remedy = "ALTER TABLE `default`.`events` ADD COLUMN batch UInt64";
    refused_with_the_remedy(Flavour::V18, remedy).await
}

#[tokio::test]
async fn inv_2_clickhouse_26_without_a_window_is_refused() -> Result<()> {
    let remedy = "ALTER TABLE `default`.`events` MODIFY SETTING \
                  non_replicated_deduplication_window = 10000";
    refused_with_the_remedy(Flavour::V26, remedy).await
}
