//! ClickHouse's Native format, straight from PostgreSQL's binary fields. Pure.
//!
//! A block is the number of columns, the number of rows, and each column as name, type and values
//! (clickhouse.com/docs/interfaces/specs/NativeFormat, without the block info that only clients with
//! a protocol revision send). A cut block is always rejected whole, which no row format guarantees.

use std::sync::Arc;

use bytes::Bytes;

use super::column::{ColumnType, Kind, Value, convert};
use super::digest;
use super::partition::{Evaluator, Key};
use super::plan::Layout;
use crate::batch::{Block, EncodedBlock, Row};
use crate::sink::{Encoder, Pushed, RowError};

/// Partitions of one batch at most: each is an insert, and ClickHouse refuses 100 parts at once.
pub(super) const BLOCKS_MAX: usize = 32;
/// Size of the pieces of a column: large enough for the wire, small enough to grow without copying.
const PIECE_BYTES: usize = 512 * 1024;
/// Size of the first piece: a batch may have few rows and many partitions.
const FIRST_PIECE_BYTES: usize = 4 * 1024;

/// Encodes the rows of one batch into one Native block for each partition.
#[derive(Debug)]
pub struct NativeEncoder {
    layout: Arc<Layout>,
    /// Indices of the columns that the digest covers, in its order.
    digest: Vec<usize>,
    /// The one partition whose rows are taken.
    only: Option<String>,
    blocks: Vec<OpenBlock>,
    /// The block of the last row: most rows follow one of the same partition.
    current: usize,
    evaluator: Evaluator,
    text: Vec<u8>,
}

#[derive(Debug)]
struct OpenBlock {
    key: Key,
    rows: u64,
    digest: u64,
    columns: Vec<Column>,
}

/// The values of one column.
#[derive(Debug, Default)]
struct Column {
    nulls: Pieces,
    values: Pieces,
}

/// Bytes that are appended to and then given away without a copy.
#[derive(Debug, Default)]
struct Pieces {
    full: Vec<Bytes>,
    open: Vec<u8>,
}

impl NativeEncoder {
    pub(super) fn new(layout: Arc<Layout>, only: Option<&str>) -> Self {
        let text = Vec::new();
        Self {
            digest: layout.digest.clone(),
            layout,
            only: only.map(str::to_owned),
            blocks: Vec::new(),
            current: 0,
            evaluator: Evaluator::new(),
            text,
        }
    }

    /// Lets the digest cover these columns instead of those of today.
    pub(super) fn proven_by(self, names: &[String]) -> Self {
        let find = |name: &String| {
            let mut columns = self.layout.columns.iter();
            columns.position(|column| column.name == *name)
        };
        let digest = names.iter().filter_map(find).collect();
        Self { digest, ..self }
    }

    /// The index of the partition's block, opened if need be; `None` when there is no room.
    fn block(&mut self, key: Key) -> Option<usize> {
        if self
            .blocks
            .get(self.current)
            .is_some_and(|block| block.key == key)
        {
            return Some(self.current);
        }
        if let Some(found) = self.blocks.iter().position(|block| block.key == key) {
            return Some(found);
        }
        if self.blocks.len() == BLOCKS_MAX {
            return None;
        }
        let columns = self
            .layout
            .columns
            .iter()
            .map(|_| Column::default())
            .collect();
        self.blocks.push(OpenBlock {
            key,
            rows: 0,
            digest: 0,
            columns,
        });
        Some(self.blocks.len() - 1)
    }

    /// What the row adds to the digest of its block.
    fn hash(&mut self, values: &[Value<'_>]) -> u64 {
        if self.digest.is_empty() {
            return 0;
        }
        self.text.clear();
        // A text that grew by doubling would hold a large event twice.
        let room = self
            .digest
            .iter()
            .map(|index| digest::room(&values[*index]));
        self.text.reserve_exact(room.sum());
        for index in &self.digest {
            digest::append(&mut self.text, &values[*index]);
        }
        digest::hash(&self.text)
    }
}

impl Encoder for NativeEncoder {
    fn push(&mut self, row: &Row<'_>) -> Result<Pushed, RowError> {
        let layout = Arc::clone(&self.layout);
        let mut values = Vec::with_capacity(layout.columns.len());
        for (index, column) in layout.columns.iter().enumerate() {
            let field = row.fields.get(index).copied().flatten();
            let value = convert(column.given, &column.of, field).map_err(|misfit| RowError {
                tx: row.at.tx,
                id: row.at.id,
                column: column.name.clone(),
                reason: misfit.to_string(),
            })?;
            values.push(value);
        }
        let key = self.evaluator.key(&layout.rule, &values);
        if self
            .only
            .as_ref()
            .is_some_and(|only| layout.rule.text(key) != *only)
        {
            return Ok(Pushed::Skipped);
        }
        let Some(current) = self.block(key) else {
            return Ok(Pushed::NoRoom);
        };
        self.current = current;
        let hash = self.hash(&values);
        let block = &mut self.blocks[current];
        for ((column, planned), value) in block.columns.iter_mut().zip(&layout.columns).zip(&values)
        {
            column.push(&planned.of, value);
        }
        block.rows += 1;
        block.digest = block.digest.wrapping_add(hash);
        Ok(Pushed::Taken)
    }

