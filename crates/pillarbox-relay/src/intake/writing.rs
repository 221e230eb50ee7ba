//! Writes entries in the caller's transaction: events into the outbox, the others into the dead letters.
//!
//! What PostgreSQL refuses is found by halves, inside of a savepoint, and only what it refuses for the
//! entry's own sake is set aside. Anything else is trouble of the whole.

use std::time::SystemTime;

use tokio_postgres::Transaction;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::entry::{Body, Event, Reason};
use super::trouble::{IntakeError, in_time};

/// An entry and where it was.
#[derive(Clone, Debug)]
pub struct Item {
    /// The id in a stream, chunk and place in a list, the line of a file.
    pub place: String,
    /// Its bytes.
    pub body: Body,
    /// Why it must not become an event although it may be one.
    pub doubt: Option<Reason>,
    /// Identity of the event, where the entry names none and somebody has to know it.
    pub event_id: Option<Uuid>,
}

/// What became of entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Became events.
    pub taken: u64,
    /// Became dead letters.
    pub dead: u64,
}

/// An entry that is no event.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Its place in the batch.
    pub(crate) index: usize,
    /// SQLSTATE, where PostgreSQL refused it.
    pub(crate) code: Option<String>,
    pub(crate) reason: Reason,
}

/// Publishes in order what can be, and sets the rest aside.
pub(crate) async fn write(
    transaction: &Transaction<'_>,
    intake: i32,
    items: &[Item],
) -> Result<Written, IntakeError> {
    let refused = publish(transaction, items).await?;
    set_aside(transaction, intake, items, &refused).await?;
    Ok(Written {
        taken: (items.len() - refused.len()) as u64,
        dead: refused.len() as u64,
    })
}

/// Publishes in order what can be, and tells the rest.
pub(crate) async fn publish(
    transaction: &Transaction<'_>,
    items: &[Item],
) -> Result<Vec<Refused>, IntakeError> {
    let mut refused = Vec::new();
    let mut events = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        match (&item.doubt, item.body.event()) {
            (None, Ok(mut event)) => {
                event.event_id = event.event_id.or(item.event_id);
                events.push((index, event));
            }
            (doubt, event) => {
                let reason = event.err().or_else(|| doubt.clone());
                refused.extend(reason.map(|reason| Refused {
                    index,
                    code: None,
                    reason,
                }));
            }
        }
    }
    // Ranges still to publish, the next one last.
    let mut open = Vec::new();
    let mut next = Some(0..events.len());
    while let Some(range) = next.take().or_else(|| open.pop()) {
        let Some(part) = events.get(range.clone()).filter(|part| !part.is_empty()) else {
            continue;
        };
        let Err((code, reason)) = offer(transaction, part).await? else {
            continue;
        };
        if let [(index, _)] = part {
            let (index, code) = (*index, Some(code));
            refused.push(Refused {
                index,
                code,
                reason,
            });
            continue;
        }
        let middle = range.start + part.len() / 2;
        open.extend([middle..range.end, range.start..middle]);
    }
    refused.sort_unstable_by_key(|refused| refused.index);
    Ok(refused)
}

