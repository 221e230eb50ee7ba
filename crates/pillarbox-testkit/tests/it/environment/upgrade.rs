//! The schema is upgraded under load, and a relay that is newer than the schema is refused until then:
//! publishers notice nothing, and what was sealed before the upgrade arrives once (INV-1, INV-2, INV-4).

use std::os::unix::process::ExitStatusExt as _;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pillarbox_relay::schema::{self, Migrated};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::{Flavour, Postgres, eventually};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::scene::{KILLED, PATIENCE, Scene, version_for};
use crate::traffic::{Event, Traffic, Way};

/// An upgrade waits a second for a lock of the ledger. A publisher that had to wait behind it would get an error.
const IMPATIENT: &str = "options=-c%20lock_timeout%3D500ms";

/// 2026-11-20 12:00:00 UTC.
const NOON_US: i64 = 1_795_176_000_000_000;

/// A relay dies when the rows of a batch have arrived, and it has not confirmed them.
const ARRIVED: &str = "before-confirm=3*off->return";

/// A relay dies between two inserts, of one batch or of two: each has two or three.
const UNSENT: &str = "before-send=7*off->return";

/// A schema of this version with a sink, in a database that nobody else uses.
async fn of_version(version: i32, flavour: Flavour) -> Result<Scene> {
    let postgres = Postgres::start(version_for(flavour)).await?;
    postgres.create_database("app").await?;
    Scene::of_version(postgres.in_database("app"), flavour, version).await
}

/// A stand-in for the relay of version 1, which cannot be built here any more: today's relay at work in a
/// copy of the database whose schema is upgraded. Copy and original are in one cluster and hold the
/// same rows, so transaction ids and snapshots mean the same in both, and what it seals is what a relay
/// of the original would have sealed. It delivers into the original's table.
struct StandIn {
    outbox: Client,
    url: String,
}

impl StandIn {
    /// Copies the outbox; nobody may be connected to it.
    async fn start(scene: &Scene) -> Result<Self> {
        let server = &scene.postgres;
        let other = server.connect_as("template1", "postgres", None).await?;
        // The sessions of publishers that have just ended may take a moment to go.
        eventually("nobody to use it", PATIENCE, || async {
            let copy = "create database stand_in template app";
            Ok(other.batch_execute(copy).await.ok())
        })
        .await?;
        let mut outbox = server.connect_as("stand_in", "postgres", None).await?;
        schema::migrate(&mut outbox).await?;
        // A relay that notices the copy would refuse it.
        let unnoticed = "update pillarbox.sink set database =
                         (select oid from pg_database where datname = current_database())";
        outbox.batch_execute(unnoticed).await?;
        let url = server.url_for("stand_in", "postgres", None)?;
        Ok(Self { outbox, url })
    }

    /// Delivers until it is killed.
    async fn deliver(&self, scene: &Scene, failpoint: &str) -> Result<()> {
        let mut relay = scene.relay("drain", failpoint)?;
        relay.env("DATABASE_URL", &self.url);
        let output = tokio::time::timeout(PATIENCE, relay.output()).await??;
        let log = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.signal() == Some(KILLED), "{log}");
        Ok(())
    }

    /// Gives the original the ledger, as far as version 1 knew its columns. The statements of version 1
    /// wrote the same into these; in the others nothing may be that it could not have done without.
    async fn hand_over(self, scene: &Scene) -> Result<()> {
        const BATCHES: &str = "
            select jsonb_agg(to_jsonb(b) - array['root', 'selection', 'terms'])::text,
                bool_and(b.kind = 'window' and b.root is null and b.selection is null)
            from pillarbox.batch b where b.number > 0";
        const DELIVERIES: &str = "
            select jsonb_agg(to_jsonb(d) - 'blocks')::text,
                bool_and(d.outcome = 'delivered' and d.blocks is null)
            from pillarbox.delivery d";
        for (table, sql) in [("batch", BATCHES), ("delivery", DELIVERIES)] {
            let row = self.outbox.query_one(sql, &[]).await?;
            let (rows, is_old): (Option<String>, Option<bool>) = (row.get(0), row.get(1));
            ensure!(is_old == Some(true), "not of version 1: {rows:?}");
            let insert = format!(
                "insert into pillarbox.{table} select *
                 from jsonb_populate_recordset(null::pillarbox.{table}, $1::text::jsonb)"
            );
            scene.postgres.query(&insert, &[&rows]).await?;
        }
        ensure!(scene.in_flight().await? > 0, "nothing is open");
        let cut = "select count(*) from (select until_tx from pillarbox.batch
                       order by number desc limit 1) last where until_tx is not null";
        ensure!(scene.number(cut).await? == 1, "no window is cut");
        Ok(())
    }
}

