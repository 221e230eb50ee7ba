//! Bounds and intervals of the spine.

use std::time::Duration;

use crate::batch::Limits;

/// Bounds and intervals of a relay.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the sink, as metrics and health checks show it.
    pub sink: String,
    /// What closes a batch.
    pub limits: Limits,
    /// How many bad rows are poison and not a change of the table or of the application.
    pub poison: Poison,
    /// How long an event may wait for its batch to fill.
    pub age_max: Duration,
    /// Deliveries at once. One keeps the order of batches (INV-10).
    pub in_flight_max: usize,
    /// Wait between two probes while events come.
    pub probe_min: Duration,
    /// Wait between two probes after a long silence.
    pub probe_max: Duration,
    /// How often a relay shows that it lives; well below the take-over time of its stand-by.
    pub beat_every: Duration,
    /// How often the ring is looked after.
    pub tend_every: Duration,
    /// How long a stopped sink stands still before it is looked at again.
    pub stopped_for: Duration,
    /// How long deliveries may go on after a stop request.
    pub grace: Duration,
    /// How long a drain bears with a destination that does not take a batch.
    pub drain_patience: Duration,
    /// No progress at all for this long means that the spine is stuck: it gives up its tenure. Longer
    /// than the longest deadline of a sink and the longest backoff together.
    pub stuck_after: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sink: String::new(),
            limits: Limits {
                rows_max: 500_000,
                bytes_max: 144 * 1024 * 1024,
            },
            poison: Poison {
                rows_max: 100,
                share_max: 0.1,
            },
            age_max: Duration::from_secs(1),
            in_flight_max: 2,
            probe_min: Duration::from_millis(10),
            probe_max: Duration::from_millis(250),
            beat_every: Duration::from_secs(1),
            tend_every: Duration::from_secs(5),
            stopped_for: Duration::from_secs(30),
            grace: Duration::from_secs(20),
            drain_patience: Duration::from_secs(30),
            stuck_after: Duration::from_secs(900),
        }
    }
}

/// Up to where bad rows are set aside; beyond it the sink stops.
#[derive(Clone, Copy, Debug)]
pub struct Poison {
    /// Rows within an hour.
    pub rows_max: u64,
    /// Share of a batch of at least a hundred rows.
    pub share_max: f64,
}

/// When the spine is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Until told to stop.
    Run,
    /// Until nothing is left.
    Drain,
}
