//! The two statements and their arguments, for every adapter.

use uuid::Uuid;

use crate::outbox::Row;
use crate::timestamp::Timestamp;

pub(crate) const PUBLISH: &str = include_str!("sql/publish.sql");
pub(crate) const PUBLISH_BATCH: &str = include_str!("sql/publish_batch.sql");

/// A context on its way into a `json` parameter: the text itself, not parsed again.
#[derive(Debug)]
pub(crate) struct Json<'a>(pub(crate) &'a str);

/// The arguments of `pillarbox.publish`, in its order. `None` asks for the column's default.
pub(crate) struct Single<'a> {
    pub(crate) event_type: &'a str,
    pub(crate) event_context: Json<'a>,
    pub(crate) event_date_time: Option<Timestamp>,
    pub(crate) environment: Option<&'a str>,
    pub(crate) metadata_version: i64,
    pub(crate) event_id: Uuid,
    pub(crate) trace_parent: Option<&'a str>,
}

/// The arguments of `pillarbox.publish_batch`, in its order: one array for each column. `None` for a
/// whole column spares an array of nulls.
pub(crate) struct Batch<'a> {
    pub(crate) event_types: Vec<&'a str>,
    pub(crate) event_contexts: Vec<Json<'a>>,
    pub(crate) event_date_times: Option<Vec<Option<Timestamp>>>,
    pub(crate) environments: Option<Vec<Option<&'a str>>>,
    pub(crate) metadata_versions: Vec<i64>,
    pub(crate) event_ids: Vec<Uuid>,
    pub(crate) trace_parents: Option<Vec<Option<&'a str>>>,
}

impl<'a> Single<'a> {
    pub(crate) fn new(row: &'a Row<'_>) -> Self {
        Self {
            event_type: &row.event.event_type,
            event_context: Json(&row.event.event_context),
            event_date_time: row.event_date_time,
            environment: row.environment(),
            metadata_version: row.metadata_version,
            event_id: row.event.event_id,
            trace_parent: row.trace_parent(),
        }
    }
}

impl<'a> Batch<'a> {
    pub(crate) fn new(rows: &'a [Row<'_>]) -> Self {
        Self {
            event_types: rows
                .iter()
                .map(|row| row.event.event_type.as_str())
                .collect(),
            event_contexts: rows
                .iter()
                .map(|row| Json(&row.event.event_context))
                .collect(),
            event_date_times: column(rows, |row| row.event_date_time),
            environments: column(rows, |row| row.environment()),
            metadata_versions: rows.iter().map(|row| row.metadata_version).collect(),
            event_ids: rows.iter().map(|row| row.event.event_id).collect(),
            trace_parents: column(rows, |row| row.trace_parent()),
        }
    }
}

fn column<'a, T>(
    rows: &'a [Row<'_>],
    value: impl Fn(&'a Row<'_>) -> Option<T>,
) -> Option<Vec<Option<T>>> {
    let column: Vec<_> = rows.iter().map(value).collect();
    column.iter().any(Option::is_some).then_some(column)
}
