//! INV-3 and INV-10: what is sealed before it is sent, in which order it arrives, and what is safe.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pillarbox_relay::sink::Reaction;
use pillarbox_testkit::fake::{FakeSink, Fault, Operation, RingSettings};

use super::world::{SINK, World};

const FAULTS: [Fault; 5] = [
    Fault::Refuse(Reaction::Backoff),
    Fault::FailBefore,
    Fault::FailAfter,
    Fault::Hang,
    Fault::Slow(Duration::from_secs(3)),
];

#[tokio::test(start_paused = true)]
async fn inv_10_one_in_flight_keeps_the_order() {
    for fault in FAULTS {
        let mut world = World::new();
        world.options.in_flight_max = 1;
        let sink_clock = world.clock.clone();
        world.sink.fail_by(move |operation, _| {
            let is_due = operation == Operation::Deliver && sink_clock.below(3) == 0;
            is_due.then_some(fault)
        });
        let relay = world.start("a");
        for _ in 0..10 {
            world.database.publish(7).unwrap();
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        world.until_settled().await;
        relay.stop().await.unwrap();
        world.assert_exact(&format!("{fault:?}"));
        let order: Vec<(i64, usize)> = world
            .sink
            .inserts()
            .iter()
            .map(|insert| (insert.number, insert.ordinal))
            .collect();
        assert!(order.is_sorted(), "{fault:?}: {order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn inv_10_an_event_is_never_sealed_in_a_later_batch_than_one_that_began_after_its_commit() {
    let world = World::new();
    let relay = world.start("a");
    let mut order = Vec::new();
    for turn in 0_u64..40 {
        let mut long = world.database.begin();
        long.publish("long");
        order.push(world.database.publish(2).unwrap());
        tokio::time::sleep(Duration::from_millis(turn * 13)).await;
        drop(long);
    }
    world.until_settled().await;
    relay.stop().await.unwrap();
    let batch_of: BTreeMap<_, _> = world
        .sink
        .rows()
        .into_iter()
        .map(|row| (row.event_id, row.batch))
        .collect();
    for pair in order.windows(2) {
        let last = pair[0].iter().map(|event| batch_of[event]).max();
        let first = pair[1].iter().map(|event| batch_of[event]).min();
        assert!(last <= first);
    }
}

#[tokio::test(start_paused = true)]
async fn inv_8_a_younger_batch_is_confirmed_first_and_the_safe_position_waits() {
    let mut world = World::new();
    world.options.in_flight_max = 2;
    world.options.limits.rows_max = 2;
    world.database.set_ring(RingSettings {
        leaf_bytes_max: 1,
        leaf_age_max: Duration::from_secs(1),
        retention: Duration::ZERO,
        is_checked_under_lock: true,
    });
    world.sink.fail_next(Operation::Deliver, Fault::Hold);
    world.database.publish(8).unwrap();
    let relay = world.start("a");
    world
        .until("all but the first are confirmed", |world| {
            world.database.outcome(SINK, 4).is_some()
        })
        .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.database.outcome(SINK, 1), None);
    assert_eq!(world.database.safe_number(SINK), Some(0));
    assert_eq!(world.database.ring_counts().1, 0, "a leaf was emptied");
    world.sink.release();
    world.until_settled().await;
    assert_eq!(world.database.safe_number(SINK), Some(4));
    world
        .until("the leaf is emptied", |world| {
            world.database.outbox_rows() == 0
        })
        .await;
    relay.stop().await.unwrap();
    world.assert_exact("in flight 2");
}

#[tokio::test(start_paused = true)]
async fn inv_3_what_is_sent_was_sealed_before_and_never_changes() {
    for seed in 0..10 {
        let world = World::with(FakeSink::builder(), seed);
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let (seen_too, database) = (Arc::clone(&seen), world.database.clone());
        world.sink.observe(move |insert| {
            let sealed = database.batch(SINK, insert.batch.number);
            assert_eq!(sealed.as_ref(), Some(insert.batch), "not as in the ledger");
            let sent = (insert.token(), insert.body.concat());
            let key = (insert.batch.number, insert.ordinal);
            let mut seen = seen_too.lock().unwrap();
            let first = seen.entry(key).or_insert_with(|| sent.clone());
            assert_eq!(*first, sent, "other bytes or another token");
        });
        let clock = world.clock.clone();
        world.sink.fail_by(move |operation, _| {
            let is_due = operation == Operation::Deliver && clock.below(2) == 0;
            is_due.then(|| FAULTS[clock.below(5) as usize])
        });
        let relay = world.start("a");
        for _ in 0..5 {
            world.database.publish(7).unwrap();
            tokio::time::sleep(Duration::from_secs(2)).await;
            world.database.kill_sessions(SINK);
        }
        world.until_settled().await;
        relay.stop().await.unwrap();
        world.assert_exact(&format!("seed {seed}"));
        assert!(seen.lock().unwrap().len() > 5);
    }
}

#[tokio::test(start_paused = true)]
async fn inv_3_a_batch_that_cannot_be_rebuilt_stops_the_sink() {
    let world = World::new();
    world.sink.fail_always(Operation::Deliver, Fault::Hang);
    world.database.publish(3).unwrap();
    let relay = world.start("a");
    world
        .until("a delivery hangs", |world| world.sink.hanging() > 0)
        .await;
    relay.kill().await;
    world.sink.heal();
    let mut changed = FakeSink::builder()
        .partition_by(|_| "another".to_owned())
        .clock(&world.clock)
        .build();
    let mut world = world;
    std::mem::swap(&mut changed, &mut world.sink);
    let halt = world.drain().await.unwrap_err();
    assert!(
        halt.to_string().contains("was sealed with 3 rows"),
        "{halt}"
    );
    assert!(world.database.stopped_reason(SINK).is_some());
    assert!(world.sink.rows().is_empty());
}
