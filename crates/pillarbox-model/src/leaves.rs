//! The ring: leaves are turned and emptied beside publishers and two sinks that deliver as they like;
//! an event goes only when every sink has had it for the retention.
//!
//! The ring has two leaves here, and any leaf is old enough. A publisher draws a leaf, and writes
//! into it later; from then on it holds the leaf's lock until its end.

use pillarbox_relay::snapshot::{Position, Snapshot, Span};
use stateright::{Model, Property};

use crate::server::{Event, Fate, Server};

pub const LEAVES: u8 = 2;

/// Bounds, and which protections are on.
#[derive(Clone, Debug)]
pub struct Ring {
    pub transactions: usize,
    pub sinks: usize,
    /// Whether what was delivered is to be kept for a while.
    pub has_retention: bool,
    /// Whether events that were delivered may be asked for once more.
    pub has_replay: bool,
    /// The check is made again once the leaf is locked.
    pub checks_under_lock: bool,
    /// What is done is judged by the last batch before which all have their outcome.
    pub uses_safe_position: bool,
    /// The safe position is the one of `now - retention`.
    pub minds_retention: bool,
    /// Every registered sink is asked.
    pub asks_every_sink: bool,
    /// An open batch keeps what its `from` does not see.
    pub open_batches_pin: bool,
    /// A replay is read and sealed under the lock of the ring.
    pub replay_holds_ring: bool,
}

