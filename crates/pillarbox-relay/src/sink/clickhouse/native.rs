//! ClickHouse's Native format, straight from PostgreSQL's binary fields. Pure, but for the buffers that
//! batches share.
//!
//! A block is the number of columns, the number of rows, and each column as name, type and values
//! (clickhouse.com/docs/interfaces/specs/NativeFormat, without the block info that only clients with
//! a protocol revision send). A cut block is always rejected whole, which no row format guarantees.

use std::sync::Arc;

use smallvec::SmallVec;

use super::column::{ColumnType, Kind};
use super::order::Sorter;
use super::partition::{Evaluator, Key};
use super::pieces::Pieces;
use super::plan::{Layout, Planned, Redaction};
use super::pool::Pool;
use super::proof::Proof;
use super::value::Value;
use crate::batch::{Block, EncodedBlock, Row};
use crate::body::{Body, Part, Place, Places, Values};
use crate::redaction::redact;
use crate::sink::{Encoder, Pushed, RowError, Terms};

/// Partitions of one batch at most: each is an insert, and ClickHouse refuses 100 parts at once.
pub(super) const BLOCKS_MAX: usize = 32;
/// Columns of most tables at most.
const COLUMNS_USUAL: usize = 16;

/// How the values of a JSON column are written; the server parses them.
const JSON_AS_TEXT: u64 = 1;

/// Encodes the rows of one batch into one Native block for each partition.
#[derive(Debug)]
pub struct NativeEncoder {
    layout: Arc<Layout>,
    proof: Proof,
    /// The one partition whose rows are taken.
    only: Option<String>,
    evaluator: Evaluator,
    blocks: OpenBlocks,
    /// The last value that was redacted.
    redacted: Vec<u8>,
}

/// One for each partition.
#[derive(Debug, Default)]
struct OpenBlocks {
    all: Vec<OpenBlock>,
    /// The block of the last row: most rows follow one of the same partition.
    current: usize,
    pool: Pool,
}

#[derive(Debug)]
struct OpenBlock {
    key: Key,
    rows: u64,
    digest: u64,
    columns: Vec<Column>,
    /// While there are few enough different rows to sort them.
    sorter: Option<Sorter>,
}

/// The values of one column.
#[derive(Debug)]
struct Column {
    /// Where the elements of each row's array end.
    ends: Pieces,
    /// Elements of the arrays so far.
    elements: u64,
    nulls: Pieces,
    values: Pieces,
    /// Where the values are that differ in length.
    places: Vec<Place>,
}

impl NativeEncoder {
    pub(super) fn new(layout: Arc<Layout>, only: Option<&str>) -> Self {
        Self {
            proof: Proof::of_today(&layout),
            layout,
            only: only.map(str::to_owned),
            evaluator: Evaluator::new(),
            blocks: OpenBlocks::default(),
            redacted: Vec::new(),
        }
    }

    /// Takes its buffers from there; afterwards no more are kept free than it had.
    pub(super) fn with_buffers_of(mut self, pool: &Pool) -> Self {
        self.blocks.pool = pool.clone();
        self
    }

    /// Lets the digest cover what it did when a batch was sealed on these terms. The columns in `gone` are
    /// read after those of the layout.
    pub(super) fn proven_by(self, terms: &Terms, gone: Vec<Planned>) -> Self {
        let proof = Proof::of_terms(&self.layout, terms, gone);
        Self { proof, ..self }
    }
}

impl OpenBlocks {
    /// The partition's block, opened if need be; `None` when there is no room.
    fn of(&mut self, key: Key, layout: &Layout) -> Option<&mut OpenBlock> {
        let is_current = |block: &OpenBlock| block.key == key;
        if !self.all.get(self.current).is_some_and(is_current) {
            self.current = match self.all.iter().position(is_current) {
                Some(found) => found,
                None if self.all.len() == BLOCKS_MAX => return None,
                None => {
                    self.all.push(OpenBlock::new(key, layout, &self.pool));
                    self.all.len() - 1
                }
            };
        }
        self.all.get_mut(self.current)
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
        let values = columns.map(|(index, column)| column.value(row, index));
        let values: Vec<Value<'_>> = values.map(|v| v.unwrap_or(Value::Null)).collect();
        let key = self.evaluator.key(&layout.rule, &values);
        layout.rule.text(key) != *only
    }

