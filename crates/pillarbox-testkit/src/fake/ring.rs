//! The outbox of the fake database: a ring of four leaves. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillarbox_relay::snapshot::Cut;

use super::event::FakeEvent;

/// Number of leaves.
pub(super) const LEAVES: usize = 4;

/// A row of the outbox.
#[derive(Clone, Debug)]
pub(super) struct OutboxRow {
    pub(super) at: Cut,
    pub(super) event: Arc<FakeEvent>,
    pub(super) published_at: SystemTime,
}

/// When a leaf is full, and how long delivered events stay.
#[derive(Clone, Copy, Debug)]
pub struct RingSettings {
    /// A leaf of this many bytes is due.
    pub leaf_bytes_max: u64,
    /// A leaf whose oldest event is this old is due.
    pub leaf_age_max: Duration,
    /// Delivered events stay this long.
    pub retention: Duration,
    /// Whether a leaf is checked again under its lock; off only to show what that is for.
    pub is_checked_under_lock: bool,
}

impl Default for RingSettings {
    fn default() -> Self {
        Self {
            leaf_bytes_max: 256 * 1024 * 1024,
            leaf_age_max: Duration::from_secs(600),
            retention: Duration::from_secs(3600),
            is_checked_under_lock: true,
        }
    }
}

/// The leaves, and where the ring stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Ring {
    leaves: [Vec<OutboxRow>; LEAVES],
    slot: usize,
    last_id: i64,
    pub(super) settings: RingSettings,
    pub(super) truncations: u64,
    pub(super) turns: u64,
}

impl Ring {
    pub(super) fn slot(&self) -> usize {
        self.slot
    }

    pub(super) fn insert(&mut self, slot: usize, tx: u64, event: FakeEvent, now: SystemTime) {
        self.last_id += 1;
        let row = OutboxRow {
            at: Cut {
                tx,
                id: self.last_id,
            },
            event: Arc::new(event),
            published_at: now,
        };
        if let Some(leaf) = self.leaves.get_mut(slot % LEAVES) {
            leaf.push(row);
        }
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = &OutboxRow> {
        self.leaves.iter().flatten()
    }

    pub(super) fn leaf(&self, slot: usize) -> &[OutboxRow] {
        self.leaves.get(slot).map_or(&[], Vec::as_slice)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.rows().map(|row| row.event.bytes()).sum()
    }

    /// Turns on when the current leaf is due and the next one empty. Says whether it did.
    pub(super) fn turn(&mut self, now: SystemTime, is_visible: impl Fn(u64) -> bool) -> bool {
        let current = self.leaf(self.slot);
        let bytes: u64 = current.iter().map(|row| row.event.bytes()).sum();
        let first = current.iter().filter(|row| is_visible(row.at.tx));
        let first = first.min_by_key(|row| row.at);
        let age = first.and_then(|row| now.duration_since(row.published_at).ok());
        let is_due = bytes >= self.settings.leaf_bytes_max
            || age.is_some_and(|age| age > self.settings.leaf_age_max);
        let next = (self.slot + 1) % LEAVES;
        if !is_due || !self.leaf(next).is_empty() {
            return false;
        }
        self.slot = next;
        self.turns += 1;
        true
    }

    pub(super) fn last_id(&self) -> i64 {
        self.last_id
    }

    /// Removes what `tx` wrote after `id`: nobody has seen it.
    pub(super) fn undo(&mut self, tx: u64, id: i64) {
        for leaf in &mut self.leaves {
            leaf.retain(|row| row.at.tx != tx || row.at.id <= id);
        }
    }

    pub(super) fn truncate(&mut self, slot: usize) {
        if let Some(leaf) = self.leaves.get_mut(slot) {
            leaf.clear();
            self.truncations += 1;
        }
    }

    /// Removes what lost transactions wrote, and all from `next` on: their ids are given again.
    pub(super) fn forget(&mut self, lost: &BTreeSet<u64>, next: u64) {
        for leaf in &mut self.leaves {
            leaf.retain(|row| row.at.tx < next && !lost.contains(&row.at.tx));
        }
    }
}
