//! Materialized views behind the table: one that throws, and one whose target remembers no tokens.

use anyhow::{Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::{Flavour, eventually};
use rustix::process::Signal;

use super::*;
use crate::scene::{PATIENCE, Running, TABLE};
use crate::traffic::Traffic;

const COUNTING: &str = "select event_type, toUInt64(count()) as k from events group by event_type";

/// The same, while no event has the version 1, which all have.
const THROWING: &str = "select event_type, toUInt64(count() + throwIf(max(metadata_version) = 1)) as k \
                        from events group by event_type";

fn totals(window: &str) -> String {
    format!(
        "create table totals (event_type String, k UInt64) engine = SummingMergeTree \
         order by event_type {window}"
    )
}

const WINDOW: &str = "settings non_replicated_deduplication_window = 1000";

async fn counted(scene: &Scene) -> Result<u64> {
    let sum = scene.clickhouse.query("select sum(k) from totals").await?;
    Ok(sum.trim().parse()?)
}

/// Replaces the view while no insert is under way: one that reads which views there are in that moment
/// finds none, and feeds none.
async fn replace(scene: &Scene, relay: &Running, query: &str) -> Result<()> {
    let inserts = "select count() from system.processes where query ilike 'insert%'";
    relay.signal(Signal::STOP)?;
    eventually("inserts to end", PATIENCE, || async {
        let running = scene.clickhouse.query(inserts).await?;
        Ok((running.trim() == "0").then_some(()))
    })
    .await?;
    let replace = format!("create or replace materialized view counting to totals as {query}");
    scene.clickhouse.query(&replace).await?;
    relay.signal(Signal::CONT)
}

/// The view throws under load and is mended: the table and the view have each event once.
#[tokio::test]
async fn inv_2_a_view_of_clickhouse_26_throws_for_a_while() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    scene.clickhouse.query(&totals(WINDOW)).await?;
    let view = format!("create materialized view counting to totals as {COUNTING}");
    scene.clickhouse.query(&view).await?;
    let relay = scene.running_with(&[STOPPED_MS])?;
    relay.says("the sink is ready").await?;
    let traffic = Traffic::start(&scene.postgres, 2, false).await?;
    traffic.more(30).await?;
    // Not ALTER … MODIFY QUERY: the control below says why.
    replace(&scene, &relay, THROWING).await?;
    stands_still(&scene, &relay, &["materialized view"]).await?;
    traffic.more(30).await?;
    replace(&scene, &relay, COUNTING).await?;
    goes_on(&scene).await?;
    traffic.more(30).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    assert_eq!(counted(&scene).await?, oracle.published());
    Ok(())
}

/// 18.16 knows no tokens, so a view that failed is not fed again; the table has each event once.
#[tokio::test]
async fn inv_2_a_view_of_clickhouse_18_throws_for_a_while() -> Result<()> {
    let scene = Scene::start(Flavour::V18).await?;
    scene.clickhouse.query(&totals("")).await?;
    let relay = scene.running_with(&[STOPPED_MS])?;
    relay.says("the sink is ready").await?;
    let view = format!("create materialized view throwing to totals as {THROWING}");
    scene.clickhouse.query(&view).await?;
    let traffic = Traffic::start(&scene.postgres, 2, false).await?;
    stands_still(&scene, &relay, &["while pushing to view"]).await?;
    traffic.more(30).await?;
    scene.clickhouse.query("drop table throwing").await?;
    goes_on(&scene).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

/// A view whose target has no window would count a resend again: refused, with a remedy that works
/// when it is pasted. Then answers are lost, and every total is right.
#[tokio::test]
async fn inv_2_a_view_target_without_a_window_is_refused_until_it_has_one() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    scene.clickhouse.query(&totals("")).await?;
    let view = format!("create materialized view counting to totals as {COUNTING}");
    scene.clickhouse.query(&view).await?;
    let oracle = Oracle::new();
    // Three months: three blocks.
    publish(&scene, &oracle, &events(30, 3 * DAY_US)).await?;
    for mode in ["run", "drain"] {
        let refused = tokio::time::timeout(PATIENCE, scene.relay(mode, "")?.output()).await??;
        let log = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success(), "{mode}: {log}");
        ensure!(scene.count().await? == 0, "{mode}: {log}");
        let remedy = "ALTER TABLE `default`.`totals` MODIFY SETTING \
                      non_replicated_deduplication_window = 10000";
        ensure!(log.contains(remedy), "{mode}: {log}");
        if mode == "drain" {
            scene.clickhouse.query(remedy).await?;
        }
    }
    for _ in 0..3 {
        killed_at(&scene, "block-answered").await?;
    }
    scene.holds_when_drained(&oracle).await?;
    assert_eq!(counted(&scene).await?, 30);
    Ok(())
}

