//! Which outbox column goes into which sink column: by name, with types checked once. Pure.

use jiff::tz::TimeZone;

use super::column::{ColumnType, Given, Kind};
use super::create::Dialect;
use super::digest;
use super::order::Order;
use super::partition::Rule;
use super::plan::{Planned, Redaction};
use super::propose;
use super::report::ColumnReport;
use super::sql;
use super::table::{Server, SinkColumn, Table};
use super::verdict::refuse;
use crate::expression::Missing;
use crate::redaction::Path;
use crate::sink::{OutboxColumn, Trouble};

/// Columns that every destination has.
pub(super) const REQUIRED: [&str; 5] = [
    "event_type",
    "event_date_time",
    "environment",
    "event_context",
    "metadata_version",
];
/// Columns that place an event in the outbox and mean nothing elsewhere.
pub(super) const INTERNAL: [&str; 3] = ["slot", "tx", "id"];
/// The sink column that the relay fills by itself.
pub(super) const BATCH: &str = "batch";

/// The column that holds what is to be redacted.
const CONTEXT: &str = "event_context";

/// The columns that the relay fills.
#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) columns: Vec<Planned>,
    /// Indices of the columns that the digest covers, in its order.
    pub(super) digest: Vec<usize>,
    /// Whether the table has the column `batch`.
    pub(super) batch: bool,
    pub(super) warnings: Vec<String>,
    reports: Vec<ColumnReport>,
    dialect: Dialect,
}

impl Mapping {
    /// The order of the table, as far as the relay can put rows in it.
    pub(super) fn order(&self, server: &Server, table: &Table) -> Order {
        let find = |name: &str| {
            let mut columns = self.columns.iter();
            let at = columns.position(|column| column.name == name)?;
            Some((at, self.columns[at].of.clone()))
        };
        let zone = TimeZone::get(&server.zone).ok();
        let date = |part: &str| Rule::parse(part, zone.clone(), server.starts_1970, find).ok();
        let is_array = |column: &Planned| matches!(column.of.kind, Kind::Array { .. });
        match self.columns.iter().any(is_array) {
            true => Order::default(),
            false => Order::parse(&table.sorting_key, zone.as_ref(), find, date),
        }
    }

    pub(super) fn new(
        server: &Server,
        table: &Table,
        sink: &[SinkColumn],
        outbox: &[OutboxColumn],
        redacted: &[Path],
    ) -> Result<Self, Trouble> {
        let find = |name: &str| sink.iter().find(|column| column.name == name);
        for name in REQUIRED {
            if find(name).is_none() {
                return Err(refuse(missing(table, name)));
            }
        }
        let mut mapping = Self {
            columns: Vec::new(),
            digest: Vec::new(),
            batch: has_batch(table, find(BATCH))?,
            warnings: Vec::new(),
            reports: Vec::new(),
            dialect: server.dialect(),
        };
        for column in outbox
            .iter()
            .filter(|column| !INTERNAL.contains(&column.name.as_str()))
        {
            if let Some(target) = find(&column.name).filter(|_| column.name != BATCH) {
                mapping.add(table, column, target)?;
            }
        }
        for name in REQUIRED {
            if !mapping.columns.iter().any(|column| column.name == name) {
                return Err(refuse(format!(
                    "the outbox has no column {name}; run pillarbox migrate"
                )));
            }
        }
        mapping.digest = digest::BASE
            .iter()
            .filter(|name| redacted.is_empty() || **name != CONTEXT)
            .filter_map(|name| {
                let is_plain =
                    |column: &OutboxColumn| column.expression.is_none() && column.name == *name;
                outbox.iter().find(|column| is_plain(column))?;
                let mut columns = mapping.columns.iter();
                columns.position(|column| column.name == *name && digest::covers(&column.of))
            })
            .collect();
        for at in &mapping.digest {
            mapping.reports[*at].proven = true;
        }
        mapping.warn_about_unfilled(sink);
        Ok(mapping)
    }

    /// What does not leave of the context.
    pub(super) fn redaction(&self, paths: &[Path]) -> Option<Redaction> {
        let mut columns = self.columns.iter();
        let index = columns.position(|column| column.name == CONTEXT)?;
        let paths = paths.to_vec();
        (!paths.is_empty()).then_some(Redaction { index, paths })
    }

    pub(super) fn report(&self) -> Vec<ColumnReport> {
        self.reports.clone()
    }

