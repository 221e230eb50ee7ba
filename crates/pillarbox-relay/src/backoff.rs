//! Exponential backoff with full jitter. Pure.
//!
//! Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use std::time::Duration;

/// Bounds of the wait before the next attempt.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Ceiling of the first wait.
    pub first: Duration,
    /// Ceiling of every wait.
    pub last: Duration,
}

impl Backoff {
    /// For a destination or a database that is away for a moment.
    pub const USUAL: Self = Self {
        first: Duration::from_millis(100),
        last: Duration::from_secs(30),
    };
    /// For a destination that says it is overloaded: its merges need seconds, not milliseconds.
    pub const SLOWER: Self = Self {
        first: Duration::from_secs(2),
        last: Duration::from_secs(30),
    };

    /// The wait after `failures` failures in a row, of which `chance` (0.0–1.0) picks the share.
    pub fn wait(&self, failures: u32, chance: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let ceiling = self.first.saturating_mul(1 << doublings).min(self.last);
        ceiling.mul_f64(chance.clamp(0.0, 1.0))
    }
}
