//! Two relays, one ledger, one sink: whatever is lost, late or killed, each event is in the sink once.
//!
//! The events have committed; a batch is the next one or two of them. What a relay has sent is on its
//! way until the server applies it, refuses it or never gets the whole of it; the relay may have given
//! up waiting by then, or be dead. A frozen relay is one whose session was ended and that goes on.
//!
//! Time appears as one rule: the window within which the sink is certain to know a token is longer
//! than an attempt takes, from the relay's decision to send to the end of the insert. So a batch grows
//! `old`, and a sink forgets a token, only while no attempt of it is under way.

use stateright::{Model, Property};

mod state;

pub use state::State;
use state::{Content, Relay, Request, Stage};

pub const EVENTS: u8 = 2;
pub const RELAYS: usize = 2;

/// How the sink keeps a batch from being written twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By its token, and by a look where the token may be forgotten.
    Token,
    /// By its token alone: without the column `batch` nobody can look.
    TokenWithoutLook,
    /// By a look alone.
    Lookup,
}

/// Bounds, and which protections are on.
#[derive(Clone, Debug)]
pub struct Deliveries {
    pub mode: Mode,
    /// Answers that are lost or come too late.
    pub losses: u8,
    pub refusals: u8,
    /// Relays that die, or lose their session and do not know it.
    pub ends: u8,
    /// A relay may stand still between its last look at its session and the first byte, for longer than
    /// a take-over takes.
    pub freezes_before_send: bool,
    pub seals_before_send: bool,
    pub sink_knows_tokens: bool,
    /// Beyond the token's window one looks before one sends again.
    pub looks_when_old: bool,
    /// What may still be running is ended before one looks.
    pub fences_before_look: bool,
    /// After an attempt in doubt a refused one leaves the doubt.
    pub doubt_outlives_refusal: bool,
    /// A relay that rests before it sends, because somebody paused the sink, decides anew.
    pub decides_after_rest: bool,
    /// A relay asks whether its session lives before it sends.
    pub checks_session: bool,
    /// A seal goes through the session that holds the lock.
    pub seals_on_session: bool,
    /// A seal is refused unless its number follows the last one.
    pub fences_numbers: bool,
}

