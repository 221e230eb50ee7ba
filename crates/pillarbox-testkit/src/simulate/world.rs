//! One world: publishers, a database, sinks, relays, and what happens to them turn by turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pillarbox_relay::clock::Clock as _;
use tokio::task::{JoinHandle, JoinSet};

use super::protection::Protection;
use super::publishing::publish;
use super::record::{Record, Sealed};
use super::relays::Slot;
use super::scenario::Scenario;
use super::trace::Trace;
use super::weather;
use crate::fake::{FakeClock, FakeDatabase, FakeSink, Replica, Weakness};

/// A turn of the world takes at most this long.
const TURN_MS_MAX: u64 = 1_200;

/// A frozen relay is resumed after at most so many turns.
const FROZEN_TURNS_MAX: u64 = 40;

/// A replica lags behind by so many turns.
const LAG_TURNS: u64 = 3;

/// What everything in a world sees. Clones share it; `sealed` is that of one sink.
#[derive(Clone, Debug)]
pub(super) struct Eyes {
    pub(super) clock: FakeClock,
    pub(super) database: FakeDatabase,
    pub(super) trace: Trace,
    pub(super) record: Record,
    pub(super) sealed: Sealed,
    pub(super) sinks: Arc<[FakeSink]>,
    pub(super) names: Arc<[String]>,
    pub(super) without: Option<Protection>,
}

pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) clock: FakeClock,
    pub(super) database: FakeDatabase,
    pub(super) sinks: Arc<[FakeSink]>,
    pub(super) trace: Trace,
    pub(super) eyes: Eyes,
    pub(super) slots: Vec<Slot>,
    pub(super) is_promoted: bool,
    publishers: JoinSet<()>,
    others: Vec<JoinHandle<()>>,
    is_stormy: Arc<AtomicBool>,
    replica: Option<Replica>,
    /// The turn at which each frozen relay is resumed.
    frozen: Vec<(usize, u64)>,
}

impl World {
    pub(super) fn new(seed: u64, without: Option<Protection>) -> Self {
        let clock = FakeClock::new(seed);
        let scenario = Scenario::draw(&clock, without);
        let database = FakeDatabase::new(&clock);
        let trace = Trace::new();
        for sink in &scenario.sinks {
            database.register(&sink.name);
        }
        database.set_ring(scenario.ring);
        database.weaken(Weakness {
            lock_is_shared: scenario.lock_is_shared,
            takes_taken_numbers: without == Some(Protection::LedgerFence),
            truncates_by_position: without == Some(Protection::SafePosition),
        });
        let sinks = scenario.sinks.iter();
        let sinks: Arc<[FakeSink]> = sinks.map(|sink| sink.sink(&clock, without)).collect();
        let eyes = Eyes {
            clock: clock.clone(),
            database: database.clone(),
            trace: trace.clone(),
            record: Record::default(),
            sealed: Sealed::new(&trace),
            sinks: Arc::clone(&sinks),
            names: scenario
                .sinks
                .iter()
                .map(|sink| sink.name.clone())
                .collect(),
            without,
        };
        let mut world = Self {
            scenario,
            clock,
            database,
            sinks,
            trace,
            eyes,
            slots: Vec::new(),
            is_promoted: false,
            publishers: JoinSet::new(),
            others: Vec::new(),
            is_stormy: Arc::new(AtomicBool::new(true)),
            replica: None,
            frozen: Vec::new(),
        };
        world.start();
        world
    }

    fn start(&mut self) {
        let (rarity, is_on) = (self.scenario.rarity, &self.is_stormy);
        weather::trouble_database(&self.eyes, is_on, rarity);
        for (scenario, sink) in self.scenario.sinks.iter().zip(self.sinks.iter()) {
            let eyes = Eyes {
                sealed: Sealed::new(&self.trace),
                ..self.eyes.clone()
            };
            weather::trouble_sink(&eyes, scenario, sink, is_on, rarity);
            let (sealed, trace) = (eyes.sealed.clone(), self.trace.clone());
            let name = scenario.name.clone();
            sink.observe(move |insert| {
                let (number, ordinal) = (insert.batch.number, insert.ordinal);
                trace.note(format_args!("{name} is sent {number}/{ordinal}"));
                sealed.sent(insert);
            });
            let others =
                weather::others(eyes.clone(), scenario.clone(), sink.clone(), is_on.clone());
            self.others.push(tokio::spawn(others));
            for number in 0..scenario.relays {
                let name = format!("{}:{}", scenario.name, (b'a' + number as u8) as char);
                let slot = Slot::start(name, &eyes, sink, &scenario.options());
                self.slots.push(slot);
            }
        }
    }

