//! What would be lost: events of the outbox that a sink has not received.

use tokio_postgres::Client;

use crate::exit::Failure;

/// Counting stops here: more than this many are "more than" to a person.
const COUNTED_MAX: i64 = 1_000_000;

/// How many events a registered sink has not received.
pub(crate) struct Backlog {
    pub(crate) sink: String,
    pub(crate) events: i64,
}

/// The backlog of every sink that was not retired.
pub(crate) async fn of_sinks(client: &Client) -> Result<Vec<Backlog>, Failure> {
    const UNDELIVERED: &str = include_str!("command/sql/undelivered.sql");
    let rows = client.query(UNDELIVERED, &[&COUNTED_MAX]).await?;
    let read = |row: &tokio_postgres::Row| Backlog {
        sink: row.get(0),
        events: row.get(1),
    };
    Ok(rows.iter().map(read).collect())
}

/// How many events the outbox holds.
pub(crate) async fn of_outbox(client: &Client) -> Result<i64, Failure> {
    const EVENTS: &str = include_str!("command/sql/outbox_events.sql");
    Ok(client.query_one(EVENTS, &[&COUNTED_MAX]).await?.get(0))
}

/// "no events", "1 event", "7 events", "at least 1000000 events".
pub(crate) fn counted(events: i64) -> String {
    match events {
        0 => "no events".to_owned(),
        1 => "1 event".to_owned(),
        COUNTED_MAX => format!("at least {COUNTED_MAX} events"),
        n => format!("{n} events"),
    }
}
