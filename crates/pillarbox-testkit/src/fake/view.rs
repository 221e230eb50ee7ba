//! A materialized view behind the fake table: a target with a deduplication window of its own. Pure.
//!
//! The server writes the part first and then pushes to the view: a view that fails leaves the rows
//! and the token in the source. The same token again is dropped by the source and goes on to the
//! view, which drops it only if it remembers it itself.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::destination::StoredRow;
use super::window::{TokenLog, Window};

/// The target of a view: how often each event was counted.
#[derive(Clone, Debug)]
pub(super) struct View {
    tokens: TokenLog,
    counts: BTreeMap<Uuid, u64>,
    is_broken: bool,
}

impl View {
    pub(super) fn new(window: Window) -> Self {
        Self {
            tokens: TokenLog::new(window),
            counts: BTreeMap::new(),
            is_broken: false,
        }
    }

    pub(super) fn has_window(&self) -> bool {
        self.tokens.window.blocks > 0
    }

    pub(super) fn set_broken(&mut self, is_broken: bool) {
        self.is_broken = is_broken;
    }

    /// Takes the rows of an insert, or fails.
    pub(super) fn push(
        &mut self,
        partition: &str,
        token: &str,
        rows: &[StoredRow],
        now: Duration,
    ) -> bool {
        if self.is_broken {
            return false;
        }
        if !self.tokens.knows(partition, token, now) {
            for row in rows {
                *self.counts.entry(row.event_id).or_default() += 1;
            }
            self.tokens.note(partition, token, now);
        }
        true
    }

    pub(super) fn counts(&self) -> &BTreeMap<Uuid, u64> {
        &self.counts
    }
}
