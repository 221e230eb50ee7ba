//! Time that a test controls, and chance that a seed decides.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use pillarbox_relay::clock::Clock;
use tokio::time::Instant;

/// The wall clock starts here: 2026-01-31 23:59:50 UTC, ten seconds before a month ends.
const START_S: u64 = 1_769_903_990;

/// A clock on tokio's time, which a test pauses, with random numbers from a seed. Clones share it.
#[derive(Clone, Debug)]
pub struct FakeClock {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    began: Instant,
    state: AtomicU64,
    ahead: Mutex<Duration>,
}

impl Default for FakeClock {
    fn default() -> Self {
        Self::new(0)
    }
}

impl FakeClock {
    /// A clock whose chance follows from `seed`. Make it after tokio's time was paused.
    pub fn new(seed: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                began: Instant::now(),
                state: AtomicU64::new(seed),
                ahead: Mutex::default(),
            }),
        }
    }

    /// Makes the wall clock jump; monotonic time does not notice.
    pub fn jump(&self, ahead: Duration) {
        let mut sum = self
            .shared
            .ahead
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *sum += ahead;
    }

    /// Time since the clock was made.
    pub fn elapsed(&self) -> Duration {
        self.shared.began.elapsed()
    }

    /// A random number, by SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    pub fn random(&self) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let state = self.shared.state.fetch_add(GAMMA, Ordering::Relaxed);
        let mut z = state.wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A random number below `end`, which must not be 0.
    pub fn below(&self, end: u64) -> u64 {
        self.random() % end.max(1)
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> SystemTime {
        let ahead = *self
            .shared
            .ahead
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        SystemTime::UNIX_EPOCH + Duration::from_secs(START_S) + self.elapsed() + ahead
    }

    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }

    fn chance(&self) -> f64 {
        // 53 bits are what a double holds.
        (self.random() >> 11) as f64 / (1_u64 << 53) as f64
    }
}
