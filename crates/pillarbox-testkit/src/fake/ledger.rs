//! The ledger of the fake database: sinks, batches and what became of them. Pure.

use std::collections::BTreeMap;
use std::time::SystemTime;

use pillarbox_relay::batch::{Batch, Kind, Selection, Store};
use pillarbox_relay::snapshot::{Cut, Position, Snapshot, Span};
use pillarbox_relay::source::{
    Outcome, Record, Replay, Request, SourceError, Standing, Unfinished,
};
use uuid::Uuid;

use super::letters::{LetterState, Letters};
use super::ring::OutboxRow;

/// A registered sink.
#[derive(Clone, Debug)]
pub(super) struct Registered {
    pub(super) name: String,
    pub(super) origin: u32,
    pub(super) paused: bool,
    pub(super) retired: bool,
    pub(super) stopped: Option<String>,
}

#[derive(Clone, Debug)]
struct Sealed {
    batch: Batch,
    timeline: u32,
}

#[derive(Clone, Debug)]
struct Recorded {
    outcome: Outcome,
    at: SystemTime,
}

/// `pillarbox.sink`, `pillarbox.batch` and `pillarbox.delivery`.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    pub(super) sinks: BTreeMap<i32, Registered>,
    pub(super) timeline: u32,
    /// Whether a number can be sealed twice; see [`Weakness`](super::Weakness).
    pub(super) takes_taken_numbers: bool,
    batches: BTreeMap<(i32, i64), Sealed>,
    deliveries: BTreeMap<(i32, i64), Recorded>,
    pub(super) letters: Letters,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self {
            sinks: BTreeMap::new(),
            timeline: 1,
            takes_taken_numbers: false,
            batches: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            letters: Letters::default(),
        }
    }

    pub(super) fn register(&mut self, name: &str, origin: u32, start: Snapshot) -> i32 {
        let sink = i32::try_from(self.sinks.len() + 1).unwrap_or(i32::MAX);
        let registered = Registered {
            name: name.to_owned(),
            origin,
            paused: false,
            retired: false,
            stopped: None,
        };
        self.sinks.insert(sink, registered);
        let genesis = Batch {
            number: 0,
            batch_id: Uuid::from_u64_pair(u64::MAX, u64::from(sink.unsigned_abs())),
            origin,
            kind: Kind::Genesis,
            parent: None,
            root: None,
            selection: Selection::default(),
            terms: None,
            span: Span {
                from: start.clone(),
                to: start,
                after: None,
                until: None,
            },
            rows: 0,
            bytes: 0,
            digest: 0,
            blocks: Vec::new(),
            sealed_at: SystemTime::UNIX_EPOCH,
        };
        let timeline = self.timeline;
        let sealed = Sealed {
            batch: genesis,
            timeline,
        };
        self.batches.insert((sink, 0), sealed);
        sink
    }

    pub(super) fn sink(&self, name: &str) -> Option<i32> {
        let mut all = self.sinks.iter();
        all.find(|(_, sink)| sink.name == name).map(|(id, _)| *id)
    }

    /// All batches of a sink, by number.
    pub(super) fn batches(&self, sink: i32) -> impl DoubleEndedIterator<Item = &Batch> {
        self.batches
            .range((sink, 0)..=(sink, i64::MAX))
            .map(|(_, sealed)| &sealed.batch)
    }

    pub(super) fn batch(&self, sink: i32, number: i64) -> Option<&Batch> {
        Some(&self.batches.get(&(sink, number))?.batch)
    }

    pub(super) fn outcome(&self, sink: i32, number: i64) -> Option<&Outcome> {
        Some(&self.deliveries.get(&(sink, number))?.outcome)
    }

    /// Batches of a sink without an outcome.
    pub(super) fn open(&self, sink: i32) -> impl Iterator<Item = &Batch> {
        self.batches(sink)
            .filter(move |batch| batch.kind != Kind::Genesis)
            .filter(move |batch| !self.deliveries.contains_key(&(sink, batch.number)))
    }

    pub(super) fn standing(&self, sink: i32, now: SystemTime) -> Result<Standing, SourceError> {
        let missing = || SourceError::Broken(format!("sink {sink} has no genesis batch"));
        let last = self.batches(sink).next_back().ok_or_else(missing)?;
        let placed = self.batches(sink).rfind(|batch| moves_position(batch));
        let placed = placed.ok_or_else(missing)?;
        let sealed = self.batches.get(&(sink, placed.number));
        let registered = self.sinks.get(&sink).ok_or_else(missing)?;
        let unfinished = self.open(sink).map(|batch| Unfinished {
            batch: batch.clone(),
            age: now.duration_since(batch.sealed_at).unwrap_or_default(),
            blocks_since: self
                .batches(sink)
                .filter(|later| later.number > batch.number)
                .map(|later| later.blocks.len() as u64)
                .sum(),
            family_rows: self
                .batch(sink, batch.family())
                .map_or(batch.rows, |root| root.rows),
        });
        Ok(Standing {
            origin: registered.origin,
            last_number: last.number,
            position: Position::from(&placed.span),
            unfinished: unfinished.collect(),
            last_sealed_at: std::time::SystemTime::UNIX_EPOCH,
            timeline_changed: sealed.is_some_and(|sealed| sealed.timeline != self.timeline),
        })
    }

    /// Writes everything in `record`, or nothing; says whether that changed anything.
    pub(super) fn record(
        &mut self,
        sink: i32,
        record: &mut Record<'_>,
        now: SystemTime,
        row: impl Fn(Cut) -> Option<OutboxRow>,
    ) -> Result<bool, SourceError> {
        let before = self.clone();
        let written = self.write(sink, record, now, row);
        if written.is_err() {
            *self = before;
        }
        written
    }

    fn write(
        &mut self,
        sink: i32,
        record: &mut Record<'_>,
        now: SystemTime,
        row: impl Fn(Cut) -> Option<OutboxRow>,
    ) -> Result<bool, SourceError> {
        let mut changes = !record.batches.is_empty();
        for batch in record.batches.iter_mut() {
            batch.sealed_at = now;
            self.seal(sink, batch)?;
        }
        for outcome in record.outcomes {
            changes |= self.confirm(sink, outcome, now)?;
        }
        let first = record.batches.first().map(|batch| batch.number);
        for at in record.retried {
            self.letters.retrying(sink, *at, first.unwrap_or_default());
        }
        if let Some(wish) = record
            .replay
            .and_then(|wish| self.letters.replay(sink, wish))
        {
            wish.number = first;
        }
        for letter in record.dead {
            let known = self.letters.get(sink, letter.at);
            let row = known
                .map(|known| known.row.clone())
                .or_else(|| row(letter.at));
            let gone = || SourceError::Broken("an event to set aside is gone".to_owned());
            self.letters.add(sink, letter, row.ok_or_else(gone)?, now);
            changes = true;
        }
        if let Some(number) = record.settled_retry {
            self.letters.retried(sink, number);
        }
        Ok(changes)
    }

    /// The oldest wish of a sink.
    pub(super) fn request(&self, sink: i32) -> Option<Request> {
        let replays = self.letters.replays.get(&sink).into_iter().flatten();
        let open = replays.into_iter().find(|wish| wish.is_open());
        let Some(wish) = open else {
            return self.letters.has_requests(sink).then_some(Request::Retry);
        };
        let batch = self.batch(sink, wish.parent)?.clone();
        let family = |number: i64| {
            let of = self.batch(sink, number).map(Batch::family);
            of == Some(wish.parent)
        };
        let dead = self.letters.of(sink);
        let dead = dead.filter(|letter| family(letter.letter.number));
        let mut without = batch.selection.without.clone();
        without.extend(dead.map(|letter| letter.letter.at));
        without.sort_unstable();
        without.dedup();
        Some(Request::Replay(Box::new(Replay {
            replay: wish.replay,
            kind: wish.kind,
            selection: Selection {
                without,
                ..wish.selection.clone()
            },
            batch,
        })))
    }

    /// The rows of dead letters that lie in a store.
    pub(super) fn rows_of(&self, sink: i32, store: Store) -> Vec<OutboxRow> {
        let wanted = match store {
            Store::Outbox => return Vec::new(),
            Store::Requested => LetterState::Requested,
            Store::Retried(number) => LetterState::Retrying(number),
        };
        let letters = self.letters.of(sink);
        let wanted = letters.filter(|letter| letter.state == wanted);
        wanted.map(|letter| letter.row.clone()).collect()
    }

    fn seal(&mut self, sink: i32, batch: &Batch) -> Result<(), SourceError> {
        let key = (sink, batch.number);
        let last = self.batches(sink).next_back().map(|last| last.number);
        if last != Some(batch.number - 1) && !self.takes_taken_numbers {
            return Err(SourceError::Fenced(batch.number));
        }
        let sealed = Sealed {
            batch: batch.clone(),
            timeline: self.timeline,
        };
        self.batches.insert(key, sealed);
        Ok(())
    }

    /// The last batch that moves the position, delivered or not.
    pub(super) fn placed(&self, sink: i32) -> Option<Position> {
        let placed = self.batches(sink).rfind(|batch| moves_position(batch))?;
        Some(Position::from(&placed.span))
    }

    /// Records an outcome; says whether it is the first one.
    fn confirm(
        &mut self,
        sink: i32,
        outcome: &Outcome,
        at: SystemTime,
    ) -> Result<bool, SourceError> {
        let key = (sink, outcome.number);
        if !self.batches.contains_key(&key) {
            return Err(SourceError::Lost("there is no such batch".to_owned(), None));
        }
        if self.deliveries.contains_key(&key) {
            return Ok(false);
        }
        let outcome = outcome.clone();
        self.deliveries.insert(key, Recorded { outcome, at });
        Ok(true)
    }

    /// The last batch that moves the position such that it and all before it had an outcome by
    /// `as_of`.
    pub(super) fn safe(&self, sink: i32, as_of: SystemTime) -> Option<(i64, Position)> {
        let unsafe_ones = self.batches(sink).filter(|batch| {
            let recorded = self.deliveries.get(&(sink, batch.number));
            batch.kind != Kind::Genesis && recorded.is_none_or(|recorded| recorded.at > as_of)
        });
        // An open child keeps its family's first batch from being safe.
        let end = unsafe_ones.map(Batch::family).min().unwrap_or(i64::MAX);
        let mut safe = self.batches(sink).filter(|batch| batch.number < end);
        let safe = safe.rfind(|batch| moves_position(batch))?;
        Some((safe.number, Position::from(&safe.span)))
    }
}

fn moves_position(batch: &Batch) -> bool {
    matches!(batch.kind, Kind::Genesis | Kind::Window)
}
