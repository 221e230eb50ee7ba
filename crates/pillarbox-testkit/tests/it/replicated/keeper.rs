//! The keeper goes away: a replicated table takes nothing, and nobody loses or doubles anything.

use anyhow::{Result, ensure};
use pillarbox_testkit::servers::eventually;

use super::Pair;
use crate::scene::{PATIENCE, TABLE};
use crate::traffic::Traffic;

/// Waits until a replica says that it only reads.
async fn is_read_only(pair: &Pair, wanted: &str) -> Result<()> {
    let sql = format!("select is_readonly from system.replicas where table = '{TABLE}'");
    for server in [pair.one(), &pair.two] {
        eventually("the table to be read-only, or not", PATIENCE, || async {
            let read_only = server.query(&sql).await.unwrap_or_default();
            Ok((read_only.trim() == wanted).then_some(()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn inv_2_the_keeper_is_away_until_the_table_is_read_only() -> Result<()> {
    let pair = Pair::start().await?;
    let relay = pair.running()?;
    relay.says("the sink is ready").await?;
    let traffic = Traffic::start(&pair.scene.postgres, 2, false).await?;
    traffic.more(30).await?;
    pair.keeper.kill()?;
    is_read_only(&pair, "1").await?;
    pair.scene.wait_in_flight().await?;
    traffic.more(50).await?;
    ensure!(pair.scene.in_flight().await? > 0);
    let before = relay.log();
    ensure!(before.contains("not delivered yet"), "{before}");
    pair.keeper.restart().await?;
    is_read_only(&pair, "0").await?;
    let oracle = traffic.finish(&pair.scene.postgres).await?;
    pair.holds(&oracle, relay).await
}

/// `kill -9` of the keeper in the middle of inserts, again and again: for a moment nobody can say
/// whether a block was committed.
#[tokio::test]
async fn inv_2_the_keeper_is_killed_in_the_middle_of_inserts() -> Result<()> {
    let pair = Pair::start().await?;
    let relay = pair.running()?;
    let traffic = Traffic::start(&pair.scene.postgres, 3, false).await?;
    for _ in 0..2 {
        let lines = relay.lines();
        relay.says_after(lines, "delivered batch=").await?;
        pair.scene.wait_in_flight().await?;
        pair.keeper.kill()?;
        let lines = relay.lines();
        relay.says_after(lines, "not delivered yet").await?;
        traffic.more(10).await?;
        pair.keeper.restart().await?;
    }
    // Neither may be sure of what the relay waits for.
    pair.check_parts().await?;
    let oracle = traffic.finish(&pair.scene.postgres).await?;
    pair.holds(&oracle, relay).await
}

/// A relay that starts while the table is read-only waits for it, as it does for a server.
#[tokio::test]
async fn inv_2_a_relay_starts_while_the_keeper_is_away() -> Result<()> {
    let pair = Pair::start().await?;
    let traffic = Traffic::start(&pair.scene.postgres, 2, false).await?;
    pair.keeper.kill()?;
    is_read_only(&pair, "1").await?;
    let relay = pair.running()?;
    pair.scene.wait_in_flight().await?;
    relay.says("not delivered yet").await?;
    pair.keeper.restart().await?;
    let oracle = traffic.finish(&pair.scene.postgres).await?;
    pair.holds(&oracle, relay).await
}
