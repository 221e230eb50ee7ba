//! The ring under everything that can hold it up or hurry it: stalled publishers, readers, backups,
//! other isolation levels, a sink that is away for days (INV-4, INV-8).

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use pillarbox_relay::source::Session as _;
use pillarbox_testkit::servers::{Flavour, PgVersion, eventually};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::outbox::{DEADLINE, Drain, Outbox, SINK, VERSIONS, exactly_once, publish, value};
use crate::scene::{PATIENCE, Scene};
use crate::traffic::{Event, Traffic, Way, commit};

/// The ring turns at every look.
const HURRY: &str = "update pillarbox.settings set leaf_bytes_max = 1";

/// A session that fails rather than wait for a lock.
async fn strict(outbox: &Outbox) -> Result<Client> {
    let client = outbox.server.connect().await?;
    client.batch_execute("set lock_timeout = '1s'").await?;
    Ok(client)
}

/// Publishes, delivers and tends until the ring has gone round so often.
async fn go_round(
    outbox: &Outbox,
    drain: &mut Drain,
    turns: u32,
) -> Result<(Vec<Uuid>, Vec<Vec<Uuid>>)> {
    let (mut committed, mut batches) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        for _ in 0..4 {
            let before = outbox.slot().await?;
            committed.extend(outbox.publish(2).await?);
            batches.extend(drain.all(3).await?);
            drain.session.tend().await?;
            ensure!(outbox.slot().await? == (before + 1) % 4, "the ring stands");
        }
    }
    Ok((committed, batches))
}

/// The default of a column is evaluated before the leaf is opened: a publisher that stalls in between
/// holds no lock on its leaf, which is emptied under it while the ring goes round.
#[tokio::test]
async fn inv_8_a_publisher_stalls_between_choosing_its_slot_and_inserting() -> Result<()> {
    const STALL: &str = "
        create function stall() returns json language plpgsql as $$
        begin
            perform pg_advisory_xact_lock(77);
            return '{}';
        end $$";
    const INSERT: &str = "insert into pillarbox.event (event_type, event_context)
                          values ('stalled', stall()) returning event_id, slot";
    const WAITS: &str = "select count(*) = 1 from pg_locks
                         where locktype = 'advisory' and objid = 77 and not granted";
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        outbox.admin.batch_execute(HURRY).await?;
        outbox.admin.batch_execute(STALL).await?;
        let holder = outbox.server.connect().await?;
        let mut drain = outbox.drain(SINK).await?;
        let (mut committed, mut batches) = (Vec::new(), Vec::new());
        for round in 1..=3 {
            let chosen = outbox.slot().await?;
            holder.batch_execute("select pg_advisory_lock(77)").await?;
            let stalled = outbox.server.connect().await?;
            let inserting = tokio::spawn(async move { stalled.query_one(INSERT, &[]).await });
            eventually("the publisher to stall", DEADLINE, || async {
                Ok(outbox.value::<bool>(WAITS).await?.then_some(()))
            })
            .await?;
            let gone = go_round(&outbox, &mut drain, round).await?;
            committed.extend(gone.0);
            batches.extend(gone.1);
            // On from the slot that the publisher chose, which is emptied behind it.
            committed.extend(outbox.publish(1).await?);
            batches.extend(drain.all(3).await?);
            drain.session.tend().await?;
            drain.session.tend().await?;
            ensure!(outbox.slot().await? != chosen && outbox.is_empty(chosen).await?);
            holder
                .batch_execute("select pg_advisory_unlock(77)")
                .await?;
            let row = tokio::time::timeout(DEADLINE, inserting).await???;
            committed.push(row.get(0));
            ensure!(
                row.get::<_, i16>(1) == chosen,
                "the slot was chosen afterwards"
            );
            ensure!(!outbox.is_empty(chosen).await?);
            drain.session.tend().await?;
            ensure!(!outbox.is_empty(chosen).await?, "it is not delivered yet");
            batches.extend(drain.all(3).await?);
            drain.session.tend().await?;
            ensure!(outbox.is_empty(chosen).await?, "it is delivered");
        }
        exactly_once(&committed, &batches);
    }
    Ok(())
}