    fn add(
        &mut self,
        table: &Table,
        column: &OutboxColumn,
        target: &SinkColumn,
    ) -> Result<(), Trouble> {
        let (shown, name) = (table.shown(), &column.name);
        if matches!(
            target.default_kind.as_str(),
            "MATERIALIZED" | "ALIAS" | "EPHEMERAL"
        ) {
            let kind = &target.default_kind;
            self.warnings.push(format!(
                "column {name} of {shown} is {kind}: the relay leaves it out"
            ));
            return Ok(());
        }
        let Some(of) = ColumnType::parse(&target.type_name) else {
            return Err(refuse(format!(
                "column {name} of {shown} has the type {}, which the relay cannot write; use {}",
                target.type_name,
                self.proposal(column)
            )));
        };
        let given = Given::from_oid(column.type_oid).filter(|given| of.accepts(*given));
        let Some(given) = given else {
            return Err(refuse(format!(
                "column {name} is {} in the outbox and {} in {shown}, which do not fit; ALTER TABLE \
                 {} MODIFY COLUMN {} {}",
                column.type_name,
                target.type_name,
                sql::table(&table.database, &table.name),
                sql::ident(name),
                self.proposal(column)
            )));
        };
        if !column.not_null && !of.nullable && !is_never_null(column) {
            self.check_null(table, column, target)?;
        }
        self.reports.push(ColumnReport {
            name: name.clone(),
            outbox_type: column.type_name.clone(),
            sink_type: target.type_name.clone(),
            proven: false,
        });
        self.columns.push(Planned {
            name: name.clone(),
            given,
            of,
        });
        Ok(())
    }

    /// The sink type that an outbox column goes into best.
    fn proposal(&self, column: &OutboxColumn) -> String {
        propose::sink_type(column, self.dialect)
            .unwrap_or_else(|| "String, and cast the outbox column to text".to_owned())
    }

    /// `trace_parent` is usually null; of a user's column only the user knows.
    fn check_null(
        &mut self,
        table: &Table,
        column: &OutboxColumn,
        target: &SinkColumn,
    ) -> Result<(), Trouble> {
        let (shown, name) = (table.shown(), &column.name);
        let nullable = format!("Nullable({})", target.type_name);
        if name == "trace_parent" {
            return Err(refuse(format!(
                "column {name} may be null in the outbox and is {} in {shown}; ALTER TABLE {} MODIFY \
                 COLUMN {} {nullable}",
                target.type_name,
                sql::table(&table.database, &table.name),
                sql::ident(name)
            )));
        }
        self.warnings.push(format!(
            "column {name} may be null in the outbox but not in {shown}: events without a value \
             become dead letters; make it {nullable} there or not null in the outbox"
        ));
        Ok(())
    }

    fn warn_about_unfilled(&mut self, sink: &[SinkColumn]) {
        let filled = |name: &str| self.columns.iter().any(|column| column.name == name);
        let unfilled = sink
            .iter()
            .filter(|column| column.default_kind.is_empty() && column.name != BATCH)
            .filter(|column| !filled(&column.name));
        let warnings: Vec<String> = unfilled
            .map(|column| {
                let name = &column.name;
                format!(
                    "sink column {name} has no column in the outbox and no default: it stays empty"
                )
            })
            .collect();
        self.warnings.extend(warnings);
    }
}

/// Whether rows without a value are kept from the sink by what the configuration says.
fn is_never_null(column: &OutboxColumn) -> bool {
    let expression = column.expression.as_ref();
    expression.is_some_and(|expression| expression.missing != Missing::Null)
}

fn missing(table: &Table, name: &str) -> String {
    let of = match name {
        "event_date_time" => "DateTime",
        "metadata_version" => "UInt64",
        _ => "String",
    };
    format!(
        "{} has no column {name}; ALTER TABLE {} ADD COLUMN {name} {of}",
        table.shown(),
        sql::table(&table.database, &table.name)
    )
}

fn has_batch(table: &Table, column: Option<&SinkColumn>) -> Result<bool, Trouble> {
    match column {
        None => Ok(false),
        Some(column) if column.type_name == "UInt64" => Ok(true),
        Some(column) => Err(refuse(format!(
            "column batch of {} is {}, but the relay writes UInt64 into it; ALTER TABLE {} MODIFY \
             COLUMN batch UInt64",
            table.shown(),
            column.type_name,
            sql::table(&table.database, &table.name)
        ))),
    }
}
