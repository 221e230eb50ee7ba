//! What generators know, against what the sink holds.
//!
//! A generator records outside of Pillarbox what became of each of its events when COMMIT returned;
//! at the end every row of the sink is read and the two are compared (INV-1, INV-2, INV-12).
//! Memory: about 100 bytes for each event recorded.

mod reading;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

pub use reading::{read_clickhouse, read_dead_letters};

/// How many ids of each finding a verdict names.
const SAMPLE_MAX: usize = 10;

/// How fine the sink's column `event_date_time` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// `DateTime`, as on 18.16.
    Seconds,
    /// `DateTime64(6)`.
    Micros,
}

impl Precision {
    /// Microseconds since 1970 as the column holds them: the instant's begin of second or itself.
    fn of(self, time_us: i64) -> i64 {
        match self {
            Self::Seconds => time_us.div_euclid(1_000_000) * 1_000_000,
            Self::Micros => time_us,
        }
    }
}

/// The columns of an event that arrive as published, but for its time.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// `event_type`.
    pub event_type: &'a str,
    /// `environment`.
    pub environment: &'a str,
    /// The bytes of `event_context`.
    pub event_context: &'a [u8],
    /// `metadata_version`.
    pub metadata_version: u64,
}

impl Content<'_> {
    /// Over the columns, each with its length.
    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let columns = [
            self.event_type.as_bytes(),
            self.environment.as_bytes(),
            self.event_context,
        ];
        for column in columns {
            hasher.write_u64(column.len() as u64);
            hasher.write_u64(folded(column));
        }
        hasher.write_u64(self.metadata_version);
        hasher.finish()
    }
}

/// A hash of bytes that is fast without optimisation too, where SipHash does 11 MB/s. Every step can
/// be undone, so a change inside of one word is always seen; others collide as any 64 bits do.
fn folded(bytes: &[u8]) -> u64 {
    // 2^64 divided by the golden ratio, odd.
    const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
    let step = |state: u64, word: u64| (state.rotate_left(23) ^ word).wrapping_mul(FACTOR);
    let (words, rest) = bytes.as_chunks::<8>();
    let mut state = 0;
    for word in words {
        state = step(state, u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    step(state, u64::from_le_bytes(last))
}

/// Where an event must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In the sink or in the dead letters.
    Either,
    /// In the sink: it takes the event.
    Sink,
    /// In the dead letters: the event is poison.
    DeadLetters,
}

/// An event as its generator published it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Its identity, which no other event of the run has.
    pub event_id: Uuid,
    hash: u64,
    first_us: i64,
    last_us: i64,
    end: End,
}

impl Published {
    /// An event with a time of the generator's own, in microseconds since 1970.
    pub fn new(event_id: Uuid, content: &Content<'_>, event_date_time_us: i64) -> Self {
        Self::between(event_id, content, event_date_time_us, event_date_time_us)
    }

    /// An event whose time the server chose, between two instants on the same clock.
    pub fn between(event_id: Uuid, content: &Content<'_>, first_us: i64, last_us: i64) -> Self {
        Self {
            event_id,
            hash: content.hash(),
            first_us,
            last_us,
            end: End::Either,
        }
    }

    /// The same event, of which it is known where it must end.
    #[must_use]
    pub fn must_end(self, end: End) -> Self {
        Self { end, ..self }
    }

    fn may_end(&self, end: End) -> bool {
        self.end == End::Either || self.end == end
    }

    fn is(&self, found: &Found) -> bool {
        let bounds = found.precision.of(self.first_us)..=found.precision.of(self.last_us);
        self.hash == found.hash && bounds.contains(&found.time_us)
    }
}

/// A row that the sink holds, or a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its identity.
    pub event_id: Uuid,
    hash: u64,
    time_us: i64,
    precision: Precision,
}

