//! ClickHouse's Native format, straight from PostgreSQL's binary fields. Pure.
//!
//! A block is the number of columns, the number of rows, and each column as name, type and values
//! (clickhouse.com/docs/interfaces/specs/NativeFormat, without the block info that only clients with
//! a protocol revision send). A cut block is always rejected whole, which no row format guarantees.

use std::sync::Arc;

use bytes::Bytes;

use super::column::{ColumnType, Kind};
use super::digest;
use super::partition::{Evaluator, Key};
use super::plan::{Layout, Planned, Redaction};
use super::value::{Value, convert};
use crate::batch::{Block, EncodedBlock, Row};
use crate::redaction::redact;
use crate::sink::{Encoder, Pushed, RowError, Terms};

/// Partitions of one batch at most: each is an insert, and ClickHouse refuses 100 parts at once.
pub(super) const BLOCKS_MAX: usize = 32;
/// Size of the pieces of a column: large enough for the wire, small enough to grow without copying.
const PIECE_BYTES: usize = 512 * 1024;
/// Size of the first piece: a batch may have few rows and many partitions.
const FIRST_PIECE_BYTES: usize = 4 * 1024;

/// How the values of a JSON column are written; the server parses them.
const JSON_AS_TEXT: u64 = 1;

/// Encodes the rows of one batch into one Native block for each partition.
#[derive(Debug)]
pub struct NativeEncoder {
    layout: Arc<Layout>,
    /// The columns that the digest covers, in its order.
    digest: Vec<Proven>,
    /// Columns that are read for the digest only, after those of the layout.
    gone: Vec<Planned>,
    /// The one partition whose rows are taken.
    only: Option<String>,
    blocks: Vec<OpenBlock>,
    /// The block of the last row: most rows follow one of the same partition.
    current: usize,
    evaluator: Evaluator,
    text: Vec<u8>,
    /// The last value that was redacted.
    redacted: Vec<u8>,
}

/// A column that the digest covers.
#[derive(Debug)]
struct Proven {
    index: usize,
    /// Its type when the batch was sealed, where that was another one.
    of: Option<ColumnType>,
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
    /// Where the elements of each row's array end.
    ends: Pieces,
    /// Elements of the arrays so far.
    elements: u64,
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
            digest: layout
                .digest
                .iter()
                .copied()
                .map(Proven::of_today)
                .collect(),
            gone: Vec::new(),
            layout,
            only: only.map(str::to_owned),
            blocks: Vec::new(),
            current: 0,
            evaluator: Evaluator::new(),
            text,
            redacted: Vec::new(),
        }
    }

    /// Lets the digest cover what it did when a batch was sealed on these terms. The columns in `gone` are
    /// read after those of the layout.
    pub(super) fn proven_by(self, terms: &Terms, gone: Vec<Planned>) -> Self {
        let layout = &self.layout;
        let sealed = terms.proven.iter().zip(0..);
        let digest = sealed.filter_map(|(name, nth): (_, usize)| {
            let mut columns = layout.columns.iter().chain(&gone);
            let index = columns.position(|column| column.name == *name)?;
            let Some(planned) = layout.columns.get(index) else {
                let of = gone.get(index - layout.columns.len())?.of.clone();
                return Some(Proven {
                    index,
                    of: Some(of),
                });
            };
            let of = terms.types.get(nth).map(|of| ColumnType::parse(of));
            let of = of.flatten().filter(|of| *of != planned.of);
            Some(Proven { index, of })
        });
        Self {
            digest: digest.collect(),
            gone,
            ..self
        }
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

    /// A batch that was sealed when nothing was redacted is proven by what was published, and is delivered
    /// as it was sealed (INV-3).
    fn redaction<'a>(&self, layout: &'a Layout) -> Option<&'a Redaction> {
        let redaction = layout.redaction.as_ref()?;
        let is_proven = |proven: &Proven| proven.index == redaction.index;
        (!self.digest.iter().any(is_proven)).then_some(redaction)
    }

    /// What the row adds to the digest of its block.
    fn hash(&mut self, row: &Row<'_>, values: &[Value<'_>]) -> Result<u64, RowError> {
        if self.digest.is_empty() {
            return Ok(0);
        }
        self.text.clear();
        // A text that grew by doubling would hold a large event twice.
        let values_of = self
            .digest
            .iter()
            .filter_map(|proven| values.get(proven.index));
        let room = values_of.map(digest::room);
        self.text.reserve_exact(room.sum());
        for proven in &self.digest {
            match &proven.of {
                None => digest::append(&mut self.text, &values[proven.index]),
                Some(of) => {
                    let mut columns = self.layout.columns.iter().chain(&self.gone);
                    let Some(column) = columns.nth(proven.index) else {
                        continue;
                    };
                    let value = value(row, proven.index, column, of)?;
                    digest::append(&mut self.text, &value);
                }
            }
        }
        Ok(digest::hash(&self.text))
    }
}

impl Proven {
    fn of_today(index: usize) -> Self {
        Self { index, of: None }
    }
}