    fn push(&mut self, row: &Row<'_>) -> Result<Pushed, RowError> {
        if self.skips(row) {
            return Ok(Pushed::Skipped);
        }
        let layout = &*self.layout;
        let mut values = SmallVec::<[Value<'_>; COLUMNS_USUAL]>::new();
        for (index, column) in layout.columns.iter().enumerate() {
            values.push(column.value(row, index)?);
        }
        let key = self.evaluator.key(&layout.rule, &values);
        let hash = self.proof.hash(layout, row, &values)?;
        // A batch that was sealed when nothing was redacted is proven by what was published, and is delivered
        // as it was sealed (INV-3).
        if let Some(Redaction { index, paths }) = &layout.redaction
            && !self.proof.covers(*index)
            && let Value::Bytes(json) = values[*index]
        {
            self.redacted.clear();
            redact(json, paths, &mut self.redacted)
                .map_err(|error| layout.columns[*index].unfit(row, &error))?;
            values[*index] = Value::Bytes(&self.redacted);
        }
        let Some(block) = self.blocks.of(key, layout) else {
            return Ok(Pushed::NoRoom);
        };
        block.push(layout, &values, hash);
        Ok(Pushed::Taken)
    }

    fn finish(self, sink_value: u64) -> Vec<EncodedBlock> {
        let Self { layout, blocks, .. } = self;
        let columns = blocks.all.iter().flat_map(|block| &block.columns);
        blocks.pool.keep(columns.map(Column::pooled).sum());
        let blocks = blocks.all.into_iter();
        blocks
            .map(|block| block.finish(&layout, sink_value))
            .collect()
    }
}

impl OpenBlock {
    fn new(key: Key, layout: &Layout, pool: &Pool) -> Self {
        let order = &layout.order;
        Self {
            key,
            rows: 0,
            digest: 0,
            columns: layout.columns.iter().map(|_| Column::new(pool)).collect(),
            sorter: order.is_known().then(|| Sorter::new(order)),
        }
    }

    fn push(&mut self, layout: &Layout, values: &[Value<'_>], hash: u64) {
        self.sorter
            .take_if(|sorter| !sorter.push(&layout.order, values));
        let is_sorted = self.sorter.is_some();
        let columns = self.columns.iter_mut().zip(&layout.columns);
        for ((column, planned), value) in columns.zip(values) {
            column.push(&planned.of, value, is_sorted);
        }
        self.rows += 1;
        self.digest = self.digest.wrapping_add(hash);
    }

    fn finish(self, layout: &Layout, batch: u64) -> EncodedBlock {
        let order = self.sorter.and_then(|sorter| sorter.order(&layout.order));
        let columns = self.columns.iter().zip(&layout.columns);
        let are_placed = columns.into_iter().all(|(column, planned)| {
            planned.of.kind.width().is_some() || column.places.len() as u64 == self.rows
        });
        let order: Option<Arc<[u32]>> = order.filter(|_| are_placed).map(Arc::from);
        let mut parts = Vec::new();
        let mut head = Pieces::default();
        let columns = layout.columns.len() + usize::from(layout.batch);
        head.varint(columns as u64);
        head.varint(self.rows);
        for (column, planned) in self.columns.into_iter().zip(&layout.columns) {
            head.text(planned.name.as_bytes());
            head.text(planned.of.wire.as_bytes());
            if planned.of.kind == Kind::Json {
                head.raw(&JSON_AS_TEXT.to_le_bytes());
            }
            parts.extend(plain(std::mem::take(&mut head)));
            column.finish(&planned.of, order.as_ref(), &mut parts);
        }
        if layout.batch {
            head.text(b"batch");
            head.text(b"UInt64");
            parts.extend(plain(head));
            parts.push(Part::Repeated(
                batch.to_le_bytes().into(),
                self.rows as usize,
            ));
        }
        let block = Block {
            partition: layout.rule.text(self.key),
            rows: self.rows,
            digest: self.digest,
            is_numbered: layout.batch,
        };
        EncodedBlock {
            block,
            body: Body::from(parts),
        }
    }
}

fn plain(pieces: Pieces) -> impl Iterator<Item = Part> {
    pieces.into_bytes().into_iter().map(Part::Plain)
}

impl Column {
    fn new(pool: &Pool) -> Self {
        Self {
            ends: Pieces::of(pool),
            elements: 0,
            nulls: Pieces::of(pool),
            values: Pieces::of(pool),
            places: Vec::new(),
        }
    }

