//! Counts what is alive: the proof that memory is bounded (INV-7).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many of something are alive, and how many there ever were at once. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Gauge {
    shared: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    now: AtomicU64,
    max: AtomicU64,
}

impl Gauge {
    /// How many are alive.
    pub fn now(&self) -> u64 {
        self.shared.now.load(Ordering::SeqCst)
    }

    /// How many were alive at once, at most.
    pub fn max(&self) -> u64 {
        self.shared.max.load(Ordering::SeqCst)
    }

    /// One more, until the value is dropped.
    pub fn enter(&self) -> Alive {
        let now = self.shared.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.shared.max.fetch_max(now, Ordering::SeqCst);
        Alive(self.clone())
    }
}

/// Something that a [`Gauge`] counts.
#[derive(Debug)]
pub struct Alive(Gauge);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.shared.now.fetch_sub(1, Ordering::SeqCst);
    }
}