/// A field of the row as a column of type `of` represents it.
fn value<'a>(
    row: &Row<'a>,
    index: usize,
    column: &Planned,
    of: &ColumnType,
) -> Result<Value<'a>, RowError> {
    let field = row.fields.get(index).copied().flatten();
    convert(column.given, of, field).map_err(|misfit| unfit(row, column, misfit.to_string()))
}

fn unfit(row: &Row<'_>, column: &Planned, reason: String) -> RowError {
    RowError {
        tx: row.at.tx,
        id: row.at.id,
        column: column.name.clone(),
        reason,
    }
}

impl Encoder for NativeEncoder {
    fn skips(&mut self, row: &Row<'_>) -> bool {
        let Some(only) = &self.only else {
            return false;
        };
        let layout = &self.layout;
        // The rule looks at one plain column; what the others are does not matter.
        let columns = layout.columns.iter().enumerate();
        let values = columns.map(|(index, column)| value(row, index, column, &column.of));
        let values: Vec<Value<'_>> = values.map(|v| v.unwrap_or(Value::Null)).collect();
        let key = self.evaluator.key(&layout.rule, &values);
        layout.rule.text(key) != *only
    }

    fn push(&mut self, row: &Row<'_>) -> Result<Pushed, RowError> {
        if self.skips(row) {
            return Ok(Pushed::Skipped);
        }
        let layout = Arc::clone(&self.layout);
        let mut values = Vec::with_capacity(layout.columns.len());
        for (index, column) in layout.columns.iter().enumerate() {
            values.push(value(row, index, column, &column.of)?);
        }
        let key = self.evaluator.key(&layout.rule, &values);
        let mut redacted = std::mem::take(&mut self.redacted);
        redacted.clear();
        let hash = self.hash(row, &values)?;
        if let Some(Redaction { index, paths }) = self.redaction(&layout)
            && let Value::Bytes(json) = values[*index]
        {
            redact(json, paths, &mut redacted)
                .map_err(|error| unfit(row, &layout.columns[*index], error.to_string()))?;
            values[*index] = Value::Bytes(&redacted);
        }
        let Some(current) = self.block(key) else {
            return Ok(Pushed::NoRoom);
        };
        self.current = current;
        let block = &mut self.blocks[current];
        for ((column, planned), value) in block.columns.iter_mut().zip(&layout.columns).zip(&values)
        {
            column.push(&planned.of, value);
        }
        block.rows += 1;
        block.digest = block.digest.wrapping_add(hash);
        self.redacted = redacted;
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
            if planned.of.kind == Kind::Json {
                body.raw(&JSON_AS_TEXT.to_le_bytes());
            }
            body.append(column.ends);
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
            // Servers look at what stands in the place of a null, too.
            Value::Null => match (&of.kind, of.kind.width()) {
                (Kind::Enum { names, .. }, _) => {
                    let code = names.values().min().copied().unwrap_or_default();
                    to.integer(&code.to_le_bytes(), &of.kind);
                }
                (Kind::Json, _) => to.text(b"{}"),
                (_, Some(width)) => to.zeros(width),
                (_, None) => to.varint(0),
            },
            Value::Bytes(bytes) => match of.kind {
                Kind::FixedString(width) => {
                    to.raw(bytes);
                    to.zeros(width.saturating_sub(bytes.len()));
                }
                _ => to.text(bytes),
            },
            Value::UuidText(uuid) => {
                let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
                to.text(uuid.hyphenated().encode_lower(&mut buffer).as_bytes());
            }
            Value::Unsigned(number) => to.integer(&number.to_le_bytes(), &of.kind),
            Value::Signed(number) => to.integer(&number.to_le_bytes(), &of.kind),
            Value::Named(_, code) => to.integer(&code.to_le_bytes(), &of.kind),
            Value::Decimal(bytes) => to.integer(&bytes, &of.kind),
            Value::Octets(bytes) => to.raw(&bytes),
            Value::Float32(number) => to.raw(&number.to_le_bytes()),
            Value::Float64(number) => to.raw(&number.to_le_bytes()),
            // ClickHouse keeps a UUID as two little-endian halves, the high one first.
            Value::Uuid(uuid) => {
                let (high, low) = uuid.as_u64_pair();
                to.raw(&high.to_le_bytes());
                to.raw(&low.to_le_bytes());
            }
            Value::Array(elements) => {
                for element in elements {
                    self.elements += 1;
                    if of.kind == (Kind::Array { has_nulls: true }) {
                        self.nulls.raw(&[u8::from(element.is_none())]);
                    }
                    to.text(element.unwrap_or_default());
                }
                self.ends.raw(&self.elements.to_le_bytes());
            }
        }
    }
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
    fn integer(&mut self, bytes: &[u8], kind: &Kind) {
        let width = kind.width().unwrap_or(bytes.len()).min(bytes.len());
        self.raw(&bytes[..width]);
    }

    fn zeros(&mut self, count: usize) {
        const ZEROS: [u8; 64] = [0; 64];
        let mut left = count;
        while left > 0 {
            let some = left.min(ZEROS.len());
            self.raw(&ZEROS[..some]);
            left -= some;
        }
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
