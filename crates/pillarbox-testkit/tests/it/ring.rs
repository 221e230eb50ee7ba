//! The ring: space returns by truncation, and only after everybody has everything (INV-6, INV-8,
//! INV-11).

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use pillarbox_relay::schema::LOCK_CLASS;
use pillarbox_relay::schema::registry::{self, Start};
use pillarbox_relay::source::{Session, SourceError};
use pillarbox_testkit::servers::{PgVersion, Postgres, eventually};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::outbox::{
    DEADLINE, Drain, Outbox, SINK, VERSIONS, backend, exactly_once, publish, value,
};

/// An outbox with events in leaf 0, and the ring on leaf 1.
async fn turned(version: PgVersion, events: i32) -> Result<(Outbox, Vec<Uuid>)> {
    let outbox = Outbox::start(version).await?;
    let ids = outbox.publish(events).await?;
    outbox.turn_to(1).await?;
    Ok((outbox, ids))
}

/// The ring turns when the leaf is large, or old, and not before; never onto a leaf with events.
#[tokio::test]
async fn the_ring_turns_by_size_and_by_age() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let drain = outbox.drain(SINK).await?;
        outbox.publish(10).await?;
        drain.session.tend().await?;
        assert_eq!(outbox.slot().await?, 0, "neither large nor old");
        let small = "update pillarbox.settings set leaf_bytes_max = 8192";
        outbox.admin.batch_execute(small).await?;
        drain.session.tend().await?;
        assert_eq!(outbox.slot().await?, 1, "large");
        drain.session.tend().await?;
        assert_eq!(outbox.slot().await?, 1, "an empty leaf is never large");
        let old = "update pillarbox.settings
                   set leaf_bytes_max = 1000000000, leaf_age_max = '1 microsecond'";
        outbox.admin.batch_execute(old).await?;
        drain.session.tend().await?;
        assert_eq!(outbox.slot().await?, 1, "an empty leaf is never old");
        for slot in [2, 3, 3] {
            outbox.publish(1).await?;
            drain.session.tend().await?;
            assert_eq!(
                outbox.slot().await?,
                slot,
                "the next leaf is not empty after 3"
            );
        }
    }
    Ok(())
}

/// INV-8: sealed is not enough, nor delivered before the retention is over.
#[tokio::test]
async fn a_leaf_is_emptied_after_delivery_and_retention() -> Result<()> {
    for version in VERSIONS {
        let (outbox, _) = turned(version, 10).await?;
        let mut drain = outbox.drain(SINK).await?;
        let hour = "update pillarbox.settings set retention = '1 hour'";
        outbox.admin.batch_execute(hour).await?;
        drain.session.tend().await?;
        assert!(!outbox.is_empty(0).await?, "nothing is sealed");
        let first = drain.seal(4).await?.context("a cut batch")?;
        drain.confirm(&first.batch).await?;
        drain.session.tend().await?;
        assert!(!outbox.is_empty(0).await?, "the rest of a cut window pins");
        let rest = drain.seal(100).await?.context("the rest")?;
        drain.session.tend().await?;
        assert!(!outbox.is_empty(0).await?, "an open batch pins");
        drain.confirm(&rest.batch).await?;
        drain.session.tend().await?;
        assert!(!outbox.is_empty(0).await?, "the retention is not over");
        let none = "update pillarbox.settings set retention = '0'";
        outbox.admin.batch_execute(none).await?;
        drain.session.tend().await?;
        assert!(outbox.is_empty(0).await?);
    }
    Ok(())
}

/// INV-8: an earlier batch in flight pins, even when a later one is delivered.
#[tokio::test]
async fn an_earlier_batch_in_flight_pins_its_events() -> Result<()> {
    for version in VERSIONS {
        let (outbox, _) = turned(version, 10).await?;
        let mut drain = outbox.drain(SINK).await?;
        let first = drain.seal(100).await?.context("a batch")?;
        outbox.publish(1).await?;
        let second = drain.seal(100).await?.context("a batch")?;
        drain.confirm(&second.batch).await?;
        drain.session.tend().await?;
        assert!(!outbox.is_empty(0).await?);
        assert_eq!(drain.read_again(&first.batch).await?.events.len(), 10);
        drain.confirm(&first.batch).await?;
        drain.session.tend().await?;
        assert!(outbox.is_empty(0).await?);
    }
    Ok(())
}

