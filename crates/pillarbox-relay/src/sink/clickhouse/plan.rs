//! How outbox columns become sink columns, and what the table can promise.

use std::sync::Arc;

use super::column::{ColumnType, Given};
use super::native::NativeEncoder;
use super::partition::Rule;
use super::report::SinkReport;
use crate::sink::{Guarantee, Plan};

/// A column that the relay fills.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) given: Given,
    pub(super) of: ColumnType,
}

/// What the encoder needs to know.
#[derive(Debug, PartialEq)]
pub(super) struct Layout {
    /// In the order in which rows are read.
    pub(super) columns: Vec<Planned>,
    /// Indices of the columns that the digest covers, in its order.
    pub(super) digest: Vec<usize>,
    /// Whether the table has the column `batch`.
    pub(super) batch: bool,
    pub(super) rule: Rule,
}

/// How long the table remembers a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Window {
    /// Blocks that it remembers; 0 when it remembers none.
    pub blocks: u64,
    /// Seconds that it remembers them; `None` when only the number counts.
    pub seconds: Option<u64>,
}

impl Window {
    /// What both tables remember.
    pub(super) fn min(self, other: Self) -> Self {
        Self {
            blocks: self.blocks.min(other.blocks),
            seconds: self.seconds.into_iter().chain(other.seconds).min(),
        }
    }
}

/// What a table needs to be asked and told, found out by the preflight.
#[derive(Debug)]
pub(super) struct Details {
    pub(super) names: Vec<String>,
    pub(super) layout: Arc<Layout>,
    pub(super) guarantee: Guarantee,
    pub(super) window: Window,
    /// `INSERT INTO … (…) FORMAT Native`.
    pub(super) insert: String,
    /// Settings of every insert; the token and `log_comment` come on top.
    pub(super) settings: Vec<(&'static str, &'static str)>,
    /// Whether the server knows the token: then it never goes by content, which two batches may share.
    pub(super) has_token: bool,
    pub(super) has_log_comment: bool,
    pub(super) replicated: bool,
    /// Whether materialized views read what is inserted.
    pub(super) has_views: bool,
    /// The partition expression as the server shows it; empty for none.
    pub(super) partition_key: String,
    /// The digest of the selected rows, as SQL.
    pub(super) digest: String,
    pub(super) report: SinkReport,
}

/// The plan of one table. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClickHousePlan(pub(super) Arc<Details>);

impl ClickHousePlan {
    /// What the preflight found.
    pub fn report(&self) -> &SinkReport {
        &self.0.report
    }
}

impl PartialEq for ClickHousePlan {
    fn eq(&self, other: &Self) -> bool {
        (&self.0.insert, &self.0.layout) == (&other.0.insert, &other.0.layout)
    }
}

impl Plan for ClickHousePlan {
    type Encoder = NativeEncoder;

    fn columns(&self) -> &[String] {
        &self.0.names
    }

    fn encoder(&self, only: Option<&str>) -> NativeEncoder {
        NativeEncoder::new(Arc::clone(&self.0.layout), only)
    }

    fn guarantee(&self) -> Guarantee {
        self.0.guarantee
    }
}
