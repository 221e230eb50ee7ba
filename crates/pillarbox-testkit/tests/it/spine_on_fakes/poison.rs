//! Rows that the sink cannot take: found, set aside with the reason, and nobody else is held up (INV-9).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pillarbox_relay::batch::Kind;
use pillarbox_relay::source::Ending;
use pillarbox_testkit::fake::{
    FakeSink, FakeSinkBuilder, Fault, Fields, LetterState, Operation, SessionFault,
    SessionOperation,
};
use uuid::Uuid;

use super::world::{SINK, World};

const POISON: &[u8] = b"poison";

fn is_poison(fields: &Fields<'_>) -> bool {
    fields.get("event_context") == Some(POISON)
}

/// Sinks that refuse poison in each of the two ways: the server does, or the encoder.
fn sinks() -> [(&'static str, FakeSinkBuilder); 3] {
    let sink = || FakeSink::builder().deadline(Duration::from_secs(60));
    let by_server = || sink().poison(is_poison);
    let reason = |fields: &Fields<'_>| is_poison(fields).then(|| "it is poison".to_owned());
    [
        ("server", by_server()),
        (
            "server, no batch column",
            by_server().without_batch_column(),
        ),
        ("encoder", sink().refuse_rows(reason)),
    ]
}

fn world(sink: FakeSinkBuilder, seed: u64) -> World {
    let mut world = World::with(sink, seed);
    world.options.limits.rows_max = 100;
    world
}

/// Publishes events of which those at `poison` are bad, and gives these.
fn publish(world: &World, count: usize, poison: impl Fn(usize) -> bool) -> BTreeSet<Uuid> {
    let mut transaction = world.database.begin();
    let mut bad = BTreeSet::new();
    for number in 0..count {
        let event = if poison(number) { "poison" } else { "good" };
        let id = transaction.publish(event);
        if poison(number) {
            bad.insert(id);
        }
    }
    transaction.commit().unwrap();
    bad
}

/// Every way in which poison can lie in a batch.
type Places = Vec<(&'static str, Box<dyn Fn(usize) -> bool>)>;

fn places(count: usize) -> Places {
    vec![
        ("first", Box::new(|number| number == 0)),
        ("middle", Box::new(move |number| number == count / 2)),
        ("last", Box::new(move |number| number == count - 1)),
        (
            "two neighbours",
            Box::new(|number| [4, 5].contains(&number)),
        ),
        (
            "far apart",
            Box::new(move |number| [1, count.saturating_sub(2)].contains(&number)),
        ),
        ("all", Box::new(|_| true)),
    ]
}

#[tokio::test(start_paused = true)]
async fn inv_9_poison_is_set_aside_wherever_it_lies() {
    for count in [1, 2, 3, 7, 10, 64] {
        for (place, poison) in places(count) {
            if count == 64 && place == "all" {
                continue;
            }
            for (name, sink) in sinks() {
                let world = world(sink, 1);
                let bad = publish(&world, count, &poison);
                world.drain_until_done().await;
                let context = format!("{name}: {place} of {count}");
                world.assert_exact_for_good(&context).await;
                assert_eq!(world.dead(), bad, "{context}");
                let rows = world.sink.rows();
                assert!(
                    rows.iter().all(|row| row.event_context != POISON),
                    "{context}"
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_family_is_settled_as_one_and_its_first_batch_is_safe_only_then() {
    let mut world = world(FakeSink::builder().poison(is_poison), 1);
    world.options.limits.rows_max = 8;
    let bad = publish(&world, 8, |number| number == 3);
    world.drain_until_done().await;
    let batches = world.database.batches(SINK);
    let outcome = |number: i64| world.database.outcome(SINK, number).unwrap();
    let children: Vec<_> = batches.iter().filter(|b| b.kind == Kind::Child).collect();
    assert_eq!(children.len(), 6, "three splits of eight rows");
    assert!(children.iter().all(|child| child.root == Some(1)));
    assert_eq!(outcome(1).ending, Ending::Split);
    let dead: Vec<_> = children
        .iter()
        .filter(|b| outcome(b.number).ending == Ending::Dead)
        .collect();
    assert_eq!(dead.len(), 1);
    let letters = world.database.dead_letters(SINK);
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].letter.number, dead[0].number);
    assert!(bad.contains(&letters[0].event_id));
    let delivered: u64 = batches.iter().skip(1).map(|b| outcome(b.number).rows).sum();
    assert_eq!(delivered, 7);
    assert_eq!(world.database.safe_number(SINK), Some(1));
}

#[tokio::test(start_paused = true)]
async fn inv_8_an_open_child_keeps_its_family_from_being_safe() {
    let world = world(FakeSink::builder().poison(is_poison), 1);
    publish(&world, 8, |number| number == 3);
    // Inserts after the first split find no answer.
    for call in 1..60 {
        world.sink.fail_call(Operation::Deliver, call, Fault::Hang);
    }
    let relay = world.start("a");
    world
        .until("children are sealed", |world| {
            world.database.batches(SINK).len() > 2
        })
        .await;
    assert_eq!(
        world.database.outcome(SINK, 1).unwrap().ending,
        Ending::Split
    );
    assert_eq!(world.database.safe_number(SINK), Some(0));
    relay.kill().await;
}

#[tokio::test(start_paused = true)]
async fn inv_9_many_bad_rows_are_drift_and_nothing_is_set_aside() {
    for by_encoder in [false, true] {
        let is_bad = Arc::new(AtomicBool::new(true));
        let (server, encoder) = (Arc::clone(&is_bad), Arc::clone(&is_bad));
        let sink = FakeSink::builder().deadline(Duration::from_secs(60));
        let sink = match by_encoder {
            false => sink.poison(move |_| server.load(Ordering::SeqCst)),
            true => sink.refuse_rows(move |_| {
                encoder
                    .load(Ordering::SeqCst)
                    .then(|| "too large".to_owned())
            }),
        };
        let mut world = world(sink, 1);
        world.options.limits.rows_max = 1_000;
        world.options.poison.rows_max = 20;
        publish(&world, 2, |_| false);
        is_bad.store(false, Ordering::SeqCst);
        let relay = world.start("a");
        world.until_settled().await;
        is_bad.store(true, Ordering::SeqCst);
        publish(&world, 1_000, |_| false);
        world
            .until("the drift is reported", |world| {
                let reason = world.database.stopped_reason(SINK);
                reason.is_some_and(|reason| reason.contains("not poison"))
            })
            .await;
        assert_eq!(world.database.dead_letters(SINK).len(), 0);
        is_bad.store(false, Ordering::SeqCst);
        world.until_settled().await;
        world.assert_exact_for_good("drift").await;
        assert_eq!(world.database.dead_letters(SINK).len(), 0);
        relay.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_trickle_of_bad_rows_is_drift_after_its_number_within_an_hour() {
    let mut world = world(FakeSink::builder().poison(is_poison), 1);
    world.options.poison.rows_max = 5;
    let relay = world.start("a");
    for count in 1..=5 {
        publish(&world, 1, |_| true);
        world.until_settled().await;
        assert_eq!(world.dead().len(), count);
    }
    publish(&world, 1, |_| true);
    world
        .until("the drift is reported", |world| {
            world.database.stopped_reason(SINK).is_some()
        })
        .await;
    assert_eq!(world.dead().len(), 5);
    tokio::time::sleep(Duration::from_secs(3700)).await;
    world.until_settled().await;
    assert_eq!(world.dead().len(), 6);
    relay.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn inv_2_and_9_killed_at_any_operation_while_poison_is_searched_for() {
    for call in 0..90 {
        for (name, sink) in sinks() {
            let world = world(sink, call);
            let kill = tokio_util::sync::CancellationToken::new();
            let now = kill.clone();
            world.at_operation(call, move || now.cancel());
            let bad = publish(&world, 9, |number| [2, 7].contains(&number));
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
            assert_eq!(world.dead(), bad, "{context}");
            successor.stop().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn inv_2_and_9_each_fault_while_poison_is_searched_for() {
    let faults = [
        Fault::FailBefore,
        Fault::FailAfter,
        Fault::Late(3),
        Fault::Hang,
        Fault::HangAfter,
    ];
    for fault in faults {
        for position in 0..12 {
            let world = world(sinks()[0].1.clone(), position);
            let context = format!("{position} {fault:?}");
            world.sink.fail_call(Operation::Deliver, position, fault);
            let bad = publish(&world, 9, |number| [2, 7].contains(&number));
            let relay = world.start("a");
            world.until_settled().await;
            world.assert_exact_for_good(&context).await;
            assert_eq!(world.dead(), bad, "{context}");
            relay.stop().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn inv_2_and_9_the_session_is_lost_while_poison_is_searched_for() {
    for operation in SessionOperation::ALL {
        for fault in SessionFault::LOSSES {
            for position in 0..12 {
                for (name, sink) in sinks() {
                    let world = world(sink, position);
                    world.database.fail_call(operation, position, fault);
                    let bad = publish(&world, 5, |number| number == 2);
                    let relay = world.start("a");
                    world.until_settled().await;
                    let context = format!("{name}: {operation:?} {position} {fault:?}");
                    world.assert_exact_for_good(&context).await;
                    assert_eq!(world.dead(), bad, "{context}");
                    relay.stop().await.unwrap();
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn inv_2_a_refusal_after_an_attempt_in_doubt_is_not_split_blindly() {
    // The first attempt is written and its answer lost; the token is forgotten, and the resend refused.
    let world = world(FakeSink::builder(), 1);
    world
        .sink
        .fail_call(Operation::Deliver, 0, Fault::FailAfter);
    world.sink.fail_call(Operation::Deliver, 1, Fault::Reject);
    publish(&world, 9, |_| false);
    world.drain_until_done().await;
    world.assert_exact_for_good("refused after a doubt").await;
    let batches = world.database.batches(SINK);
    assert!(batches.iter().all(|batch| batch.kind != Kind::Child));
}

#[tokio::test(start_paused = true)]
async fn inv_2_retried_dead_letters_arrive_once_or_stay() {
    for call in 0..70 {
        let is_mended = Arc::new(AtomicBool::new(false));
        let mended = Arc::clone(&is_mended);
        let sink = FakeSink::builder().poison(move |fields| {
            let context = fields.get("event_context").unwrap_or_default();
            context == b"for ever" || (is_poison(fields) && !mended.load(Ordering::SeqCst))
        });
        let world = world(sink, call);
        let mut transaction = world.database.begin();
        for context in ["good", "poison", "for ever", "poison", "good"] {
            transaction.publish(context);
        }
        transaction.commit().unwrap();
        world.drain_until_done().await;
        assert_eq!(world.dead().len(), 3);
        is_mended.store(true, Ordering::SeqCst);
        world.database.request_retry(SINK);
        let kill = tokio_util::sync::CancellationToken::new();
        let now = kill.clone();
        world.at_operation(call, move || now.cancel());
        let is_done = |world: &World| {
            let letters = world.database.dead_letters(SINK);
            let ended = [LetterState::Dead, LetterState::Delivered];
            letters.iter().all(|letter| ended.contains(&letter.state))
        };
        let relay = world.start("a");
        tokio::select! {
            () = kill.cancelled() => {}
            () = world.until("the retry ends", is_done) => {}
        }
        relay.kill().await;
        let successor = world.start("b");
        world.until("the retry ends", is_done).await;
        let context = format!("killed at operation {call}");
        world.assert_exact_for_good(&context).await;
        assert_eq!(world.dead().len(), 1, "{context}");
        successor.stop().await.unwrap();
    }
}

/// What was found to be poison once is no sign of drift when it is retried in vain.
#[tokio::test(start_paused = true)]
async fn inv_9_a_retry_in_vain_holds_nobody_up() {
    for (name, sink) in sinks() {
        let mut world = world(sink, 1);
        world.options.poison.rows_max = 5;
        let relay = world.start("a");
        for count in 1..=4 {
            publish(&world, 1, |_| true);
            world.until_settled().await;
            assert_eq!(world.dead().len(), count, "{name}");
        }
        world.database.request_retry(SINK);
        publish(&world, 9, |_| false);
        world
            .until("the others arrive and the retry ends", |world| {
                let letters = world.database.dead_letters(SINK);
                let is_dead = |state| state == LetterState::Dead;
                let is_over = letters.iter().all(|letter| is_dead(letter.state));
                let is_stopped = world.database.stopped_reason(SINK).is_some();
                is_stopped || (is_over && world.sink.rows().len() == 9)
            })
            .await;
        assert_eq!(world.database.stopped_reason(SINK), None, "{name}");
        world.assert_exact_for_good(name).await;
        relay.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_replay_delivers_a_batch_again_without_its_dead_letters() {
    let world = world(FakeSink::builder().poison(is_poison), 1);
    publish(&world, 9, |number| number == 4);
    world.drain_until_done().await;
    world.database.request_replay(SINK, 1);
    world.drain().await.unwrap();
    let replays = world.database.replays(SINK);
    assert!(replays[0].number.is_some(), "{replays:?}");
    let copies: Vec<u64> = world.sink.events().into_values().collect();
    assert_eq!(copies, [2; 8]);
    assert_eq!(world.dead().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn pressure_makes_batches_rarer() {
    let inserts = |is_pressed: bool| async move {
        let world = world(FakeSink::builder().deadline(Duration::from_secs(60)), 1);
        let relay = world.start("a");
        if is_pressed {
            world.sink.fail_by(|operation, call| {
                let too_many = Fault::Refuse(pillarbox_relay::sink::Reaction::Slower);
                (operation == Operation::Deliver && call < 12).then_some(too_many)
            });
        }
        for _ in 0..120 {
            world.database.publish(1).unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        world.until_settled().await;
        world.assert_exact_for_good("pressure").await;
        relay.stop().await.unwrap();
        world.sink.inserts().len()
    };
    let (free, pressed) = (inserts(false).await, inserts(true).await);
    assert!(
        pressed * 3 < free,
        "{pressed} inserts under pressure, {free} without"
    );
}