/// INV-8: every registered sink counts, also one that came later; a retired one does not.
#[tokio::test]
async fn every_registered_sink_pins_until_it_is_retired() -> Result<()> {
    for version in VERSIONS {
        let (outbox, ids) = turned(version, 10).await?;
        registry::register(&outbox.admin, "slow", "test", Start::Outbox).await?;
        let mut main = outbox.drain(SINK).await?;
        main.all(100).await?;
        main.session.tend().await?;
        assert!(!outbox.is_empty(0).await?, "the sink slow is behind");
        let mut slow = outbox.drain("slow").await?;
        exactly_once(&ids, &slow.all(3).await?);
        registry::register(&outbox.admin, "late", "test", Start::Outbox).await?;
        main.session.tend().await?;
        assert!(
            !outbox.is_empty(0).await?,
            "a sink was registered meanwhile"
        );
        registry::register(&outbox.admin, "fresh", "test", Start::Now).await?;
        registry::retire(&outbox.admin, "late").await?;
        main.session.tend().await?;
        assert!(
            outbox.is_empty(0).await?,
            "a sink from now on needs nothing old"
        );
    }
    Ok(())
}

/// INV-8: without a sink nothing is ever thrown away.
#[tokio::test]
async fn without_a_sink_nothing_is_truncated() -> Result<()> {
    for version in VERSIONS {
        let (outbox, _) = turned(version, 10).await?;
        let mut drain = outbox.drain(SINK).await?;
        drain.all(100).await?;
        registry::retire(&outbox.admin, SINK).await?;
        drain.session.tend().await?;
        assert!(!outbox.is_empty(0).await?);
    }
    Ok(())
}

/// INV-4, INV-8: a writer that is still in the leaf keeps it; nobody waits for anybody.
#[tokio::test]
async fn a_late_writer_keeps_its_leaf_and_nobody_waits() -> Result<()> {
    for version in VERSIONS {
        let (outbox, mut committed) = turned(version, 10).await?;
        let late = outbox.server.connect().await?;
        outbox.turn_to(0).await?;
        late.batch_execute("begin").await?;
        committed.extend(publish(&late, 5).await?);
        outbox.turn_to(1).await?;
        let mut drain = outbox.drain(SINK).await?;
        let mut batches = drain.all(100).await?;
        let strict = outbox.server.connect().await?;
        strict.batch_execute("set lock_timeout = '1s'").await?;
        for _ in 0..3 {
            drain.session.tend().await?;
            committed.extend(publish(&strict, 1).await?);
            batches.extend(drain.all(100).await?);
        }
        assert!(!outbox.is_empty(0).await?);
        late.batch_execute("commit").await?;
        drain.session.tend().await?;
        assert!(!outbox.is_empty(0).await?, "its events are not sealed");
        batches.extend(drain.all(100).await?);
        drain.session.tend().await?;
        assert!(outbox.is_empty(0).await?);
        exactly_once(&committed, &batches);
    }
    Ok(())
}

/// INV-8: a publisher that stalls with events in leaf 0 while the ring goes round four times.
#[tokio::test]
async fn a_stalled_publisher_survives_full_turns_of_the_ring() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let always = "update pillarbox.settings set leaf_bytes_max = 1";
        outbox.admin.batch_execute(always).await?;
        let mut drain = outbox.drain(SINK).await?;
        let (mut committed, mut batches) = (Vec::new(), Vec::new());
        let stalled = outbox.server.connect().await?;
        let begin = "begin isolation level repeatable read";
        stalled.batch_execute(begin).await?;
        committed.extend(publish(&stalled, 3).await?);
        // It stops the ring in front of its own leaf; by hand the ring is made to go on.
        for turn in 1..=16 {
            committed.extend(outbox.publish(2).await?);
            batches.extend(drain.all(3).await?);
            drain.session.tend().await?;
            outbox.turn_to(turn % 4).await?;
        }
        assert!(!outbox.is_empty(0).await?);
        committed.extend(publish(&stalled, 3).await?);
        stalled.batch_execute("commit").await?;
        batches.extend(drain.all(3).await?);
        exactly_once(&committed, &batches);
        for slot in [1, 2, 3, 0] {
            outbox.turn_to(slot).await?;
            drain.session.tend().await?;
        }
        for slot in 1..4 {
            assert!(outbox.is_empty(slot).await?, "leaf {slot}");
        }
    }
    Ok(())
}

/// A tenure that is held at a step of tending.
pub(crate) struct Paused {
    step: &'static str,
    drain: Arc<Drain>,
    go: mpsc::Sender<()>,
    tending: JoinHandle<Result<(), SourceError>>,
}

