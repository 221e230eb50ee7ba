//! Publishers, windows, cuts and a crash of PostgreSQL: each committed event is sealed once.
//!
//! All publishers commit asynchronously, so a crash may forget any number of the last commits; a seal
//! waits for its own commit, and so for all before it. What is sealed is sent at once: what may go
//! wrong in between is the matter of `deliveries`.

use pillarbox_relay::snapshot::{Position, Snapshot, Span};
use stateright::{Model, Property};

use crate::server::{Fate, Server};

/// Bounds, and which protections are on.
#[derive(Clone, Debug)]
pub struct Windows {
    pub transactions: usize,
    /// Of all transactions together, and of each.
    pub events: usize,
    pub events_each: usize,
    pub crashes: u8,
    /// A cut window is continued with its own snapshots.
    pub keeps_cut_window: bool,
    /// A seal is on disk before it is believed.
    pub seal_is_durable: bool,
    /// A seal is a transaction with an id of its own, above those that its snapshots saw.
    pub seal_takes_id: bool,
    /// What a session has seen dies with it.
    pub snapshot_dies_with_session: bool,
}

impl Windows {
    /// Three transactions of at most two events, four together, and a crash.
    pub fn protected() -> Self {
        Self {
            transactions: 3,
            events: 4,
            events_each: 2,
            crashes: 1,
            keeps_cut_window: true,
            seal_is_durable: true,
            seal_takes_id: true,
            snapshot_dies_with_session: true,
        }
    }
}

/// A batch in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sealed {
    pub span: Span,
    pub ids: Vec<i64>,
}

/// What the server's log holds beyond what is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    Commit(usize),
    Seal,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub server: Server,
    /// Records that a crash may take, oldest first.
    pub volatile: Vec<Record>,
    pub ledger: Vec<Sealed>,
    /// Ids of the events that were sent, as often as they were sent.
    pub sent: Vec<i64>,
    /// The snapshot of the relay's last probe, while it reads.
    pub seen: Option<Snapshot>,
    pub crashes: u8,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Begin,
    Publish(usize),
    Commit(usize),
    RollBack(usize),
    /// The relay probes and finds that events wait.
    Probe,
    /// The relay reads and seals, cut after this many events.
    Seal(usize),
    /// The relay loses its session, or its life.
    LoseTenure,
    /// PostgreSQL dies; this many of its last records were not on disk.
    Crash(usize),
}

impl State {
    fn position(&self) -> Position {
        match self.ledger.last() {
            Some(sealed) => Position::from(&sealed.span),
            None => Position::genesis(Snapshot::origin()),
        }
    }

    /// What the reader gets: each single transaction after its id, then the range, as SQL does.
    fn read(&self, span: &Span) -> Vec<i64> {
        let mut found = Vec::new();
        for (tx, after) in span.singles() {
            let rows = self.server.visible().filter(|row| row.at.tx == tx);
            found.extend(rows.filter(|row| row.at.id > after).map(|row| row.at));
        }
        let range = span.range();
        let rows = self.server.visible().map(|row| row.at);
        found.extend(rows.filter(|at| range.contains(&at.tx) && span.to.sees(at.tx)));
        found.retain(|at| span.until.is_none_or(|until| *at <= until));
        found.into_iter().map(|at| at.id).collect()
    }

    fn has_waiting(&self) -> bool {
        let position = self.position();
        self.server.visible().any(|row| !position.is_done(row.at))
    }

    fn seal(&mut self, rules: &Windows, room: usize) {
        let position = self.position();
        let now = self.seen.take().unwrap_or_else(|| self.server.snapshot());
        let mut span = position.next_span(now.clone());
        if !rules.keeps_cut_window {
            span.to = now;
        }
        let mut ids = self.read(&span);
        if ids.len() > room {
            ids.truncate(room);
            let last = ids[room - 1];
            span.until = self
                .server
                .visible()
                .map(|row| row.at)
                .find(|at| at.id == last);
        }
        if ids.is_empty() {
            return;
        }
        self.sent.extend(&ids);
        self.ledger.push(Sealed { span, ids });
        if rules.seal_takes_id {
            self.server.seal(rules.seal_is_durable);
        }
        if rules.seal_is_durable {
            self.volatile.clear();
        } else {
            self.volatile.push(Record::Seal);
        }
    }

    fn crash(&mut self, lost: usize) {
        let lost = self.volatile.split_off(self.volatile.len() - lost);
        self.volatile.clear();
        let commits: Vec<usize> = lost
            .iter()
            .filter_map(|record| match record {
                Record::Commit(at) => Some(*at),
                Record::Seal => None,
            })
            .collect();
        let seals = lost.len() - commits.len();
        self.ledger.truncate(self.ledger.len() - seals);
        self.server.crash(&commits);
        self.crashes += 1;
    }
}

