//! A sink that cannot merge its parts fast enough gets bigger and rarer batches.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Each level doubles the age at which a batch closes.
const LEVEL_MAX: u32 = 10;

/// An event waits for its batch to fill for no longer than this, unless the configuration says so.
const AGE_CEILING: Duration = Duration::from_secs(60);

/// Blocks delivered without trouble after which the level falls by one.
const CALM: u32 = 8;

/// How hard the sink is pressed.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    level: AtomicU32,
    calm: AtomicU32,
}

impl Pressure {
    /// The sink said that it has too many parts.
    pub(super) fn rise(&self) {
        self.calm.store(0, Ordering::Relaxed);
        let up = |level: u32| (level < LEVEL_MAX).then_some(level + 1);
        // At the top it stays there.
        let _ = self
            .level
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, up);
    }

    /// The sink took a block.
    pub(super) fn ease(&self) {
        if self.level.load(Ordering::Relaxed) == 0 {
            return;
        }
        if self.calm.fetch_add(1, Ordering::Relaxed) + 1 >= CALM {
            self.calm.store(0, Ordering::Relaxed);
            let down = |level: u32| level.checked_sub(1);
            let _ = self
                .level
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, down);
        }
    }

    /// The age at which a batch closes that otherwise closes at `usual`.
    pub(super) fn age(&self, usual: Duration) -> Duration {
        let level = self.level.load(Ordering::Relaxed);
        if level == 0 {
            return usual;
        }
        // A batch that closes at once must not do so for ever.
        let base = usual.max(Duration::from_millis(100));
        base.saturating_mul(1 << level).min(AGE_CEILING.max(usual))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_rarer_under_pressure_and_as_frequent_as_before_after_it() {
        let (pressure, usual) = (Pressure::default(), Duration::from_secs(1));
        let mut before = pressure.age(usual);
        assert_eq!(before, usual);
        for _ in 0..20 {
            pressure.rise();
            let now = pressure.age(usual);
            assert!(now >= before && now <= AGE_CEILING);
            before = now;
        }
        assert_eq!(before, AGE_CEILING);
        for _ in 0..LEVEL_MAX * CALM {
            pressure.ease();
        }
        assert_eq!(pressure.age(usual), usual);
    }

    #[test]
    fn a_configured_age_above_the_ceiling_stays() {
        let pressure = Pressure::default();
        pressure.rise();
        assert_eq!(
            pressure.age(Duration::from_secs(600)),
            Duration::from_secs(600)
        );
    }
}
