//! A sink that stands still: reported, looked at again, and never a reason to end a running relay.

use std::time::Duration;

use pillarbox_relay::relay::Halt;
use pillarbox_relay::sink::{Guarantee, Reaction};
use pillarbox_testkit::fake::{FakeSink, Fault, Operation, SessionOperation};

use super::world::{SINK, World};

#[tokio::test(start_paused = true)]
async fn a_stopped_sink_is_reported_and_recovers() {
    {
        let fault = Fault::Refuse(Reaction::Stop);
        let world = World::new();
        let relay = world.start("a");
        world.database.publish(2).unwrap();
        world.until_settled().await;
        world.sink.fail_always(Operation::Deliver, fault);
        world.database.publish(5).unwrap();
        world
            .until("the stop is reported", |world| {
                world.database.stopped_reason(SINK).is_some()
            })
            .await;
        let calls = world.sink.calls(Operation::Deliver);
        tokio::time::sleep(Duration::from_secs(600)).await;
        let again = world.sink.calls(Operation::Deliver) - calls;
        assert!((10..=50).contains(&again), "{again} sends in 10 minutes");
        world.sink.heal();
        world.until_settled().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(world.database.stopped_reason(SINK), None);
        relay.stop().await.unwrap();
        world.assert_exact(&format!("{fault:?}"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_look_decides_whether_a_relay_starts() {
    for reaction in [Reaction::Stop, Reaction::Replan] {
        let world = World::new();
        world
            .sink
            .fail_next(Operation::Prepare, Fault::Refuse(reaction));
        let refused = world.start("a").ended().await;
        assert!(matches!(refused, Err(Halt::Stopped(..))), "{refused:?}");
        assert!(world.database.stopped_reason(SINK).is_some());
    }
    let world = World::new();
    for _ in 0..20 {
        world.sink.fail_next(Operation::Prepare, Fault::FailBefore);
    }
    world.database.publish(2).unwrap();
    let relay = world.start("a");
    world.until_settled().await;
    relay.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_needs_mending_after_a_lost_session_stands_still() {
    let world = World::new();
    let relay = world.start("a");
    world.database.publish(2).unwrap();
    world.until_settled().await;
    world
        .sink
        .fail_always(Operation::Prepare, Fault::Refuse(Reaction::Stop));
    world.database.kill_sessions(SINK);
    world.database.publish(2).unwrap();
    world
        .until("the stop is reported", |world| {
            world.database.stopped_reason(SINK).is_some()
        })
        .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    world.sink.heal();
    world.until_settled().await;
    relay.stop().await.unwrap();
    world.assert_exact("mended");
}

#[tokio::test(start_paused = true)]
async fn a_changed_table_is_planned_again_once_then_stops() {
    let world = World::new();
    let relay = world.start("a");
    world.database.publish(2).unwrap();
    world.until_settled().await;
    world
        .sink
        .fail_next(Operation::Deliver, Fault::Refuse(Reaction::Replan));
    world.database.publish(2).unwrap();
    world.until_settled().await;
    assert_eq!(world.sink.calls(Operation::Prepare), 2, "planned again");
    assert_eq!(world.database.stopped_reason(SINK), None);
    world
        .sink
        .fail_always(Operation::Deliver, Fault::Refuse(Reaction::Replan));
    world.database.publish(2).unwrap();
    world
        .until("the stop is reported", |world| {
            world.database.stopped_reason(SINK).is_some()
        })
        .await;
    assert_eq!(world.sink.calls(Operation::Prepare), 3, "only once");
    world.sink.heal();
    world.until_settled().await;
    relay.stop().await.unwrap();
    world.assert_exact("planned again");
}

#[tokio::test(start_paused = true)]
async fn a_drain_gives_up_after_its_patience() {
    for operation in [Operation::Deliver, Operation::Prepare] {
        let world = World::new();
        world
            .sink
            .fail_always(operation, Fault::Refuse(Reaction::Backoff));
        world.database.publish(2).unwrap();
        let began = tokio::time::Instant::now();
        let gave_up = world.drain().await;
        assert!(matches!(gave_up, Err(Halt::GaveUp(_))), "{gave_up:?}");
        let took = began.elapsed();
        let patience = world.options.drain_patience;
        assert!(
            took >= patience && took < patience + Duration::from_secs(31),
            "{took:?}"
        );
        world.sink.heal();
        world.drain_until_done().await;
        world.assert_exact("after giving up");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_down_for_hours_never_causes_a_take_over() {
    let world = World::new();
    let relay = world.start_active("a").await;
    let standby = world.start("b");
    world
        .sink
        .fail_always(Operation::Deliver, Fault::Refuse(Reaction::Backoff));
    world.database.publish(5).unwrap();
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    assert_eq!(world.database.calls(SessionOperation::Standing), 1);
    world.sink.heal();
    world.until_settled().await;
    relay.stop().await.unwrap();
    standby.stop().await.unwrap();
    world.assert_exact("down for hours");
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_there_in_part_is_left_to_people() {
    let sink = FakeSink::builder().guarantee(Guarantee::Lookup);
    let world = World::with(sink, 1);
    world.sink.fail_next(Operation::Deliver, Fault::FailHalfway);
    world.database.publish(3).unwrap();
    assert!(matches!(world.drain().await, Err(Halt::Stopped(..))));
    for _ in 0..3 {
        assert!(matches!(world.drain().await, Err(Halt::Stopped(..))));
    }
    assert_eq!(world.sink.inserts().len(), 1, "it was sent again");
    assert!(world.database.stopped_reason(SINK).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_token_without_a_batch_column_is_left_to_people() {
    let sink = FakeSink::builder().window_blocks(1).without_batch_column();
    let world = World::with(sink, 1);
    world.sink.fail_next(Operation::Deliver, Fault::FailAfter);
    world.database.publish(3).unwrap();
    assert!(matches!(world.drain().await, Err(Halt::Stopped(..))));
    assert_eq!(world.sink.inserts().len(), 1, "it was sent again");
}

#[tokio::test(start_paused = true)]
async fn a_spine_that_is_stuck_gives_its_lock_up() {
    let sink = FakeSink::builder().deadline(Duration::from_secs(86_400));
    let mut world = World::with(sink, 1);
    world.options.in_flight_max = 1;
    world.sink.fail_call(Operation::Deliver, 0, Fault::Hang);
    world.database.publish(30).unwrap();
    let relay = world.start("a");
    world.until_settled().await;
    assert!(world.clock.elapsed() < Duration::from_secs(1200));
    relay.stop().await.unwrap();
    world.assert_exact("unstuck");
}
