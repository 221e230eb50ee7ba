//! Which column comes from where, and what would bring both sides together, for `pillarbox columns`. Pure.

use serde::Serialize;

use super::column::{ColumnType, Given};
use super::create::Dialect;
use super::mapping::{BATCH, INTERNAL, REQUIRED};
use super::table::{SinkColumn, Table};
use super::{propose, sql};
use crate::expression::{Expression, Missing};
use crate::postgres::quote;
use crate::sink::OutboxColumn;

/// Columns of every outbox that a table may do without.
const OPTIONAL: [&str; 3] = ["event_id", "trace_parent", "published_at"];

/// One column of either side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ColumnPlan {
    /// Its name.
    pub name: String,
    /// Its type in the outbox, or of its expression.
    pub outbox_type: Option<String>,
    /// Its type in the sink.
    pub sink_type: Option<String>,
    /// Where the sink's value comes from, or what becomes of the outbox's.
    pub source: String,
    /// The statement for the sink that would bring both sides together.
    pub sink_ddl: Option<String>,
    /// The statement for PostgreSQL that would.
    pub outbox_ddl: Option<String>,
}

/// Every column of both sides, those of the outbox first.
pub(super) fn plan(
    table: &Table,
    sink: &[SinkColumn],
    outbox: &[OutboxColumn],
    dialect: Dialect,
) -> Vec<ColumnPlan> {
    let target = sql::table(&table.database, &table.name);
    let find = |name: &str| sink.iter().find(|column| column.name == name);
    let is_shown =
        |column: &&OutboxColumn| !INTERNAL.contains(&column.name.as_str()) && column.name != BATCH;
    let mut plans: Vec<ColumnPlan> = outbox
        .iter()
        .filter(is_shown)
        .map(|column| of_outbox(&target, column, find(&column.name), dialect))
        .collect();
    let is_known = |column: &&SinkColumn| !plans.iter().any(|plan| plan.name == column.name);
    let rest: Vec<&SinkColumn> = sink.iter().filter(is_known).collect();
    plans.extend(rest.into_iter().map(of_sink));
    plans
}

fn of_outbox(
    target: &str,
    column: &OutboxColumn,
    sink: Option<&SinkColumn>,
    dialect: Dialect,
) -> ColumnPlan {
    let name = &column.name;
    let proposal = propose::sink_type(column, dialect);
    let alter = |verb: &str| {
        let of = proposal.as_ref()?;
        Some(format!(
            "ALTER TABLE {target} {verb} COLUMN {} {of}",
            sql::ident(name)
        ))
    };
    let from = match &column.expression {
        Some(expression) => computed(expression),
        None => "the outbox".to_owned(),
    };
    let (source, sink_ddl) = match sink {
        None if OPTIONAL.contains(&name.as_str()) => ("left out".to_owned(), None),
        None => (
            "left out: the sink has no such column".to_owned(),
            alter("ADD"),
        ),
        Some(sink) if !sink.default_kind.is_empty() && sink.default_kind != "DEFAULT" => {
            let kind = &sink.default_kind;
            (
                format!("the table, where it is {kind}; the outbox's is left out"),
                None,
            )
        }
        Some(sink) => match misfit(column, sink) {
            None => (from, None),
            Some(why) => (why, alter("MODIFY")),
        },
    };
    ColumnPlan {
        name: name.clone(),
        outbox_type: Some(column.type_name.clone()),
        sink_type: sink.map(|sink| sink.type_name.clone()),
        source,
        sink_ddl,
        outbox_ddl: None,
    }
}

fn computed(expression: &Expression) -> String {
    let sql = expression
        .sql
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    match (expression.is_volatile, expression.missing) {
        (false, Missing::Null) => format!("computed: {sql}"),
        (false, missing) => format!("computed, missing = {}: {sql}", missing.as_str()),
        (true, missing) => format!("computed, volatile, missing = {}: {sql}", missing.as_str()),
    }
}

/// Why a column of the outbox does not go into that of the sink, or not with every value.
fn misfit(column: &OutboxColumn, sink: &SinkColumn) -> Option<String> {
    let Some(of) = ColumnType::parse(&sink.type_name) else {
        return Some("refused: the relay cannot write this type".to_owned());
    };
    let given = Given::from_oid(column.type_oid).filter(|given| of.accepts(*given));
    let may_be_null = !column.not_null
        && column
            .expression
            .as_ref()
            .is_none_or(|expression| expression.missing == Missing::Null);
    match given {
        None => Some("refused: the types do not fit".to_owned()),
        Some(_) if may_be_null && !of.nullable => {
            Some("the outbox, but null does not fit and becomes a dead letter".to_owned())
        }
        Some(_) => None,
    }
}

fn of_sink(column: &SinkColumn) -> ColumnPlan {
    let name = &column.name;
    let mut plan = ColumnPlan {
        name: name.clone(),
        outbox_type: None,
        sink_type: Some(column.type_name.clone()),
        source: String::new(),
        sink_ddl: None,
        outbox_ddl: None,
    };
    if name == BATCH {
        plan.source = "the relay: the number of the batch".to_owned();
        return plan;
    }
    if !column.default_kind.is_empty() {
        plan.source = format!(
            "the table: {} {}",
            column.default_kind, column.default_expression
        );
        return plan;
    }
    if REQUIRED.contains(&name.as_str()) {
        plan.source = "nothing: run pillarbox migrate".to_owned();
        return plan;
    }
    plan.source = "nothing: it stays empty".to_owned();
    plan.outbox_ddl = ColumnType::parse(&column.type_name).map(|of| {
        let (of, default) = propose::outbox_type(&of);
        let default = default.map(|default| format!(" not null default {default}"));
        format!(
            "alter table pillarbox.event add column {} {of}{}",
            quote::identifier(name),
            default.unwrap_or_default()
        )
    });
    plan
}