/// Upgrades while somebody reads the ledger, for which that has to wait; publishers do not.
async fn upgrade(scene: &Scene, traffic: &Traffic) -> Result<()> {
    let mut reader = scene.postgres.connect().await?;
    let reading = reader.transaction().await?;
    let ledger = "select count(*) from pillarbox.batch";
    reading.query_one(ledger, &[]).await?;
    let mut client = scene.postgres.connect().await?;
    let upgrade = tokio::spawn(async move { schema::migrate(&mut client).await });
    eventually("the upgrade to wait", PATIENCE, || async {
        let waiting = "select count(*) from pg_locks
                       where relation = 'pillarbox.batch'::regclass and not granted";
        Ok((scene.number(waiting).await? > 0).then_some(()))
    })
    .await?;
    traffic.more(10).await?;
    reading.rollback().await?;
    ensure!(upgrade.await?? == Migrated::Upgraded { from: 1 });
    Ok(())
}

fn events(note: &str) -> Vec<Event> {
    let context = |nth| format!(r#"{{"n":{nth},"note":"{note}"}}"#);
    (0..50)
        .map(|nth| Event::at(NOON_US, "trial", context(nth)))
        .collect()
}

async fn upgraded_under_load(flavour: Flavour, failpoint: &str) -> Result<()> {
    let scene = of_version(1, flavour).await?;
    let before = Traffic::start(&scene.postgres, 3, false).await?;
    before.more(100).await?;
    let oracle = before.finish(&scene.postgres).await?;
    let relay = StandIn::start(&scene).await?;
    let connect = || scene.postgres.connect();
    let (mut late, mut never, mut held) = (connect().await?, connect().await?, connect().await?);
    let (to_come, to_go, to_be_held) = (events("late"), events("never"), events("held"));
    let late = late.transaction().await?;
    Way::Function.publish(&late, &to_come[..25]).await?;
    let never = never.transaction().await?;
    Way::Copy.publish(&never, &to_go).await?;
    let prepared = held.transaction().await?;
    Way::Batch.publish(&prepared, &to_be_held).await?;
    prepared.batch_execute("prepare transaction 'held'").await?;
    drop(prepared);
    relay.deliver(&scene, failpoint).await?;
    relay.hand_over(&scene).await?;

    let url = format!("{}?{IMPATIENT}", scene.postgres.url());
    let traffic = Traffic::through(&scene.postgres, &url, 4, true, oracle).await?;
    traffic.more(20).await?;
    upgrade(&scene, &traffic).await?;
    let open = scene.in_flight().await?;
    ensure!(open > 0, "the upgrade has settled what was open");
    let relay = scene.running()?;
    eventually("what was open to be settled", PATIENCE, || async {
        let settled = "select count(*) from pillarbox.batch b
                       join pillarbox.delivery d on (d.sink, d.number) = (b.sink, b.number)
                       where b.terms is null and b.kind = 'window' and b.number + $1 > (
                           select max(number) from pillarbox.batch where terms is null)";
        let rows = scene.postgres.query(settled, &[&open]).await?;
        let settled: i64 = rows.first().context("a row")?.get(0);
        Ok((settled == open).then_some(()))
    })
    .await?;
    Way::Insert.publish(&late, &to_come[25..]).await?;
    late.commit().await?;
    never.rollback().await?;
    scene.postgres.execute("commit prepared 'held'").await?;
    traffic.more(40).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    for event in to_come.iter().chain(&to_be_held) {
        oracle.committed(event.published()?);
    }
    for event in &to_go {
        oracle.rolled_back(event.event_id);
    }
    scene.holds(&oracle, relay).await?;
    Ok(())
}

#[tokio::test]
async fn inv_1_and_2_upgraded_with_rows_that_arrived_in_clickhouse_18() -> Result<()> {
    upgraded_under_load(Flavour::V18, ARRIVED).await
}

#[tokio::test]
async fn inv_1_and_2_upgraded_with_rows_that_arrived_in_clickhouse_26() -> Result<()> {
    upgraded_under_load(Flavour::V26, ARRIVED).await
}

#[tokio::test]
async fn inv_1_and_2_upgraded_with_rows_not_sent_to_clickhouse_18() -> Result<()> {
    upgraded_under_load(Flavour::V18, UNSENT).await
}

#[tokio::test]
async fn inv_1_and_2_upgraded_with_rows_not_sent_to_clickhouse_26() -> Result<()> {
    upgraded_under_load(Flavour::V26, UNSENT).await
}

/// A relay that is newer than the schema does not start, and touches nothing.
async fn newer_than_the_schema(flavour: Flavour) -> Result<()> {
    let scene = of_version(1, flavour).await?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    traffic.more(20).await?;
    let mut newer = scene.running()?;
    ensure!(!newer.ended().await?.success());
    for log in [newer.log(), scene.refusal().await?] {
        ensure!(
            log.contains("has version 1, but this program needs version 4")
                && log.contains("run: pillarbox migrate"),
            "{log}"
        );
    }
    let sealed = "select count(*) from pillarbox.batch where kind <> 'genesis'";
    ensure!(scene.number(sealed).await? == 0, "it has sealed");
    let mut client = scene.postgres.connect().await?;
    ensure!(schema::migrate(&mut client).await? == Migrated::Upgraded { from: 1 });
    let relay = scene.running()?;
    traffic.more(40).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

#[tokio::test]
async fn inv_2_a_relay_newer_than_the_schema_is_refused_before_clickhouse_18() -> Result<()> {
    newer_than_the_schema(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_a_relay_newer_than_the_schema_is_refused_before_clickhouse_26() -> Result<()> {
    newer_than_the_schema(Flavour::V26).await
}

/// Whether an event without a type is refused.
async fn is_checked(scene: &Scene) -> Result<bool> {
    let untyped = "insert into pillarbox.event (event_type, event_context) values ('', '{}')";
    let refused = scene.postgres.connect().await?.execute(untyped, &[]).await;
    Ok(refused.is_err_and(|error| error.code() == Some(&SqlState::CHECK_VIOLATION)))
}

/// From version 2 on nothing of the delivery path has changed: today's relay delivers all through it. The
/// checks of an event change places when nobody keeps the outbox, and not before.
async fn upgraded_from_2(flavour: Flavour) -> Result<()> {
    let scene = of_version(2, flavour).await?;
    let url = format!("{}?{IMPATIENT}", scene.postgres.url());
    let traffic = Traffic::through(&scene.postgres, &url, 4, true, Arc::new(Oracle::new())).await?;
    traffic.more(100).await?;
    // A reader of every table, and a publisher with events in the outbox: an upgrade waits for neither.
    let mut reader = scene.postgres.connect().await?;
    let reading = reader.transaction().await?;
    reading
        .query_one("select count(*) from pillarbox.batch", &[])
        .await?;
    reading
        .query_one("select count(*) from pillarbox.event", &[])
        .await?;
    let mut client = scene.postgres.connect().await?;
    ensure!(schema::migrate(&mut client).await? == Migrated::Upgraded { from: 2 });
    ensure!(schema::migrate(&mut client).await? == Migrated::UpToDate);
    let kept = schema::check::unite(&mut client).await?.context("united")?;
    ensure!(kept.contains("has used pillarbox.event"), "{kept}");
    ensure!(is_checked(&scene).await?, "by five checks");
    reading.rollback().await?;
    let relay = scene.running()?;
    eventually("the checks to be one", PATIENCE, || async {
        let mut client = scene.postgres.connect().await?;
        let kept = schema::check::unite(&mut client).await?;
        Ok(kept.is_none().then_some(()))
    })
    .await?;
    ensure!(is_checked(&scene).await?, "by one check");
    traffic.more(100).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

#[tokio::test]
async fn inv_1_and_2_upgraded_from_version_2_before_clickhouse_18() -> Result<()> {
    upgraded_from_2(Flavour::V18).await
}

#[tokio::test]
async fn inv_1_and_2_upgraded_from_version_2_before_clickhouse_26() -> Result<()> {
    upgraded_from_2(Flavour::V26).await
}