impl Deliveries {
    pub fn protected(mode: Mode) -> Self {
        Self {
            mode,
            losses: 2,
            refusals: 1,
            ends: 2,
            freezes_before_send: mode != Mode::Lookup,
            seals_before_send: true,
            sink_knows_tokens: mode != Mode::Lookup,
            looks_when_old: true,
            fences_before_look: true,
            doubt_outlives_refusal: true,
            decides_after_rest: true,
            checks_session: true,
            seals_on_session: true,
            fences_numbers: true,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    TakeOver(usize),
    /// Seals the next batch, with so many events.
    Seal(usize, u8),
    CheckSession(usize),
    Send(usize),
    /// The server writes what was sent, or knows its token; the answer arrives.
    Apply(usize),
    /// So it does, and the answer does not arrive.
    ApplyUnheard(usize),
    /// The server writes nothing, and says so.
    Refuse(usize),
    /// The relay no longer waits; what it sent is still on its way.
    GiveUpWaiting(usize),
    /// What nobody waits for never arrives whole.
    Vanish(usize),
    /// Decides about a batch that nobody knows about.
    Resolve(usize),
    Confirm(usize),
    /// Its session is ended; it does not know yet.
    Displace(usize),
    /// It finds its session ended, and forgets everything.
    Notice(usize),
    Kill(usize),
    /// The window of a batch's token passes.
    GrowOld(usize),
    /// The sink forgets the token of an old batch.
    Forget(u8),
}

impl Deliveries {
    fn relay_steps(&self, state: &State, relay: usize, steps: &mut Vec<Step>) {
        let Relay {
            has_session,
            memory,
        } = state.relays[relay];
        let Some(tenure) = memory else {
            let is_free = state.relays.iter().all(|relay| !relay.has_session);
            let is_done = state.ledger.iter().all(|batch| batch.is_delivered)
                && state
                    .ledger
                    .last()
                    .is_some_and(|batch| batch.content.last == EVENTS);
            // The second relay is the stand-by.
            if is_free && !is_done && (relay == 0 || state.ends > 0) {
                steps.push(Step::TakeOver(relay));
            }
            return;
        };
        let stage = tenure.work.map(|work| work.stage);
        match stage {
            None if has_session || !self.seals_on_session => {
                let left = EVENTS - tenure.position;
                steps.extend((1..=left).map(|events| Step::Seal(relay, events)));
            }
            Some(Stage::Ready | Stage::Refused) if !self.checks_session => {
                steps.push(Step::Send(relay))
            }
            Some(Stage::Ready | Stage::Refused) if has_session => {
                steps.push(Step::CheckSession(relay))
            }
            Some(Stage::Checked) => steps.push(Step::Send(relay)),
            Some(Stage::Unknown) => steps.push(Step::Resolve(relay)),
            Some(Stage::Delivered) if has_session => steps.push(Step::Confirm(relay)),
            _ => {}
        }
        let may_freeze = self.freezes_before_send || stage != Some(Stage::Checked);
        if !has_session {
            steps.push(Step::Notice(relay));
        } else if state.ends < self.ends {
            steps.push(Step::Kill(relay));
            if may_freeze {
                steps.push(Step::Displace(relay));
            }
        }
    }
}

impl Model for Deliveries {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            ledger: Vec::new(),
            relays: [Relay::default(); RELAYS],
            requests: Vec::new(),
            written: Vec::new(),
            tokens: Vec::new(),
            next_identity: 0,
            has_stopped: false,
            losses: 0,
            refusals: 0,
            ends: 0,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.has_stopped {
            return;
        }
        for relay in 0..RELAYS {
            self.relay_steps(state, relay, steps);
        }
        for (at, request) in state.requests.iter().enumerate() {
            steps.push(Step::Apply(at));
            if request.from.is_none() {
                steps.push(Step::Vanish(at));
                continue;
            }
            if state.losses < self.losses {
                steps.extend([Step::ApplyUnheard(at), Step::GiveUpWaiting(at)]);
            }
            if state.refusals < self.refusals {
                steps.push(Step::Refuse(at));
            }
        }
        for (number, batch) in state.ledger.iter().enumerate() {
            if state.is_attempted(self, batch.content) {
                continue;
            }
            if !batch.is_old && !batch.is_delivered {
                steps.push(Step::GrowOld(number));
            }
            if batch.is_old && state.tokens.contains(&batch.content.identity) {
                steps.push(Step::Forget(batch.content.identity));
            }
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::TakeOver(relay) => state.take_over(relay),
            Step::Seal(relay, events) => state.seal(self, relay, events),
            Step::CheckSession(relay) => state.work(relay)?.stage = Stage::Checked,
            Step::Send(relay) => {
                let work = state.work(relay)?;
                work.stage = Stage::Waiting;
                let content = work.content;
                let from = Some(relay);
                state.requests.push(Request { content, from });
                state.requests.sort_unstable();
            }
            Step::Apply(at) => state.apply(self, at, true),
            Step::ApplyUnheard(at) => {
                state.losses += 1;
                state.apply(self, at, false);
            }
            Step::Refuse(at) => {
                state.refusals += 1;
                state.refuse(self, at);
            }
            Step::GiveUpWaiting(at) => {
                state.losses += 1;
                let from = state.requests[at].from.take();
                state.answer(from, Stage::Unknown);
                state.requests.sort_unstable();
            }
            Step::Vanish(at) => {
                state.requests.remove(at);
            }
            Step::Resolve(relay) => state.resolve(self, relay),
            Step::Confirm(relay) => state.confirm(relay),
            Step::Displace(relay) => {
                state.ends += 1;
                state.relays[relay].has_session = false;
            }
            Step::Notice(relay) | Step::Kill(relay) => {
                state.ends += u8::from(step == Step::Kill(relay));
                state.relays[relay] = Relay::default();
                for request in &mut state.requests {
                    request.from = request.from.filter(|from| *from != relay);
                }
                state.requests.sort_unstable();
            }
            Step::GrowOld(number) => state.ledger[number].is_old = true,
            Step::Forget(identity) => state.tokens.retain(|token| *token != identity),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(NONE_DOUBLED, |_, state: &State| {
                (1..=EVENTS).all(|event| times(&state.written, event) <= 1)
            }),
            Property::always(SEALED, |_, state: &State| {
                let is_sealed = |content| state.ledger.iter().any(|batch| batch.content == content);
                let sent = state.requests.iter().map(|request| request.content);
                sent.chain(state.written.iter().copied()).all(is_sealed)
            }),
            Property::always(
                "a number is sealed once, and events follow one another",
                |_, state: &State| {
                    let ends = state.ledger.iter().map(|batch| batch.content.last);
                    let starts = state.ledger.iter().map(|batch| batch.content.first);
                    starts.eq(std::iter::once(0)
                        .chain(ends)
                        .map(|last| last + 1)
                        .take(state.ledger.len()))
                },
            ),
            Property::always("what is confirmed is in the sink", |_, state: &State| {
                let mut confirmed = state.ledger.iter().filter(|batch| batch.is_delivered);
                confirmed.all(|batch| state.written.contains(&batch.content))
            }),
            Property::always(
                "in the end every event is in the sink and confirmed",
                |model: &Self, state: &State| {
                    let mut steps = Vec::new();
                    model.actions(state, &mut steps);
                    let is_whole = (1..=EVENTS).all(|event| times(&state.written, event) == 1)
                        && state.ledger.iter().all(|batch| batch.is_delivered);
                    !steps.is_empty() || state.has_stopped || is_whole
                },
            ),
        ];
        if self.mode != Mode::TokenWithoutLook {
            properties.push(Property::sometimes(
                "an old batch is sent again",
                |_, state: &State| {
                    let old = state.ledger.iter().find(|batch| batch.is_old);
                    old.is_some_and(|old| state.requests.iter().any(|r| r.content == old.content))
                },
            ));
        }
        if self.mode != Mode::Lookup {
            properties.push(Property::sometimes(
                "an insert of a displaced relay arrives after its successor has sealed more",
                |_, state: &State| {
                    let late = |request: &Request| request.content.last < EVENTS;
                    state.ledger.len() > 1 && state.requests.iter().any(late)
                },
            ));
        }
        properties
    }
}

pub const NONE_DOUBLED: &str = "no event is written twice";
pub const SEALED: &str = "what is sent was sealed before";

fn times(written: &[Content], event: u8) -> usize {
    let holds = |content: &&Content| (content.first..=content.last).contains(&event);
    written.iter().filter(holds).count()
}
