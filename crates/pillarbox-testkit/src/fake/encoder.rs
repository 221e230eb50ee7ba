//! The plan and the encoder of the fake sink: every outbox column as it is, with a real digest.

use std::fmt;
use std::hash::Hasher as _;
use std::sync::Arc;

use bytes::Bytes;
use pillarbox_relay::batch::{Block, EncodedBlock, Row};
use pillarbox_relay::sink::{Encoder, Guarantee, Plan, Pushed, RowError, Terms};
use uuid::Uuid;

use super::gauge::{Alive, Gauge};

/// The columns of the outbox that are not for sinks.
const INNER: [&str; 3] = ["slot", "tx", "id"];

/// A row's columns by name, in PostgreSQL's binary format.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    pub(super) columns: &'a [String],
    pub(super) values: &'a [Option<&'a [u8]>],
}

impl<'a> Fields<'a> {
    /// The value of a column; `None` when it is null or not there.
    pub fn get(&self, column: &str) -> Option<&'a [u8]> {
        let index = self.columns.iter().position(|name| name == column)?;
        self.values.get(index).copied().flatten()
    }

    /// Identity of the event.
    pub fn event_id(&self) -> Option<Uuid> {
        Uuid::from_slice(self.get("event_id")?).ok()
    }

    /// The month of `event_date_time` in UTC, as ClickHouse's `toYYYYMM` gives it.
    pub fn month(&self) -> Option<String> {
        let micros = i64::from_be_bytes(self.get("event_date_time")?.try_into().ok()?);
        // Civil date from days, by Howard Hinnant, counted from 0000-03-01.
        let days = micros.div_euclid(86_400_000_000) + 730_425;
        let era = days.div_euclid(146_097);
        let day = days.rem_euclid(146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let rest = day - (365 * year + year / 4 - year / 100);
        let march = (5 * rest + 2) / 153;
        let month = if march < 10 { march + 3 } else { march - 9 };
        let year = year + era * 400 + i64::from(month <= 2);
        Some(format!("{year:04}{month:02}"))
    }
}

/// A question about a row.
pub(super) type Ask<T> = Arc<dyn Fn(&Fields<'_>) -> T + Send + Sync>;

/// How the fake sink takes rows.
#[derive(Clone)]
pub(super) struct Layout {
    pub(super) columns: Vec<String>,
    pub(super) terms: Terms,
    pub(super) guarantee: Guarantee,
    pub(super) partition: Ask<String>,
    pub(super) partitions_max: usize,
    pub(super) refuse_row: Ask<Option<String>>,
    pub(super) batches: Gauge,
}

/// What [`FakeSink`](super::FakeSink) found out.
#[derive(Clone)]
pub struct FakePlan(pub(super) Arc<Layout>);

impl fmt::Debug for FakePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakePlan")
            .field("columns", &self.0.columns)
            .field("guarantee", &self.0.guarantee)
            .finish_non_exhaustive()
    }
}

impl FakePlan {
    /// Which of the outbox's columns a plan takes: all but those that order events.
    pub(super) fn columns_of(outbox: &[pillarbox_relay::sink::OutboxColumn]) -> Vec<String> {
        let names = outbox.iter().map(|column| &column.name);
        names
            .filter(|name| !INNER.contains(&name.as_str()))
            .cloned()
            .collect()
    }
}

impl PartialEq for FakePlan {
    fn eq(&self, other: &Self) -> bool {
        self.0.columns == other.0.columns
    }
}

impl Plan for FakePlan {
    type Encoder = FakeEncoder;

    fn columns(&self) -> &[String] {
        &self.0.columns
    }

    fn terms(&self) -> &Terms {
        &self.0.terms
    }

    fn encoder(&self, only: Option<&str>, _: Option<&Terms>) -> FakeEncoder {
        FakeEncoder {
            layout: Arc::clone(&self.0),
            only: only.map(str::to_owned),
            blocks: Vec::new(),
            alive: Arc::new(self.0.batches.enter()),
        }
    }

    fn guarantee(&self) -> Guarantee {
        self.0.guarantee
    }
}

/// Copies rows into one block for each partition.
pub struct FakeEncoder {
    layout: Arc<Layout>,
    only: Option<String>,
    blocks: Vec<(Block, Vec<u8>)>,
    alive: Arc<Alive>,
}

