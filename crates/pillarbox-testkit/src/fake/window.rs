//! What a table remembers of the inserts that it took: tokens, by count and by time. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// How long a table remembers a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// So many of the last blocks of the whole table; with 0, none.
    pub(super) blocks: usize,
    /// And none that is older.
    pub(super) lasts: Option<Duration>,
}

/// A block that was written: the same token in another partition is another block.
#[derive(Clone, Debug)]
struct Remembered {
    partition: String,
    token: String,
    at: Duration,
}

/// The blocks that a table remembers, oldest first.
#[derive(Clone, Debug)]
pub(super) struct TokenLog {
    pub(super) window: Window,
    entries: VecDeque<Remembered>,
}

impl TokenLog {
    pub(super) fn new(window: Window) -> Self {
        Self {
            window,
            entries: VecDeque::new(),
        }
    }

    pub(super) fn knows(&mut self, partition: &str, token: &str, now: Duration) -> bool {
        self.expire(now);
        let mut known = self.entries.iter();
        known.any(|entry| entry.partition == partition && entry.token == token)
    }

    pub(super) fn note(&mut self, partition: &str, token: &str, now: Duration) {
        self.entries.push_back(Remembered {
            partition: partition.to_owned(),
            token: token.to_owned(),
            at: now,
        });
        self.expire(now);
    }

    /// The tokens of a partition.
    pub(super) fn tokens(&self, partition: &str) -> Vec<String> {
        let known = self.entries.iter();
        let here = known.filter(|entry| entry.partition == partition);
        here.map(|entry| entry.token.clone()).collect()
    }

    pub(super) fn forget(&mut self) {
        self.entries.clear();
    }

    pub(super) fn forget_token(&mut self, token: &str) {
        self.entries.retain(|entry| entry.token != token);
    }

    fn expire(&mut self, now: Duration) {
        let excess = self.entries.len().saturating_sub(self.window.blocks);
        self.entries.drain(..excess);
        if let Some(lasts) = self.window.lasts {
            self.entries.retain(|entry| now < entry.at + lasts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_forgotten_by_count_and_by_time() {
        let second = Duration::from_secs;
        let mut log = TokenLog::new(Window {
            blocks: 2,
            lasts: Some(second(10)),
        });
        log.note("a", "1", second(0));
        assert!(log.knows("a", "1", second(9)));
        assert!(!log.knows("b", "1", second(9)), "another partition");
        assert!(!log.knows("a", "1", second(10)), "too old");
        for token in ["1", "2", "3"] {
            log.note("a", token, second(20));
        }
        assert!(!log.knows("a", "1", second(20)), "two others came after it");
        assert!(log.knows("a", "2", second(20)) && log.knows("a", "3", second(20)));
    }
}