    /// Everything happens.
    pub(super) async fn live(&mut self) {
        for turn in 0..self.scenario.turns {
            self.publishers.spawn(publish(self.eyes.clone(), turn));
            self.turn(turn).await;
            let wait = Duration::from_millis(self.clock.below(TURN_MS_MAX));
            self.clock.sleep(wait).await;
        }
    }

    async fn turn(&mut self, turn: u64) {
        if let Some(promotion) = self.scenario.promotion {
            if turn + LAG_TURNS == promotion.max(LAG_TURNS) {
                self.replica = Some(self.database.replica());
            }
            if turn == promotion.max(LAG_TURNS) {
                self.promote().await;
            }
        }
        self.thaw(turn);
        match self.clock.below(30) {
            0 => {
                let sink = self.any_sink();
                self.trace
                    .note(format_args!("sessions of {sink} are ended"));
                self.database.kill_sessions(&sink);
            }
            1 | 2 => {
                let is_lossy = self.clock.below(2) == 0;
                self.trace
                    .note(format_args!("postgresql crashes, lossy: {is_lossy}"));
                self.trace.count("crashes");
                self.database.crash(is_lossy);
            }
            3 => self.sinks.iter().for_each(FakeSink::commit_late),
            4 => {
                let seconds = self.clock.below(30);
                self.trace.note(format_args!("clocks jump by {seconds} s"));
                self.clock.jump(Duration::from_secs(seconds));
            }
            5 => {
                let sink = self.any_sink();
                self.database.set_paused(&sink, true);
            }
            6..9 => {
                let sink = self.any_sink();
                self.database.set_paused(&sink, false);
            }
            9..12 => {
                let slot = self.any_slot();
                self.trace.count("kills");
                self.slots[slot].kill();
            }
            12 => {
                let slot = self.any_slot();
                self.slots[slot].terminate();
            }
            13..17 => self.freeze(turn),
            _ => {}
        }
    }

    fn any_sink(&self) -> String {
        let any = self.clock.below(self.scenario.sinks.len() as u64);
        self.scenario.sinks[any as usize].name.clone()
    }

    fn any_slot(&self) -> usize {
        self.clock.below(self.slots.len() as u64) as usize
    }

    fn freeze(&mut self, turn: u64) {
        let any = self.any_slot();
        let slot = &self.slots[any];
        let mut sinks = self.scenario.sinks.iter();
        let sink = sinks.find(|sink| slot.name.starts_with(&sink.name));
        if slot.is_frozen() || !sink.is_some_and(|sink| sink.is_sure()) {
            return;
        }
        self.trace.note(format_args!("{} is frozen", slot.name));
        self.trace.count("freezes");
        slot.freeze();
        let until = turn + 1 + self.clock.below(FROZEN_TURNS_MAX);
        self.frozen.push((any, until));
    }

    fn thaw(&mut self, turn: u64) {
        let (due, frozen) = self.frozen.iter().partition(|(_, until)| *until <= turn);
        self.frozen = frozen;
        let due: Vec<(usize, u64)> = due;
        for (slot, _) in due {
            self.trace
                .note(format_args!("{} goes on", self.slots[slot].name));
            self.slots[slot].resume();
        }
    }

    /// The replica takes over. What the old relays sent has arrived by then: an insert that arrives
    /// after the look into the sink is beyond what a failover can promise.
    async fn promote(&mut self) {
        let Some(replica) = self.replica.take() else {
            return;
        };
        self.trace.note(format_args!("the replica is promoted"));
        for slot in &self.slots {
            slot.kill();
        }
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        self.sinks.iter().for_each(FakeSink::commit_late);
        self.database.promote(replica);
        self.trace.count("promotions");
        self.is_promoted = true;
    }

    /// Ends every trouble; publishers finish.
    pub(super) async fn heal(&mut self) {
        self.trace.note(format_args!("healing"));
        while let Some(ended) = self.publishers.join_next().await {
            if let Err(error) = ended {
                self.trace
                    .violated(format!("a publisher panicked: {error}"));
            }
        }
        for turn in 0..self.scenario.turns {
            // Most of them are not there.
            drop(self.database.rollback_prepared(&format!("p{turn}")));
        }
        self.is_stormy.store(false, Ordering::SeqCst);
        for others in self.others.drain(..) {
            drop(others.await);
        }
        for slot in &self.slots {
            slot.resume();
        }
        for (scenario, sink) in self.scenario.sinks.iter().zip(self.sinks.iter()) {
            sink.mend();
            self.database.set_paused(&scenario.name, false);
        }
    }
}
