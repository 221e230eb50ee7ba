//! What the preflight found, for `pillarbox sink check`.

use serde::Serialize;

use crate::sink::TokenWindow;

/// What a table is, what it can promise, and what to watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SinkReport {
    /// `database.table`.
    pub table: String,
    /// Version of the server.
    pub version: String,
    /// Engine of the table.
    pub engine: String,
    /// `token`, `lookup` or `at-least-once`.
    pub guarantee: &'static str,
    /// Why it is this guarantee.
    pub guarantee_reason: String,
    /// How long the table remembers tokens.
    pub window: TokenWindow,
    /// Its partition expression; empty for none.
    pub partition: String,
    /// Its sorting key.
    pub sorting_key: String,
    /// The columns that the relay fills.
    pub columns: Vec<ColumnReport>,
    /// Materialized views that every insert feeds.
    pub views: Vec<String>,
    /// What to watch; nothing of it keeps the sink from working.
    pub warnings: Vec<String>,
}

/// A column that the relay fills.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ColumnReport {
    /// Its name, in the outbox and in the sink.
    pub name: String,
    /// Its type in the outbox.
    pub outbox_type: String,
    /// Its type in the sink.
    pub sink_type: String,
    /// Whether the digest covers it.
    pub proven: bool,
}
