//! What the fake sink holds: partitions with rows and remembered tokens, and a log of inserts.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use pillarbox_relay::batch::{Batch, Block, NUMBER_BITS};
use pillarbox_relay::sink::{Guarantee, Insert};
use uuid::Uuid;

use super::encoder::{Ask, FakePlan, Fields, OwnedRow, digest, read_body};

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
    /// When it is late: how many further operations it lets pass.
    pub(super) operations_left: u32,
}

impl Parcel {
    pub(super) fn new(plan: &FakePlan, insert: &Insert<'_>) -> Self {
        Self {
            batch: insert.batch.clone(),
            ordinal: insert.ordinal,
            body: Bytes::from(insert.body.concat()),
            columns: plan.0.columns.clone(),
            operations_left: 0,
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

#[derive(Debug, Default)]
struct Partition {
    rows: Vec<StoredRow>,
    tokens: VecDeque<String>,
}

/// The memory behind a fake sink.
#[derive(Debug)]
pub(super) struct Destination {
    partitions: BTreeMap<String, Partition>,
    pub(super) window_blocks: usize,
    pub(super) inserts: Vec<Attempt>,
    pub(super) late: Vec<Parcel>,
}

impl Destination {
    pub(super) fn new(window_blocks: usize) -> Self {
        Self {
            partitions: BTreeMap::new(),
            window_blocks,
            inserts: Vec::new(),
            late: Vec::new(),
        }
    }

    /// Writes a block, or not if its token is known. Not whole means half of the rows and no token.
    pub(super) fn write(&mut self, parcel: &Parcel, guarantee: Guarantee, is_whole: bool) {
        let Some(block) = parcel.batch.blocks.get(parcel.ordinal) else {
            return;
        };
        let mut rows = rows_of(parcel, &block.partition);
        if !is_whole {
            rows.truncate(rows.len() / 2);
        }
        let token = parcel.batch.token(parcel.ordinal);
        let partition = self.partitions.entry(block.partition.clone()).or_default();
        let is_known = guarantee == Guarantee::Token && partition.tokens.contains(&token);
        self.inserts.push(Attempt {
            number: parcel.batch.number,
            ordinal: parcel.ordinal,
            token: token.clone(),
            rows: rows.len() as u64,
            is_written: !is_known,
        });
        if is_known {
            return;
        }
        partition.rows.extend(rows);
        if is_whole && guarantee == Guarantee::Token {
            partition.tokens.push_back(token);
            while partition.tokens.len() > self.window_blocks {
                partition.tokens.pop_front();
            }
        }
    }

    /// An operation begins: late inserts come nearer, and are written when their time has come.
    pub(super) fn operation_begins(&mut self, guarantee: Guarantee) {
        let waiting = std::mem::take(&mut self.late);
        for mut parcel in waiting {
            if parcel.operations_left == 0 {
                self.write(&parcel, guarantee, true);
            } else {
                parcel.operations_left -= 1;
                self.late.push(parcel);
            }
        }
    }

    /// Ends the late inserts of a block.
    pub(super) fn fence(&mut self, token: &str) {
        self.late
            .retain(|parcel| parcel.batch.token(parcel.ordinal) != token);
    }

    /// Count and digest of what is there of a block.
    pub(super) fn look(&self, batch: u64, block: &Block) -> (u64, u64) {
        let rows = self
            .partitions
            .get(&block.partition)
            .into_iter()
            .flat_map(|partition| &partition.rows)
            .filter(|row| row.batch == batch);
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
        self.partitions
            .values()
            .flat_map(|partition| &partition.rows)
    }

    pub(super) fn tokens(&self, partition: &str) -> Vec<String> {
        self.partitions
            .get(partition)
            .map(|partition| partition.tokens.iter().cloned().collect())
            .unwrap_or_default()
    }

    pub(super) fn forget_tokens(&mut self) {
        for partition in self.partitions.values_mut() {
            partition.tokens.clear();
        }
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
        }
    };
    rows.into_iter().map(stored).collect()
}