/// Tends until `step` is reached. Needs a runtime of several threads: the step blocks one.
pub(crate) async fn paused_at(step: &'static str, drain: Drain) -> Result<Paused> {
    let (reached, at_step) = mpsc::channel::<()>();
    let (go, may_go) = mpsc::channel::<()>();
    let may_go = std::sync::Mutex::new(may_go);
    let paused = move || {
        let _ = reached.send(());
        let _ = may_go.lock().map(|may_go| may_go.recv_timeout(DEADLINE));
    };
    fail::cfg_callback(step, paused).map_err(anyhow::Error::msg)?;
    let drain = Arc::new(drain);
    let tending = tokio::spawn({
        let drain = Arc::clone(&drain);
        async move { drain.session.tend().await }
    });
    tokio::task::spawn_blocking(move || at_step.recv_timeout(DEADLINE))
        .await?
        .with_context(|| format!("{step} was not reached"))?;
    Ok(Paused {
        step,
        drain,
        go,
        tending,
    })
}

impl Paused {
    /// Lets it go on; gives how the tending ended.
    async fn ended(self) -> Result<(Drain, Result<(), SourceError>)> {
        fail::remove(self.step);
        self.go.send(())?;
        let ended = tokio::time::timeout(DEADLINE, self.tending).await??;
        let drain = Arc::into_inner(self.drain).context("the only holder")?;
        Ok((drain, ended))
    }

    /// Lets it go on to a good end.
    pub(crate) async fn go_on(self) -> Result<Drain> {
        let (drain, ended) = self.ended().await?;
        ended?;
        Ok(drain)
    }
}

/// Runs `tend`, and lets events be committed and the leaf's writers end between the first check and
/// the lock. Gives what was committed and what was delivered.
async fn commit_between_check_and_lock(version: PgVersion) -> Result<(Vec<Uuid>, Vec<Vec<Uuid>>)> {
    let (outbox, mut committed) = turned(version, 3).await?;
    let mut drain = outbox.drain(SINK).await?;
    let mut batches = drain.all(100).await?;
    let paused = paused_at("leaf-checked", drain).await?;
    outbox.turn_to(0).await?;
    committed.extend(outbox.publish(4).await?);
    outbox.turn_to(1).await?;
    let mut drain = paused.go_on().await?;
    batches.extend(drain.all(100).await?);
    Ok((committed, batches))
}

/// INV-8: the check under the lock sees what was committed after the first one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_commits_before_the_lock_is_kept() -> Result<()> {
    for version in VERSIONS {
        let (committed, batches) = commit_between_check_and_lock(version).await?;
        exactly_once(&committed, &batches);
    }
    Ok(())
}

/// NEGATIVE CONTROL of INV-8: without the check under the lock the same events are lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn negative_control_without_the_check_under_the_lock_events_are_lost() -> Result<()> {
    fail::cfg("skip-check-under-lock", "return").map_err(anyhow::Error::msg)?;
    let (committed, batches) = commit_between_check_and_lock(PgVersion::V15).await?;
    let delivered: usize = batches.iter().map(Vec::len).sum();
    assert_eq!(committed.len() - delivered, 4);
    Ok(())
}

/// INV-8: at each step of tending the server is killed; nothing that is not done is lost, and the
/// next tenure empties the leaf.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crash_at_each_step_of_the_ring_loses_nothing() -> Result<()> {
    const STEPS: [&str; 6] = [
        "ring-turned",
        "leaf-checked",
        "leaf-locked",
        "leaf-checked-again",
        "leaf-truncated",
        "leaf-emptied",
    ];
    for version in VERSIONS {
        let server = Postgres::builder().version(version).durable();
        let mut outbox = Outbox::on(server.start().await?).await?;
        let always = "update pillarbox.settings set leaf_bytes_max = 1";
        outbox.admin.batch_execute(always).await?;
        let (mut committed, mut batches) = (Vec::new(), Vec::new());
        for step in STEPS {
            committed.extend(outbox.publish(5).await?);
            let mut drain = outbox.drain(SINK).await?;
            batches.extend(drain.all(100).await?);
            // Not done, in the leaf that the ring stands on.
            committed.extend(outbox.publish(3).await?);
            if step != "ring-turned" {
                let next = (outbox.slot().await? + 1) % 4;
                outbox.turn_to(next).await?;
                batches.extend(drain.all(100).await?);
            }
            let paused = paused_at(step, drain).await?;
            outbox.server.kill()?;
            let (_, ended) = paused.ended().await?;
            if let Err(error) = &ended {
                assert!(matches!(error, SourceError::Lost(..)), "{step}: {error}");
            }
            outbox.server.restart().await?;
            outbox.reconnect().await?;
            let drain = outbox.drain(SINK).await?;
            drain.session.tend().await?;
        }
        let mut drain = outbox.drain(SINK).await?;
        batches.extend(drain.all(100).await?);
        exactly_once(&committed, &batches);
    }
    Ok(())
}

