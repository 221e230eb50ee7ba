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
    /// After an attempt that itself waited for the destination, for seconds: what it waited for may come
    /// at any moment, and a long rest would only miss it.
    pub const SHORT: Self = Self {
        first: Duration::from_millis(100),
        last: Duration::from_secs(2),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_wait_keeps_its_bounds(failures in any::<u32>(), chance in -1.0_f64..2.0) {
            for backoff in [Backoff::USUAL, Backoff::SHORT, Backoff::SLOWER] {
                let wait = backoff.wait(failures, chance);
                prop_assert!(wait <= backoff.last);
                prop_assert!(failures > 1 || wait <= backoff.first);
                prop_assert!(wait <= backoff.wait(failures.saturating_add(1), chance));
            }
        }
    }

    #[test]
    fn the_ceiling_doubles_up_to_the_last_one() {
        let ceilings = (0..12).map(|failures| Backoff::USUAL.wait(failures, 1.0).as_millis());
        let expected = [
            100, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000,
        ];
        assert!(ceilings.eq(expected));
        assert_eq!(Backoff::USUAL.wait(5, 0.0), Duration::ZERO);
        assert_eq!(Backoff::USUAL.wait(u32::MAX, 1.0), Backoff::USUAL.last);
    }
}