    fn finish(self, sink_value: u64) -> Vec<EncodedBlock> {
        let Self { layout, blocks, .. } = self;
        blocks
            .into_iter()
            .map(|block| block.finish(&layout, sink_value))
            .collect()
    }
}

impl OpenBlock {
    fn finish(self, layout: &Layout, batch: u64) -> EncodedBlock {
        let mut body = Pieces::default();
        let columns = layout.columns.len() + usize::from(layout.batch);
        body.varint(columns as u64);
        body.varint(self.rows);
        for (column, planned) in self.columns.into_iter().zip(&layout.columns) {
            body.text(planned.name.as_bytes());
            body.text(planned.of.wire.as_bytes());
            body.append(column.nulls);
            body.append(column.values);
        }
        if layout.batch {
            body.text(b"batch");
            body.text(b"UInt64");
            for _ in 0..self.rows {
                body.raw(&batch.to_le_bytes());
            }
        }
        let partition = layout.rule.text(self.key);
        let block = Block {
            partition,
            rows: self.rows,
            digest: self.digest,
            is_numbered: layout.batch,
        };
        EncodedBlock {
            block,
            body: body.into_bytes(),
        }
    }
}

impl Column {
    fn push(&mut self, of: &ColumnType, value: &Value<'_>) {
        if of.nullable {
            self.nulls.raw(&[u8::from(*value == Value::Null)]);
        }
        let to = &mut self.values;
        match *value {
            Value::Null => match fixed_width(&of.kind) {
                Some(width) => to.raw(&[0; 16][..width]),
                None => to.varint(0),
            },
            Value::Bytes(bytes) => to.text(bytes),
            Value::UuidText(uuid) => {
                let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
                to.text(uuid.hyphenated().encode_lower(&mut buffer).as_bytes());
            }
            Value::Unsigned(number) => to.integer(number.to_le_bytes(), &of.kind),
            Value::Signed(number) => to.integer(number.to_le_bytes(), &of.kind),
            Value::Float32(number) => to.raw(&number.to_le_bytes()),
            Value::Float64(number) => to.raw(&number.to_le_bytes()),
            // ClickHouse keeps a UUID as two little-endian halves, the high one first.
            Value::Uuid(uuid) => {
                let (high, low) = uuid.as_u64_pair();
                to.raw(&high.to_le_bytes());
                to.raw(&low.to_le_bytes());
            }
        }
    }
}

/// Bytes of a value; `None` when it carries its own length.
fn fixed_width(kind: &Kind) -> Option<usize> {
    Some(match kind {
        Kind::String => return None,
        Kind::Int { bits, .. } => *bits as usize / 8,
        Kind::Bool => 1,
        Kind::Date => 2,
        Kind::Date32 | Kind::DateTime | Kind::Float32 => 4,
        Kind::DateTime64 { .. } | Kind::Float64 => 8,
        Kind::Uuid => 16,
    })
}

impl Pieces {
    fn raw(&mut self, bytes: &[u8]) {
        if self.open.len() + bytes.len() > self.open.capacity() {
            self.grow(bytes.len());
        }
        self.open.extend_from_slice(bytes);
    }

    /// Makes room for `more` bytes: by doubling up to a piece, then by opening another piece.
    fn grow(&mut self, more: usize) {
        let wanted = self.open.len() + more;
        if wanted <= PIECE_BYTES {
            let doubled = wanted.max(self.open.capacity() * 2).max(FIRST_PIECE_BYTES);
            self.open
                .reserve_exact(doubled.min(PIECE_BYTES) - self.open.len());
            return;
        }
        let full = std::mem::replace(&mut self.open, Vec::with_capacity(more.max(PIECE_BYTES)));
        if !full.is_empty() {
            self.full.push(Bytes::from(full));
        }
    }

    /// The low bytes of a number, as many as the type has. The value was checked to fit.
    fn integer(&mut self, bytes: [u8; 8], kind: &Kind) {
        let width = fixed_width(kind).unwrap_or(8).min(8);
        self.raw(&bytes[..width]);
    }

    fn varint(&mut self, mut number: u64) {
        let mut buffer = [0_u8; 10];
        let mut length = 0;
        while number >= 0x80 {
            buffer[length] = (number & 0x7f) as u8 | 0x80;
            number >>= 7;
            length += 1;
        }
        buffer[length] = number as u8;
        self.raw(&buffer[..=length]);
    }

    fn text(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.raw(bytes);
    }

    /// Moves the bytes of `other` behind these.
    fn append(&mut self, other: Self) {
        let own = std::mem::take(&mut self.open);
        let last = [own, other.open];
        let [own, open] = last.map(Bytes::from);
        let pieces = std::iter::once(own)
            .chain(other.full)
            .chain(std::iter::once(open));
        self.full.extend(pieces.filter(|piece| !piece.is_empty()));
    }

    fn into_bytes(mut self) -> Vec<Bytes> {
        let last = Bytes::from(std::mem::take(&mut self.open));
        if !last.is_empty() {
            self.full.push(last);
        }
        self.full
    }
}
