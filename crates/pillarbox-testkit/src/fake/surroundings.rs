//! What happens to a fake destination beside the relay: other writers, people, time.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::sink::FakeSink;

impl FakeSink {
    /// Writes the late inserts now.
    pub fn commit_late(&self) {
        let now = self.now();
        self.state().destination.commit_late(now);
    }

    /// Makes the table forget its tokens, as time or other writers would.
    pub fn forget_tokens(&self) {
        if let Some(log) = &mut self.state().destination.log {
            log.forget();
        }
    }

    /// The tokens that are remembered for a partition, oldest first.
    pub fn tokens(&self, partition: &str) -> Vec<String> {
        let state = self.state();
        let log = state.destination.log.as_ref();
        log.map(|log| log.tokens(partition)).unwrap_or_default()
    }

    /// Other writers insert so many blocks into the table; their tokens take the place of ours.
    pub fn written_by_others(&self, blocks: u64) {
        let now = self.now();
        self.state().destination.written_by_others(blocks, now);
    }

    /// Makes every view fail, or work again.
    pub fn set_views_broken(&self, are_broken: bool) {
        for view in &mut self.state().destination.views {
            view.set_broken(are_broken);
        }
    }

    /// Does what the relay asks people for: removes blocks that were written in part, forgets tokens
    /// without rows, mends the views. Says whether any row or token was in the way.
    pub fn mend(&self) -> bool {
        self.state().destination.mend()
    }

    /// How often each event was counted, view by view.
    pub fn views(&self) -> Vec<BTreeMap<Uuid, u64>> {
        let state = self.state();
        let views = state.destination.views.iter();
        views.map(|view| view.counts().clone()).collect()
    }
}