impl Found {
    /// A row; its time in microseconds since 1970, as fine as `precision`.
    pub fn new(
        event_id: Uuid,
        content: &Content<'_>,
        event_date_time_us: i64,
        precision: Precision,
    ) -> Self {
        Self {
            event_id,
            hash: content.hash(),
            time_us: event_date_time_us,
            precision,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    Committed(Published),
    RolledBack,
    Unanswered(Published),
}

/// The record of a run. Generators share it; what is recorded last of an event holds.
#[derive(Debug, Default)]
pub struct Oracle {
    events: Mutex<HashMap<Uuid, State>>,
}

impl Oracle {
    /// An empty record.
    pub fn new() -> Self {
        Self::default()
    }

    /// COMMIT of the event's transaction returned.
    pub fn committed(&self, event: Published) {
        self.events()
            .insert(event.event_id, State::Committed(event));
    }

    /// The event's transaction, or the savepoint before it, was rolled back.
    pub fn rolled_back(&self, event_id: Uuid) {
        self.events().insert(event_id, State::RolledBack);
    }

    /// COMMIT was sent and not answered; [`Oracle::resolve`] it by a look at the business table.
    pub fn unanswered(&self, event: Published) {
        self.events()
            .insert(event.event_id, State::Unanswered(event));
    }

    /// The events whose outcome is not known.
    pub fn unresolved(&self) -> Vec<Uuid> {
        let unanswered =
            |(id, state): (&Uuid, &State)| matches!(state, State::Unanswered(_)).then_some(*id);
        self.events().iter().filter_map(unanswered).collect()
    }

    /// Says what became of an unanswered event. Another one stays as it is.
    pub fn resolve(&self, event_id: Uuid, committed: bool) {
        if let Some(state) = self.events().get_mut(&event_id)
            && let State::Unanswered(event) = *state
        {
            *state = match committed {
                true => State::Committed(event),
                false => State::RolledBack,
            };
        }
    }

    /// How many events are known to be committed.
    pub fn published(&self) -> u64 {
        let events = self.events();
        let committed = |state: &&State| matches!(state, State::Committed(_));
        events.values().filter(committed).count() as u64
    }

    /// The events that are known to be committed.
    pub fn committed_ids(&self) -> Vec<Uuid> {
        let events = self.events();
        let committed = events
            .iter()
            .filter(|(_, state)| matches!(state, State::Committed(_)));
        committed.map(|(id, _)| *id).collect()
    }

    /// Compares with every row that the sink holds and every event in the dead letters.
    pub fn verdict(&self, found: &[Found], dead: &[Found]) -> Verdict {
        let events = self.events();
        let mut verdict = Verdict::default();
        let mut copies: HashMap<Uuid, u32> = HashMap::with_capacity(found.len());
        let rows = found.iter().map(|row| (row, End::Sink));
        let letters = dead.iter().map(|letter| (letter, End::DeadLetters));
        for (row, end) in rows.chain(letters) {
            let id = row.event_id;
            let event = match events.get(&id) {
                Some(State::Committed(event) | State::Unanswered(event)) => event,
                Some(State::RolledBack) | None => {
                    verdict.phantom.add(id);
                    continue;
                }
            };
            let copies = copies.entry(id).or_default();
            *copies += 1;
            match end {
                _ if *copies > 1 => verdict.duplicated.add(id),
                End::DeadLetters => verdict.dead += 1,
                End::Sink | End::Either => verdict.delivered += 1,
            }
            if !event.may_end(end) {
                verdict.misplaced.add(id);
            }
            if !event.is(row) {
                verdict.altered.add(id);
            }
        }
        for (id, state) in events.iter() {
            match state {
                State::Committed(_) => {
                    verdict.published += 1;
                    if !copies.contains_key(id) {
                        verdict.lost.add(*id);
                    }
                }
                State::Unanswered(_) => verdict.unresolved.add(*id),
                State::RolledBack => verdict.rolled_back += 1,
            }
        }
        verdict
    }

    fn events(&self) -> MutexGuard<'_, HashMap<Uuid, State>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often something was found, and a few of the events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finding {
    /// How often.
    pub count: u64,
    /// The first ten.
    pub sample: Vec<Uuid>,
}

impl Finding {
    fn add(&mut self, event_id: Uuid) {
        self.count += 1;
        if self.sample.len() < SAMPLE_MAX {
            self.sample.push(event_id);
        }
    }
}

/// What the comparison found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Committed events.
    pub published: u64,
    /// Of these and the unresolved, those that the sink holds.
    pub delivered: u64,
    /// Of these, those in the dead letters and not in the sink.
    pub dead: u64,
    /// Events that were rolled back; not shown.
    pub rolled_back: u64,
    /// Committed events that are in neither.
    pub lost: Finding,
    /// Copies beyond the first, in either.
    pub duplicated: Finding,
    /// Rows of no committed event.
    pub phantom: Finding,
    /// Rows and dead letters that differ from what was published.
    pub altered: Finding,
    /// Events in the sink that must be in the dead letters, or the other way round.
    pub misplaced: Finding,
    /// Events whose COMMIT was not answered and that nobody resolved.
    pub unresolved: Finding,
}

impl Verdict {
    /// Whether every committed event is there once and unaltered, and nothing else is.
    pub fn holds(&self) -> bool {
        self.findings()
            .iter()
            .all(|(_, finding)| finding.count == 0)
    }

    /// The findings that should be empty and are not, with a few ids; empty when all holds.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        for (word, finding) in self.findings() {
            if finding.count > 0 {
                let ids: Vec<String> = finding.sample.iter().map(Uuid::to_string).collect();
                text.push_str(&format!("{word} {}: {}\n", finding.count, ids.join(" ")));
            }
        }
        text
    }

    fn findings(&self) -> [(&'static str, &Finding); 6] {
        [
            ("lost", &self.lost),
            ("duplicated", &self.duplicated),
            ("phantom", &self.phantom),
            ("altered", &self.altered),
            ("misplaced", &self.misplaced),
            ("unresolved", &self.unresolved),
        ]
    }
}

/// `published=N delivered=N dead=N lost=N duplicated=N phantom=N altered=N`, then `misplaced=N` and
/// `unresolved=N` where there are any.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "published={} delivered={} dead={} lost={} duplicated={} phantom={} altered={}",
            self.published,
            self.delivered,
            self.dead,
            self.lost.count,
            self.duplicated.count,
            self.phantom.count,
            self.altered.count,
        )?;
        let rare = [
            ("misplaced", &self.misplaced),
            ("unresolved", &self.unresolved),
        ];
        for (word, finding) in rare.iter().filter(|(_, finding)| finding.count > 0) {
            write!(f, " {word}={}", finding.count)?;
        }
        Ok(())
    }
}
