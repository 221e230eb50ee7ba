//! What goes wrong with single operations, by chance; and what goes on beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pillarbox_relay::clock::Clock as _;
use pillarbox_relay::sink::{Guarantee, Reaction};

use super::scenario::SinkScenario;
use super::world::Eyes;
use crate::fake::{FakeSink, Fault, Operation, SessionFault, SessionOperation};

/// A session is lost so much more seldom than an insert.
const SESSION_RARITY: u64 = 40;

/// What works takes at most so long: an insert, a statement, a wait for the lock of a leaf.
const INSERT_MS_MAX: u64 = 400;
const STATEMENT_MS_MAX: u64 = 15;
const LOCK_MS_MAX: u64 = 2_000;

/// An insert that no fence reaches is written after at most this long.
const LATE_BY_MS_MAX: u64 = 30_000;

/// What a destination of this kind may do to an insert.
fn faults(sink: &SinkScenario) -> Vec<Fault> {
    let mut faults = vec![
        Fault::Refuse(Reaction::Backoff),
        Fault::Refuse(Reaction::Slower),
        Fault::Refuse(Reaction::Replan),
        Fault::Refuse(Reaction::Stop),
        Fault::FailBefore,
        Fault::FailAfter,
        Fault::FailAfter,
        Fault::Hang,
        Fault::HangAfter,
        Fault::Late(0),
        Fault::Late(2),
        Fault::Slow(Duration::from_secs(7)),
    ];
    if sink.guarantee == Guarantee::Token {
        faults.push(Fault::Twice);
    }
    if sink.is_sure() {
        faults.push(Fault::LateBy(Duration::ZERO));
    }
    // Without the column nobody sees that a block is there in part, or not at all.
    if sink.has_batch_column {
        faults.push(Fault::FailHalfway);
        if sink.guarantee == Guarantee::Token {
            faults.push(Fault::TokenOnly);
        }
    }
    if sink.has_view {
        faults.push(Fault::FailInView);
    }
    faults
}

/// Makes calls of a sink go wrong, one in `rarity`, while `is_on`.
pub(super) fn trouble_sink(
    eyes: &Eyes,
    scenario: &SinkScenario,
    sink: &FakeSink,
    is_on: &Arc<AtomicBool>,
    rarity: u64,
) {
    let (faults, is_on) = (faults(scenario), Arc::clone(is_on));
    let (random, trace) = (eyes.clock.clone(), eyes.trace.clone());
    let name = scenario.name.clone();
    sink.fail_by(move |operation, call| {
        trace.step();
        if !is_on.load(Ordering::SeqCst) {
            return None;
        }
        if random.below(rarity) > 0 {
            let takes = Duration::from_millis(random.below(INSERT_MS_MAX));
            return (random.below(2) == 0).then_some(Fault::Slow(takes));
        }
        let mut fault = faults[random.below(faults.len() as u64) as usize];
        if let Fault::LateBy(wait) = &mut fault {
            *wait = Duration::from_millis(random.below(LATE_BY_MS_MAX));
        }
        let is_refusal = matches!(fault, Fault::Refuse(Reaction::Stop | Reaction::Replan));
        if operation == Operation::Prepare && is_refusal {
            return None;
        }
        trace.note(format_args!("{name} {operation:?} {call}: {fault:?}"));
        trace.count("insert faults");
        Some(fault)
    });
}

/// Makes calls of sessions go wrong, and counts all of them.
pub(super) fn trouble_database(eyes: &Eyes, is_on: &Arc<AtomicBool>, rarity: u64) {
    let (random, trace) = (eyes.clock.clone(), eyes.trace.clone());
    let is_on = Arc::clone(is_on);
    eyes.database.fail_by(move |operation, call| {
        trace.step();
        if !is_on.load(Ordering::SeqCst) {
            return None;
        }
        if random.below(rarity * SESSION_RARITY) > 0 {
            // Between the check of a leaf and its lock, publishers go on.
            let (one_in, most) = match operation {
                SessionOperation::LockLeaf => (1, LOCK_MS_MAX),
                _ => (4, STATEMENT_MS_MAX),
            };
            let takes = Duration::from_millis(random.below(most));
            return (random.below(one_in) == 0).then_some(SessionFault::Slow(takes));
        }
        let fault = match random.below(8) {
            0 => SessionFault::Slow(Duration::from_secs(random.below(12))),
            other => SessionFault::LOSSES[(other % 6) as usize],
        };
        trace.note(format_args!("database {operation:?} {call}: {fault:?}"));
        trace.count("session faults");
        Some(fault)
    });
}

/// Other writers fill a small window, and people mend what the relay reports, while `is_on`.
pub(super) async fn others(
    eyes: Eyes,
    scenario: SinkScenario,
    sink: FakeSink,
    is_on: Arc<AtomicBool>,
) {
    while is_on.load(Ordering::SeqCst) {
        // Below one block per second, which the rule of the window allows for.
        eyes.clock.sleep(Duration::from_millis(1_100)).await;
        if scenario.small_window.is_some() && eyes.clock.below(2) == 0 {
            sink.written_by_others(1);
        }
        if scenario.has_view && eyes.clock.below(20) == 0 {
            sink.set_views_broken(true);
        }
        if eyes.clock.below(15) == 0 && sink.mend() {
            eyes.trace.note(format_args!("{} is mended", scenario.name));
            eyes.trace.count("mended");
        }
    }
}