impl fmt::Debug for FakeEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeEncoder")
            .field("only", &self.only)
            .field("blocks", &self.blocks.len())
            .finish_non_exhaustive()
    }
}

impl Encoder for FakeEncoder {
    fn push(&mut self, row: &Row<'_>) -> Result<Pushed, RowError> {
        let fields = Fields {
            columns: &self.layout.columns,
            values: row.fields,
        };
        let refused = match fields.event_id() {
            None => Some("it is not a uuid".to_owned()),
            Some(_) => (self.layout.refuse_row)(&fields),
        };
        if let Some(reason) = refused {
            return Err(RowError {
                tx: row.at.tx,
                id: row.at.id,
                column: "event_id".to_owned(),
                reason,
            });
        }
        let partition = (self.layout.partition)(&fields);
        if self.only.as_ref().is_some_and(|only| *only != partition) {
            return Ok(Pushed::Skipped);
        }
        let known = self.blocks.iter();
        let index = known
            .clone()
            .position(|(block, _)| block.partition == partition);
        let index = match index {
            Some(index) => index,
            None if self.blocks.len() >= self.layout.partitions_max => return Ok(Pushed::NoRoom),
            None => {
                let block = Block {
                    partition,
                    rows: 0,
                    digest: 0,
                    is_numbered: true,
                };
                self.blocks.push((block, Vec::new()));
                self.blocks.len() - 1
            }
        };
        if let Some((block, body)) = self.blocks.get_mut(index) {
            block.rows += 1;
            block.digest = block.digest.wrapping_add(digest(row.fields));
            write_row(body, row.fields);
        }
        Ok(Pushed::Taken)
    }

    fn finish(self, sink_value: u64) -> Vec<EncodedBlock> {
        let alive = self.alive;
        let number = Bytes::copy_from_slice(&sink_value.to_be_bytes());
        let encoded = |(block, bytes): (Block, Vec<u8>)| {
            let rows = Bytes::from_owner(Body {
                bytes,
                _alive: Arc::clone(&alive),
            });
            EncodedBlock {
                block,
                body: vec![number.clone(), rows].into(),
            }
        };
        self.blocks.into_iter().map(encoded).collect()
    }
}

/// A block's bytes; while one of them lives, so does its batch.
struct Body {
    bytes: Vec<u8>,
    _alive: Arc<Alive>,
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The hash of a row over its length-prefixed columns.
pub(super) fn digest(fields: &[Option<&[u8]>]) -> u64 {
    // Deterministic: it has fixed keys.
    let mut hasher = std::hash::DefaultHasher::new();
    for field in fields {
        match field {
            None => hasher.write_i64(-1),
            Some(bytes) => {
                hasher.write_i64(i64::try_from(bytes.len()).unwrap_or(i64::MAX));
                hasher.write(bytes);
            }
        }
    }
    hasher.finish()
}

fn write_row(body: &mut Vec<u8>, fields: &[Option<&[u8]>]) {
    body.extend(
        u32::try_from(fields.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    for field in fields {
        // No field of PostgreSQL is longer than 1 GB.
        let length = field.map_or(u32::MAX, |bytes| {
            u32::try_from(bytes.len()).unwrap_or(u32::MAX - 1)
        });
        body.extend(length.to_be_bytes());
        body.extend(field.unwrap_or_default());
    }
}

/// The fields of one row.
pub(super) type OwnedRow = Vec<Option<Vec<u8>>>;

/// Rows of one body: the value of the column `batch`, then each row's fields. `None` when the bytes
/// are not whole.
pub(super) fn read_body(body: &[u8]) -> Option<(u64, Vec<OwnedRow>)> {
    let (value, mut rest) = body.split_first_chunk::<8>()?;
    let mut rows = Vec::new();
    while !rest.is_empty() {
        let (count, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        let mut row = Vec::new();
        for _ in 0..u32::from_be_bytes(*count) {
            let (length, after) = rest.split_first_chunk::<4>()?;
            rest = after;
            let length = u32::from_be_bytes(*length);
            if length == u32::MAX {
                row.push(None);
                continue;
            }
            let (field, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            rest = after;
            row.push(Some(field.to_vec()));
        }
        rows.push(row);
    }
    Some((u64::from_be_bytes(*value), rows))
}
