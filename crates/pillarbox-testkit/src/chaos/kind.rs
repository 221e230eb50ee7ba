//! Which faults there are, how often each must happen, and which comes next.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::stage::TAKEOVER_AFTER;
use crate::servers::Flavour;

/// Seconds in which each kind must happen once: three times in 300.
const SECONDS_PER_FAULT: u64 = 100;

/// One side of the relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    ClickHouse,
    Postgres,
}

/// What is done to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wire {
    Cut,
    AnswersLost,
    HalfOpen,
    Late,
    Narrow,
    Refused,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    RelayKilled,
    /// Past the take-over.
    RelayFrozen,
    RelayStopped,
    ClickHouseKilled,
    ClickHouseFrozen,
    PostgresKilled,
    Wire(Side, Wire),
    BackendsTerminated,
    LongTransaction,
    SnapshotHeld,
}

/// Faults of different lanes happen at once, those of one lane one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Processes,
    Network,
    Sessions,
}

impl Lane {
    pub(super) const ALL: [Self; 3] = [Self::Processes, Self::Network, Self::Sessions];
}

impl Kind {
    /// Those of a lane that `flavour` has to bear. `lookup` cannot protect from an insert that a
    /// frozen relay sends after another one has looked; that has a test of its own.
    pub(super) fn of(lane: Lane, flavour: Flavour) -> Vec<Self> {
        match lane {
            Lane::Processes => {
                let mut kinds = vec![
                    Self::RelayKilled,
                    Self::RelayStopped,
                    Self::ClickHouseKilled,
                    Self::ClickHouseFrozen,
                    Self::PostgresKilled,
                ];
                if flavour == Flavour::V26 {
                    kinds.push(Self::RelayFrozen);
                }
                kinds
            }
            Lane::Network => {
                let wires = [
                    Wire::Cut,
                    Wire::AnswersLost,
                    Wire::HalfOpen,
                    Wire::Late,
                    Wire::Narrow,
                    Wire::Refused,
                ];
                let sides = [Side::ClickHouse, Side::Postgres];
                let of = |side| wires.map(|wire| Self::Wire(side, wire));
                sides.into_iter().flat_map(of).collect()
            }
            Lane::Sessions => vec![
                Self::BackendsTerminated,
                Self::LongTransaction,
                Self::SnapshotHeld,
            ],
        }
    }

    /// How long it takes at least, where that is long.
    pub(super) fn lasts(self) -> Duration {
        match self {
            Self::RelayFrozen => TAKEOVER_AFTER,
            _ => Duration::ZERO,
        }
    }

    pub(super) fn all(flavour: Flavour) -> Vec<Self> {
        let lanes = Lane::ALL.into_iter();
        lanes.flat_map(|lane| Self::of(lane, flavour)).collect()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RelayKilled => "relay killed",
            Self::RelayFrozen => "relay frozen past the take-over",
            Self::RelayStopped => "relay stopped and started",
            Self::ClickHouseKilled => "clickhouse killed",
            Self::ClickHouseFrozen => "clickhouse frozen",
            Self::PostgresKilled => "postgresql killed",
            Self::BackendsTerminated => "backends terminated",
            Self::LongTransaction => "long transaction",
            Self::SnapshotHeld => "snapshot held",
            Self::Wire(side, wire) => {
                let side = match side {
                    Side::ClickHouse => "clickhouse",
                    Side::Postgres => "postgresql",
                };
                let what = match wire {
                    Wire::Cut => "connection cut",
                    Wire::AnswersLost => "answers lost",
                    Wire::HalfOpen => "half-open",
                    Wire::Late => "late",
                    Wire::Narrow => "narrow line",
                    Wire::Refused => "refused",
                };
                return write!(f, "{side}: {what}");
            }
        })
    }
}

/// How often each kind has happened.
#[derive(Debug)]
pub(super) struct Tally {
    done: Mutex<BTreeMap<Kind, u32>>,
    demand: u32,
}

impl Tally {
    /// Nothing yet of what `flavour` has to bear in `duration`.
    pub(super) fn new(flavour: Flavour, duration: Duration) -> Self {
        let half = SECONDS_PER_FAULT / 2;
        let demand = (duration.as_secs() + half) / SECONDS_PER_FAULT;
        let kinds = Kind::all(flavour).into_iter();
        Self {
            done: Mutex::new(kinds.map(|kind| (kind, 0)).collect()),
            demand: u32::try_from(demand).unwrap_or(u32::MAX),
        }
    }

    /// One of those of `lane` that happened least often: so each comes as often as any other.
    pub(super) fn next(&self, lane: Lane, flavour: Flavour, random: &mut StdRng) -> Kind {
        let done = self.done();
        let kinds = Kind::of(lane, flavour);
        let count = |kind: &Kind| done.get(kind).copied().unwrap_or(0);
        let least = kinds.iter().map(count).min().unwrap_or(0);
        let due: Vec<Kind> = kinds.into_iter().filter(|k| count(k) == least).collect();
        due[random.random_range(0..due.len())]
    }

    pub(super) fn happened(&self, kind: Kind) {
        *self.done().entry(kind).or_default() += 1;
    }

    pub(super) fn total(&self) -> u32 {
        self.done().values().sum()
    }

    /// Whether each kind of `lane` happened as often as it must.
    pub(super) fn is_enough(&self, lane: Lane, flavour: Flavour) -> bool {
        let done = self.done();
        let enough = |kind: &Kind| done.get(kind).is_some_and(|count| *count >= self.demand);
        Kind::of(lane, flavour).iter().all(enough)
    }

    /// How many faults of `lane` are planned: each kind once more than it must happen, since some will
    /// hit nothing.
    pub(super) fn planned(&self, lane: Lane, flavour: Flavour) -> u32 {
        let kinds = u32::try_from(Kind::of(lane, flavour).len()).unwrap_or(u32::MAX);
        kinds.saturating_mul(self.demand.saturating_add(1))
    }

    /// Kinds that happened too seldom.
    pub(super) fn missing(&self) -> Vec<String> {
        let done = self.done();
        let missing = done.iter().filter(|(_, count)| **count < self.demand);
        let text = |(kind, count): (&Kind, &u32)| format!("{kind}: {count} of {}", self.demand);
        missing.map(text).collect()
    }

    fn done(&self) -> MutexGuard<'_, BTreeMap<Kind, u32>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn each_kind_comes_once_before_any_comes_twice() {
        for flavour in Flavour::ALL {
            let tally = Tally::new(flavour, Duration::from_secs(300));
            let mut random = StdRng::seed_from_u64(7);
            for lane in Lane::ALL {
                for _ in 0..3 * Kind::of(lane, flavour).len() {
                    assert!(!tally.is_enough(lane, flavour));
                    tally.happened(tally.next(lane, flavour, &mut random));
                }
                assert!(tally.is_enough(lane, flavour));
            }
            assert!(tally.missing().is_empty());
            assert_eq!(tally.total() as usize, 3 * Kind::all(flavour).len());
        }
    }

    #[test]
    fn the_demand_is_three_in_300_seconds_and_scales() {
        let demand = |seconds| Tally::new(Flavour::V26, Duration::from_secs(seconds)).demand;
        assert_eq!([25, 60, 300, 600].map(demand), [0, 1, 3, 6]);
    }

    #[test]
    fn only_the_engine_with_tokens_bears_a_frozen_relay() {
        assert!(Kind::all(Flavour::V26).contains(&Kind::RelayFrozen));
        assert!(!Kind::all(Flavour::V18).contains(&Kind::RelayFrozen));
        assert_eq!(Kind::all(Flavour::V26).len(), 21);
    }
}
