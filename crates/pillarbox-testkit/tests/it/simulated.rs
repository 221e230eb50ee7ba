//! The simulator: a hundred worlds, that a seed repeats its run, and that each protection is needed.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pillarbox_testkit::simulate::{Protection, Run, run_and_judge};

/// Worlds in a short form; `make simulate` runs ten thousand others.
const RUNS: u64 = 100;

/// A protection that is missing is found within so many worlds.
const RUNS_MAX: u64 = 1_000;

/// What all the worlds of this test met.
static COUNTS: Mutex<BTreeMap<&str, u64>> = Mutex::new(BTreeMap::new());

fn count(run: &Run) {
    let mut counts = COUNTS.lock().unwrap();
    for (kind, count) in &run.counts {
        *counts.entry(kind).or_default() += count;
    }
}

/// Runs worlds on every core, in the order of their seeds, until one is what is looked for.
fn find(runs: u64, without: Option<Protection>, is_it: fn(&Run) -> bool) -> Option<Run> {
    let (next, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let found: Mutex<Option<Run>> = Mutex::new(None);
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        for _ in 0..cores {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= runs {
                        return;
                    }
                    let run = run_and_judge(seed, without).unwrap();
                    count(&run);
                    if is_it(&run) {
                        is_over.store(true, Ordering::SeqCst);
                        let mut found = found.lock().unwrap();
                        if found.as_ref().is_none_or(|other| other.seed > run.seed) {
                            *found = Some(run);
                        }
                    }
                }
            });
        }
    });
    found.into_inner().unwrap()
}

/// Some world ends with events lost or doubled; with the protection it does not.
fn is_found(without: Protection) {
    let found = find(RUNS_MAX, Some(without), |run| !run.verdict.is_exact());
    let found = found.unwrap_or_else(|| panic!("without {}: nothing found", without.as_str()));
    println!("{found}");
    let with = run_and_judge(found.seed, None).unwrap();
    assert!(with.is_clean(), "{with}");
}

/// What a hundred worlds must meet, each so often.
const MET: [(&str, u64); 11] = [
    ("crashes", 100),
    ("freezes", 20),
    ("insert faults", 400),
    ("kills", 100),
    ("mended", 5),
    ("promotions", 2),
    ("rightly stopped", 1),
    ("session faults", 30),
    ("set aside", 30),
    ("stops", 30),
    ("truncations", 100),
];

#[test]
fn inv_1_and_2_hold_in_a_hundred_worlds() {
    if let Some(failed) = find(RUNS, None, |run| !run.is_clean()) {
        panic!("{failed}");
    }
    let met = COUNTS.lock().unwrap();
    for (kind, least) in MET {
        let count = met.get(kind).copied().unwrap_or(0);
        assert!(count >= least, "{kind}: {count} in {RUNS} worlds");
    }
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [3, 14, 159] {
        let (first, second) = (
            run_and_judge(seed, None).unwrap(),
            run_and_judge(seed, None).unwrap(),
        );
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.steps, second.steps);
        assert_eq!(first.trace, second.trace);
        assert_ne!(first.hash, run_and_judge(seed + 1, None).unwrap().hash);
    }
    // A run that fails is the same one, too.
    let without = Some(Protection::Token);
    let failed = find(RUNS_MAX, without, |run| !run.is_clean()).unwrap();
    let again = run_and_judge(failed.seed, without).unwrap();
    assert_eq!(failed.to_string(), again.to_string());
}

#[test]
fn negative_control_without_the_seal_before_the_send() {
    is_found(Protection::SealBeforeSend);
}

#[test]
fn negative_control_without_the_token() {
    is_found(Protection::Token);
}

#[test]
fn negative_control_without_the_check_under_the_lock() {
    is_found(Protection::CheckUnderLock);
}

#[test]
fn negative_control_without_the_look_outside_of_the_window() {
    is_found(Protection::LookOutsideWindow);
}

#[test]
fn negative_control_without_the_fence_of_the_ledger() {
    is_found(Protection::LedgerFence);
}

#[test]
fn negative_control_without_the_rule_of_cuts() {
    is_found(Protection::CutRule);
}

#[test]
fn negative_control_without_the_safe_position() {
    is_found(Protection::SafePosition);
}
