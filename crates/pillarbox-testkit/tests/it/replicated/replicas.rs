//! Both replicas in `urls`: one of them is enough, and each event is once on both.

use anyhow::{Result, ensure};
use pillarbox_relay::sink::Sink as _;
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::{ClickHouse, eventually};
use rustix::process::Signal;

use super::Pair;
use crate::clickhouse_sink::outbox;
use crate::scene::{PATIENCE, SINK, Scene, TABLE};
use crate::traffic::{Event, Traffic, Way, commit};

const NOON_US: i64 = 1_795_176_000_000_000;

/// Batches that were delivered.
async fn delivered(scene: &Scene) -> Result<i64> {
    scene
        .number("select count(*) from pillarbox.delivery")
        .await
}

/// Waits for so many more of them.
async fn delivers(scene: &Scene, more: i64) -> Result<()> {
    let until = delivered(scene).await? + more;
    eventually("the relay to deliver", PATIENCE, || async {
        Ok((delivered(scene).await? >= until).then_some(()))
    })
    .await
}

/// Publishes some events, in a block or two, and waits until they are delivered.
async fn round(pair: &Pair, oracle: &Oracle, number: i64) -> Result<()> {
    const MONTH_US: i64 = 31 * 86_400_000_000;
    let mut client = pair.scene.postgres.connect().await?;
    let event = |nth: i64| {
        let at = NOON_US + nth % 2 * MONTH_US + nth;
        Event::at(at, "trial", format!(r#"{{"round":{number},"n":{nth}}}"#))
    };
    let events: Vec<Event> = (0..20).map(event).collect();
    let before = delivered(&pair.scene).await?;
    commit(&mut client, oracle, Way::Batch, &events).await?;
    eventually("the relay to deliver", PATIENCE, || async {
        let is_done = delivered(&pair.scene).await? > before && pair.scene.in_flight().await? == 0;
        Ok(is_done.then_some(()))
    })
    .await
}

#[tokio::test]
async fn inv_2_one_replica_at_a_time_is_enough() -> Result<()> {
    let pair = Pair::start().await?;
    let relay = pair.running()?;
    let oracle = Oracle::new();
    round(&pair, &oracle, 1).await?;
    pair.one().stop().await?;
    round(&pair, &oracle, 2).await?;
    pair.one().restart().await?;
    round(&pair, &oracle, 3).await?;
    pair.two.stop().await?;
    round(&pair, &oracle, 4).await?;
    pair.two.restart().await?;
    pair.holds(&oracle, relay).await
}

/// A replica dies with a block of which nobody knows what became, and stays away. The block waits
/// for it; without its url the relay goes on.
#[tokio::test]
async fn inv_2_a_replica_that_stays_away_is_left_out() -> Result<()> {
    let pair = Pair::start().await?;
    let relay = pair.running()?;
    let oracle = Oracle::new();
    round(&pair, &oracle, 1).await?;
    relay.stop().await?;
    // What only the one had that goes, the other one would wait for.
    let sync = format!("system sync replica {TABLE}");
    pair.two.query(&sync).await?;
    // The replica freezes between the relay's last look at it and the insert.
    let relay = pair.running_with(&[
        ("INSERT_TIMEOUT_MS", "1000"),
        ("QUERY_TIMEOUT_MS", "1000"),
        ("FREEZE_AT", "before-send"),
    ])?;
    relay.says("the sink is ready").await?;
    let mut client = pair.scene.postgres.connect().await?;
    let event = Event::at(NOON_US, "trial", "{}".to_owned());
    commit(&mut client, &oracle, Way::Function, &[event]).await?;
    relay.is_frozen().await?;
    pair.one().pause()?;
    relay.signal(Signal::CONT)?;
    relay.says("is_unknown=true").await?;
    pair.one().kill()?;
    let lines = relay.lines();
    relay.says_after(lines, "not delivered yet").await?;
    ensure!(pair.scene.in_flight().await? == 1);
    relay.stop().await?;
    let two = pair.two.url_with_credentials()?;
    let relay = pair.running_with(&[("CLICKHOUSE_URL", &two)])?;
    relay.says("delivered batch=").await?;
    round(&pair, &oracle, 2).await?;
    pair.one().restart().await?;
    pair.holds(&oracle, relay).await
}

/// A relay starts while the first of its replicas is stopped, or frozen: the other one answers.
#[tokio::test]
async fn inv_2_a_relay_starts_while_a_replica_is_away() -> Result<()> {
    let pair = Pair::start().await?;
    let oracle = Oracle::new();
    let timeout = ("QUERY_TIMEOUT_MS", "1000");
    pair.one().stop().await?;
    let relay = pair.running_with(&[timeout])?;
    round(&pair, &oracle, 1).await?;
    relay.stop().await?;
    pair.one().restart().await?;
    pair.one().pause()?;
    let relay = pair.running_with(&[timeout])?;
    round(&pair, &oracle, 2).await?;
    pair.one().resume()?;
    pair.holds(&oracle, relay).await
}

/// `kill -9` of either replica while an insert is under way, again and again.
#[tokio::test]
async fn inv_2_replicas_are_killed_in_the_middle_of_inserts() -> Result<()> {
    let pair = Pair::start().await?;
    let relay = pair.running()?;
    let traffic = Traffic::start(&pair.scene.postgres, 3, false).await?;
    for turn in 0..3 {
        delivers(&pair.scene, 3).await?;
        pair.scene.wait_in_flight().await?;
        let killed = if turn % 2 == 0 { pair.one() } else { &pair.two };
        killed.kill()?;
        traffic.more(20).await?;
        killed.restart().await?;
    }
    let oracle = traffic.finish(&pair.scene.postgres).await?;
    pair.holds(&oracle, relay).await
}

/// With a quorum of two, an insert that only one replica took is unknown until the other has it.
#[tokio::test]
async fn inv_2_a_quorum_that_one_replica_cannot_make() -> Result<()> {
    let pair = Pair::start().await?;
    for server in [pair.one(), &pair.two] {
        profile(
            server,
            "<insert_quorum>2</insert_quorum><insert_quorum_timeout>1000</insert_quorum_timeout>",
        )
        .await?;
    }
    let relay = pair.running()?;
    relay.says("the sink is ready").await?;
    let traffic = Traffic::start(&pair.scene.postgres, 2, false).await?;
    delivers(&pair.scene, 5).await?;
    // It takes no parts, and then it is not there at all.
    pair.two.query("system stop fetches").await?;
    relay.says("Code: 319").await?;
    pair.two.kill()?;
    relay.says("is_unknown=true").await?;
    traffic.more(30).await?;
    pair.two.restart().await?;
    let lines = relay.lines();
    relay.says_after(lines, "delivered batch=").await?;
    let oracle = traffic.finish(&pair.scene.postgres).await?;
    pair.holds(&oracle, relay).await
}

/// Gives the profile of the tests' user settings, and waits until the server has them.
async fn profile(server: &ClickHouse, settings: &str) -> Result<()> {
    let given = format!("<profiles><default>{settings}</default></profiles>");
    server
        .change_users(|users| users.replace("<profiles><default></default></profiles>", &given))?;
    eventually("the profile to be read", PATIENCE, || async {
        let changed =
            "select count() from system.settings where changed and name = 'insert_quorum'";
        Ok((server.query(changed).await?.trim() == "1").then_some(()))
    })
    .await
}

/// What `sink create` leaves out there: with it, the same block is another one a second later.
#[tokio::test]
async fn a_column_that_changes_by_itself_is_warned_of() -> Result<()> {
    let pair = Pair::start().await?;
    let sink = pair.sink()?;
    let plan = sink.prepare(&outbox()).await?;
    assert_eq!(plan.report().warnings, Vec::<String>::new());
    for (of, is_named) in [("DateTime default now()", true), ("UInt8 default 1", false)] {
        for server in [pair.one(), &pair.two] {
            server
                .query(&format!("system sync replica {TABLE}"))
                .await?;
        }
        let add = format!("alter table {TABLE} add column more {of}");
        pair.one().query(&add).await?;
        let plan = sink.prepare(&outbox()).await?;
        let warnings = &plan.report().warnings;
        ensure!(warnings.len() == usize::from(is_named), "{warnings:?}");
        let remedy = format!("ALTER TABLE `default`.`{TABLE}` DROP COLUMN `more`");
        ensure!(!is_named || warnings[0].contains(&remedy), "{warnings:?}");
        pair.one().query(&remedy).await?;
    }
    Ok(())
}

#[tokio::test]
async fn urls_of_two_tables_are_refused() -> Result<()> {
    let pair = Pair::without_table().await?;
    let columns = "event_id UUID, event_type String, event_date_time DateTime('UTC'), environment String, \
                   event_context String, metadata_version UInt64, batch UInt64";
    let create = |path: &str, replica: &str| {
        format!(
            "create table {TABLE} ({columns}) engine = ReplicatedMergeTree('/t/{path}', '{replica}') \
             order by event_type"
        )
    };
    pair.scene.register(SINK).await?;
    pair.one().query(&create("a", "one")).await?;
    let urls = pair.urls()?;
    let refused = async || -> Result<String> {
        let mut relay = pair.scene.relay("run", "")?;
        relay.env("CLICKHOUSE_URL", &urls);
        let output = tokio::time::timeout(PATIENCE, relay.output()).await??;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "{log}");
        Ok(log)
    };
    let log = refused().await?;
    ensure!(log.contains("has no table default.events"), "{log}");
    pair.two.query(&create("b", "two")).await?;
    let log = refused().await?;
    ensure!(log.contains("two tables"), "{log}");
    pair.two.query(&format!("drop table {TABLE}")).await?;
    pair.two.query(&create("a", "two")).await?;
    let oracle = Oracle::new();
    let mut client = pair.scene.postgres.connect().await?;
    let event = Event::at(NOON_US, "trial", "{}".to_owned());
    commit(&mut client, &oracle, Way::Insert, &[event]).await?;
    let relay = pair.running()?;
    pair.holds(&oracle, relay).await
}
