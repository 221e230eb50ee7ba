//! An unknown block and two replicas that do not hold the same yet.

use std::os::unix::process::ExitStatusExt as _;

use anyhow::{Context as _, Result, ensure};
use pillarbox_relay::sink::{Delivery, Doubt, Resolution, Sink as _};
use pillarbox_testkit::conformance::sink::nth;
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::proof::prove;
use pillarbox_testkit::servers::eventually;

use super::Pair;
use crate::clickhouse_sink::{self, NOON_US, insert, outbox, seal};
use crate::doubling::Doubling;
use crate::scene::{KILLED, PATIENCE, SINK, TABLE};
use crate::traffic::{Event, Traffic, Way, commit};

/// What the commit of an insert tells the other replicas to do, and that of a merge does not.
const COMMIT: &[u8] = b"\nget\n";

/// Some events in one month: one block.
async fn publish(pair: &Pair, oracle: &Oracle) -> Result<()> {
    let mut client = pair.scene.postgres.connect().await?;
    let event = |nth| Event::at(NOON_US + nth, "trial", format!(r#"{{"n":{nth}}}"#));
    let events: Vec<Event> = (0..20).map(event).collect();
    commit(&mut client, oracle, Way::Batch, &events).await
}

/// A relay that sends to `urls` and is killed when the answer to its first block has arrived.
async fn answer_lost(pair: &Pair, urls: &str) -> Result<()> {
    let mut relay = pair.scene.relay("drain", "block-answered=return")?;
    relay.env("CLICKHOUSE_URL", urls);
    let output = tokio::time::timeout(PATIENCE, relay.output()).await??;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.signal() == Some(KILLED), "{log}");
    Ok(())
}

/// A pair whose second replica fetches nothing, and some events.
async fn lagging() -> Result<(Pair, Oracle)> {
    let pair = Pair::start().await?;
    let oracle = Oracle::new();
    publish(&pair, &oracle).await?;
    pair.two.query("system stop fetches").await?;
    Ok((pair, oracle))
}

/// What only one replica holds is not sent again to the one that lags behind.
#[tokio::test]
async fn inv_2_a_lagging_replica_is_not_believed() -> Result<()> {
    let (pair, oracle) = lagging().await?;
    let (one, two) = (
        pair.one().url_with_credentials()?,
        pair.two.url_with_credentials()?,
    );
    answer_lost(&pair, &one).await?;
    ensure!(
        pair.two
            .query(&format!("select count() from {TABLE}"))
            .await?
            .trim()
            == "0"
    );
    // The lagging one is asked first, or alone.
    let both = format!("{two},{one}");
    for urls in [&both, &two] {
        let relay = pair.running_with(&[("CLICKHOUSE_URL", urls), ("QUERY_TIMEOUT_MS", "1000")])?;
        relay.says("not delivered yet").await?;
        ensure!(pair.scene.in_flight().await? == 1);
        let (log, name) = (relay.log(), pair.two.url());
        ensure!(
            log.contains(name) && log.contains("system.replication_queue"),
            "{log}"
        );
        relay.kill().await?;
    }
    let relay = pair.running_with(&[("CLICKHOUSE_URL", &both)])?;
    pair.two.query("system start fetches").await?;
    relay.says("delivered batch=").await?;
    let log = relay.log();
    ensure!(
        log.contains("attempts=0"),
        "it was looked up, not sent again: {log}"
    );
    pair.holds(&oracle, relay).await
}

/// `verify` does not call missing what a replica has not fetched yet: a repair would double it.
#[tokio::test]
async fn inv_13_a_lagging_replica_proves_nothing() -> Result<()> {
    let (pair, oracle) = lagging().await?;
    let one = pair.one().url_with_credentials()?;
    pair.scene.drain_with(&[("CLICKHOUSE_URL", &one)]).await?;
    let client = pair.scene.postgres.connect().await?;
    let two = pair.sink_at(&pair.two.url_with_credentials()?)?;
    let refused = prove(&client, &two, SINK).await;
    ensure!(format!("{:#}", refused.unwrap_err()).contains("system.replication_queue"));
    pair.two.query("system start fetches").await?;
    let proof = prove(&client, &two, SINK).await?;
    ensure!(proof.findings.is_empty() && proof.rows == 20, "{proof:?}");
    pair.hold_both(&oracle).await
}

/// The replica that took a block dies before the other has it; both are needed to settle it.
#[tokio::test]
async fn inv_2_the_replica_that_holds_the_block_is_away() -> Result<()> {
    let (pair, oracle) = lagging().await?;
    let one = pair.one().url_with_credentials()?;
    answer_lost(&pair, &one).await?;
    pair.one().kill()?;
    pair.two.query("system start fetches").await?;
    let relay = pair.running_with(&[("QUERY_TIMEOUT_MS", "1000")])?;
    relay.says("not delivered yet").await?;
    pair.one().restart().await?;
    pair.holds(&oracle, relay).await
}

/// A frozen replica: the insert is overdue, so unknown. It is killed and comes back, and the block
/// is looked up on both before anything is sent again.
#[tokio::test]
async fn inv_2_a_frozen_replica_leaves_an_unknown_block() -> Result<()> {
    let pair = Pair::start().await?;
    let relay =
        pair.running_with(&[("INSERT_TIMEOUT_MS", "1000"), ("QUERY_TIMEOUT_MS", "1000")])?;
    relay.says("the sink is ready").await?;
    let traffic = Traffic::start(&pair.scene.postgres, 2, false).await?;
    relay.says("delivered batch=").await?;
    pair.one().pause()?;
    relay.says("is_unknown=true").await?;
    traffic.more(30).await?;
    pair.one().kill()?;
    pair.one().restart().await?;
    let oracle = traffic.finish(&pair.scene.postgres).await?;
    pair.holds(&oracle, relay).await
}

/// 18.16 knows no tokens: the keeper remembers the last blocks of every replica by their content,
/// the number of the batch included. An insert that was on its way to the other replica all the
/// time is dropped there.
#[tokio::test]
async fn inv_2_the_identical_block_by_the_other_replica_is_dropped() -> Result<()> {
    let pair = Pair::start().await?;
    let doubling = Doubling::start(pair.one(), &[&pair.two]).await?;
    let url = doubling.url_with_credentials(pair.one());
    let oracle = Oracle::new();
    // The same events again are other blocks.
    for _ in 0..3 {
        publish(&pair, &oracle).await?;
        pair.scene.drain_with(&[("CLICKHOUSE_URL", &url)]).await?;
    }
    ensure!(doubling.inserts() >= 3, "{}", doubling.inserts());
    pair.hold_both(&oracle).await
}

/// The connection to the keeper breaks before it gets the commit of a block. The replica says that it
/// does not know and leaves the part in its table, where every query sees it, until it looks again.
async fn left_unregistered(pair: &Pair) -> Result<Oracle> {
    let oracle = Oracle::new();
    // A table of which most is amiss would not come back.
    for _ in 0..2 {
        publish(pair, &oracle).await?;
    }
    pair.scene
        .drain_with(&[("CLICKHOUSE_URL", &pair.urls()?)])
        .await?;
    publish(pair, &oracle).await?;
    pair.line.cut_before(COMMIT);
    Ok(oracle)
}

/// The other replica shows that the block was not committed.
#[tokio::test]
async fn inv_2_a_part_that_the_keeper_does_not_know_is_not_believed() -> Result<()> {
    let pair = Pair::start().await?;
    let oracle = left_unregistered(&pair).await?;
    let relay = pair.running()?;
    relay.says("delivered batch=").await?;
    ensure!(pair.is_unsure(pair.one()).await?, "{}", relay.log());
    pair.holds(&oracle, relay).await
}

/// Without another replica to ask nobody knows, until the server has checked its parts.
#[tokio::test]
async fn inv_2_and_13_a_single_replica_is_waited_for_until_it_knows_its_parts() -> Result<()> {
    let pair = Pair::start().await?;
    let oracle = left_unregistered(&pair).await?;
    let one = pair.one().url_with_credentials()?;
    let relay = pair.running_with(&[("CLICKHOUSE_URL", &one)])?;
    relay.says("SYSTEM RESTART REPLICA").await?;
    ensure!(pair.scene.in_flight().await? == 1);
    let health = pair.sink_at(&one)?.health().await?;
    ensure!(health.replica.is_some_and(|replica| replica.to_check == 1));
    // What it shows proves nothing about other batches either.
    let client = pair.scene.postgres.connect().await?;
    let refused = prove(&client, &pair.sink_at(&one)?, SINK).await;
    ensure!(format!("{:#}", refused.unwrap_err()).contains("SYSTEM RESTART REPLICA"));
    let proof = prove(&client, &pair.sink()?, SINK).await?;
    ensure!(proof.findings.is_empty() && proof.rows == 40, "{proof:?}");
    pair.check_parts().await?;
    pair.holds(&oracle, relay).await
}

/// No part is merged of which the keeper does not know: rows of a merged part stay, whatever else the
/// replica has to check.
#[tokio::test]
async fn inv_2_merged_rows_of_an_unsure_replica_are_believed() -> Result<()> {
    let pair = Pair::start().await?;
    let oracle = left_unregistered(&pair).await?;
    pair.scene
        .drain_with(&[("CLICKHOUSE_URL", &pair.urls()?)])
        .await?;
    publish(&pair, &oracle).await?;
    let one = pair.one().url_with_credentials()?;
    answer_lost(&pair, &one).await?;
    let relay = pair.running_with(&[("CLICKHOUSE_URL", &one)])?;
    relay.says("SYSTEM RESTART REPLICA").await?;
    let merge = format!("optimize table {TABLE} partition 202611 final");
    eventually("a merge", PATIENCE, || async {
        for server in [pair.one(), &pair.two] {
            // Refused by who does not lead, and while the number of the lost part may still be taken, which
            // ends with that session; who leads may change with it.
            let _ = server.query(&merge).await;
        }
        // Others than this engine begin with level 1.
        let merged = "select count() from system.parts where active and level > 1";
        Ok((pair.one().query(merged).await?.trim() != "0").then_some(()))
    })
    .await?;
    relay.says("delivered batch=").await?;
    let log = relay.log();
    ensure!(log.contains("attempts=0"), "it was sent again: {log}");
    ensure!(pair.is_unsure(pair.one()).await?, "{log}");
    pair.holds(&oracle, relay).await
}

/// A replica that nobody made catch up has none of the rows; that is not nothing while another shows some.
#[tokio::test]
async fn inv_2_a_replica_that_may_lag_does_not_outvote_rows_that_may_not_stay() -> Result<()> {
    let pair = Pair::start().await?;
    let both = pair.sink()?;
    let plan = both.prepare(&outbox()).await?;
    let (batch, blocks) = seal(&plan, 1, &[clickhouse_sink::Event::at(NOON_US)])?;
    let insert = insert(&batch, &blocks, 0);
    let one = pair.sink_at(&pair.one().url_with_credentials()?)?;
    pair.line.cut_before(COMMIT);
    let delivery = one.deliver(&plan, &insert, nth(1)).await;
    ensure!(matches!(delivery, Delivery::Unknown(_)), "{delivery:?}");
    let look = both.look(&plan, &insert, None).await;
    let trouble = look.err().context("it was decided")?;
    ensure!(
        trouble.reason.contains("SYSTEM RESTART REPLICA"),
        "{trouble}"
    );
    // Behind the fence the other one has caught up.
    let resolved = both.resolve(&plan, &insert, Doubt::NONE).await?;
    ensure!(matches!(resolved, Resolution::Resend), "{resolved:?}");
    Ok(())
}

/// Who accepts copies does not send one after the other until the server has checked its parts.
#[tokio::test]
async fn at_least_once_goes_on_beside_a_part_that_the_keeper_does_not_know() -> Result<()> {
    let pair = Pair::start().await?;
    let oracle = left_unregistered(&pair).await?;
    // Without one, old servers have the better guarantee.
    let view =
        format!("create materialized view seen engine = Memory as select batch from {TABLE}");
    pair.one().query(&view).await?;
    let one = pair.one().url_with_credentials()?;
    let relay = pair.running_with(&[("CLICKHOUSE_URL", &one), ("AT_LEAST_ONCE", "1")])?;
    relay.says("delivered batch=").await?;
    ensure!(relay.log().contains("at-least-once"), "{}", relay.log());
    ensure!(pair.is_unsure(pair.one()).await?, "{}", relay.log());
    pair.holds(&oracle, relay).await
}