impl Model for Windows {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            server: Server::new(),
            volatile: Vec::new(),
            ledger: Vec::new(),
            sent: Vec::new(),
            seen: None,
            crashes: 0,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.server.transactions.len() < self.transactions {
            steps.push(Step::Begin);
        }
        let events = state.server.transactions.iter().map(|t| t.events.len());
        let has_room = events.sum::<usize>() < self.events;
        for at in state.server.running() {
            if has_room && state.server.transactions[at].events.len() < self.events_each {
                steps.push(Step::Publish(at));
            }
            steps.extend([Step::Commit(at), Step::RollBack(at)]);
        }
        if state.position().is_cut() || state.seen.is_some() {
            steps.extend([Step::Seal(1), Step::Seal(usize::MAX)]);
        } else if state.has_waiting() {
            steps.push(Step::Probe);
        }
        if state.seen.is_some() {
            steps.push(Step::LoseTenure);
        }
        if state.crashes < self.crashes {
            steps.extend((0..=state.volatile.len()).map(Step::Crash));
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Begin => state.server.begin(),
            Step::Publish(at) => {
                state.server.draw(at, 0);
                state.server.store(at);
            }
            Step::Commit(at) => {
                state.server.end(at, Fate::Committed);
                state.volatile.push(Record::Commit(at));
            }
            Step::RollBack(at) => state.server.end(at, Fate::RolledBack),
            Step::Probe => state.seen = Some(state.server.snapshot()),
            Step::Seal(room) => state.seal(self, room),
            Step::LoseTenure => state.seen = None,
            Step::Crash(lost) => {
                state.crash(lost);
                if self.snapshot_dies_with_session {
                    state.seen = None;
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NONE_DOUBLED, |_, state: &State| {
                let mut ids = state.sent.clone();
                ids.sort_unstable();
                ids.windows(2).all(|pair| pair[0] != pair[1])
            }),
            Property::always(NO_PHANTOM, |_, state: &State| {
                let committed = |id| state.server.visible().any(|row| row.at.id == id);
                state.sent.iter().all(|id| committed(*id))
            }),
            Property::always(DONE_IS_SEALED, |_, state: &State| {
                let position = state.position();
                let is_sealed = |id| state.ledger.iter().any(|batch| batch.ids.contains(&id));
                state
                    .server
                    .visible()
                    .all(|row| position.is_done(row.at) == is_sealed(row.at.id))
            }),
            Property::always(
                "a batch reads again as it was sealed",
                |_, state: &State| {
                    state
                        .ledger
                        .iter()
                        .all(|batch| state.read(&batch.span) == batch.ids)
                },
            ),
            Property::always("what is read is what the span says", |_, state: &State| {
                state.ledger.iter().all(|batch| {
                    let rows = state.server.visible();
                    let inside = rows.filter(|row| batch.span.contains(row.at));
                    inside.map(|row| row.at.id).eq(batch.ids.iter().copied())
                })
            }),
            Property::always("what commits first is sealed no later", in_order),
            Property::always(ALL_SENT, |model: &Self, state: &State| {
                let mut steps = Vec::new();
                model.actions(state, &mut steps);
                let is_sent = |id| state.sent.contains(&id);
                !steps.is_empty() || state.server.visible().all(|row| is_sent(row.at.id))
            }),
            Property::sometimes(
                "a transaction outlasts the cut of a window that began before it ended",
                |_, state: &State| {
                    let cut = state.ledger.iter().find(|batch| batch.span.until.is_some());
                    cut.is_some_and(|cut| {
                        let mut ran = cut.span.to.xip().iter();
                        ran.any(|tx| state.server.visible().any(|row| row.at.tx == *tx))
                    })
                },
            ),
            Property::sometimes(
                "a crash takes a commit that a snapshot saw",
                |_, state: &State| {
                    state.crashes > 0
                        && state.ledger.is_empty()
                        && state
                            .server
                            .transactions
                            .iter()
                            .any(|t| t.fate == Fate::Forgotten)
                },
            ),
        ]
    }
}

pub const NONE_DOUBLED: &str = "no event is sent twice";
pub const NO_PHANTOM: &str = "only committed events are sent";
pub const DONE_IS_SEALED: &str = "an event is done if and only if it is sealed";
pub const ALL_SENT: &str = "in the end all that committed is sent";

/// INV-10.
fn in_order(_: &Windows, state: &State) -> bool {
    let batch_of = |at: usize| -> Vec<usize> {
        let has = |id: &i64| state.server.transaction_of(*id) == Some(at);
        (0..state.ledger.len())
            .filter(|number| state.ledger[*number].ids.iter().any(has))
            .collect()
    };
    state
        .server
        .transactions
        .iter()
        .enumerate()
        .all(|(late, transaction)| {
            let Some(first) = batch_of(late).first().copied() else {
                return true;
            };
            transaction.began_after.iter().all(|early| {
                let events = &state.server.transactions[*early].events;
                let is_sealed = |id| state.ledger[..=first].iter().any(|b| b.ids.contains(&id));
                let is_kept = state.server.transactions[*early].fate == Fate::Committed;
                !is_kept || events.iter().all(|event| is_sealed(event.at.id))
            })
        })
}
