//! What the sink remembers about blocks whose outcome was unknown, until they are delivered.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// More blocks than the batches in flight can have; beyond it the oldest identity leaves.
const DOUBTS_MAX: usize = 4096;

/// Blocks in doubt, by token.
#[derive(Debug, Default)]
pub(super) struct Doubts(Mutex<BTreeMap<String, Doubted>>);

#[derive(Debug, Default)]
struct Doubted {
    /// How often a view failed on it.
    view_failures: u32,
    /// Whether a resend was answered with success and its rows were not there.
    was_absent: bool,
}

impl Doubts {
    /// From now on a success of this block is looked at.
    pub(super) fn note(&self, token: &str) {
        self.with(token, |_| ());
    }

    pub(super) fn note_view_failure(&self, token: &str) {
        self.with(token, |doubted| doubted.view_failures += 1);
    }

    pub(super) fn note_absence(&self, token: &str) {
        self.with(token, |doubted| doubted.was_absent = true);
    }

    pub(super) fn holds(&self, token: &str) -> bool {
        self.lock().contains_key(token)
    }

    /// Whether a view failed so often; after a stop somebody may have mended it, so it counts anew.
    pub(super) fn take_view_failures(&self, token: &str, at_least: u32) -> bool {
        self.with(token, |doubted| {
            let is_reached = doubted.view_failures >= at_least;
            if is_reached {
                doubted.view_failures = 0;
            }
            is_reached
        })
    }

    /// Whether its rows were absent after a success; asked once: after a stop it is sent again.
    pub(super) fn take_absence(&self, token: &str) -> bool {
        self.with(token, |doubted| std::mem::take(&mut doubted.was_absent))
    }

    pub(super) fn forget(&self, token: &str) {
        self.lock().remove(token);
    }

    fn with<T>(&self, token: &str, change: impl FnOnce(&mut Doubted) -> T) -> T {
        let mut doubts = self.lock();
        if doubts.len() >= DOUBTS_MAX && !doubts.contains_key(token) {
            doubts.pop_first();
        }
        change(doubts.entry(token.to_owned()).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Doubted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
