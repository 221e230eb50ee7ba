//! What happened, in order: a hash of all of it, and the last lines as text.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Lines that a failing run shows.
const LINES_MAX: usize = 80;

/// The record of a run. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Trace(Arc<Mutex<Lines>>);

#[derive(Debug)]
struct Lines {
    began: Instant,
    steps: u64,
    // Deterministic: it has fixed keys.
    hasher: DefaultHasher,
    last: VecDeque<String>,
    violations: Vec<String>,
    counts: BTreeMap<&'static str, u64>,
}

impl Trace {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Lines {
            began: Instant::now(),
            steps: 0,
            hasher: DefaultHasher::new(),
            last: VecDeque::new(),
            violations: Vec::new(),
            counts: BTreeMap::new(),
        })))
    }

    /// Counts an operation.
    pub(super) fn step(&self) {
        self.lines().steps += 1;
    }

    pub(super) fn steps(&self) -> u64 {
        self.lines().steps
    }

    /// Records what happened.
    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        let mut lines = self.lines();
        lines.steps += 1;
        let line = format!("{:>10.3} {what}", lines.began.elapsed().as_secs_f64());
        lines.hasher.write(line.as_bytes());
        if lines.last.len() == LINES_MAX {
            lines.last.pop_front();
        }
        lines.last.push_back(line);
    }

    /// Counts what a run met.
    pub(super) fn count(&self, kind: &'static str) {
        *self.lines().counts.entry(kind).or_default() += 1;
    }

    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.lines().counts.clone()
    }

    /// Records that an invariant does not hold.
    pub(super) fn violated(&self, what: String) {
        self.note(format_args!("VIOLATED {what}"));
        self.lines().violations.push(what);
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.lines().violations.clone()
    }

    /// Steps, hash and the last lines.
    pub(super) fn ended(&self) -> (u64, u64, Vec<String>) {
        let lines = self.lines();
        let mut hasher = lines.hasher.clone();
        hasher.write_u64(lines.steps);
        let last = lines.last.iter().cloned().collect();
        (lines.steps, hasher.finish(), last)
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
