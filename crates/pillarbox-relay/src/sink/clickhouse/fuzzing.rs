//! Entry points of the fuzz targets for the Native encoder and for the answers of servers, and of the
//! measurement of the digest.

use std::sync::Arc;

use jiff::tz::TimeZone;

use super::answer::{Answer, Fault};
use super::column::{ColumnType, Given};
use super::native::NativeEncoder;
use super::order::Order;
use super::partition::Rule;
use super::payload::Sent;
use super::plan::{Layout, Planned};
use super::verdict;
use crate::batch::Row;
use crate::sink::{Delivery, Encoder as _, Pushed, Terms};
use crate::snapshot::Cut;

/// A column: its name, the type of the outbox as an object identifier, and the sink's type.
pub type Column<'a> = (&'a str, u32, &'a str);

/// Types of the sink that this crate writes, as `system.columns` shows them.
pub fn sink_types() -> [&'static str; 19] {
    [
        "String",
        "LowCardinality(String)",
        "UInt8",
        "UInt16",
        "UInt32",
        "UInt64",
        "Int8",
        "Int16",
        "Int32",
        "Int64",
        "Float32",
        "Float64",
        "Bool",
        "Date",
        "Date32",
        "DateTime('UTC')",
        "DateTime64(3, 'UTC')",
        "DateTime64(9, 'UTC')",
        "UUID",
    ]
}

/// A block as it is sent.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The partition.
    pub partition: String,
    /// Number of rows.
    pub rows: u64,
    /// The body of the insert.
    pub body: Vec<u8>,
}

/// An encoder for any columns.
#[derive(Debug)]
pub struct FuzzedEncoder {
    encoder: NativeEncoder,
    sink_value: u64,
    rows: i64,
}

impl FuzzedEncoder {
    /// `None` when a column's types do not fit, or the partition expression is not supported. Rows are put
    /// in the order of the sorting key.
    pub fn new(
        columns: &[Column<'_>],
        partition: &str,
        sorting_key: &str,
        sink_value: u64,
    ) -> Option<Self> {
        let planned = columns.iter().map(|(name, oid, of)| {
            let of = ColumnType::parse(of)?;
            let given = Given::from_oid(*oid).filter(|given| of.accepts(*given))?;
            let name = (*name).to_owned();
            Some(Planned { name, given, of })
        });
        let columns = planned.collect::<Option<Vec<_>>>()?;
        let find = |name: &str| {
            let at = columns.iter().position(|column| column.name == name)?;
            Some((at, columns.get(at)?.of.clone()))
        };
        let rule = Rule::parse(partition, Some(TimeZone::UTC), false, find).ok()?;
        let order = Order::parse(sorting_key, None, find, |_| None);
        let digest = (0..columns.len()).collect();
        let layout = Layout {
            columns,
            digest,
            batch: true,
            rule,
            order,
            redaction: None,
        };
        Some(Self {
            encoder: NativeEncoder::new(Arc::new(layout), None),
            sink_value,
            rows: 0,
        })
    }

    /// Lets the digest cover no column.
    pub fn without_digest(self) -> Self {
        let encoder = self.encoder.proven_by(&Terms::default(), Vec::new());
        Self { encoder, ..self }
    }

    /// Whether the row was taken; `None` when there was no room.
    pub fn push(&mut self, fields: &[Option<&[u8]>]) -> Option<bool> {
        self.rows += 1;
        let at = Cut {
            tx: 1,
            id: self.rows,
        };
        match self.encoder.push(&Row { at, fields }) {
            Ok(Pushed::NoRoom) => None,
            pushed => Some(pushed.is_ok()),
        }
    }

    /// The blocks.
    pub fn finish(self) -> Vec<Encoded> {
        let blocks = self.encoder.finish(self.sink_value).into_iter();
        let encoded = blocks.map(|encoded| Encoded {
            partition: encoded.block.partition,
            rows: encoded.block.rows,
            body: encoded.body.concat(),
        });
        encoded.collect()
    }

    /// What the column `batch` holds in each row.
    pub fn sink_value(&self) -> u64 {
        self.sink_value
    }
}

/// What was read out of an answer that is not success.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The server's code.
    pub code: Option<u32>,
    /// The message as it is logged.
    pub text: String,
    /// Whether an insert so answered counts as *unknown*.
    pub is_unknown: bool,
    /// Whether it counts as *delivered*.
    pub is_delivered: bool,
}

/// Reads the answer to an insert whose whole body had left; `None` when it is success.
pub fn read_answer(
    status: u16,
    header: Option<&str>,
    body: &[u8],
    has_token: bool,
) -> Option<Reading> {
    let answer = Answer::failure(status, header, body, Sent::All)?;
    let (code, text) = (answer.code, answer.text.clone());
    let judged = verdict::judge(&Fault::Answered(answer), 1, has_token);
    Some(Reading {
        code,
        text,
        is_unknown: matches!(judged, Delivery::Unknown(_)),
        is_delivered: matches!(judged, Delivery::Delivered(_)),
    })
}
