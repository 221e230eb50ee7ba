//! INV-5, INV-7 and INV-11: what the relay holds, and what it does when there is nothing to do.

use std::time::Duration;

use pillarbox_relay::sink::Reaction;
use pillarbox_testkit::fake::{FakeSink, Fault, Operation, RingSettings, SessionOperation};

use super::world::{SINK, World};

#[tokio::test(start_paused = true)]
async fn inv_5_no_read_is_open_while_the_sink_hangs() {
    let world = World::new();
    world.sink.fail_always(Operation::Deliver, Fault::Hang);
    let relay = world.start("a");
    for _ in 0..200 {
        world.database.publish(5).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(world.database.reads().now(), 0, "a snapshot is held");
    }
    assert!(world.sink.hanging() > 0);
    world.sink.heal();
    world.database.kill_sessions(SINK);
    world.until_settled().await;
    relay.stop().await.unwrap();
    world.assert_exact("after hanging");
}

#[tokio::test(start_paused = true)]
async fn inv_7_a_backlog_keeps_at_most_two_batches_more_than_in_flight() {
    for in_flight_max in [1, 2, 4] {
        for fault in [
            Fault::Hold,
            Fault::Refuse(Reaction::Backoff),
            Fault::FailBefore,
        ] {
            let mut world = World::new();
            world.options.in_flight_max = in_flight_max;
            world.sink.fail_always(Operation::Deliver, fault);
            world.database.publish(300).unwrap();
            let relay = world.start("a");
            tokio::time::sleep(Duration::from_secs(120)).await;
            let batches = world.sink.batches();
            let most = in_flight_max as u64 + 2;
            assert!(batches.max() <= most, "{} batches alive", batches.max());
            // What is sealed and not confirmed is bounded too: it is what a successor must settle.
            let open = world.database.standing(SINK).unwrap().unfinished.len() as u64;
            assert!(open <= most, "{open} batches sealed ahead");
            world.sink.heal();
            world.until_settled().await;
            assert!(batches.max() <= most, "{} batches alive", batches.max());
            relay.stop().await.unwrap();
            assert_eq!(batches.now(), 0, "something is kept");
            world.assert_exact(&format!("{in_flight_max} in flight, {fault:?}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn inv_7_no_batch_is_begun_while_those_in_delivery_are_as_large_as_one_may_be() {
    let mut world = World::new();
    world.options.in_flight_max = 4;
    world.options.limits.bytes_max = 10_000;
    world.sink.fail_always(Operation::Deliver, Fault::Hold);
    let context = format!("\"{}\"", "x".repeat(6_000));
    for _ in 0..20 {
        let mut transaction = world.database.begin();
        transaction.publish(context.as_str());
        transaction.commit().unwrap();
    }
    let relay = world.start("a");
    tokio::time::sleep(Duration::from_secs(120)).await;
    world.sink.heal();
    world.until_settled().await;
    relay.stop().await.unwrap();
    assert_eq!(world.sink.batches().max(), 2);
    world.assert_exact("large batches");
}

#[tokio::test(start_paused = true)]
async fn inv_7_a_batch_closes_at_its_bytes_and_at_its_partitions() {
    let sink = FakeSink::builder()
        .partitions_max(2)
        .partition_by(|fields| {
            String::from_utf8_lossy(fields.get("event_context").unwrap()).into()
        });
    let mut world = World::with(sink, 1);
    world.options.limits.rows_max = 100;
    for context in ["1", "2", "1", "3", "3", "4", "5"] {
        let mut transaction = world.database.begin();
        transaction.publish(context);
        transaction.commit().unwrap();
    }
    world.drain_until_done().await;
    let rows: Vec<u64> = world
        .database
        .batches(SINK)
        .iter()
        .map(|b| b.rows)
        .collect();
    assert_eq!(
        rows,
        [0, 3, 3, 1],
        "genesis, then at most two partitions each"
    );
    world.options.limits.bytes_max = 1000;
    let mut transaction = world.database.begin();
    for bytes in [10, 2000, 10, 10] {
        transaction.publish(format!("\"{}\"", "x".repeat(bytes)));
    }
    transaction.commit().unwrap();
    world.drain_until_done().await;
    let rows: Vec<u64> = world.database.batches(SINK)[4..]
        .iter()
        .map(|b| b.rows)
        .collect();
    assert_eq!(rows, [1, 1, 2], "one event above the limit goes alone");
    world.assert_exact("closed early");
}

#[tokio::test(start_paused = true)]
async fn inv_11_nothing_is_written_while_there_is_nothing_to_do() {
    let world = World::new();
    world.database.publish(20).unwrap();
    let relay = world.start("a");
    world.until_settled().await;
    // Until the ring has turned and let go of what was delivered.
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert_eq!(world.database.outbox_rows(), 0);
    let (writes, id) = (world.database.writes(), next_id(&world));
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert_eq!(world.database.writes(), writes);
    assert_eq!(next_id(&world), id + 1, "a transaction id was used");
    relay.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn inv_11_nothing_is_written_while_a_long_transaction_is_open() {
    let world = World::new();
    let mut long = world.database.begin();
    long.publish("long");
    world.database.publish(3).unwrap();
    let relay = world.start("a");
    world.until_settled().await;
    let writes = world.database.writes();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(world.database.writes(), writes);
    long.commit().unwrap();
    world.until_settled().await;
    relay.stop().await.unwrap();
    world.assert_exact("long");
}

/// The next transaction id; asking takes one.
fn next_id(world: &World) -> u64 {
    let mut transaction = world.database.begin();
    transaction.write().unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_idle_relay_probes_ever_more_rarely_and_beats_every_second() {
    let world = World::new();
    let relay = world.start("a");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before = (
        world.database.calls(SessionOperation::Probe),
        world.database.calls(SessionOperation::Beat),
    );
    tokio::time::sleep(Duration::from_secs(100)).await;
    let probes = world.database.calls(SessionOperation::Probe) - before.0;
    let beats = world.database.calls(SessionOperation::Beat) - before.1;
    assert!((350..=450).contains(&probes), "{probes} probes in 100 s");
    assert!((98..=102).contains(&beats), "{beats} beats in 100 s");
    relay.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_batch_waits_for_its_age_or_its_size_and_not_longer() {
    let mut world = World::new();
    world.options.limits.rows_max = 100;
    world.options.limits.bytes_max = 32 * 1024 * 1024;
    let relay = world.start("a");
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.database.publish(1).unwrap();
    tokio::time::sleep(Duration::from_millis(900)).await;
    world.database.publish(1).unwrap();
    assert_eq!(world.sink.inserts().len(), 0, "before the age");
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(world.sink.inserts().len(), 1, "both in one batch");
    assert_eq!(world.sink.rows().len(), 2);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let mut large = world.database.begin();
    large.publish(format!("\"{}\"", "x".repeat(33 * 1024 * 1024)));
    large.commit().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.sink.rows().len(), 3, "a large one does not wait");
    relay.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn inv_8_the_ring_goes_round_under_load_and_keeps_what_is_not_delivered() {
    for loses in [false, true] {
        let world = World::new();
        world.database.set_ring(RingSettings {
            leaf_bytes_max: 1000,
            leaf_age_max: Duration::from_secs(5),
            retention: Duration::from_secs(3),
            is_checked_under_lock: !loses,
        });
        let relay = world.start("a");
        for turn in 0..200 {
            // A publisher stalled between choosing its slot and inserting.
            let (slot, event) = (world.database.slot(), world.database.event("1"));
            tokio::time::sleep(Duration::from_millis(turn * 7 % 900)).await;
            let mut transaction = world.database.begin();
            transaction.insert(slot, event);
            transaction.commit().unwrap();
            // Another one, stalled since before the ring turned, commits between check and lock.
            let database = world.database.clone();
            world.database.before_leaf_lock(move || {
                let mut late = database.begin();
                late.insert((database.slot() + 3) % 4, database.event("2"));
                late.commit().unwrap();
            });
        }
        tokio::time::sleep(Duration::from_secs(120)).await;
        relay.stop().await.unwrap();
        let (turns, truncations) = world.database.ring_counts();
        assert!(turns > 8 && truncations > 8, "{turns} turns, {truncations}");
        let stored = world.sink.events();
        let published = world.database.published();
        let lost = published
            .iter()
            .filter(|id| !stored.contains_key(*id))
            .count();
        // The negative control: without the second check, what committed in between is lost.
        assert_eq!(lost > 0, loses, "{lost} lost");
        if !loses {
            world.assert_exact("the ring went round");
        }
    }
}
