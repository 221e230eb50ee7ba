//! Several sinks of one outbox, each of which lacks other events; and tables that cannot be searched.

use anyhow::{Context as _, Result, ensure};
use pillarbox_relay::recover::Doubtful;
use pillarbox_relay::sink::clickhouse::CreateOptions;
use pillarbox_testkit::oracle::{Oracle, read_clickhouse};
use pillarbox_testkit::servers::{Flavour, eventually};

use crate::recovery::{go_on, own_server, recover};
use crate::scene::{PATIENCE, Running, SINK, Scene, TABLE};
use crate::traffic::Traffic;

/// The second sink and its table.
const AUDIT: &str = "audit";

const TO_AUDIT: [(&str, &str); 3] = [
    ("SINK", AUDIT),
    ("CLICKHOUSE_TABLE", AUDIT),
    ("MAX_ROWS", "100"),
];

async fn rows(scene: &Scene, table: &str) -> Result<u64> {
    let sql = format!("select count() from {table}");
    Ok(scene.clickhouse.query(&sql).await?.trim().parse()?)
}

/// Lets a relay deliver something, and kills it.
async fn a_while(scene: &Scene, table: &str, relay: Running) -> Result<()> {
    let before = rows(scene, table).await?;
    eventually("the relay to deliver", PATIENCE, || async {
        Ok((rows(scene, table).await? > before).then_some(()))
    })
    .await?;
    relay.kill().await
}

async fn table_holds(scene: &Scene, oracle: &Oracle, table: &str) -> Result<()> {
    let found = read_clickhouse(&scene.clickhouse, table, scene.precision()).await?;
    let verdict = oracle.verdict(&found, &[]);
    ensure!(verdict.holds(), "{table}: {verdict}\n{}", verdict.explain());
    Ok(())
}

/// What one has is not what the other has, nor what either ledger says.
#[tokio::test]
async fn inv_2_each_of_two_sinks_gets_what_it_lacks() -> Result<()> {
    let scene = Scene::on(own_server().await?, Flavour::V26).await?;
    scene.sink(AUDIT)?.create(&CreateOptions::default()).await?;
    scene.register(AUDIT).await?;
    let traffic = Traffic::start(&scene.postgres, 2, false).await?;
    let main = scene.running_with(&[("MAX_ROWS", "100")])?;
    let other = scene.running_with(&TO_AUDIT)?;
    traffic.more(40).await?;
    a_while(&scene, TABLE, main).await?;
    traffic.more(40).await?;
    a_while(&scene, AUDIT, other).await?;
    traffic.more(80).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    let dump = scene.postgres.dump(&[]).await?;
    // Beyond what the dump knows: the second sink comes further than the first.
    let main = scene.running_with(&[("MAX_ROWS", "20")])?;
    a_while(&scene, TABLE, main).await?;
    let other = scene.running_with(&TO_AUDIT)?;
    a_while(&scene, AUDIT, other).await?;
    scene.postgres.kill()?;

    let scene = scene.moved_to(own_server().await?);
    scene.postgres.restore(&dump).await?;
    let traffic = go_on(&scene, oracle).await?;
    traffic.more(20).await?;
    let (first, second) = (scene.sink(TABLE)?, scene.sink(AUDIT)?);
    let alone = recover(&scene.postgres, &[(SINK, &first)], Doubtful::Refuse).await?;
    let alone = alone.err().context("a sink was left out")?.to_string();
    ensure!(alone.contains(AUDIT), "{alone}");
    let both = [(SINK, &first), (AUDIT, &second)];
    let (_, findings) = recover(&scene.postgres, &both, Doubtful::Refuse).await??;
    let found = |at: usize| (findings.sinks[at].found, findings.sinks[at].missing);
    ensure!(found(0).0 > 0 && found(1).0 > 0, "{findings:?}");
    ensure!(found(0).1 != found(1).1, "{findings:?}");
    traffic.more(20).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.drain_with(&[("MAX_ROWS", "1000")]).await?;
    scene.drain_with(&TO_AUDIT).await?;
    table_holds(&scene, &oracle, TABLE).await?;
    table_holds(&scene, &oracle, AUDIT).await
}

/// Nobody can tell which events a table without `event_id` holds: a person decides.
#[tokio::test]
async fn a_table_without_identities_is_not_guessed_about() -> Result<()> {
    let scene = Scene::without_table(own_server().await?, Flavour::V26).await?;
    let table = format!(
        "create table {TABLE} (event_type String, event_date_time DateTime, environment String, \
         event_context String, metadata_version UInt64, batch UInt64) engine = MergeTree \
         order by event_date_time settings non_replicated_deduplication_window = 1000"
    );
    scene.clickhouse.query(&table).await?;
    scene.register(SINK).await?;
    let publish = "select pillarbox.publish('trial', '{}') from generate_series(1, 10)";
    scene.postgres.query(publish, &[]).await?;
    scene.drain().await?;
    let dump = scene.postgres.dump(&[]).await?;
    let scene = scene.moved_to(own_server().await?);
    scene.postgres.restore(&dump).await?;
    let one = "select pillarbox.publish('trial', '{}')";
    scene.postgres.query(one, &[]).await?;
    let sink = scene.sink(TABLE)?;
    let sinks = [(SINK, &sink)];
    let refused = recover(&scene.postgres, &sinks, Doubtful::Refuse).await?;
    let refused = refused.err().context("it was guessed")?.to_string();
    ensure!(
        refused.contains("--doubtful deliver") && refused.contains("event_id"),
        "{refused}"
    );
    let recovered = recover(&scene.postgres, &sinks, Doubtful::Deliver).await?;
    let (published, findings) = recovered?;
    ensure!(published == findings.sinks[0].doubtful, "{findings:?}");
    scene.drain().await?;
    ensure!(rows(&scene, TABLE).await? == 10 + published);
    scene.postgres.query(one, &[]).await?;
    let skipped = recover(&scene.postgres, &sinks, Doubtful::Skip).await?;
    ensure!(skipped?.0 == 0, "nothing is delivered of what is in doubt");
    scene.drain().await?;
    ensure!(rows(&scene, TABLE).await? == 10 + published);
    Ok(())
}