/// pg_dump holds every leaf from its first statement to its last. The ring waits, publishers do not,
/// and the dump holds what it saw.
#[tokio::test]
async fn inv_4_pg_dump_only_delays_a_truncation() -> Result<()> {
    // Debian brings the tools of version 15 only.
    let outbox = Outbox::start(PgVersion::V15).await?;
    outbox.admin.batch_execute(HURRY).await?;
    let mut drain = outbox.drain(SINK).await?;
    // More than fits into the pipe: the dump stalls until it is read.
    let mut committed = outbox.publish(40_000).await?;
    let seen = committed.len();
    let mut batches = drain.all(10_000).await?;
    let mut dump = Command::new("pg_dump")
        .args(["--data-only", "--table=pillarbox.event*", "-d"])
        .arg(outbox.server.url())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("pg_dump")?;
    let copies = "select count(*) = 1 from pg_stat_activity
                  where application_name = 'pg_dump' and query like 'COPY pillarbox.event_0%'";
    eventually("the dump to read the leaf", DEADLINE, || async {
        Ok(outbox.value::<bool>(copies).await?.then_some(()))
    })
    .await?;
    let strict = strict(&outbox).await?;
    for _ in 0..3 {
        committed.extend(publish(&strict, 2).await?);
        batches.extend(drain.all(100).await?);
        drain.session.tend().await?;
    }
    ensure!(
        !outbox.is_empty(0).await?,
        "a leaf was emptied under a dump"
    );
    let mut text = String::new();
    let mut output = dump.stdout.take().context("its output")?;
    output.read_to_string(&mut text).await?;
    ensure!(dump.wait().await?.success(), "pg_dump failed");
    let dumped = text.lines().filter(|line| line.contains("\ttest\t"));
    assert_eq!(dumped.count(), seen, "rows of the dump");
    for slot in [1, 2, 3, 0, 1] {
        outbox.turn_to(slot).await?;
        drain.session.tend().await?;
    }
    ensure!(outbox.is_empty(0).await?, "space returns after the dump");
    exactly_once(&committed, &batches);
    Ok(())
}

/// With a stricter isolation level the check under the lock would see what the first one saw. A DBA
/// may make one the default: the relay says its own with every transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn inv_8_a_default_isolation_level_does_not_reach_the_rotation() -> Result<()> {
    for version in VERSIONS {
        for level in ["repeatable read", "serializable"] {
            let outbox = Outbox::start(version).await?;
            let default = format!(
                "alter database postgres set default_transaction_isolation = '{level}';
                 alter role postgres set default_transaction_isolation = '{level}'"
            );
            outbox.admin.batch_execute(&default).await?;
            let publisher = outbox.server.connect().await?;
            let shown: String = value(&publisher, "show transaction_isolation").await?;
            assert_eq!(shown, level);
            let mut committed = publish(&publisher, 3).await?;
            outbox.turn_to(1).await?;
            let mut drain = outbox.drain(SINK).await?;
            let mut batches = drain.all(100).await?;
            let tending = crate::ring::paused_at("leaf-checked", drain).await?;
            outbox.turn_to(0).await?;
            committed.extend(publish(&publisher, 4).await?);
            outbox.turn_to(1).await?;
            let mut drain = tending.go_on().await?;
            ensure!(!outbox.is_empty(0).await?, "the check saw an old snapshot");
            batches.extend(drain.all(100).await?);
            drain.session.tend().await?;
            ensure!(outbox.is_empty(0).await?);
            exactly_once(&committed, &batches);
        }
    }
    Ok(())
}

