//! What a world is like, drawn from its seed.

use std::fmt;
use std::time::Duration;

use pillarbox_relay::relay::Options;
use pillarbox_relay::sink::Guarantee;

use super::protection::Protection;
use crate::fake::{FakeClock, FakeSink, FakeSinkBuilder, RingSettings};

/// A hanging insert answers *unknown* after this long.
const INSERT_DEADLINE: Duration = Duration::from_secs(20);

/// The word that some sinks take in no payload.
pub(super) const POISON: &str = "poison";

/// The world of one run.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) sinks: Vec<SinkScenario>,
    pub(super) ring: RingSettings,
    /// Events of the world before it is healed.
    pub(super) turns: u64,
    /// One call in so many goes wrong.
    pub(super) rarity: u64,
    /// The lock of a sink keeps nobody out, as behind a pooler.
    pub(super) lock_is_shared: bool,
    /// A lagging replica is promoted at this turn.
    pub(super) promotion: Option<u64>,
}

/// A sink and its relays.
#[derive(Clone, Debug)]
pub(super) struct SinkScenario {
    pub(super) name: String,
    pub(super) guarantee: Guarantee,
    pub(super) has_batch_column: bool,
    /// A window that other writers and later blocks run through.
    pub(super) small_window: Option<usize>,
    pub(super) window_lasts: Option<Duration>,
    pub(super) has_view: bool,
    pub(super) is_partitioned: bool,
    /// It takes no row with this word in its payload.
    pub(super) poison: Option<&'static str>,
    pub(super) relays: u64,
    pub(super) rows_max: u64,
    pub(super) in_flight_max: usize,
    pub(super) age_max: Duration,
}

impl Scenario {
    pub(super) fn draw(random: &FakeClock, without: Option<Protection>) -> Self {
        let lock_is_shared = random.below(6) == 0;
        let sinks = match random.below(10) {
            0..6 => 1,
            6..9 => 2,
            _ => 3,
        };
        let sinks = (0..sinks).map(|number| SinkScenario::draw(random, number, lock_is_shared));
        let sinks = sinks.collect();
        let turns = 30 + random.below(50);
        let is_promoted = random.below(8) == 0;
        Self {
            sinks,
            ring: RingSettings {
                leaf_bytes_max: 500 + random.below(3000),
                leaf_age_max: Duration::from_secs(1 + random.below(20)),
                retention: Duration::from_secs(random.below(2) * random.below(30)),
                is_checked_under_lock: without != Some(Protection::CheckUnderLock),
            },
            turns,
            rarity: 3 + random.below(30),
            lock_is_shared,
            promotion: is_promoted.then(|| 5 + random.below(turns - 5)),
        }
    }
}

impl SinkScenario {
    fn draw(random: &FakeClock, number: u64, lock_is_shared: bool) -> Self {
        // Two relays at once are kept apart by tokens, or not at all.
        let has_token = lock_is_shared || random.below(10) < 7;
        let has_batch_column = !has_token || random.below(4) > 0;
        // A token that may be forgotten needs the look.
        let may_forget = has_token && has_batch_column && !lock_is_shared;
        let small_window = (may_forget && random.below(5) < 2).then(|| 4 + random.below(60));
        let forgets_by_time = may_forget && random.below(4) == 0;
        let is_sure = has_token && small_window.is_none() && !forgets_by_time;
        Self {
            name: format!("sink{number}"),
            guarantee: match has_token {
                true => Guarantee::Token,
                false => Guarantee::Lookup,
            },
            has_batch_column,
            small_window: small_window.map(|blocks| usize::try_from(blocks).unwrap_or(4)),
            window_lasts: forgets_by_time.then(|| Duration::from_secs(60 + random.below(240))),
            has_view: is_sure && random.below(3) == 0,
            is_partitioned: random.below(3) > 0,
            poison: (random.below(3) == 0).then_some(POISON),
            relays: 1 + random.below(3).max(u64::from(lock_is_shared)),
            rows_max: 1 + random.below(9),
            in_flight_max: 1 + usize::from(random.below(2) > 0) + usize::from(random.below(3) > 1),
            age_max: Duration::from_millis(random.below(1500)),
        }
    }

    /// Whether its tokens are surely remembered through everything that happens here. Only then may
    /// a relay be frozen, or an insert be held where no fence reaches it (INV-2 names the exception).
    pub(super) fn is_sure(&self) -> bool {
        let forgets = self.small_window.is_some() || self.window_lasts.is_some();
        self.guarantee == Guarantee::Token && !forgets
    }

    pub(super) fn sink(&self, clock: &FakeClock, without: Option<Protection>) -> FakeSink {
        let mut sink: FakeSinkBuilder = FakeSink::builder()
            .guarantee(self.guarantee)
            .deadline(INSERT_DEADLINE)
            .clock(clock);
        if !self.has_batch_column {
            sink = sink.without_batch_column();
        }
        if let Some(blocks) = self.small_window {
            sink = sink.window_blocks(blocks);
        }
        if let Some(lasts) = self.window_lasts {
            sink = sink.window_lasts(lasts);
        }
        if self.has_view {
            sink = sink.view(10_000);
        }
        if !self.is_partitioned {
            sink = sink.partition_by(|_| String::new());
        }
        if let Some(word) = self.poison {
            sink = sink.poison(move |fields| {
                let context = fields.get("event_context").unwrap_or_default();
                context
                    .windows(word.len())
                    .any(|part| part == word.as_bytes())
            });
        }
        match without {
            Some(Protection::Token) => sink.ignoring_tokens(),
            Some(Protection::LookOutsideWindow) => sink.never_looking(),
            _ => sink,
        }
        .build()
    }

    pub(super) fn options(&self) -> Options {
        let mut options = Options {
            sink: self.name.clone(),
            age_max: self.age_max,
            in_flight_max: self.in_flight_max,
            tend_every: Duration::from_secs(2),
            // Hours pass in virtual time: what is idle probes seldom.
            probe_max: Duration::from_secs(2),
            ..Options::default()
        };
        options.limits.rows_max = self.rows_max;
        options
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} turns, one fault in {}, leaves of {} bytes or {:?}, retention {:?}",
            self.turns,
            self.rarity,
            self.ring.leaf_bytes_max,
            self.ring.leaf_age_max,
            self.ring.retention
        )?;
        if self.lock_is_shared {
            f.write_str(", the lock is shared")?;
        }
        if let Some(turn) = self.promotion {
            write!(f, ", a promotion at turn {turn}")?;
        }
        for sink in &self.sinks {
            write!(
                f,
                "; {}: {}, {} relays, batches of {}, {} in flight",
                sink.name,
                sink.guarantee.as_str(),
                sink.relays,
                sink.rows_max,
                sink.in_flight_max
            )?;
            if let Some(blocks) = sink.small_window {
                write!(f, ", a window of {blocks} blocks")?;
            }
            if let Some(lasts) = sink.window_lasts {
                write!(f, ", a window of {lasts:?}")?;
            }
            for (is_so, what) in [
                (!sink.has_batch_column, ", no column batch"),
                (sink.has_view, ", a view"),
                (sink.poison.is_some(), ", takes no poison"),
                (sink.is_partitioned, ", partitions"),
            ] {
                f.write_str(if is_so { what } else { "" })?;
            }
        }
        Ok(())
    }
}
