//! What the fake sink holds, as a ClickHouse would: partitions with rows, remembered tokens, views,
//! and inserts that are still on their way. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use pillarbox_relay::batch::{Batch, Block, NUMBER_BITS};
use pillarbox_relay::sink::Insert;
use uuid::Uuid;

use super::encoder::{Ask, FakePlan, Fields, OwnedRow, digest, read_body};
use super::event::content;
use super::view::View;
use super::window::{TokenLog, Window};

/// A row as the fake sink holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRow {
    /// Identity of the event.
    pub event_id: Uuid,
    /// Value of the column `batch`.
    pub batch: u64,
    /// The partition that holds it.
    pub partition: String,
    /// The payload, byte for byte.
    pub event_context: Vec<u8>,
    /// Hash of the row.
    pub digest: u64,
    /// Hash of what the publisher said: see [`FakeEvent::content`](super::FakeEvent::content).
    pub content: u64,
}

/// One insert that reached the fake sink, written or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Number of the batch.
    pub number: i64,
    /// The block.
    pub ordinal: usize,
    /// Its token.
    pub token: String,
    /// Rows in it.
    pub rows: u64,
    /// Whether its rows were written; not so when the token was known.
    pub is_written: bool,
}

/// An insert on its way.
#[derive(Clone, Debug)]
pub(super) struct Parcel {
    pub(super) batch: Batch,
    pub(super) ordinal: usize,
    pub(super) body: Bytes,
    pub(super) columns: Vec<String>,
    /// What it waits for, when it is late.
    pub(super) late: Late,
}

impl Parcel {
    pub(super) fn new(plan: &FakePlan, insert: &Insert<'_>) -> Self {
        Self {
            batch: insert.batch.clone(),
            ordinal: insert.ordinal,
            body: Bytes::from(insert.body.concat()),
            columns: plan.0.columns.clone(),
            late: Late::Operations(0),
        }
    }

    /// Whether one of its rows is poison, or it cannot be read.
    pub(super) fn is_poisoned(&self, poison: &Ask<bool>) -> bool {
        let Some((_, rows)) = read_body(&self.body) else {
            return true;
        };
        rows.iter().any(|row| {
            let values: Vec<Option<&[u8]>> = row.iter().map(Option::as_deref).collect();
            poison(&Fields {
                columns: &self.columns,
                values: &values,
            })
        })
    }
}

/// When a late insert is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Late {
    /// When so many further operations began; a fence ends it before that.
    Operations(u32),
    /// At this time, and no fence ends it: a middlebox holds it.
    Until(Duration),
}

/// What an insert does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// The rows are written unless the token is known, and pushed to the views.
    Whole,
    /// Half of the rows, and no token.
    Half,
    /// The token alone: the part was not committed.
    TokenOnly,
    /// The rows and the token, but no view gets them.
    SourceOnly,
}

/// The memory behind a fake sink.
#[derive(Debug)]
pub(super) struct Destination {
    partitions: BTreeMap<String, Vec<StoredRow>>,
    /// What the table remembers; nothing, when it does not take tokens.
    pub(super) log: Option<TokenLog>,
    /// Whether it takes tokens and then does not look at them.
    pub(super) ignores_tokens: bool,
    pub(super) views: Vec<View>,
    pub(super) inserts: Vec<Attempt>,
    pub(super) late: Vec<Parcel>,
    /// Inserts that the server works on, by number, with their tokens.
    running: BTreeMap<u64, String>,
    last_running: u64,
    /// Blocks that were written in part: value of the column `batch`, partition and token.
    halves: BTreeSet<(u64, String, String)>,
    /// Tokens that came without their rows.
    hollow: BTreeSet<String>,
    /// Blocks that others wrote.
    foreign: u64,
}

impl Destination {
    pub(super) fn new(window: Option<Window>, views: Vec<View>) -> Self {
        Self {
            partitions: BTreeMap::new(),
            log: window.map(TokenLog::new),
            ignores_tokens: false,
            views,
            inserts: Vec::new(),
            late: Vec::new(),
            running: BTreeMap::new(),
            last_running: 0,
            halves: BTreeSet::new(),
            hollow: BTreeSet::new(),
            foreign: 0,
        }
    }

    /// Does what an insert does. Says whether every view took it.
    pub(super) fn write(&mut self, parcel: &Parcel, effect: Effect, now: Duration) -> bool {
        let Some(block) = parcel.batch.blocks.get(parcel.ordinal) else {
            return true;
        };
        let mut rows = rows_of(parcel, &block.partition);
        let token = parcel.batch.token(parcel.ordinal);
        let knows = |log: &mut TokenLog| log.knows(&block.partition, &token, now);
        let is_known = !self.ignores_tokens && self.log.as_mut().is_some_and(knows);
        let whole = rows.clone();
        match effect {
            Effect::Half => rows.truncate(rows.len() / 2),
            Effect::TokenOnly => rows.clear(),
            Effect::Whole | Effect::SourceOnly => {}
        }
        self.inserts.push(Attempt {
            number: parcel.batch.number,
            ordinal: parcel.ordinal,
            token: token.clone(),
            rows: rows.len() as u64,
            is_written: !is_known,
        });
        if !is_known {
            if effect == Effect::Half && !rows.is_empty() {
                let partition = block.partition.clone();
                self.halves
                    .insert((parcel.batch.sink_value(), partition, token.clone()));
            }
            if effect == Effect::TokenOnly {
                self.hollow.insert(token.clone());
            }
            let partition = self.partitions.entry(block.partition.clone()).or_default();
            partition.extend(rows);
            if let Some(log) = self.log.as_mut().filter(|_| effect != Effect::Half) {
                log.note(&block.partition, &token, now);
            }
        }
        let pushed = |view: &mut View| view.push(&block.partition, &token, &whole, now);
        // Every view is pushed to, whatever became of the one before.
        effect != Effect::Whole
            || self
                .views
                .iter_mut()
                .map(pushed)
                .fold(true, |all, one| all & one)
    }

