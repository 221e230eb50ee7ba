//! Reading events back, for `pillarbox events` and the console.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::client::Client;
use super::config::ClickHouseConfig;
use super::sql;
use super::table::{SinkColumn, Table};
use super::verdict::{refuse, trouble};
use crate::sink::Trouble;

/// Rows of one answer at most, whatever is asked for.
pub const EVENTS_MAX: u32 = 10_000;

/// Which events to read, newest first. An absent filter lets everything pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventFilter {
    /// Not before this instant, as `2026-11-20T10:00:00Z`.
    pub since: Option<String>,
    /// Before this instant.
    pub until: Option<String>,
    /// With this type.
    pub event_type: Option<String>,
    /// Of this environment.
    pub environment: Option<String>,
    /// With this identity.
    pub event_id: Option<String>,
    /// Whose context has this text in it.
    pub contains: Option<String>,
    /// At most so many.
    pub limit: u32,
}

impl Default for EventFilter {
    fn default() -> Self {
        Self {
            since: None,
            until: None,
            event_type: None,
            environment: None,
            event_id: None,
            contains: None,
            limit: 100,
        }
    }
}

/// An event as the sink holds it. Numbers are text, as JSON would round them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRow {
    /// Its identity, where the table has it.
    #[serde(default)]
    pub event_id: Option<String>,
    /// Its type.
    pub event_type: String,
    /// When it happened, in UTC.
    pub event_date_time: String,
    /// Where it happened.
    pub environment: String,
    /// Its context.
    pub event_context: String,
    /// Version of its context's shape.
    pub metadata_version: String,
    /// The batch that brought it, where the table has the column.
    #[serde(default)]
    pub batch: Option<String>,
}

/// Reads events, newest first.
pub(super) async fn read(
    client: &Client,
    config: &ClickHouseConfig,
    filter: &EventFilter,
) -> Result<Vec<EventRow>, Trouble> {
    let found = Table::find(client, &config.database, &config.table).await;
    let table = found.map_err(|fault| trouble(&fault))?.ok_or_else(|| {
        refuse(format!(
            "table {}.{} does not exist",
            config.database, config.table
        ))
    })?;
    let columns = SinkColumn::of(client, &table.database, &table.name).await;
    let columns = columns.map_err(|fault| trouble(&fault))?;
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let time = columns
        .iter()
        .find(|column| column.name == "event_date_time");
    let is_fine = time.is_some_and(|column| column.type_name.starts_with("DateTime64"));
    let statement = statement(
        &sql::table(&config.database, &config.table),
        &names,
        is_fine,
        filter,
    )?;
    client
        .rows(&statement)
        .await
        .map_err(|fault| trouble(&fault))
}

fn statement(
    table: &str,
    names: &[&str],
    is_fine: bool,
    filter: &EventFilter,
) -> Result<String, Trouble> {
    let optional = |name: &str| {
        let shown = format!("toString({name}) AS {name}_text, ");
        if names.contains(&name) {
            shown
        } else {
            String::new()
        }
    };
    let conditions = conditions(names, is_fine, filter)?;
    let limit = filter.limit.clamp(1, EVENTS_MAX);
    let inner = format!(
        "SELECT {}{}CAST(event_type AS String) AS type_text, toString(event_date_time, 'UTC') AS \
         time_text, CAST(environment AS String) AS environment_text, CAST(event_context AS String) AS context_text, \
         toString(metadata_version) AS version_text, event_date_time AS at FROM {table}{conditions} \
         ORDER BY at DESC LIMIT {limit}",
        optional("event_id"),
        optional("batch"),
    );
    let outer = |name: &str| {
        let shown = format!("{name}_text AS {name}, ");
        if names.contains(&name) {
            shown
        } else {
            String::new()
        }
    };
    // The names of an answer must not hide the columns that conditions and order need.
    Ok(format!(
        "SELECT {}{}type_text AS event_type, time_text AS event_date_time, environment_text AS \
         environment, context_text AS event_context, version_text AS metadata_version FROM ({inner})",
        outer("event_id"),
        outer("batch"),
    ))
}

fn conditions(names: &[&str], is_fine: bool, filter: &EventFilter) -> Result<String, Trouble> {
    let mut out = String::new();
    let mut add = |condition: String| {
        let word = if out.is_empty() { " WHERE" } else { " AND" };
        // Writing to a String cannot fail.
        let _ = write!(out, "{word} {condition}");
    };
    for (bound, comparison) in [(&filter.since, ">="), (&filter.until, "<")] {
        if let Some(text) = bound {
            add(format!(
                "event_date_time {comparison} {}",
                instant(text, is_fine)?
            ));
        }
    }
    for (value, column) in [
        (&filter.event_type, "event_type"),
        (&filter.environment, "environment"),
    ] {
        if let Some(value) = value {
            add(format!("{column} = {}", sql::text(value)));
        }
    }
    if let Some(id) = &filter.event_id {
        if !names.contains(&"event_id") {
            return Err(refuse(
                "the sink's table has no column event_id to search".to_owned(),
            ));
        }
        add(format!(
            "toString(event_id) = {}",
            sql::text(&id.to_lowercase())
        ));
    }
    if let Some(text) = &filter.contains {
        add(format!(
            "position(CAST(event_context AS String), {}) > 0",
            sql::text(text)
        ));
    }
    Ok(out)
}

/// A bound as ClickHouse compares it, whatever zone the column has.
fn instant(text: &str, is_fine: bool) -> Result<String, Trouble> {
    let parsed: jiff::Timestamp = text.parse().map_err(|_| {
        refuse(format!(
            "{text:?} is not a time such as 2026-11-20T10:00:00Z"
        ))
    })?;
    let us = parsed.as_microsecond();
    Ok(if is_fine {
        format!("fromUnixTimestamp64Micro(toInt64({us}))")
    } else {
        // 18.16 reads only whole seconds; the table holds no finer ones. A bound inside of a second
        // starts with the next one.
        let seconds = us.div_euclid(1_000_000) + i64::from(us.rem_euclid(1_000_000) > 0);
        format!("toDateTime({})", seconds.clamp(0, i64::from(u32::MAX)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_stay_texts() {
        let filter = EventFilter {
            event_type: Some("a' OR 1=1 --".to_owned()),
            since: Some("2026-11-20T10:00:00.5Z".to_owned()),
            ..EventFilter::default()
        };
        let sql = statement("`d`.`t`", &["event_type"], false, &filter).unwrap();
        assert!(sql.contains(r"event_type = 'a\' OR 1=1 --'"), "{sql}");
        assert!(
            sql.contains("event_date_time >= toDateTime(1795168801)"),
            "{sql}"
        );
        assert!(!sql.contains("event_id"), "{sql}");
        let bad = EventFilter {
            until: Some("yesterday".to_owned()),
            ..filter
        };
        assert!(statement("`d`.`t`", &[], true, &bad).is_err());
    }
}
