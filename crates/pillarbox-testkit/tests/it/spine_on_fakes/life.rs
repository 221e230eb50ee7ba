//! Taking over, stopping, pausing, retiring, failing over.

use std::time::Duration;

use pillarbox_relay::relay::{Drained, Halt};
use pillarbox_relay::sink::Reaction;
use pillarbox_relay::source::SourceError;
use pillarbox_testkit::fake::{FakeSink, Fault, Operation, SessionFault, SessionOperation};
use tokio_util::sync::CancellationToken;

use super::world::{SINK, World};

#[tokio::test(start_paused = true)]
async fn a_drain_delivers_what_is_committed_and_tells_how_much() {
    let world = World::new();
    world.database.publish(7).unwrap();
    let drained = world.drain().await.unwrap();
    assert_eq!((drained.batches, drained.rows), (3, 7));
    assert_eq!(world.drain().await.unwrap(), Drained::default());
    world.assert_exact("drained");
    assert_eq!(world.database.active_sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_under_steady_load() {
    let world = World::new();
    world.database.publish(7).unwrap();
    let database = world.database.clone();
    let calls = std::sync::atomic::AtomicU64::new(0);
    world.sink.observe(move |_| {
        if calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 200 {
            database.publish(3).unwrap();
        }
    });
    let drained = world.drain().await.unwrap();
    assert!(drained.rows <= 20, "it ran after the load: {drained:?}");
}

#[tokio::test(start_paused = true)]
async fn stop_requested_at_any_operation_ends_within_the_grace() {
    for fault in [
        None,
        Some(Fault::Hang),
        Some(Fault::Refuse(Reaction::Backoff)),
    ] {
        for operation in [Operation::Prepare, Operation::Deliver] {
            for call in 0..40 {
                let world = World::new();
                let stop = CancellationToken::new();
                let now = stop.clone();
                world.at_operation(call, move || now.cancel());
                if let Some(fault) = fault {
                    world.sink.fail_call(operation, 0, fault);
                    world.sink.fail_call(operation, 1, fault);
                }
                world.database.publish(11).unwrap();
                let context = format!("{operation:?} {fault:?}, stop at operation {call}");
                let relay = world.start_with("a", stop.clone());
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = world.until_settled() => stop.cancel(),
                }
                let asked = tokio::time::Instant::now();
                relay.ended().await.unwrap();
                let grace = world.options.grace + Duration::from_secs(1);
                assert!(asked.elapsed() <= grace, "{context}: {:?}", asked.elapsed());
                assert_eq!(world.database.active_sessions(), 0, "{context}");
                world.sink.heal();
                world.drain_until_done().await;
                world.assert_exact_for_good(&context).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stand_by_takes_over_when_the_active_relay_dies() {
    let world = World::new();
    let first = world.start_active("a").await;
    let second = world.start("b");
    world.database.publish(5).unwrap();
    world.until_settled().await;
    assert_eq!(world.database.active_sessions(), 1);
    let asked = tokio::time::Instant::now();
    assert!(matches!(world.drain().await, Err(Halt::NotActive)));
    assert!(asked.elapsed() < Duration::from_secs(3));
    world.sink.fail_next(Operation::Deliver, Fault::HangAfter);
    world.database.publish(5).unwrap();
    world
        .until("a delivery hangs", |world| world.sink.hanging() > 0)
        .await;
    first.kill().await;
    world.until_settled().await;
    world.assert_exact_for_good("b took over").await;
    second.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_a_relay_that_has_just_ended() {
    let world = World::new();
    let last = world.start_active("a").await;
    let ending = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        last.stop().await
    };
    let (drained, ended) = tokio::join!(world.drain(), ending);
    ended.unwrap();
    drained.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stand_by_stops_at_once() {
    let world = World::new();
    let first = world.start_active("a").await;
    let second = world.start("b");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let asked = tokio::time::Instant::now();
    second.stop().await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(1));
    first.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_paused_sink_gets_nothing_and_goes_on_after() {
    let world = World::new();
    let relay = world.start("a");
    world.database.publish(4).unwrap();
    world.until_settled().await;
    world.database.set_paused(SINK, true);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let calls = world.sink.calls(Operation::Deliver);
    world.database.publish(9).unwrap();
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert_eq!(world.sink.calls(Operation::Deliver), calls);
    world.database.set_paused(SINK, false);
    world.until_settled().await;
    relay.stop().await.unwrap();
    world.assert_exact("resumed");
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_back_what_is_sealed_already() {
    let world = World::new();
    world
        .sink
        .fail_always(Operation::Deliver, Fault::Refuse(Reaction::Backoff));
    world.database.publish(9).unwrap();
    let relay = world.start("a");
    world
        .until("sealed", |world| world.database.batches(SINK).len() > 2)
        .await;
    world.database.set_paused(SINK, true);
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.sink.heal();
    let calls = world.sink.calls(Operation::Deliver);
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert_eq!(
        world.sink.calls(Operation::Deliver),
        calls,
        "in the same tenure"
    );
    world.database.kill_sessions(SINK);
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert_eq!(
        world.sink.calls(Operation::Deliver),
        calls,
        "in the next tenure"
    );
    world.database.set_paused(SINK, false);
    world.until_settled().await;
    relay.stop().await.unwrap();
    world.assert_exact("resumed");
}

#[tokio::test(start_paused = true)]
async fn a_drain_of_a_paused_sink_ends_with_nothing_done() {
    let world = World::new();
    world
        .sink
        .fail_next(Operation::Deliver, Fault::Refuse(Reaction::Stop));
    world.database.publish(4).unwrap();
    world.drain().await.unwrap_err();
    world.database.set_paused(SINK, true);
    let calls = world.sink.calls(Operation::Deliver);
    assert_eq!(world.drain().await.unwrap(), Drained::default());
    assert_eq!(world.sink.calls(Operation::Deliver), calls);
    world.database.set_paused(SINK, false);
    world.drain_until_done().await;
    world.assert_exact("resumed");
}

#[tokio::test(start_paused = true)]
async fn a_retired_sink_ends_its_relay() {
    let world = World::new();
    let relay = world.start("a");
    world.database.publish(4).unwrap();
    world.until_settled().await;
    world.database.retire(SINK);
    assert!(matches!(relay.ended().await, Err(Halt::Retired)));
    let refused = world.start("b").ended().await;
    assert!(matches!(
        refused,
        Err(Halt::Source(SourceError::Refused(_)))
    ));
}

#[tokio::test(start_paused = true)]
async fn losing_the_session_again_and_again_only_slows_down() {
    for operation in [
        SessionOperation::Seal,
        SessionOperation::Confirm,
        SessionOperation::Read,
    ] {
        let world = World::new();
        for call in 0..8 {
            world
                .database
                .fail_call(operation, call, SessionFault::LostAfter);
        }
        world.database.publish(10).unwrap();
        let relay = world.start("a");
        world.until_settled().await;
        world.assert_exact_for_good(&format!("{operation:?}")).await;
        relay.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_that_forgets_commits_forgets_only_what_was_not_sealed() {
    let world = World::new();
    let relay = world.start("a");
    for turn in 0..30 {
        let mut transaction = world.database.begin();
        transaction.publish("1");
        transaction.commit_async().unwrap();
        let mut open = world.database.begin();
        open.publish("2");
        tokio::time::sleep(Duration::from_millis(turn * 97 % 1500)).await;
        world.database.crash(true);
        assert!(open.commit().is_err());
    }
    world.until_settled().await;
    world.assert_exact_for_good("crashed").await;
    relay.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_prepared_transaction_is_delivered_when_it_commits() {
    let world = World::new();
    let relay = world.start("a");
    for name in ["kept", "undone"] {
        let mut transaction = world.database.begin();
        transaction.publish(name);
        transaction.prepare(name).unwrap();
    }
    world.database.publish(10).unwrap();
    world.until_settled().await;
    world.database.crash(true);
    world.database.publish(10).unwrap();
    world.until_settled().await;
    world.database.commit_prepared("kept").unwrap();
    world.database.rollback_prepared("undone").unwrap();
    world.until_settled().await;
    world.assert_exact_for_good("prepared").await;
    assert_eq!(world.sink.rows().len(), 21);
    relay.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failover_goes_on_under_a_new_origin() {
    let world = World::new();
    let relay = world.start("a");
    world.database.publish(5).unwrap();
    world.until_settled().await;
    let origin = world.database.standing(SINK).unwrap().origin;
    let replica = world.database.replica();
    world.database.promote(replica);
    world.database.publish(5).unwrap();
    world.until_settled().await;
    world.assert_exact_for_good("promoted").await;
    assert_ne!(world.database.standing(SINK).unwrap().origin, origin);
    relay.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failover_that_lost_seals_stops_the_relay() {
    let world = World::new();
    world.database.publish(3).unwrap();
    world.drain_until_done().await;
    let replica = world.database.replica();
    world.database.publish(3).unwrap();
    world.drain_until_done().await;
    world.database.promote(replica);
    let halt = world.drain().await.unwrap_err();
    assert!(
        halt.to_string().contains("promoted without the last seals"),
        "{halt}"
    );
    assert!(world.database.stopped_reason(SINK).is_some());
    let blind = FakeSink::builder()
        .without_batch_column()
        .clock(&world.clock);
    let world = World {
        sink: blind.build(),
        ..world
    };
    assert!(
        matches!(world.drain().await, Err(Halt::Stopped(..))),
        "it cannot look"
    );
}

#[tokio::test(start_paused = true)]
async fn a_look_after_a_failover_waits_for_a_sink_that_is_away() {
    let world = World::new();
    world.database.publish(3).unwrap();
    world.drain_until_done().await;
    let replica = world.database.replica();
    world.database.promote(replica);
    for _ in 0..3 {
        world
            .sink
            .fail_next(Operation::HighestNumber, Fault::FailBefore);
    }
    world.database.publish(3).unwrap();
    let relay = world.start("a");
    world.until_settled().await;
    relay.stop().await.unwrap();
    world.assert_exact("promoted");
}
