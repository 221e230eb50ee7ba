//! The ledger, the relays, what is on its way and what is written, and how each step changes them.

use super::{Deliveries, Mode, RELAYS};

/// What a token stands for: the identity of a batch, and its events `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Content {
    pub identity: u8,
    pub first: u8,
    pub last: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sealed {
    pub content: Content,
    /// The sink may have forgotten its token.
    pub is_old: bool,
    pub is_delivered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// To be sent.
    Ready,
    /// Refused without a doubt, to be sent again after a rest.
    Refused,
    /// To be sent; the session was alive a moment ago.
    Checked,
    /// Sent.
    Waiting,
    /// Nobody knows what became of it.
    Unknown,
    /// In the sink, as far as the relay knows.
    Delivered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Work {
    pub content: Content,
    /// Its place in the ledger; `None` while it is not sealed.
    pub number: Option<usize>,
    pub stage: Stage,
    /// Whether some attempt of it was in doubt.
    pub was_unknown: bool,
}

/// What a relay remembers of its tenure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tenure {
    /// Batches that it knows of.
    pub sealed: usize,
    /// Events that they hold.
    pub position: u8,
    pub work: Option<Work>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Relay {
    /// Whether its session lives, and with it its lock.
    pub has_session: bool,
    pub memory: Option<Tenure>,
}

/// An insert on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Request {
    pub content: Content,
    /// Who waits for the answer.
    pub from: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub ledger: Vec<Sealed>,
    pub relays: [Relay; RELAYS],
    pub requests: Vec<Request>,
    /// What was written, insert by insert.
    pub written: Vec<Content>,
    /// Identities whose token the sink knows.
    pub tokens: Vec<u8>,
    pub next_identity: u8,
    pub has_stopped: bool,
    pub losses: u8,
    pub refusals: u8,
    pub ends: u8,
}

impl State {
    pub(super) fn work(&mut self, relay: usize) -> Option<&mut Work> {
        self.relays[relay].memory.as_mut()?.work.as_mut()
    }

    /// The batch that the relay turns to next: the first without an outcome, of which it knows nothing.
    pub(super) fn unfinished(&self) -> Option<Work> {
        let number = self.ledger.iter().position(|batch| !batch.is_delivered)?;
        Some(Work {
            content: self.ledger[number].content,
            number: Some(number),
            stage: Stage::Unknown,
            was_unknown: true,
        })
    }

    pub(super) fn take_over(&mut self, relay: usize) {
        let last = self.ledger.last().map_or(0, |batch| batch.content.last);
        self.relays[relay] = Relay {
            has_session: true,
            memory: Some(Tenure {
                sealed: self.ledger.len(),
                position: last,
                work: self.unfinished(),
            }),
        };
    }

    pub(super) fn seal(&mut self, rules: &Deliveries, relay: usize, events: u8) {
        let next = self.ledger.len();
        let identity = self.next_identity;
        let Some(tenure) = &mut self.relays[relay].memory else {
            return;
        };
        let content = Content {
            identity,
            first: tenure.position + 1,
            last: tenure.position + events,
        };
        self.next_identity += 1;
        if rules.seals_before_send && rules.fences_numbers && tenure.sealed != next {
            // Fenced: somebody else has sealed.
            self.relays[relay] = Relay::default();
            return;
        }
        tenure.position = content.last;
        tenure.sealed += 1;
        tenure.work = Some(Work {
            content,
            number: rules.seals_before_send.then_some(next),
            stage: Stage::Ready,
            was_unknown: false,
        });
        if rules.seals_before_send {
            self.record(content);
        }
    }

    pub(super) fn record(&mut self, content: Content) {
        self.ledger.push(Sealed {
            content,
            is_old: false,
            is_delivered: false,
        });
    }

    pub(super) fn apply(&mut self, rules: &Deliveries, request: usize, is_heard: bool) {
        let Request { content, from } = self.requests.remove(request);
        if !rules.sink_knows_tokens || !self.tokens.contains(&content.identity) {
            self.written.push(content);
            self.written.sort_unstable();
        }
        if rules.sink_knows_tokens {
            self.tokens.push(content.identity);
            self.tokens.sort_unstable();
            self.tokens.dedup();
        }
        let stage = if is_heard {
            Stage::Delivered
        } else {
            Stage::Unknown
        };
        self.answer(from, stage);
    }

    pub(super) fn answer(&mut self, to: Option<usize>, stage: Stage) {
        if let Some(work) = to.and_then(|relay| self.work(relay)) {
            work.stage = stage;
            work.was_unknown |= stage == Stage::Unknown;
        }
    }

    pub(super) fn refuse(&mut self, rules: &Deliveries, request: usize) {
        let Request { from, .. } = self.requests.remove(request);
        let was_unknown = from
            .and_then(|relay| self.work(relay))
            .map(|work| work.was_unknown);
        let is_unknown = was_unknown == Some(true) && rules.doubt_outlives_refusal;
        let stage = if is_unknown {
            Stage::Unknown
        } else {
            Stage::Refused
        };
        self.answer(from, stage);
    }

    /// `lookup::resolve`.
    pub(super) fn resolve(&mut self, rules: &Deliveries, relay: usize) {
        let Some(work) = self.work(relay).copied() else {
            return;
        };
        let is_old = work.number.is_some_and(|number| self.ledger[number].is_old);
        let is_remembered = rules.mode != Mode::Lookup && !is_old;
        let stage = if is_remembered || !rules.looks_when_old {
            Stage::Ready
        } else if rules.mode == Mode::TokenWithoutLook {
            self.has_stopped = true;
            Stage::Unknown
        } else {
            if rules.fences_before_look {
                self.fence(work.content);
            }
            match self.written.contains(&work.content) {
                true => Stage::Delivered,
                false => Stage::Ready,
            }
        };
        if let Some(work) = self.work(relay) {
            work.stage = stage;
        }
    }

    /// Ends what may still be running of a batch, whoever sent it.
    pub(super) fn fence(&mut self, content: Content) {
        let is_of = |request: &mut Request| request.content == content;
        for ended in self.requests.extract_if(.., is_of).collect::<Vec<_>>() {
            self.answer(ended.from, Stage::Unknown);
        }
    }

    pub(super) fn confirm(&mut self, relay: usize) {
        let Some(work) = self.work(relay).copied() else {
            return;
        };
        let number = work.number.unwrap_or_else(|| {
            self.record(work.content);
            self.ledger.len() - 1
        });
        self.ledger[number].is_delivered = true;
        let next = self.unfinished();
        if let Some(tenure) = &mut self.relays[relay].memory {
            tenure.work = next;
        }
    }

    /// Whether an attempt of the batch is under way. A relay that has decided to send does so at once,
    /// unless it rests in between.
    pub(super) fn is_attempted(&self, rules: &Deliveries, content: Content) -> bool {
        let sends = |relay: &Relay| {
            let work = relay.memory.and_then(|tenure| tenure.work);
            work.is_some_and(|work| {
                work.content == content
                    && (work.stage == Stage::Checked
                        || rules.decides_after_rest && work.stage == Stage::Ready)
            })
        };
        self.requests
            .iter()
            .any(|request| request.content == content)
            || self.relays.iter().any(sends)
    }
}