/// Publishes all of them or none; gives code and reason when PostgreSQL refuses one for its own sake.
async fn offer(
    transaction: &Transaction<'_>,
    events: &[(usize, Event<'_>)],
) -> Result<Result<(), (String, Reason)>, IntakeError> {
    const PUBLISH: &str = include_str!("sql/publish.sql");
    fn all<'a, T>(events: &'a [(usize, Event<'a>)], of: impl Fn(&'a Event<'a>) -> T) -> Vec<T> {
        events.iter().map(|(_, event)| of(event)).collect()
    }
    let event_types: Vec<&str> = all(events, |event| event.event_type.as_ref());
    let contexts: Vec<&str> = all(events, |event| event.event_context);
    let times: Vec<Option<SystemTime>> = all(events, |event| event.event_date_time);
    let environments: Vec<Option<&str>> = all(events, |event| event.environment.as_deref());
    let versions: Vec<Option<i64>> = all(events, |event| event.metadata_version);
    let ids: Vec<Option<Uuid>> = all(events, |event| event.event_id);
    let traces: Vec<Option<&str>> = all(events, |event| event.trace_parent.as_deref());
    let given: &[&(dyn ToSql + Sync)] = &[
        &event_types,
        &contexts,
        &times,
        &environments,
        &versions,
        &ids,
        &traces,
    ];
    in_time(transaction.batch_execute("savepoint entries")).await?;
    let answer =
        super::trouble::timed(async { Ok(transaction.query_one(PUBLISH, given).await) }).await?;
    let error = match answer {
        Ok(_) => {
            in_time(transaction.batch_execute("release savepoint entries")).await?;
            return Ok(Ok(()));
        }
        Err(error) => error,
    };
    let Some(blame) = error.as_db_error().and_then(blame) else {
        return Err(error.into());
    };
    in_time(transaction.batch_execute("rollback to savepoint entries")).await?;
    Ok(Err(blame))
}

/// Code and reason when it is an entry that PostgreSQL refuses. Its message may quote the entry, but for
/// the CHECKs of the outbox, which say lengths and limits.
fn blame(error: &DbError) -> Option<(String, Reason)> {
    const COLUMNS: [&str; 7] = [
        "event_id",
        "event_type",
        "event_date_time",
        "environment",
        "event_context",
        "metadata_version",
        "trace_parent",
    ];
    let code = error.code();
    let text = code.code();
    let is_own = match &text[..2] {
        // A column that somebody has added and no entry can fill is no fault of any entry.
        "23" if *code == SqlState::NOT_NULL_VIOLATION => error
            .column()
            .is_some_and(|column| COLUMNS.contains(&column)),
        "22" | "23" => true,
        // JSON nested deeper than the server's stack allows, or otherwise beyond its limits.
        "54" => true,
        _ => false,
    };
    let reason = match (*code == SqlState::CHECK_VIOLATION, error.constraint()) {
        (true, None) => error.message().to_owned(),
        (_, Some(constraint)) => format!("postgresql refuses it: {text}, constraint {constraint}"),
        (_, None) => format!("postgresql refuses it: SQLSTATE {text}"),
    };
    is_own.then(|| (text.to_owned(), Reason(reason)))
}

pub(crate) async fn set_aside(
    transaction: &Transaction<'_>,
    intake: i32,
    items: &[Item],
    refused: &[Refused],
) -> Result<(), IntakeError> {
    const SET_ASIDE: &str = include_str!("sql/set_aside.sql");
    if refused.is_empty() {
        return Ok(());
    }
    let of = |refused: &Refused| items.get(refused.index);
    let found: Vec<&Item> = refused.iter().filter_map(of).collect();
    let places: Vec<&str> = found.iter().map(|item| item.place.as_str()).collect();
    let formats: Vec<&str> = found.iter().map(|item| item.body.format()).collect();
    let codes: Vec<Option<&str>> = refused
        .iter()
        .map(|refused| refused.code.as_deref())
        .collect();
    let reasons: Vec<&str> = refused
        .iter()
        .map(|refused| refused.reason.0.as_str())
        .collect();
    let entries: Vec<_> = found.iter().map(|item| item.body.bytes()).collect();
    let entries: Vec<&[u8]> = entries.iter().map(AsRef::as_ref).collect();
    let given: &[&(dyn ToSql + Sync)] = &[&intake, &places, &formats, &codes, &reasons, &entries];
    in_time(transaction.execute(SET_ASIDE, given)).await?;
    Ok(())
}

/// A dead letter that is too large to be held, written piece by piece.
#[derive(Debug)]
pub(crate) struct LargeLetter {
    dead_letter: i64,
    pieces: i32,
    bytes: i64,
}

impl LargeLetter {
    /// How large a piece is.
    pub(crate) const PIECE: usize = 1024 * 1024;

    pub(crate) async fn begin(
        transaction: &Transaction<'_>,
        intake: i32,
        place: &str,
        format: &str,
        reason: &Reason,
    ) -> Result<Self, IntakeError> {
        const BEGIN: &str = include_str!("sql/set_aside_large.sql");
        let given: &[&(dyn ToSql + Sync)] = &[&intake, &place, &format, &0_i64, &reason.0];
        let row = in_time(transaction.query_one(BEGIN, given)).await?;
        Ok(Self {
            dead_letter: row.get(0),
            pieces: 0,
            bytes: 0,
        })
    }

    pub(crate) async fn add(
        &mut self,
        transaction: &Transaction<'_>,
        piece: &[u8],
    ) -> Result<(), IntakeError> {
        const ADD: &str = include_str!("sql/piece.sql");
        let given: &[&(dyn ToSql + Sync)] = &[&self.dead_letter, &self.pieces, &piece];
        in_time(transaction.execute(ADD, given)).await?;
        self.pieces += 1;
        self.bytes += i64::try_from(piece.len()).unwrap_or(i64::MAX);
        Ok(())
    }

    pub(crate) async fn end(self, transaction: &Transaction<'_>) -> Result<Written, IntakeError> {
        const END: &str = include_str!("sql/measured.sql");
        in_time(transaction.execute(END, &[&self.dead_letter, &self.bytes])).await?;
        Ok(Written { taken: 0, dead: 1 })
    }
}
