//! Time and chance, as arguments: what the spine must not take from the environment.

use std::fmt;
use std::future::Future;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Time and chance.
pub trait Clock: fmt::Debug + Clone + Send + Sync + 'static {
    /// Monotonic time.
    fn now(&self) -> Instant;

    /// Wall-clock time.
    fn wall(&self) -> SystemTime;

    /// Waits. Dropping the future is safe.
    fn sleep(&self, wait: Duration) -> impl Future<Output = ()> + Send;

    /// A number from `0.0` up to, but without, `1.0`.
    fn chance(&self) -> f64;
}

/// The machine's clock and random numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }

    fn chance(&self) -> f64 {
        rand::random()
    }
}
