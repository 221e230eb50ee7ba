//! Everything at once, by seed: publishers, faults, kills, crashes, pauses; then an equality.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pillarbox_relay::sink::{Guarantee, Reaction};
use pillarbox_testkit::fake::{
    FakeClock, FakeSink, FakeSinkBuilder, Fault, Operation, RingSettings, SessionFault,
};

use super::world::{Running, SINK, World};

/// Seeds of one run; `PILLARBOX_SEED` and `PILLARBOX_SEEDS` choose others.
const SEEDS: u64 = 60;

const FAULTS: [Fault; 11] = [
    Fault::Refuse(Reaction::Backoff),
    Fault::Refuse(Reaction::Slower),
    Fault::Refuse(Reaction::Replan),
    Fault::Refuse(Reaction::Stop),
    Fault::FailBefore,
    Fault::FailAfter,
    Fault::Hang,
    Fault::HangAfter,
    Fault::Late(0),
    Fault::Late(2),
    Fault::Slow(Duration::from_secs(7)),
];

fn sink(random: &FakeClock) -> FakeSinkBuilder {
    let builder = FakeSink::builder().deadline(Duration::from_secs(60));
    match random.below(4) {
        0 => builder.guarantee(Guarantee::Lookup),
        1 => builder.window_blocks(4 + random.below(40) as usize),
        2 => builder.partition_by(|_| String::new()),
        _ => builder,
    }
}

/// Faults with one chance in `rarity`, for as long as `is_on`.
fn plan_faults(world: &World, is_on: &Arc<AtomicBool>, rarity: u64) {
    let (random, on) = (world.clock.clone(), Arc::clone(is_on));
    world.sink.fail_by(move |operation, _| {
        if !on.load(Ordering::SeqCst) || random.below(rarity) > 0 {
            return None;
        }
        let fault = FAULTS[random.below(FAULTS.len() as u64) as usize];
        let is_refusal = matches!(fault, Fault::Refuse(Reaction::Stop | Reaction::Replan));
        // The first look decides whether a relay starts at all; here all of them do.
        (operation != Operation::Prepare || !is_refusal).then_some(fault)
    });
    let (random, on) = (world.clock.clone(), Arc::clone(is_on));
    world.database.fail_by(move |_, _| {
        if !on.load(Ordering::SeqCst) || random.below(rarity * 40) > 0 {
            return None;
        }
        Some(match random.below(8) {
            0 => SessionFault::Slow(Duration::from_secs(random.below(12))),
            other => SessionFault::LOSSES[(other % 6) as usize],
        })
    });
}

/// One step of publishers and of the world around them.
async fn step(world: &World, relays: &mut Vec<Running>, step: u64) {
    let random = &world.clock;
    let mut transaction = world.database.begin();
    for _ in 0..random.below(6) {
        let mut event = world
            .database
            .event(format!("{{\"n\":{}}}", random.random()));
        event.event_date_time -= Duration::from_secs(random.below(90) * 86_400);
        transaction.publish_event(event);
    }
    match random.below(12) {
        0 => drop(transaction),
        1 => drop(transaction.commit_async()),
        2 => drop(transaction.prepare(&format!("p{step}"))),
        3 => {
            let wait = Duration::from_millis(random.below(20_000));
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                drop(transaction.commit());
            });
        }
        _ => drop(transaction.commit()),
    }
    match random.below(40) {
        0 => world.database.kill_sessions(SINK),
        1 => world.database.crash(true),
        2 => world.database.crash(false),
        3 => world.sink.commit_late(),
        4 => world.clock.jump(Duration::from_secs(random.below(30))),
        5 => world.database.set_paused(SINK, true),
        6 | 7 => world.database.set_paused(SINK, false),
        8 => {
            if let Some(relay) = relays.pop() {
                relay.kill().await;
            }
            relays.insert(0, world.start(&format!("r{step}")));
        }
        9 => drop(
            world
                .database
                .commit_prepared(&format!("p{}", random.below(step + 1))),
        ),
        _ => {}
    }
    tokio::time::sleep(Duration::from_millis(random.below(900))).await;
}

async fn run(seed: u64) {
    let random = FakeClock::new(seed ^ 0x5eed);
    let mut world = World::with(sink(&random), seed);
    world.options.limits.rows_max = 1 + random.below(9);
    world.options.in_flight_max = 1 + random.below(3) as usize;
    world.options.age_max = Duration::from_millis(random.below(1500));
    world.database.set_ring(RingSettings {
        leaf_bytes_max: 500 + random.below(3000),
        leaf_age_max: Duration::from_secs(1 + random.below(20)),
        retention: Duration::from_secs(random.below(30)),
        is_checked_under_lock: true,
    });
    let is_on = Arc::new(AtomicBool::new(true));
    plan_faults(&world, &is_on, 3 + random.below(20));
    let mut relays = vec![world.start("a"), world.start("b")];
    for number in 0..60 {
        step(&world, &mut relays, number).await;
    }
    // A publisher's transaction lives 20 s at most.
    tokio::time::sleep(Duration::from_secs(25)).await;
    for number in 0..60 {
        let _ = world.database.rollback_prepared(&format!("p{number}"));
    }
    is_on.store(false, Ordering::SeqCst);
    world.sink.heal();
    world.database.set_paused(SINK, false);
    world.until_settled().await;
    world
        .assert_exact_for_good(&format!("PILLARBOX_SEED={seed}"))
        .await;
    for relay in relays {
        let ended = relay.stop().await;
        assert!(ended.is_ok(), "PILLARBOX_SEED={seed}: {ended:?}");
    }
    assert_eq!(world.sink.batches().now(), 0, "PILLARBOX_SEED={seed}");
}

#[test]
fn inv_2_everything_at_once_ends_with_published_equal_to_stored() {
    let given = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first: u64 = given("PILLARBOX_SEED").unwrap_or(0);
    let count = given("PILLARBOX_SEEDS").unwrap_or(if first == 0 { SEEDS } else { 1 });
    for seed in first..first + count {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        println!("PILLARBOX_SEED={seed}");
        runtime.block_on(run(seed));
    }
}
