//! A batch: the sealed piece of a window that is delivered as one, and the builder that fills it.
//!
//! Pure. The spine gives every row that `source` reads to a [`Builder`], which asks the sink's
//! [`Encoder`](crate::sink::Encoder) to encode it and decides when the batch is full.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::body::Body;
use crate::sink::{Encoder, Pushed, RowError, Terms};
use crate::snapshot::{Cut, Span};
use crate::source::{Closed, Rows};

/// Number of bits that a batch number takes in the sink's column `batch`; the origin lies above.
pub const NUMBER_BITS: u32 = 40;

/// Why a batch exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Number 0: where a sink starts; holds no rows.
    Genesis,
    /// A piece of a window.
    Window,
    /// A part of a batch that was split.
    Child,
    /// Events delivered again on request.
    Replay,
    /// Events delivered again because the sink had lost them.
    Repair,
    /// Dead letters that somebody wants to be delivered after all.
    Retry,
}

impl Kind {
    /// The word in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Genesis => "genesis",
            Self::Window => "window",
            Self::Child => "child",
            Self::Replay => "replay",
            Self::Repair => "repair",
            Self::Retry => "retry",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One line of a batch's block map: what goes into one partition of the destination in one insert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Value of the destination's partition expression, as text; empty when it has none.
    pub partition: String,
    /// Number of rows.
    pub rows: u64,
    /// Sum modulo 2⁶⁴ of the row hashes.
    #[serde(with = "hex_digest")]
    pub digest: u64,
    /// Whether its rows carry the batch number: only then can one look for them.
    #[serde(default)]
    pub is_numbered: bool,
}

impl Block {
    /// Whether both stand for the same rows, with or without the batch number.
    pub fn same_rows(&self, other: &Self) -> bool {
        (&self.partition, self.rows, self.digest) == (&other.partition, other.rows, other.digest)
    }
}

/// A batch as the ledger holds it. Sealed before its first byte is sent; it never changes (INV-3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Position in the sink's ledger, from 0 (genesis).
    pub number: i64,
    /// Random identity; the tokens are made from it.
    pub batch_id: Uuid,
    /// Random bits of the sink's registration, unique among sources, streams and lives of a database.
    pub origin: u32,
    /// Why the batch exists.
    pub kind: Kind,
    /// The batch that it was split from, or that it delivers again.
    pub parent: Option<i64>,
    /// The first batch of its family, for a child: a family is settled as one.
    pub root: Option<i64>,
    /// Which events it holds.
    pub span: Span,
    /// Which of the span's events, where these are not all.
    pub selection: Selection,
    /// On what it was sealed; `None` for a batch of schema version 1.
    pub terms: Option<Terms>,
    /// Number of events.
    pub rows: u64,
    /// Bytes of the events as read from the outbox.
    pub bytes: u64,
    /// Sum modulo 2⁶⁴ of the row hashes of all blocks.
    pub digest: u64,
    /// The block map; a block's ordinal is its index.
    pub blocks: Vec<Block>,
    /// When the batch was sealed, by PostgreSQL's clock; set by `seal`.
    pub sealed_at: SystemTime,
}

impl Batch {
    /// The deduplication token of block `ordinal`: identity, never content.
    pub fn token(&self, ordinal: usize) -> String {
        format!("{}/{ordinal}", self.batch_id)
    }

    /// The value of the sink's column `batch`.
    pub fn sink_value(&self) -> u64 {
        sink_value(self.origin, self.number)
    }

    /// The first batch of its family: itself, unless it is a child.
    pub fn family(&self) -> i64 {
        self.root.unwrap_or(self.number)
    }
}

/// Which events of a span a batch holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Where its events lie.
    #[serde(default, skip_serializing_if = "Store::is_outbox")]
    pub store: Store,
    /// Those of one partition of the destination: the others were delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<String>,
    /// Those that happened between two instants, the second excluded, in microseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<(i64, i64)>,
    /// Not these: they are in the dead letters. Ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Cut>,
}

impl Selection {
    /// Whether every event of the span belongs to the batch.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }
}

/// Where the events of a batch lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// In the outbox.
    #[default]
    Outbox,
    /// In the dead letters that are to be retried; a batch of them is not sealed yet.
    Requested,
    /// In the dead letters that the batch of this number retries.
    Retried(i64),
}

impl Store {
    fn is_outbox(&self) -> bool {
        *self == Self::Outbox
    }
}

/// The value of the sink's column `batch` for batch `number` of a registration.
pub fn sink_value(origin: u32, number: i64) -> u64 {
    (u64::from(origin) << NUMBER_BITS) | number.cast_unsigned()
}

/// One event as read from the outbox.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Its place in the order of events.
    pub at: Cut,
    /// The columns of the plan, in PostgreSQL's binary format.
    pub fields: &'a [Option<&'a [u8]>],
}

/// What closes a batch.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows at most.
    pub rows_max: u64,
    /// Bytes at most, but at least one row.
    pub bytes_max: u64,
}

/// An encoded block, ready to be sent as it is.
#[derive(Clone, Debug)]
pub struct EncodedBlock {
    /// Its line of the block map.
    pub block: Block,
    /// The bytes of the insert.
    pub body: Body,
}

/// What a builder made of the rows it took.
#[derive(Debug)]
pub struct Draft {
    /// Number of rows.
    pub rows: u64,
    /// Bytes of the rows as read.
    pub bytes: u64,
    /// Where the batch cuts its span, because a row that follows had no room.
    pub cut: Option<Cut>,
    /// The blocks, in the order of their ordinals.
    pub blocks: Vec<EncodedBlock>,
    /// The rows of its span that the destination cannot represent, ascending; not in the blocks.
    pub dead: Vec<RowError>,
}

