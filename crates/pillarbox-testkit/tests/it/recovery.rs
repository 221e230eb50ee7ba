//! An outbox whose ledger no longer tells what the sink holds: what is missing arrives once, what is
//! there stays there once, whatever brought the database into that state (INV-1, INV-2).

mod crashed;
mod lost_seconds;
mod moved;
mod sinks;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use pillarbox_relay::postgres::parse_url;
use pillarbox_relay::recover::{Destination, Doubtful, Findings, RecoverError, Recovery};
use pillarbox_relay::sink::Sink as _;
use pillarbox_relay::sink::clickhouse::{ClickHouse as Sink, ClickHousePlan};
use pillarbox_relay::source::postgres::outbox_columns;
use pillarbox_testkit::oracle::{Oracle, Precision, Verdict, read_clickhouse};
use pillarbox_testkit::servers::{ClickHouse, Flavour, Postgres};
use uuid::Uuid;

use crate::scene::{SINK, Scene, TABLE};
use crate::traffic::{Traffic, transaction_of};

/// A server that shares its identity with no other.
async fn own_server() -> Result<Postgres> {
    Postgres::builder().own_identifier().start().await
}

/// What the outbox of a server looks like to a sink.
async fn plan(postgres: &Postgres, sink: &Sink) -> Result<ClickHousePlan> {
    let client = postgres.connect().await?;
    let columns = outbox_columns(&client, &BTreeMap::new()).await?;
    Ok(sink.prepare(&columns).await?)
}

/// Recovers the outbox for these sinks.
async fn recover(
    postgres: &Postgres,
    sinks: &[(&str, &Sink)],
    doubtful: Doubtful,
) -> Result<Result<(u64, Findings), RecoverError>> {
    let mut planned = Vec::new();
    for (name, sink) in sinks {
        planned.push((*name, *sink, plan(postgres, sink).await?));
    }
    let destinations: Vec<Destination<'_>> = planned
        .iter()
        .map(|(name, sink, plan)| Destination {
            name,
            fingerprint: "test",
            sink,
            plan,
            doubtful,
        })
        .collect();
    let config = parse_url(postgres.url())?;
    let outcome = async {
        let recovery = Recovery::begin(&config, &destinations).await?;
        let findings = recovery.judge(|_, _| ()).await?;
        let published = recovery.rewrite(&findings).await?;
        Ok((published, findings))
    };
    Ok(outcome.await)
}

/// Recovers the outbox of the scene's sink.
async fn recover_scene(scene: &Scene) -> Result<Findings> {
    let sink = scene.sink(TABLE)?;
    let recovered = recover(&scene.postgres, &[(SINK, &sink)], Doubtful::Refuse).await?;
    let (published, findings) = recovered?;
    // What was published meanwhile comes on top.
    assert!(published >= findings.published_again, "{findings:?}");
    Ok(findings)
}

/// The events in a table.
async fn held(server: &ClickHouse, precision: Precision) -> Result<HashSet<Uuid>> {
    let found = read_clickhouse(server, TABLE, precision).await?;
    Ok(found.iter().map(|row| row.event_id).collect())
}

/// Events whose commit the new server does not know and that had not arrived are gone with the old
/// one: nobody can deliver them.
async fn forget_what_died(oracle: &Oracle, scene: &Scene) -> Result<u64> {
    let arrived = held(&scene.clickhouse, scene.precision()).await?;
    let known = scene.postgres.query("select id from business", &[]).await?;
    let known: HashSet<Uuid> = known.iter().map(|row| row.get(0)).collect();
    let mut died = 0;
    for id in oracle.committed_ids() {
        if !known.contains(&transaction_of(id)) && !arrived.contains(&id) {
            oracle.rolled_back(id);
            died += 1;
        }
    }
    Ok(died)
}

/// Publishers on a server that took another one's place, and what they add to the record.
async fn go_on(scene: &Scene, oracle: Arc<Oracle>) -> Result<Traffic> {
    Traffic::resume(&scene.postgres, 2, false, oracle).await
}

/// Delivers all, and compares.
async fn delivered(scene: &Scene, traffic: Traffic) -> Result<Verdict> {
    // What piled up meanwhile goes in fewer batches.
    let in_fewer = &[("MAX_ROWS", "1000")];
    let relay = scene.running_with(in_fewer)?;
    traffic.more(20).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    // The table is read at rest.
    relay.stop().await?;
    forget_what_died(&oracle, scene).await?;
    scene.holds(&oracle, scene.running_with(in_fewer)?).await
}

/// A server, a table and a relay at work, until the moment `at` which the test is about; then the
/// relay goes on for a while and both are killed in the middle of their work.
async fn life_until<T>(
    flavour: Flavour,
    postgres: Postgres,
    at: impl AsyncFnOnce(&Scene) -> Result<T>,
) -> Result<(Scene, Arc<Oracle>, T)> {
    let scene = Scene::on(postgres, flavour).await?;
    let traffic = Traffic::start(&scene.postgres, 2, false).await?;
    let relay = scene.running_with(&[("MAX_ROWS", "100")])?;
    traffic.more(60).await?;
    scene.wait_in_flight().await?;
    let made = at(&scene).await.context("the moment")?;
    traffic.more(60).await?;
    scene.wait_in_flight().await?;
    relay.kill().await?;
    traffic.more(20).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    Ok((scene, oracle, made))
}
