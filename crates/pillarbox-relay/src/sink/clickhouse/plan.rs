//! How outbox columns become sink columns, and what the table can promise.

use std::fmt;
use std::sync::Arc;

use super::column::{ColumnType, Given};
use super::digest;
use super::native::NativeEncoder;
use super::order::Order;
use super::partition::Rule;
use super::pool::Pool;
use super::report::SinkReport;
use super::table::SinkColumn;
use super::value::{Value, convert};
use crate::batch::Row;
use crate::redaction::Path;
use crate::sink::{Guarantee, OutboxColumn, Plan, RowError, Terms};

/// A column that the relay fills.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) given: Given,
    pub(super) of: ColumnType,
}

impl Planned {
    /// The field of the row at this index, as the column represents it.
    pub(super) fn value<'a>(&self, row: &Row<'a>, index: usize) -> Result<Value<'a>, RowError> {
        self.value_of(&self.of, row, index)
    }

    /// The same for a column of another type.
    pub(super) fn value_of<'a>(
        &self,
        of: &ColumnType,
        row: &Row<'a>,
        index: usize,
    ) -> Result<Value<'a>, RowError> {
        let field = row.fields.get(index).copied().flatten();
        convert(self.given, of, field).map_err(|misfit| self.unfit(row, &misfit))
    }

    /// Why the row does not fit.
    pub(super) fn unfit(&self, row: &Row<'_>, reason: &dyn fmt::Display) -> RowError {
        RowError {
            tx: row.at.tx,
            id: row.at.id,
            column: self.name.clone(),
            reason: reason.to_string(),
        }
    }
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
    /// In which order the table keeps its rows; not known where values cannot be put in another one.
    pub(super) order: Order,
    pub(super) redaction: Option<Redaction>,
}

/// What does not leave of a column that holds JSON.
#[derive(Debug, PartialEq)]
pub(super) struct Redaction {
    /// Index of the column.
    pub(super) index: usize,
    pub(super) paths: Vec<Path>,
}

/// What a table needs to be asked and told, found out by the preflight.
#[derive(Debug)]
pub(super) struct Details {
    pub(super) names: Vec<String>,
    pub(super) layout: Arc<Layout>,
    pub(super) guarantee: Guarantee,
    /// On what a batch is sealed now.
    pub(super) terms: Terms,
    /// `INSERT INTO … (…) FORMAT Native`.
    pub(super) insert: String,
    /// Settings of every insert; the token and `log_comment` come on top.
    pub(super) settings: Vec<(&'static str, &'static str)>,
    /// Whether the server knows the token: then it never goes by content, which two batches may share.
    pub(super) has_token: bool,
    pub(super) has_log_comment: bool,
    pub(super) replicated: bool,
    /// What finds the table in `system.replicas`; `None` for one that is not there.
    pub(super) in_replicas: Option<String>,
    /// Whether materialized views read what is inserted.
    pub(super) has_views: bool,
    /// The partition expression as the server shows it; empty for none.
    pub(super) partition_key: String,
    /// The columns of the outbox, all of them.
    pub(super) outbox: Vec<OutboxColumn>,
    /// The table's columns, all of them.
    pub(super) table: Vec<SinkColumn>,
    pub(super) report: SinkReport,
    /// Where encoders take their buffers.
    pub(super) pool: Pool,
}

/// The plan of one table. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClickHousePlan(pub(super) Arc<Details>);

impl ClickHousePlan {
    /// What the preflight found.
    pub fn report(&self) -> &SinkReport {
        &self.0.report
    }

    /// Whether the table still has every column that the digest of a batch with these terms covers.
    pub fn can_prove(&self, terms: Option<&Terms>) -> bool {
        let mut proven = terms.iter().flat_map(|terms| &terms.proven);
        proven.all(|name| self.0.names.contains(name))
    }

    /// Columns that the digest of a batch with these terms covers, that the table has no longer, and that
    /// can still be read.
    fn gone(&self, terms: Option<&Terms>) -> Vec<Planned> {
        let proven = terms
            .into_iter()
            .flat_map(|terms| terms.proven.iter().zip(&terms.types));
        let gone = proven.filter(|(name, _)| !self.0.names.contains(name));
        let planned = gone.filter_map(|(name, of)| {
            let column = self.0.outbox.iter().find(|column| column.name == *name)?;
            let of = ColumnType::parse(of)?;
            let given = Given::from_oid(column.type_oid).filter(|given| of.accepts(*given))?;
            let name = name.clone();
            Some(Planned { name, given, of })
        });
        planned.collect()
    }

    /// The digest of the selected rows of a batch with these terms, as SQL. A column that is gone is
    /// left out: the digest is another one then.
    pub(super) fn digest(&self, terms: Option<&Terms>) -> String {
        let terms = terms.unwrap_or(&self.0.terms);
        let proven = terms.proven.iter().zip(0..);
        let proven = proven.filter_map(|(name, nth): (_, usize)| {
            let mut columns = self.0.layout.columns.iter();
            let column = columns.find(|column| column.name == *name)?;
            let sealed = terms.types.get(nth).and_then(|of| ColumnType::parse(of));
            Some(digest::Part {
                name: &column.name,
                of: &column.of,
                sealed: sealed.filter(|sealed| *sealed != column.of),
            })
        });
        digest::expression(&proven.collect::<Vec<_>>())
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

    fn columns_for(&self, terms: Option<&Terms>) -> Vec<String> {
        let gone = self.gone(terms).into_iter().map(|column| column.name);
        self.0.names.iter().cloned().chain(gone).collect()
    }

    fn terms(&self) -> &Terms {
        &self.0.terms
    }

    fn encoder(&self, only: Option<&str>, terms: Option<&Terms>) -> NativeEncoder {
        let encoder = NativeEncoder::new(Arc::clone(&self.0.layout), only);
        let encoder = encoder.with_buffers_of(&self.0.pool);
        match terms {
            None => encoder,
            Some(terms) => encoder.proven_by(terms, self.gone(Some(terms))),
        }
    }

    fn guarantee(&self) -> Guarantee {
        self.0.guarantee
    }
}