    fn pooled(&self) -> usize {
        self.ends.pooled() + self.nulls.pooled() + self.values.pooled()
    }

    fn finish(self, of: &ColumnType, order: Option<&Arc<[u32]>>, parts: &mut Vec<Part>) {
        let Some(order) = order else {
            for pieces in [self.ends, self.nulls, self.values] {
                parts.extend(plain(pieces));
            }
            return;
        };
        if of.nullable {
            parts.push(Part::Ordered(even(self.nulls, 1), Arc::clone(order)));
        }
        let values = match of.kind.width() {
            Some(width) => even(self.values, width),
            None => Values {
                pieces: self.values.into_bytes(),
                places: Places::Listed(self.places),
            },
        };
        parts.push(Part::Ordered(values, Arc::clone(order)));
    }

    fn push(&mut self, of: &ColumnType, value: &Value<'_>, is_sorted: bool) {
        if of.nullable {
            self.nulls.number(&[u8::from(*value == Value::Null)], 1);
        }
        let place = self.push_value(of, value);
        if is_sorted {
            self.places.extend(place);
        }
    }

    /// Where the value is, of a type whose values differ in length.
    fn push_value(&mut self, of: &ColumnType, value: &Value<'_>) -> Option<Place> {
        let to = &mut self.values;
        match *value {
            // Servers look at what stands in the place of a null, too.
            Value::Null => match (&of.kind, of.kind.width()) {
                (Kind::Enum { names, .. }, _) => {
                    let code = names.values().min().copied().unwrap_or_default();
                    integer(to, &code.to_le_bytes(), &of.kind);
                }
                (Kind::Json, _) => return to.text(b"{}"),
                (_, Some(width)) => to.zeros(width),
                (_, None) => return to.text(b""),
            },
            Value::Bytes(bytes) => match of.kind {
                Kind::FixedString(width) => to.filled(bytes, width),
                _ => return to.text(bytes),
            },
            Value::UuidText(uuid) => {
                let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
                return to.text(uuid.hyphenated().encode_lower(&mut buffer).as_bytes());
            }
            Value::Unsigned(number) => integer(to, &number.to_le_bytes(), &of.kind),
            Value::Signed(number) => integer(to, &number.to_le_bytes(), &of.kind),
            Value::Named(_, code) => integer(to, &code.to_le_bytes(), &of.kind),
            Value::Decimal(bytes) => integer(to, &bytes, &of.kind),
            Value::Octets(bytes) => to.number(&bytes, 16),
            Value::Float32(number) => to.number(&number.to_le_bytes(), 4),
            Value::Float64(number) => to.number(&number.to_le_bytes(), 8),
            // ClickHouse keeps a UUID as two little-endian halves, the high one first.
            Value::Uuid(uuid) => {
                let (high, low) = uuid.as_u64_pair();
                let halves = u128::from(low) << 64 | u128::from(high);
                to.number(&halves.to_le_bytes(), 16);
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
        None
    }
}

/// Values of the same width.
fn even(pieces: Pieces, width: usize) -> Values {
    Values {
        pieces: pieces.into_bytes(),
        places: Places::Even(width),
    }
}

/// The low bytes of a number, as many as the type has. The value was checked to fit.
fn integer<const N: usize>(to: &mut Pieces, bytes: &[u8; N], kind: &Kind) {
    to.number(bytes, kind.width().unwrap_or(N).min(N));
}