impl Ring {
    pub fn protected() -> Self {
        Self {
            transactions: 3,
            sinks: 1,
            has_retention: false,
            has_replay: false,
            checks_under_lock: true,
            uses_safe_position: true,
            minds_retention: true,
            asks_every_sink: true,
            open_batches_pin: true,
            replay_holds_ring: true,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    Open,
    Delivered,
    /// Delivered, for longer than the retention.
    Retained,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Batch {
    pub span: Span,
    pub ids: Vec<i64>,
    pub is_replay: bool,
    pub outcome: Outcome,
}

/// How far the truncation of a leaf has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tending {
    Idle,
    Checked(u8),
    Locked(u8),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub server: Server,
    /// Where the ring stands.
    pub slot: u8,
    pub turns: u8,
    /// Ids of the events that went with their leaf.
    pub gone: Vec<i64>,
    pub ledgers: Vec<Vec<Batch>>,
    /// Ids of the events that somebody has read for a replay and not yet sealed.
    pub drafted: Vec<i64>,
    pub tending: Tending,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A transaction draws its id, and the leaf of its event.
    Draw,
    /// It writes its event.
    Store(usize),
    Commit(usize),
    RollBack(usize),
    /// A sink's relay seals a batch, cut after this many events.
    Seal(usize, usize),
    Deliver(usize, usize),
    Age(usize, usize),
    /// A sink's relay reads an event again that was delivered.
    ReadReplay(usize),
    SealReplay(usize),
    Turn,
    Check(u8),
    Lock,
    /// Checks under the lock, and empties the leaf.
    Truncate,
    GiveUp,
}

impl State {
    /// What lies in the outbox and is visible.
    fn rows(&self) -> impl Iterator<Item = &Event> {
        let rows = self.server.visible();
        rows.filter(|row| !self.gone.contains(&row.at.id))
    }

    fn is_empty(&self, leaf: u8) -> bool {
        let events = self.server.transactions.iter().flat_map(|t| &t.events);
        let mut stored = events.filter(|event| event.is_stored && event.leaf == leaf);
        stored.all(|event| self.gone.contains(&event.at.id))
    }

    /// Whether a transaction holds the lock of the leaf that a row brings with it.
    fn is_busy(&self, leaf: u8) -> bool {
        self.server.running().any(|at| {
            let mut events = self.server.transactions[at].events.iter();
            events.any(|event| event.is_stored && event.leaf == leaf)
        })
    }

    fn is_locked(&self, leaf: u8) -> bool {
        self.tending == Tending::Locked(leaf)
    }

    fn position(ledger: &[Batch]) -> Position {
        let mut windows = ledger.iter().filter(|batch| !batch.is_replay);
        windows.next_back().map_or_else(
            || Position::genesis(Snapshot::origin()),
            |batch| Position::from(&batch.span),
        )
    }

    /// Whether a replay gets the lock that whoever tends the ring holds.
    fn is_free(&self, rules: &Ring) -> bool {
        !rules.replay_holds_ring || self.tending == Tending::Idle
    }

    /// `pillarbox.safe_position`.
    fn safe_position(ledger: &[Batch], least: Outcome) -> Position {
        let settled = ledger.iter().take_while(|batch| batch.outcome >= least);
        Self::position(&ledger[..settled.count()])
    }

    /// `leaf_needed.sql`.
    fn is_needed(&self, rules: &Ring, leaf: u8) -> bool {
        let least = match rules.has_retention && rules.minds_retention {
            true => Outcome::Retained,
            false => Outcome::Delivered,
        };
        let asked = if rules.asks_every_sink {
            rules.sinks
        } else {
            1
        };
        self.ledgers.iter().take(asked).any(|ledger| {
            let position = if rules.uses_safe_position {
                Self::safe_position(ledger, least)
            } else {
                Self::position(ledger)
            };
            let mut rows = self.rows().filter(|row| row.leaf == leaf);
            rows.any(|row| {
                let open = || ledger.iter().filter(|b| b.outcome == Outcome::Open);
                let pins = |batch: &Batch| !batch.span.from.sees(row.at.tx);
                !position.is_done(row.at) || (rules.open_batches_pin && open().any(pins))
            })
        })
    }

    fn seal(&mut self, sink: usize, room: usize) {
        let position = Self::position(&self.ledgers[sink]);
        let mut span = position.next_span(self.server.snapshot());
        let inside = |row: &&Event| span.contains(row.at);
        let rows: Vec<_> = self.rows().filter(inside).map(|row| row.at).collect();
        if rows.len() > room {
            span.until = rows.get(room - 1).copied();
        }
        if !rows.is_empty() {
            self.ledgers[sink].push(Batch {
                span,
                ids: rows.iter().take(room).map(|at| at.id).collect(),
                is_replay: false,
                outcome: Outcome::Open,
            });
        }
    }

    fn seal_replay(&mut self, sink: usize) {
        let ids = std::mem::take(&mut self.drafted);
        let of = |batch: &&Batch| batch.ids == ids;
        let Some(span) = self.ledgers[sink].iter().find(of).map(|b| b.span.clone()) else {
            return;
        };
        self.ledgers[sink].push(Batch {
            span,
            ids,
            is_replay: true,
            outcome: Outcome::Open,
        });
    }

    fn truncate(&mut self, rules: &Ring, leaf: u8) {
        self.tending = Tending::Idle;
        if rules.checks_under_lock && self.is_needed(rules, leaf) {
            return;
        }
        let events = self.server.transactions.iter().flat_map(|t| &t.events);
        let gone = events.filter(|event| event.is_stored && event.leaf == leaf);
        let gone: Vec<i64> = gone.map(|event| event.at.id).collect();
        self.gone.extend(gone);
        self.gone.sort_unstable();
        self.gone.dedup();
    }

    fn tending_steps(&self, rules: &Ring, steps: &mut Vec<Step>) {
        match self.tending {
            Tending::Idle if rules.replay_holds_ring && !self.drafted.is_empty() => {}
            Tending::Idle => {
                let next = (self.slot + 1) % LEAVES;
                if !self.is_empty(self.slot) && self.is_empty(next) && self.turns < 2 * LEAVES {
                    steps.push(Step::Turn);
                }
                let others = (0..LEAVES).filter(|leaf| *leaf != self.slot);
                let free = others.filter(|leaf| !self.is_empty(*leaf) && !self.is_busy(*leaf));
                let free = free.filter(|leaf| !self.is_needed(rules, *leaf));
                steps.extend(free.map(Step::Check));
            }
            Tending::Checked(leaf) if self.is_busy(leaf) => steps.push(Step::GiveUp),
            Tending::Checked(_) => steps.push(Step::Lock),
            Tending::Locked(_) => steps.push(Step::Truncate),
        }
    }
}

impl Model for Ring {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            server: Server::new(),
            slot: 0,
            turns: 0,
            gone: Vec::new(),
            ledgers: vec![Vec::new(); self.sinks],
            drafted: Vec::new(),
            tending: Tending::Idle,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.server.transactions.len() < self.transactions {
            steps.push(Step::Draw);
        }
        for at in state.server.running() {
            match state.server.transactions[at].events.first() {
                // The truncation's lock makes a writer wait, and never for long.
                Some(event) if !event.is_stored && !state.is_locked(event.leaf) => {
                    steps.push(Step::Store(at));
                }
                Some(event) if event.is_stored => {
                    steps.extend([Step::Commit(at), Step::RollBack(at)]);
                }
                _ => {}
            }
        }
        for (sink, ledger) in state.ledgers.iter().enumerate() {
            let position = State::position(ledger);
            if position.is_cut() || state.rows().any(|row| !position.is_done(row.at)) {
                steps.extend([Step::Seal(sink, 1), Step::Seal(sink, usize::MAX)]);
            }
            for (number, batch) in ledger.iter().enumerate() {
                match batch.outcome {
                    Outcome::Open => steps.push(Step::Deliver(sink, number)),
                    Outcome::Delivered if self.has_retention => {
                        steps.push(Step::Age(sink, number));
                    }
                    _ => {}
                }
            }
            let is_first = self.has_replay && sink == 0 && ledger.iter().all(|b| !b.is_replay);
            let has_had = ledger.first().is_some_and(|batch| {
                batch.outcome > Outcome::Open && batch.ids.iter().all(|id| !state.gone.contains(id))
            });
            if !state.drafted.is_empty() && sink == 0 {
                steps.push(Step::SealReplay(sink));
            } else if is_first && has_had && state.is_free(self) {
                steps.push(Step::ReadReplay(sink));
            }
        }
        state.tending_steps(self, steps);
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Draw => {
                state.server.begin();
                let at = state.server.transactions.len() - 1;
                state.server.draw(at, state.slot);
            }
            Step::Store(at) => state.server.store(at),
            Step::Commit(at) => state.server.end(at, Fate::Committed),
            Step::RollBack(at) => state.server.end(at, Fate::RolledBack),
            Step::Seal(sink, room) => state.seal(sink, room),
            Step::Deliver(sink, number) => {
                state.ledgers[sink][number].outcome = Outcome::Delivered;
            }
            Step::Age(sink, number) => state.ledgers[sink][number].outcome = Outcome::Retained,
            Step::ReadReplay(sink) => state.drafted = state.ledgers[sink][0].ids.clone(),
            Step::SealReplay(sink) => state.seal_replay(sink),
            Step::Turn => {
                state.slot = (state.slot + 1) % LEAVES;
                state.turns += 1;
            }
            Step::Check(leaf) => state.tending = Tending::Checked(leaf),
            Step::Lock => {
                if let Tending::Checked(leaf) = state.tending {
                    state.tending = Tending::Locked(leaf);
                }
            }
            Step::Truncate => {
                if let Tending::Locked(leaf) = state.tending {
                    state.truncate(self, leaf);
                }
            }
            Step::GiveUp => state.tending = Tending::Idle,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(KEPT, |model: &Self, state: &State| {
                let least = match model.has_retention {
                    true => Outcome::Retained,
                    false => Outcome::Delivered,
                };
                let mut gone = state.server.visible();
                gone.all(|row| {
                    let had = |ledger: &Vec<Batch>| {
                        let had = |batch: &Batch| {
                            batch.outcome >= least && batch.ids.contains(&row.at.id)
                        };
                        ledger.iter().any(had)
                    };
                    !state.gone.contains(&row.at.id) || state.ledgers.iter().all(had)
                })
            }),
            Property::always(REBUILT, |_, state: &State| {
                let open = state.ledgers.iter().flatten();
                let mut open = open.filter(|batch| batch.outcome == Outcome::Open);
                open.all(|batch| batch.ids.iter().all(|id| !state.gone.contains(id)))
            }),
            Property::always(
                "in the end every sink has all that committed, once",
                |model: &Self, state: &State| {
                    let mut steps = Vec::new();
                    model.actions(state, &mut steps);
                    let times = |ledger: &[Batch], id| {
                        let windows = ledger.iter().filter(|batch| !batch.is_replay);
                        windows.filter(|batch| batch.ids.contains(&id)).count()
                    };
                    let has_all = |ledger: &Vec<Batch>| {
                        let mut rows = state.server.visible();
                        rows.all(|row| times(ledger, row.at.id) == 1)
                    };
                    !steps.is_empty() || state.ledgers.iter().all(has_all)
                },
            ),
            Property::always(
                "in the end a leaf that the ring does not stand on is empty",
                |model: &Self, state: &State| {
                    let mut steps = Vec::new();
                    model.actions(state, &mut steps);
                    let mut others = (0..LEAVES).filter(|leaf| *leaf != state.slot);
                    !steps.is_empty() || others.all(|leaf| state.is_empty(leaf))
                },
            ),
            Property::sometimes(
                "the ring goes round while a publisher holds an older leaf",
                |_, state: &State| state.turns > 1 && state.is_busy((state.slot + 1) % LEAVES),
            ),
            Property::sometimes(
                "a leaf is locked that is needed again",
                |model: &Self, state: &State| matches!(state.tending, Tending::Locked(leaf) if state.is_needed(model, leaf)),
            ),
        ]
    }
}

pub const KEPT: &str = "what is gone was delivered to every sink for the retention";
pub const REBUILT: &str = "every open batch can be read again";