/// A reader of the whole outbox delays truncation and is itself never in the way of a publisher.
#[tokio::test]
async fn an_analyst_only_delays_a_truncation() -> Result<()> {
    for version in VERSIONS {
        let (outbox, mut committed) = turned(version, 10).await?;
        let mut drain = outbox.drain(SINK).await?;
        let mut batches = drain.all(100).await?;
        let analyst = outbox.server.connect().await?;
        let read = "begin isolation level repeatable read; select count(*) from pillarbox.event";
        analyst.batch_execute(read).await?;
        let strict = outbox.server.connect().await?;
        strict.batch_execute("set lock_timeout = '1s'").await?;
        drain.session.tend().await?;
        committed.extend(publish(&strict, 1).await?);
        assert!(!outbox.is_empty(0).await?);
        let seen: i64 = value(&analyst, "select count(*) from pillarbox.event").await?;
        assert_eq!(seen, 10, "what it saw stays");
        analyst.batch_execute("commit").await?;
        batches.extend(drain.all(100).await?);
        drain.session.tend().await?;
        assert!(outbox.is_empty(0).await?);
        exactly_once(&committed, &batches);
    }
    Ok(())
}

/// INV-11: with nothing to do, neither the windows nor the ring write; also beside a held snapshot,
/// with a leaf that waits for its retention, and behind a reader that keeps it from being emptied.
#[tokio::test]
async fn an_idle_tenure_writes_nothing() -> Result<()> {
    for version in VERSIONS {
        let server = Postgres::builder()
            .version(version)
            .setting("autovacuum", "off")
            .setting("bgwriter_lru_maxpages", "0")
            .setting("checkpoint_timeout", "1d")
            .start()
            .await?;
        let outbox = Outbox::on(server).await?;
        let mut drain = outbox.drain(SINK).await?;
        idle(&outbox, &drain, "an empty outbox").await?;
        let holder = outbox.server.connect().await?;
        holder
            .batch_execute("begin isolation level repeatable read; select 1 from pg_class limit 1")
            .await?;
        idle(&outbox, &drain, "a held snapshot").await?;
        let hour = "update pillarbox.settings set retention = '1 hour'";
        outbox.admin.batch_execute(hour).await?;
        let committed = outbox.publish(10).await?;
        let batches = drain.all(100).await?;
        outbox.turn_to(1).await?;
        drain.session.tend().await?;
        idle(&outbox, &drain, "a leaf within its retention").await?;
        holder
            .batch_execute("commit; begin; select count(*) from pillarbox.event")
            .await?;
        let none = "update pillarbox.settings set retention = '0'";
        outbox.admin.batch_execute(none).await?;
        idle(&outbox, &drain, "a leaf that a reader keeps").await?;
        let none = "update pillarbox.settings set leaf_bytes_max = 1, leaf_age_max = '1us'";
        holder.batch_execute("commit").await?;
        drain.session.tend().await?;
        assert!(outbox.is_empty(0).await?);
        outbox.admin.batch_execute(none).await?;
        idle(&outbox, &drain, "the smallest leaf").await?;
        exactly_once(&committed, &batches);
    }
    Ok(())
}

/// Background processes write rarely, the tenure would write in every round: one round without a
/// byte is proof. A transaction id is taken in none.
async fn idle(outbox: &Outbox, drain: &Drain, with: &str) -> Result<()> {
    const NEXT: &str = "select pg_snapshot_xmax(pg_current_snapshot())::text";
    const END: &str = "select pg_current_wal_insert_lsn()::text";
    let next: String = outbox.value(NEXT).await?;
    let mut quiet = 0;
    for _ in 0..8 {
        let start: String = outbox.value(END).await?;
        drain.session.probe(&drain.position).await?;
        drain.session.beat().await?;
        drain.session.tend().await?;
        drain.session.report(None).await?;
        let end: String = outbox.value(END).await?;
        quiet += i32::from(start == end);
    }
    assert!(
        quiet >= 4,
        "wal was written in {} of 8 rounds with {with}",
        8 - quiet
    );
    let after: String = outbox.value(NEXT).await?;
    assert_eq!(next, after, "a transaction id was taken with {with}");
    Ok(())
}