    /// An operation begins: late inserts come nearer, and are written when their time has come.
    pub(super) fn operation_begins(&mut self, now: Duration) {
        let waiting = std::mem::take(&mut self.late);
        for mut parcel in waiting {
            let is_due = match &mut parcel.late {
                Late::Operations(0) => true,
                Late::Operations(left) => {
                    *left -= 1;
                    false
                }
                Late::Until(due) => *due <= now,
            };
            if is_due {
                self.write(&parcel, Effect::Whole, now);
            } else {
                self.late.push(parcel);
            }
        }
    }

    /// Every late insert is written now.
    pub(super) fn commit_late(&mut self, now: Duration) {
        for parcel in std::mem::take(&mut self.late) {
            self.write(&parcel, Effect::Whole, now);
        }
    }

    /// The server begins to work on an insert.
    pub(super) fn begin(&mut self, token: String) -> u64 {
        self.last_running += 1;
        self.running.insert(self.last_running, token);
        self.last_running
    }

    /// The server has done its work on an insert, unless a fence ended it.
    pub(super) fn end(&mut self, insert: u64) -> bool {
        self.running.remove(&insert).is_some()
    }

    /// Ends the inserts of a block that a fence can see.
    pub(super) fn fence(&mut self, token: &str) {
        self.running.retain(|_, running| running != token);
        self.late.retain(|parcel| {
            matches!(parcel.late, Late::Until(_)) || parcel.batch.token(parcel.ordinal) != token
        });
    }

    /// Others write blocks into the table, none of them rows of ours.
    pub(super) fn written_by_others(&mut self, blocks: u64, now: Duration) {
        for _ in 0..blocks {
            self.foreign += 1;
            let token = format!("another writer's {}", self.foreign);
            if let Some(log) = &mut self.log {
                log.note("", &token, now);
            }
        }
    }

    /// Does what people do about a sink that stands still: blocks written in part are deleted, and
    /// tokens without rows are forgotten. Says whether there was anything to do.
    pub(super) fn mend(&mut self) -> bool {
        let (halves, hollow) = (
            std::mem::take(&mut self.halves),
            std::mem::take(&mut self.hollow),
        );
        for (batch, partition, _) in &halves {
            if let Some(rows) = self.partitions.get_mut(partition) {
                rows.retain(|row| row.batch != *batch);
            }
        }
        // A late insert of the same block may have come through whole before it was deleted.
        let deleted = halves.iter().map(|(_, _, token)| token);
        for token in hollow.iter().chain(deleted) {
            if let Some(log) = &mut self.log {
                log.forget_token(token);
            }
        }
        for view in &mut self.views {
            view.set_broken(false);
        }
        !halves.is_empty() || !hollow.is_empty()
    }

    /// Count and digest of what is there of a block.
    pub(super) fn look(&self, batch: u64, block: &Block) -> (u64, u64) {
        let rows = self.partitions.get(&block.partition);
        let rows = rows.into_iter().flatten().filter(|row| row.batch == batch);
        rows.fold((0, 0), |(count, sum), row| {
            (count + 1, sum.wrapping_add(row.digest))
        })
    }

    pub(super) fn highest_number(&self, origin: u32) -> Option<i64> {
        let rows = self.rows();
        let ours = rows.filter(|row| row.batch >> NUMBER_BITS == u64::from(origin));
        ours.map(|row| (row.batch & ((1 << NUMBER_BITS) - 1)).cast_signed())
            .max()
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = &StoredRow> {
        self.partitions.values().flatten()
    }
}

fn rows_of(parcel: &Parcel, partition: &str) -> Vec<StoredRow> {
    let Some((batch, rows)) = read_body(&parcel.body) else {
        return Vec::new();
    };
    let stored = |row: OwnedRow| {
        let values: Vec<Option<&[u8]>> = row.iter().map(Option::as_deref).collect();
        let fields = Fields {
            columns: &parcel.columns,
            values: &values,
        };
        StoredRow {
            event_id: fields.event_id().unwrap_or_default(),
            batch,
            partition: partition.to_owned(),
            event_context: fields.get("event_context").unwrap_or_default().to_vec(),
            digest: digest(&values),
            content: content(|column| fields.get(column)),
        }
    };
    rows.into_iter().map(stored).collect()
}
