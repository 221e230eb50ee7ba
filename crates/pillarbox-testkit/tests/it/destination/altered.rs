//! The table's columns change between the seal of a batch and its resend.

use anyhow::{Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::Flavour;

use super::*;
use crate::scene::TABLE;

/// A batch that was sealed, and sent or not.
async fn sealed(flavour: Flavour, step: &str) -> Result<(Scene, Oracle)> {
    let scene = Scene::start(flavour).await?;
    let oracle = Oracle::new();
    publish(&scene, &oracle, &events(20, 1)).await?;
    killed_at(&scene, step).await?;
    Ok((scene, oracle))
}

async fn alter(scene: &Scene, rest: &str) -> Result<()> {
    let sql = format!("alter table {TABLE} {rest}");
    scene.clickhouse.query(&sql).await?;
    Ok(())
}

/// Another type for the same values: the batch comes out as it was sealed, and is settled.
async fn a_type_of_the_same_values(flavour: Flavour) -> Result<()> {
    let types: &[&str] = match flavour {
        Flavour::V18 => &["metadata_version Int64"],
        Flavour::V26 => &[
            "event_context LowCardinality(String)",
            "metadata_version Nullable(UInt32)",
        ],
    };
    for of in types {
        for step in ["before-send", "block-answered"] {
            let (scene, oracle) = sealed(flavour, step).await?;
            alter(&scene, &format!("modify column {of}")).await?;
            scene.drain().await?;
            alter(&scene, "modify column metadata_version UInt64 default 1").await?;
            let verdict = scene.holds_when_drained(&oracle).await?;
            ensure!(verdict.delivered == 20, "{of}: {verdict}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn inv_2_a_type_of_clickhouse_18_changes_before_the_resend() -> Result<()> {
    a_type_of_the_same_values(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_a_type_of_clickhouse_26_changes_before_the_resend() -> Result<()> {
    a_type_of_the_same_values(Flavour::V26).await
}

/// A type that the events do not fit into: nothing is sent until it is changed back.
#[tokio::test]
async fn inv_2_a_type_that_does_not_fit_before_the_resend() -> Result<()> {
    for flavour in Flavour::ALL {
        let (scene, oracle) = sealed(flavour, "before-send").await?;
        alter(&scene, "modify column metadata_version String").await?;
        let refused = tokio::time::timeout(PATIENCE, scene.relay("run", "")?.output()).await??;
        let log = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(
            !refused.status.success() && log.contains("do not fit"),
            "{log}"
        );
        let remedy = "ALTER TABLE `default`.`events` MODIFY COLUMN `metadata_version` UInt64";
        ensure!(log.contains(remedy), "{log}");
        scene.clickhouse.query(remedy).await?;
        let verdict = scene.holds_when_drained(&oracle).await?;
        ensure!(verdict.delivered == 20, "{verdict}");
    }
    Ok(())
}

/// A column that the digest covers is added while a batch is open: it is settled by the columns that
/// it was sealed with.
async fn a_column_more(flavour: Flavour, step: &str) -> Result<()> {
    let (scene, oracle) = sealed(flavour, step).await?;
    alter(&scene, "add column trace_parent Nullable(String)").await?;
    publish(&scene, &oracle, &events(20, 1)).await?;
    let verdict = scene.holds_when_drained(&oracle).await?;
    assert_eq!(verdict.delivered, 40);
    Ok(())
}

/// A column that the digest of an open batch covers is dropped: the batch is rebuilt as it was sealed, from
/// what the outbox has, and looked for by its number and count.
#[tokio::test]
async fn inv_2_and_3_a_column_is_dropped_before_the_resend() -> Result<()> {
    for flavour in Flavour::ALL {
        for step in ["before-send", "block-answered"] {
            let scene = Scene::start(flavour).await?;
            alter(&scene, "add column trace_parent Nullable(String)").await?;
            let oracle = Oracle::new();
            publish(&scene, &oracle, &events(20, 1)).await?;
            killed_at(&scene, step).await?;
            alter(&scene, "drop column trace_parent").await?;
            publish(&scene, &oracle, &events(20, 1)).await?;
            let verdict = scene.holds_when_drained(&oracle).await?;
            assert_eq!(verdict.delivered, 40, "{step}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn inv_2_and_3_a_column_is_added_before_the_resend() -> Result<()> {
    for flavour in Flavour::ALL {
        for step in ["before-send", "block-answered"] {
            a_column_more(flavour, step).await?;
        }
    }
    Ok(())
}

/// A column is dropped and added again while the relay runs and delivers.
#[tokio::test]
async fn inv_2_a_column_beside_the_events_comes_and_goes() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    let relay = scene.running_with(&[STOPPED_MS])?;
    relay.says("the sink is ready").await?;
    let traffic = crate::traffic::Traffic::start(&scene.postgres, 2, false).await?;
    for _ in 0..5 {
        traffic.more(20).await?;
        alter(&scene, "add column trace_parent Nullable(String)").await?;
        traffic.more(20).await?;
        alter(&scene, "drop column trace_parent").await?;
    }
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}
