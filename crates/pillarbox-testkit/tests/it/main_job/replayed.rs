//! Batches are delivered again on request while publishers go on (INV-2, INV-13).

use std::time::Duration;

use anyhow::{Result, ensure};
use pillarbox_relay::schema::LOCK_CLASS;
use pillarbox_testkit::oracle::{Oracle, Verdict};
use pillarbox_testkit::proof;
use pillarbox_testkit::servers::{Flavour, eventually};

use crate::scene::{PATIENCE, Running, SINK, Scene, TABLE};
use crate::traffic::Traffic;

/// Batches that are asked for at once.
const REPLAYED: i64 = 5;

/// Asks for the last window batches that were delivered.
async fn ask(scene: &Scene) -> Result<()> {
    let delivered =
        "select count(*) from pillarbox.delivery d join pillarbox.batch b using (sink, number)
                     where b.kind = 'window'";
    eventually("enough batches to be delivered", PATIENCE, || async {
        Ok((scene.number(delivered).await? >= REPLAYED).then_some(()))
    })
    .await?;
    let sql = format!(
        "insert into pillarbox.replay (sink, kind, parent)
         select d.sink, 'replay', d.number
         from pillarbox.delivery d join pillarbox.batch b using (sink, number)
         where b.kind = 'window' and d.outcome = 'delivered'
         order by d.number desc limit {REPLAYED}"
    );
    scene.postgres.execute(&sql).await
}

async fn answered(scene: &Scene, relay: &Running, count: i64) -> Result<()> {
    let sql = "select count(*) from pillarbox.replay r
               join pillarbox.delivery d on d.sink = r.sink and d.number = r.number";
    let delivered = eventually("the replays to be delivered", PATIENCE, || async {
        Ok((scene.number(sql).await? == count).then_some(()))
    })
    .await;
    let wishes = "select coalesce(json_agg(r), '[]')::text from pillarbox.replay r";
    let rows = scene.postgres.query(wishes, &[]).await?;
    let wishes: &str = rows[0].get(0);
    delivered.map_err(|error| error.context(format!("{wishes}; {}", relay.log_tail())))
}

/// What the table holds beside the replays.
async fn verdict_beside(scene: &Scene, oracle: &Oracle) -> Result<Verdict> {
    let sql = "select coalesce(string_agg(((b.origin::bigint << 40) | b.number)::text, ','), '0')
               from pillarbox.batch b where b.kind = 'replay'";
    let row = scene.postgres.query(sql, &[]).await?;
    let replays: &str = row[0].get(0);
    let view =
        format!("create view beside as select * from {TABLE} where batch not in ({replays})");
    scene.clickhouse.query(&view).await?;
    scene.verdict_of("beside", oracle).await
}

/// Each replay brings the events of its batch a second time, all of them and no others, across a kill of
/// the relay; everything else is there once.
async fn replayed_under_load(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let retain = "update pillarbox.settings set retention = '1 hour'";
    scene.postgres.execute(retain).await?;
    let relay = scene.running()?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    traffic.more(100).await?;
    ask(&scene).await?;
    traffic.more(30).await?;
    answered(&scene, &relay, REPLAYED).await?;
    ask(&scene).await?;
    relay.kill().await?;
    let relay = scene.running()?;
    traffic.more(30).await?;
    answered(&scene, &relay, 2 * REPLAYED).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    relay.stop().await?;
    scene.drain().await?;

    let verdict = verdict_beside(&scene, &oracle).await?;
    ensure!(verdict.holds(), "{verdict}\n{}", verdict.explain());
    let differing = "select count(*) from pillarbox.replay r
                     join pillarbox.batch p on p.sink = r.sink and p.number = r.parent
                     left join pillarbox.batch b on b.sink = r.sink and b.number = r.number
                     where (b.rows, b.digest) is distinct from (p.rows, p.digest)";
    ensure!(
        scene.number(differing).await? == 0,
        "a replay differs from its batch"
    );
    let client = scene.postgres.connect().await?;
    let proof = proof::prove(&client, &scene.sink(TABLE)?, SINK).await?;
    ensure!(proof.findings.is_empty(), "{proof:?}");
    let again = "select sum(rows)::bigint from pillarbox.batch where kind = 'replay'";
    let again = scene.number(again).await?.unsigned_abs();
    ensure!(
        again > 0 && proof.rows == oracle.published() + again,
        "{again}: {proof:?}"
    );
    Ok(())
}

#[tokio::test]
async fn inv_2_and_13_batches_are_replayed_under_load_on_clickhouse_18() -> Result<()> {
    replayed_under_load(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_and_13_batches_are_replayed_under_load_on_clickhouse_26() -> Result<()> {
    replayed_under_load(Flavour::V26).await
}

/// What the outbox no longer holds cannot be delivered again. The refusal gives the lock of the ring back, however
/// many there are: else no leaf is emptied any more.
#[tokio::test]
async fn inv_8_refused_replays_keep_nobody_from_the_ring() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    let relay = scene.running()?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    relay.says("a leaf of the ring was emptied").await?;
    let ask = "insert into pillarbox.replay (sink, kind, parent)
               select sink, 'replay', 1 from pillarbox.sink, generate_series(1, 3)";
    scene.postgres.execute(ask).await?;
    let refused = "select count(*) from pillarbox.replay where refused is not null";
    eventually("the replays to be refused", PATIENCE, || async {
        Ok((scene.number(refused).await? == 3).then_some(()))
    })
    .await?;
    let lines = relay.lines();
    traffic.more(30).await?;
    relay
        .says_after(lines, "a leaf of the ring was emptied")
        .await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

/// A drain does not end beside a wish that it was given, whoever holds the ring meanwhile.
#[tokio::test]
async fn inv_2_a_drain_waits_for_the_ring_to_answer_a_replay() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    let retain = "update pillarbox.settings set retention = '1 hour'";
    scene.postgres.execute(retain).await?;
    let traffic = Traffic::start(&scene.postgres, 2, false).await?;
    traffic.more(10).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.drain().await?;
    let ring = scene.postgres.connect().await?;
    let lock = "select pg_advisory_lock($1, 0)";
    ring.execute(lock, &[&LOCK_CLASS]).await?;
    let ask = "insert into pillarbox.replay (sink, kind, parent)
               select sink, 'replay', max(number) from pillarbox.batch group by sink";
    scene.postgres.execute(ask).await?;
    let mut drain = scene.spawn(&mut scene.relay("drain", "")?)?;
    drain.says("the sink is ready").await?;
    let early = tokio::time::timeout(Duration::from_millis(500), drain.ended()).await;
    ensure!(early.is_err(), "it ended: {}", drain.log_tail());
    drop(ring);
    ensure!(drain.ended().await?.success(), "{}", drain.log_tail());
    answered(&scene, &drain, 1).await?;
    let verdict = verdict_beside(&scene, &oracle).await?;
    ensure!(verdict.holds(), "{verdict}\n{}", verdict.explain());
    Ok(())
}
