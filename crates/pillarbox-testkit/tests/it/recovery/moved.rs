//! A database that lives elsewhere: restored from a dump, copied beside the original, upgraded.

use anyhow::{Context as _, Result, ensure};
use pillarbox_relay::postgres::parse_url;
use pillarbox_relay::recover::{Destination, Doubtful, Recovery};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::Flavour;

use crate::recovery::{delivered, go_on, life_until, own_server, plan, recover_scene};
use crate::scene::{SINK, Scene, TABLE};
use crate::traffic::{Event, Traffic, Way, commit};

/// The transaction id that a server gives next.
async fn next_xid(scene: &Scene) -> Result<i64> {
    scene
        .number("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        .await
}

/// Takes so many transaction ids.
async fn burn(scene: &Scene, count: i64) -> Result<()> {
    let burn = format!(
        "do $$ begin for i in 1..{count} loop perform pg_current_xact_id(); commit; end loop; end $$"
    );
    scene.postgres.execute(&burn).await
}

/// Publishers start at once where the dump is restored; their transaction ids are those that the
/// ledger has sealed in the old cluster. `late`: nobody looks before the new cluster has come past
/// all that the ledger knows.
async fn restored(flavour: Flavour, options: &[&str], late: bool) -> Result<()> {
    let origin = own_server().await?;
    // The old cluster is the older one, also where the statements of the restore take a transaction each:
    // a restored ledger that is past its own ids is told by what the sink holds, not by these.
    let age =
        "do $$ begin for i in 1..2000 loop perform pg_current_xact_id(); commit; end loop; end $$";
    origin.execute(age).await?;
    let (scene, oracle, dump) = life_until(flavour, origin, async |scene: &Scene| {
        scene.postgres.dump(options).await
    })
    .await?;
    let sealed = next_xid(&scene).await?;
    scene.postgres.kill()?;
    let scene = scene.moved_to(own_server().await?);
    scene.postgres.restore(&dump).await?;
    // Row by row, restoring takes a transaction each.
    let is_young = next_xid(&scene).await? < sealed;
    ensure!(is_young || !options.is_empty(), "the new cluster is old");
    let traffic = go_on(&scene, oracle).await?;
    traffic.more(40).await?;
    if late {
        burn(&scene, sealed).await?;
        traffic.more(10).await?;
        ensure!(next_xid(&scene).await? > sealed);
    }
    let refused = scene.refusal().await?;
    ensure!(
        refused.contains("restored from a dump") && refused.contains("pillarbox recover"),
        "{refused}"
    );
    let findings = recover_scene(&scene).await?;
    let sink = &findings.sinks[0];
    ensure!(sink.found > 0 && sink.missing > 0, "{findings:?}");
    let verdict = delivered(&scene, traffic).await?;
    ensure!(verdict.published > 200, "{verdict}");
    Ok(())
}

#[tokio::test]
async fn inv_2_a_dump_is_restored_into_a_young_cluster_before_clickhouse_26() -> Result<()> {
    restored(Flavour::V26, &[], false).await
}

#[tokio::test]
async fn inv_2_a_dump_is_restored_into_a_young_cluster_before_clickhouse_18() -> Result<()> {
    restored(Flavour::V18, &[], false).await
}

#[tokio::test]
async fn inv_2_a_restored_dump_is_looked_at_when_its_cluster_has_come_past_it() -> Result<()> {
    restored(Flavour::V26, &[], true).await
}

#[tokio::test]
async fn inv_2_a_dump_is_restored_row_by_row() -> Result<()> {
    restored(Flavour::V26, &["--rows-per-insert=1"], true).await
}

/// A cluster that is past all transaction ids of the dump: nothing overlaps, but the ledger is old.
#[tokio::test]
async fn inv_2_a_dump_is_restored_into_an_old_cluster() -> Result<()> {
    let origin = own_server().await?;
    let (scene, oracle, dump) = life_until(Flavour::V26, origin, async |scene: &Scene| {
        scene.postgres.dump(&[]).await
    })
    .await?;
    let sealed = next_xid(&scene).await?;
    scene.postgres.kill()?;
    let scene = scene.moved_to(own_server().await?);
    burn(&scene, 2 * sealed).await?;
    scene.postgres.restore(&dump).await?;
    let refused = scene.refusal().await?;
    ensure!(refused.contains("pillarbox recover"), "{refused}");
    recover_scene(&scene).await?;
    let traffic = go_on(&scene, oracle).await?;
    delivered(&scene, traffic).await?;
    Ok(())
}

/// A copy in the same cluster takes the original's place.
#[tokio::test]
async fn inv_2_a_copy_of_the_database_takes_its_place() -> Result<()> {
    let server = own_server().await?;
    let (scene, oracle, ()) = life_until(Flavour::V26, server, async |_: &Scene| Ok(())).await?;
    let other = scene
        .postgres
        .connect_as("template1", "postgres", None)
        .await?;
    // The sessions of publishers that have just ended may take a moment to go.
    let copy = "create database copy template postgres";
    pillarbox_testkit::servers::eventually("nobody to use it", crate::scene::PATIENCE, || async {
        Ok(other.batch_execute(copy).await.ok())
    })
    .await?;
    let scene = scene.in_database("copy");
    let refused = scene.refusal().await?;
    ensure!(
        refused.contains("is a copy") && refused.contains("pillarbox recover"),
        "{refused}"
    );
    recover_scene(&scene).await?;
    let traffic = go_on(&scene, oracle).await?;
    delivered(&scene, traffic).await?;
    Ok(())
}

/// `pg_upgrade` keeps transaction ids and files: the relay goes on by itself.
#[tokio::test]
async fn inv_2_an_upgraded_server_goes_on_by_itself() -> Result<()> {
    let server = own_server().await?;
    let (scene, oracle, ()) = life_until(Flavour::V26, server, async |_: &Scene| Ok(())).await?;
    let identity = "select system_identifier from pg_control_system()";
    let before = scene.number(identity).await?;
    let upgraded = scene.postgres.upgrade().await.context("pg_upgrade")?;
    let scene = scene.moved_to(upgraded);
    ensure!(scene.number(identity).await? != before);
    let traffic: Traffic = go_on(&scene, oracle).await?;
    delivered(&scene, traffic).await?;
    let known = "select system_identifier from pillarbox.sink";
    ensure!(scene.number(known).await? == scene.number(identity).await?);
    Ok(())
}

/// What is published while one looks, with transaction ids that the old ledger has sealed, is kept; and
/// looking comes to an end.
#[tokio::test]
async fn inv_1_events_published_during_a_recovery_are_kept() -> Result<()> {
    let scene = Scene::on(own_server().await?, Flavour::V26).await?;
    let oracle = Oracle::new();
    let mut client = scene.postgres.connect().await?;
    for n in 0..5 {
        let event = Event::at(n, "trial", "{}".to_owned());
        commit(&mut client, &oracle, Way::Function, &[event]).await?;
    }
    burn(&scene, 2_000).await?;
    let event = Event::at(5, "trial", "{}".to_owned());
    commit(&mut client, &oracle, Way::Function, &[event]).await?;
    scene.drain().await?;
    let sealed = next_xid(&scene).await?;
    let dump = scene.postgres.dump(&[]).await?;
    let scene = scene.moved_to(own_server().await?);
    scene.postgres.restore(&dump).await?;
    let mut client = scene.postgres.connect().await?;
    let sink = scene.sink(TABLE)?;
    let plan = plan(&scene.postgres, &sink).await?;
    let destinations = [Destination {
        name: SINK,
        fingerprint: "test",
        sink: &sink,
        plan: &plan,
        doubtful: Doubtful::Refuse,
    }];
    let config = parse_url(scene.postgres.url())?;
    let recovery = Recovery::begin(&config, &destinations).await?;
    let before = Event::at(6, "trial", "{}".to_owned());
    commit(&mut client, &oracle, Way::Function, &[before]).await?;
    let findings = recovery.judge(|_, _| ()).await?;
    for n in 7..10 {
        let later = Event::at(n, "trial", "{}".to_owned());
        commit(&mut client, &oracle, Way::Insert, &[later]).await?;
    }
    ensure!(next_xid(&scene).await? < sealed, "the new cluster is young");
    ensure!(recovery.rewrite(&findings).await? == 4, "{findings:?}");
    let verdict = scene.holds_when_drained(&oracle).await?;
    ensure!(verdict.delivered == 10, "{verdict}");
    Ok(())
}