impl Draft {
    /// The block map.
    pub fn block_map(&self) -> Vec<Block> {
        self.blocks
            .iter()
            .map(|encoded| encoded.block.clone())
            .collect()
    }

    /// Whether the rows, block by block, are those that were sealed.
    pub fn is_as_sealed(&self, batch: &Batch) -> bool {
        let mut pairs = self.blocks.iter().zip(&batch.blocks);
        self.rows == batch.rows
            && self.blocks.len() == batch.blocks.len()
            && pairs.all(|(encoded, sealed)| encoded.block.same_rows(sealed))
    }

    /// Digest of the whole batch.
    pub fn digest(&self) -> u64 {
        self.blocks
            .iter()
            .fold(0, |sum, encoded| sum.wrapping_add(encoded.block.digest))
    }
}

/// Collects rows into a batch until a limit is reached.
#[derive(Debug)]
pub struct Builder<E> {
    encoder: E,
    limits: Limits,
    without: Vec<Cut>,
    dead_max: u64,
    is_waiting: bool,
    rows: u64,
    bytes: u64,
    last: Option<Cut>,
    is_full: bool,
    dead: Vec<RowError>,
}

impl<E: Encoder> Rows for Builder<E> {
    fn push(&mut self, row: &Row<'_>) -> Result<Pushed, RowError> {
        if self.without.binary_search(&row.at).is_ok() {
            return Ok(Pushed::Skipped);
        }
        let bytes: u64 = row
            .fields
            .iter()
            .flatten()
            .map(|field| field.len() as u64)
            .sum();
        // Dead rows count: the source reads one row more than may be taken, of whatever kind.
        let count = self.rows + self.dead();
        let fits = count < self.limits.rows_max && self.bytes + bytes <= self.limits.bytes_max;
        if count > 0 && !fits {
            self.is_full = true;
            return Ok(Pushed::NoRoom);
        }
        match self.encoder.push(row) {
            Ok(Pushed::Taken) => {
                self.rows += 1;
                self.bytes += bytes;
                self.last = Some(row.at);
                Ok(Pushed::Taken)
            }
            Ok(Pushed::Skipped) => Ok(Pushed::Skipped),
            Ok(Pushed::NoRoom) => {
                self.is_full = true;
                Ok(Pushed::NoRoom)
            }
            Err(error) => self.set_aside(error),
        }
    }

    fn refuse(&mut self, error: RowError) -> Result<Pushed, RowError> {
        if self.rows + self.dead() >= self.limits.rows_max {
            self.is_full = true;
            return Ok(Pushed::NoRoom);
        }
        self.set_aside(error)
    }

    fn leaves_out(&mut self, row: &Row<'_>) -> bool {
        self.without.binary_search(&row.at).is_ok() || self.encoder.skips(row)
    }

    fn close(&mut self) -> Closed {
        if !self.is_waiting {
            return Closed::Refuse;
        }
        // A batch that sets nothing aside is one that was sealed: it has to be whole.
        self.is_full = self.dead_max > 0 && self.last.is_some();
        match self.is_full {
            true => Closed::Enough,
            false => Closed::Wait,
        }
    }
}

impl<E: Encoder> Builder<E> {
    fn set_aside(&mut self, error: RowError) -> Result<Pushed, RowError> {
        if self.dead_max == 0 {
            return Err(error);
        }
        if self.dead() == self.dead_max {
            self.is_full = true;
            return Ok(Pushed::NoRoom);
        }
        self.last = Some(error.at());
        self.dead.push(error);
        Ok(Pushed::Taken)
    }

    /// An empty batch.
    pub fn new(encoder: E, limits: Limits) -> Self {
        Self {
            encoder,
            limits,
            without: Vec::new(),
            dead_max: 0,
            is_waiting: true,
            rows: 0,
            bytes: 0,
            last: None,
            is_full: false,
            dead: Vec::new(),
        }
    }

    /// Leaves these rows out. Ascending.
    #[must_use]
    pub fn without(self, without: &[Cut]) -> Self {
        Self {
            without: without.to_vec(),
            ..self
        }
    }

    /// Sets aside up to so many rows that the destination cannot represent. Without, the first one is an
    /// error.
    #[must_use]
    pub fn setting_aside(self, dead_max: u64) -> Self {
        Self { dead_max, ..self }
    }

    /// Refuses a row of which a value is to be waited for: what somebody asked for holds up nobody else.
    #[must_use]
    pub fn never_waiting(self) -> Self {
        Self {
            is_waiting: false,
            ..self
        }
    }

    /// Rows taken, those that the destination cannot represent excepted.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Rows that the destination cannot represent.
    pub fn dead(&self) -> u64 {
        self.dead.len() as u64
    }

    /// Where the batch cuts its span, because a row that follows had no room.
    pub fn cut(&self) -> Option<Cut> {
        self.last.filter(|_| self.is_full)
    }

    /// Closes the batch whose column `batch` is `sink_value`.
    pub fn finish(self, sink_value: u64) -> Draft {
        Draft {
            rows: self.rows,
            bytes: self.bytes,
            cut: self.cut(),
            blocks: self.encoder.finish(sink_value),
            dead: self.dead,
        }
    }
}

/// Digests are written as sixteen hexadecimal digits: JSON numbers lose bits above 2⁵³.
mod hex_digest {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(digest: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{digest:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;