/// Which way to mend a view: after an ALTER of it, 26.9 takes a token that the view's target
/// remembers for another one, and the block is counted again; after CREATE OR REPLACE it does not.
#[tokio::test]
async fn negative_control_an_altered_view_counts_a_resend_twice() -> Result<()> {
    for (mend, sum) in [
        (format!("alter table counting modify query {COUNTING}"), 2),
        (
            format!("create or replace materialized view counting to totals as {COUNTING}"),
            1,
        ),
    ] {
        let scene = Scene::start(Flavour::V26).await?;
        scene.clickhouse.query(&totals(WINDOW)).await?;
        let view = format!("create materialized view counting to totals as {COUNTING}");
        scene.clickhouse.query(&view).await?;
        insert_by_token(&scene).await?;
        scene.clickhouse.query(&mend).await?;
        insert_by_token(&scene).await?;
        assert_eq!(scene.count().await?, 1);
        assert_eq!(counted(&scene).await?, sum, "{mend}");
    }
    Ok(())
}

/// Three blocks, of which the view cannot take the second. Its user mends it in the most obvious way,
/// ALTER … MODIFY QUERY: the first block, which had been settled, must not be sent again, and the
/// second one is, whoever is the relay then.
#[tokio::test]
async fn inv_2_a_view_is_mended_by_alter() -> Result<()> {
    for is_restarted in [false, true] {
        let scene = Scene::start(Flavour::V26).await?;
        scene.clickhouse.query(&totals(WINDOW)).await?;
        let query = |more: &str| {
            format!(
                "select event_type, toUInt64(count(){more}) as k from {TABLE} group by event_type"
            )
        };
        let throwing = query(" + throwIf(max(toYYYYMM(event_date_time)) = 202612)");
        let view = format!("create materialized view counting to totals as {throwing}");
        scene.clickhouse.query(&view).await?;
        let oracle = Oracle::new();
        publish(&scene, &oracle, &events(3, 31 * DAY_US)).await?;
        let relay = scene.running_with(&[STOPPED_MS])?;
        stands_still(&scene, &relay, &["materialized view"]).await?;
        let mend = format!("alter table counting modify query {}", query(""));
        if is_restarted {
            relay.kill().await?;
            scene.clickhouse.query(&mend).await?;
            scene.holds_when_drained(&oracle).await?;
        } else {
            scene.clickhouse.query(&mend).await?;
            scene.holds(&oracle, relay).await?;
        }
        assert_eq!(counted(&scene).await?, 3, "restarted: {is_restarted}");
    }
    Ok(())
}

async fn insert_by_token(scene: &Scene) -> Result<()> {
    let insert = format!(
        "insert into {TABLE} (event_type, metadata_version) settings insert_deduplication_token = 't', \
         deduplicate_blocks_in_dependent_materialized_views = 1 values ('trial', 1)"
    );
    scene.clickhouse.query(&insert).await?;
    Ok(())
}

/// What the refusal is for.
#[tokio::test]
async fn negative_control_a_view_target_without_a_window_counts_twice() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    scene.clickhouse.query(&totals("")).await?;
    let view = format!("create materialized view counting to totals as {COUNTING}");
    scene.clickhouse.query(&view).await?;
    for _ in 0..3 {
        insert_by_token(&scene).await?;
    }
    assert_eq!(scene.count().await?, 1);
    assert_eq!(counted(&scene).await?, 3);
    Ok(())
}