/// `nextval` would turn the ring. A publisher must not call it; the owner who does gets an error, and
/// the ring stands where it stood. `setval` to any leaf, a full one too, is harmless.
#[tokio::test]
async fn inv_8_nobody_spins_the_ring_by_its_sequence() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        outbox.admin.batch_execute(HURRY).await?;
        let role = "create role app login in role pillarbox_publisher";
        outbox.admin.batch_execute(role).await?;
        let app = outbox.server.connect_as("postgres", "app", None).await?;
        let mut drain = outbox.drain(SINK).await?;
        let (mut committed, mut batches) = (Vec::new(), Vec::new());
        for round in 0_i16..12 {
            committed.extend(publish(&app, 3).await?);
            let before = outbox.slot().await?;
            for (client, what) in [
                (&app, "permission denied"),
                (&outbox.admin, "maximum value"),
            ] {
                let refused = client
                    .batch_execute("select nextval('pillarbox.ring_position')")
                    .await;
                let error = refused.err().context("nextval was taken")?;
                ensure!(format!("{error:?}").contains(what), "{error:?}");
            }
            assert_eq!(outbox.slot().await?, before);
            committed.extend(publish(&app, 1).await?);
            // Forwards, backwards, onto a leaf with events, onto where it stands.
            outbox.turn_to(round * 3 % 4).await?;
            committed.extend(publish(&app, 1).await?);
            if round % 3 == 2 {
                batches.extend(drain.all(4).await?);
            }
            drain.session.tend().await?;
        }
        batches.extend(drain.all(4).await?);
        for slot in [1, 2, 3, 0, 1] {
            outbox.turn_to(slot).await?;
            drain.session.tend().await?;
        }
        ensure!(outbox.event_ids().await?.is_empty(), "space returns");
        exactly_once(&committed, &batches);
    }
    Ok(())
}

const LEAVES: i64 = 4;

/// Leaves that hold events.
const FULL: &str = "select count(*) from generate_series(0, 3) n
                    where pg_relation_size('pillarbox.event_' || n) > 0";

/// The sink is away for days: the ring turns until it meets its own tail, then its last leaf grows.
/// Publishers notice nothing. What was in doubt before is looked up after, whatever the table has
/// forgotten, and space returns.
async fn a_sink_that_is_down_for_days(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    // Written and not confirmed, then sealed and not written.
    for step in ["block-answered", "before-send"] {
        let mut relay = scene.spawn(&mut scene.relay("run", &format!("{step}=return"))?)?;
        relay.ended().await?;
    }
    ensure!(scene.in_flight().await? > 0);
    scene.clickhouse.stop().await?;
    let relay = scene.running_with(&[("STOPPED_MS", "300")])?;
    for turn in 0..LEAVES {
        traffic.more(40).await?;
        eventually("the ring to turn", PATIENCE, || async {
            Ok((scene.number(FULL).await? > turn).then_some(()))
        })
        .await?;
    }
    let oracle = traffic.finish(&scene.postgres).await?;
    let mut client = scene.postgres.connect().await?;
    commit(&mut client, &oracle, Way::Copy, &many_events()).await?;
    // So long ago was all of it, by the clock of the database.
    scene
        .postgres
        .execute("update pillarbox.batch set sealed_at = sealed_at - interval '5 days'")
        .await?;
    ensure!(!relay.log().contains("a leaf of the ring was emptied"));
    let stands = scene.number("select pillarbox.ring_slot()::bigint").await?;
    let size = format!("select pg_relation_size('pillarbox.event_{stands}')");
    let (before, after) = (scene.number(&size).await?, async {
        commit(&mut client, &oracle, Way::Batch, &many_events()).await?;
        scene.number(&size).await
    });
    ensure!(after.await? > before, "the last leaf does not grow");
    scene.clickhouse.restart().await?;
    let verdict = scene.holds(&oracle, relay).await?;
    ensure!(verdict.published > 1_000, "{verdict}");
    // Whoever tends next finds everything delivered.
    scene.drain().await?;
    ensure!(scene.number(FULL).await? <= 1, "space does not return");
    Ok(())
}

/// Enough for a leaf to grow visibly.
fn many_events() -> Vec<Event> {
    const NOON_US: i64 = 1_795_176_000_000_000;
    let event = |nth| Event::at(NOON_US + nth, "many", format!(r#"{{"n":{nth}}}"#));
    (0..400).map(event).collect()
}

#[tokio::test]
async fn inv_4_and_8_clickhouse_18_is_down_for_days() -> Result<()> {
    a_sink_that_is_down_for_days(Flavour::V18).await
}

#[tokio::test]
async fn inv_4_and_8_clickhouse_26_is_down_for_days() -> Result<()> {
    a_sink_that_is_down_for_days(Flavour::V26).await
}