/// INV-8: a sink is registered under the ring's lock, so no leaf is emptied without regard to it.
#[tokio::test]
async fn a_sink_is_registered_under_the_lock_of_the_ring() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let holder = outbox.server.connect().await?;
        let hold = format!("begin; select pg_advisory_xact_lock({LOCK_CLASS}, 0)");
        holder.batch_execute(&hold).await?;
        let registrar = outbox.server.connect().await?;
        let pid = backend(&registrar).await?;
        let registering =
            tokio::spawn(
                async move { registry::register(&registrar, "late", "t", Start::Now).await },
            );
        let waits = "select coalesce(wait_event_type = 'Lock', false) from pg_stat_activity
                 where pid = $1";
        eventually("the registration to wait", DEADLINE, || async {
            let row = outbox.admin.query_one(waits, &[&pid]).await?;
            Ok(row.get::<_, bool>(0).then_some(()))
        })
        .await?;
        outbox.publish(3).await?;
        holder.batch_execute("commit").await?;
        tokio::time::timeout(DEADLINE, registering).await???;
        let mut late = outbox.drain("late").await?;
        assert!(
            late.all(10).await?.is_empty(),
            "its life begins after the lock"
        );
    }
    Ok(())
}

/// INV-6: a snapshot held while many events pass does not make a window dearer: the buffers that a
/// batch touches stay the same.
#[tokio::test]
async fn a_held_snapshot_slows_nothing_down() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let always = "update pillarbox.settings set leaf_bytes_max = 100000";
        outbox.admin.batch_execute(always).await?;
        let holder = outbox.server.connect().await?;
        // With a transaction id of its own: xmin stays where it is.
        holder
            .batch_execute("begin isolation level repeatable read; select pg_current_xact_id()")
            .await?;
        let mut drain = outbox.drain(SINK).await?;
        let mut touched = Vec::new();
        for _ in 0..40 {
            outbox.publish(1_000).await?;
            drain.all(1_000).await?;
            drain.session.tend().await?;
            outbox.publish(10).await?;
            let before = drain.position.clone();
            let sealed = drain.seal(100).await?.context("a batch")?;
            drain.confirm(&sealed.batch).await?;
            let plan = format!(
                "explain (analyze, buffers, format json)
             select e.tx, e.id from pillarbox.event e
             where e.tx >= '{}'::xid8 and e.tx < '{}'::xid8
                 and pg_visible_in_snapshot(e.tx, '{}'::pg_snapshot)
             order by e.tx, e.id limit 101",
                before.to.xmax(),
                sealed.batch.span.to.xmax(),
                sealed.batch.span.to
            );
            let session = outbox.server.connect().await?;
            session
                .batch_execute("set enable_seqscan = off; set enable_sort = off; set jit = off")
                .await?;
            let plan: serde_json::Value = {
                let row = session.query_one(&plan, &[]).await?;
                row.get(0)
            };
            let root = &plan[0]["Plan"];
            let hit = root["Shared Hit Blocks"].as_i64().unwrap_or(0);
            let read = root["Shared Read Blocks"].as_i64().unwrap_or(0);
            touched.push(hit + read);
        }
        let (first, last) = (touched[1], touched[touched.len() - 1]);
        assert!(last <= first * 2 + 20, "{touched:?}");
        let kept: i64 = outbox.value("select count(*) from pillarbox.event").await?;
        assert!(kept < 10_000, "{kept} of 40,000 events are still there");
    }
    Ok(())
}

/// INV-4: the ring is held by someone else; tending leaves it and waits for nobody.
#[tokio::test]
async fn two_relays_of_different_sinks_share_one_ring() -> Result<()> {
    for version in VERSIONS {
        let (outbox, _) = turned(version, 10).await?;
        registry::register(&outbox.admin, "other", "test", Start::Outbox).await?;
        let mut main = outbox.drain(SINK).await?;
        let mut other = outbox.drain("other").await?;
        main.all(100).await?;
        other.all(100).await?;
        let holder = outbox.server.connect().await?;
        let hold = format!("begin; select pg_advisory_xact_lock({LOCK_CLASS}, 0)");
        holder.batch_execute(&hold).await?;
        tokio::time::timeout(Duration::from_secs(10), main.session.tend()).await??;
        assert!(!outbox.is_empty(0).await?);
        holder.batch_execute("commit").await?;
        let (one, two) = tokio::join!(main.session.tend(), other.session.tend());
        one?;
        two?;
        eventually("the leaf to be emptied", DEADLINE, || async {
            main.session.tend().await?;
            Ok(outbox.is_empty(0).await?.then_some(()))
        })
        .await?;
    }
    Ok(())
}
