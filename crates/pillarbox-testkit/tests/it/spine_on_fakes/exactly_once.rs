//! INV-1 and INV-2: every fault of every operation, at every position, in both modes.

use std::time::Duration;

use pillarbox_relay::sink::{Guarantee, Reaction};
use pillarbox_testkit::fake::{
    FakeSink, FakeSinkBuilder, Fault, Operation, SessionFault, SessionOperation,
};

use super::world::{SINK, World};

/// So many calls of an operation get a fault, one run each.
const POSITIONS: u64 = 4;

/// What a destination may do to an insert whose blocks are all or nothing.
const FAULTS: [Fault; 12] = [
    Fault::Refuse(Reaction::Backoff),
    Fault::Refuse(Reaction::Slower),
    Fault::Refuse(Reaction::Replan),
    Fault::Refuse(Reaction::Stop),
    Fault::FailBefore,
    Fault::FailAfter,
    Fault::Hang,
    Fault::HangAfter,
    Fault::Late(0),
    Fault::Late(1),
    Fault::Late(3),
    Fault::Slow(Duration::from_secs(45)),
];

fn sinks() -> [(&'static str, FakeSinkBuilder); 3] {
    let sink = || FakeSink::builder().deadline(Duration::from_secs(60));
    [
        ("token", sink()),
        ("token, window of one block", sink().window_blocks(1)),
        ("lookup", sink().guarantee(Guarantee::Lookup)),
    ]
}

/// A world whose relays seldom probe: thousands of runs wait for hours in virtual time.
fn world(sink: FakeSinkBuilder, seed: u64) -> World {
    let mut world = World::with(sink, seed);
    world.options.probe_max = Duration::from_secs(3);
    world
}

/// Publishes in three transactions of two months, with one rolled back.
fn publish(world: &World) {
    let mut early = world.database.begin();
    early.publish("1");
    world.database.publish(4).unwrap();
    let mut undone = world.database.begin();
    undone.publish("2");
    undone.rollback();
    let mut other_month = world.database.begin();
    for _ in 0..4 {
        let mut event = world.database.event("3");
        event.event_date_time -= Duration::from_secs(40 * 86_400);
        other_month.publish_event(event);
        other_month.publish("4");
    }
    other_month.commit().unwrap();
    early.commit().unwrap();
}

#[tokio::test(start_paused = true)]
async fn inv_2_each_fault_of_the_sink_at_each_position_while_it_runs() {
    for operation in [Operation::Deliver, Operation::Resolve, Operation::Prepare] {
        for fault in FAULTS {
            for position in 0..POSITIONS {
                for (name, sink) in sinks() {
                    let world = world(sink, position);
                    let context = format!("{name}: {operation:?} {position} {fault:?}");
                    // The first look decides whether the relay starts at all.
                    let is_refusal =
                        matches!(fault, Fault::Refuse(Reaction::Replan | Reaction::Stop));
                    if operation == Operation::Prepare && position == 0 && is_refusal {
                        continue;
                    }
                    world.sink.fail_call(operation, position, fault);
                    if operation == Operation::Resolve {
                        world
                            .sink
                            .fail_call(Operation::Deliver, 1, Fault::FailAfter);
                        world
                            .sink
                            .fail_call(Operation::Deliver, 2, Fault::FailBefore);
                    }
                    publish(&world);
                    let relay = world.start("a");
                    world.until_settled().await;
                    world.assert_exact_for_good(&context).await;
                    assert_eq!(world.database.stopped_reason(SINK), None, "{context}");
                    relay.stop().await.unwrap();
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn inv_2_each_fault_of_the_sink_at_each_position_in_drains() {
    for operation in [Operation::Deliver, Operation::Resolve, Operation::Prepare] {
        for fault in FAULTS {
            for position in 0..POSITIONS {
                for (name, sink) in sinks() {
                    let world = world(sink, position);
                    world.sink.fail_call(operation, position, fault);
                    world
                        .sink
                        .fail_call(Operation::Deliver, 1, Fault::FailAfter);
                    publish(&world);
                    world.drain_until_done().await;
                    let context = format!("{name}: {operation:?} {position} {fault:?}");
                    world.assert_exact_for_good(&context).await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn inv_2_the_session_is_lost_at_each_operation_at_each_position() {
    for operation in SessionOperation::ALL {
        for fault in SessionFault::LOSSES {
            for position in 0..POSITIONS {
                for (name, sink) in sinks() {
                    let world = world(sink, position);
                    world.database.fail_call(operation, position, fault);
                    world
                        .sink
                        .fail_call(Operation::Deliver, 1, Fault::FailAfter);
                    publish(&world);
                    let relay = world.start("a");
                    world.until_settled().await;
                    let context = format!("{name}: {operation:?} {position} {fault:?}");
                    world.assert_exact_for_good(&context).await;
                    relay.stop().await.unwrap();
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn inv_2_the_session_is_lost_at_each_operation_in_drains() {
    for operation in SessionOperation::ALL {
        for fault in SessionFault::LOSSES {
            for position in 0..POSITIONS {
                let world = world(FakeSink::builder(), 1);
                world.database.fail_call(operation, position, fault);
                publish(&world);
                world.drain_until_done().await;
                let context = format!("{operation:?} {position} {fault:?}");
                world.assert_exact_for_good(&context).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn inv_2_killed_at_any_operation() {
    for call in 0..60 {
        for (name, sink) in sinks() {
            let world = world(sink, call);
            let kill = tokio_util::sync::CancellationToken::new();
            let now = kill.clone();
            world.at_operation(call, move || now.cancel());
            publish(&world);
            let relay = world.start("a");
            tokio::select! {
                () = kill.cancelled() => {}
                () = world.until_settled() => {}
            }
            relay.kill().await;
            let successor = world.start("b");
            world.until_settled().await;
            let context = format!("{name}: killed at operation {call}");
            world.assert_exact_for_good(&context).await;
            successor.stop().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn inv_2_the_lock_is_lost_while_a_delivery_hangs() {
    for hanging in [Fault::Hang, Fault::HangAfter, Fault::Hold] {
        for (name, sink) in sinks() {
            let world = world(sink, 7);
            publish(&world);
            world.sink.fail_next(Operation::Deliver, hanging);
            let relay = world.start("a");
            world
                .until("a delivery hangs", |world| world.sink.hanging() > 0)
                .await;
            world.database.kill_sessions(SINK);
            world
                .until("the delivery is given up", |world| {
                    world.sink.hanging() == 0
                })
                .await;
            world.until_settled().await;
            world
                .assert_exact_for_good(&format!("{name}: {hanging:?}"))
                .await;
            relay.stop().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn inv_2_a_block_refused_for_long_after_an_unknown_one_is_not_sent_blindly() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

    let sink = FakeSink::builder()
        .window_blocks(8)
        .partition_by(|_| String::new());
    let mut world = world(sink, 3);
    world.options.limits.rows_max = 1;
    world.options.in_flight_max = 2;
    let current = Arc::new(AtomicI64::new(0));
    let arriving = Arc::clone(&current);
    world
        .sink
        .observe(move |insert| arriving.store(insert.batch.number, Ordering::SeqCst));
    let attempts = AtomicU64::new(0);
    // Batch 1 is written and its answer lost; then it is refused while forty others pass.
    world.sink.fail_by(move |operation, call| {
        if operation != Operation::Deliver {
            return None;
        }
        if current.load(Ordering::SeqCst) != 1 {
            return Some(Fault::Slow(Duration::from_millis(60)));
        }
        match attempts.fetch_add(1, Ordering::SeqCst) {
            0 => Some(Fault::FailAfter),
            _ if call < 40 => Some(Fault::Refuse(Reaction::Backoff)),
            _ => None,
        }
    });
    world.database.publish(60).unwrap();
    let relay = world.start("a");
    world.until_settled().await;
    world.assert_exact_for_good("refused for long").await;
    relay.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn inv_2_who_lost_the_lock_without_noticing_does_not_send() {
    for seed in 0..20 {
        let sink = FakeSink::builder().guarantee(Guarantee::Lookup);
        let mut world = world(sink, seed);
        let usual = world.options.clone();
        // Nothing but the look before each send tells this relay that its session is gone.
        world.options.in_flight_max = 1;
        world.options.beat_every = Duration::from_secs(3600);
        world.options.tend_every = Duration::from_secs(3600);
        let overloaded = Fault::Refuse(Reaction::Slower);
        world.sink.fail_always(Operation::Deliver, overloaded);
        world.database.publish(30).unwrap();
        let unaware = world.start("a");
        world
            .until("it backs off", |world| {
                world.sink.calls(Operation::Deliver) > 2
            })
            .await;
        world.database.kill_sessions(SINK);
        world.sink.heal();
        world.options = usual;
        let successor = world.start("b");
        world.until_settled().await;
        world.assert_exact_for_good(&format!("seed {seed}")).await;
        unaware.stop().await.unwrap();
        successor.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn at_least_once_loses_nothing() {
    for fault in FAULTS {
        let sink = FakeSink::builder().guarantee(Guarantee::AtLeastOnce);
        let world = world(sink, 1);
        world.sink.fail_call(Operation::Deliver, 1, fault);
        publish(&world);
        let relay = world.start("a");
        world.until_settled().await;
        relay.stop().await.unwrap();
        let published = world.database.published();
        assert!(world.sink.events().keys().eq(published.iter()), "{fault:?}");
    }
}
