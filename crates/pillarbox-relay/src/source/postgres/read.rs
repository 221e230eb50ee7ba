//! Reads the events of a span by binary COPY, in the order of `(tx, id)`.

use std::fmt::Write as _;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio_postgres::Transaction;
use tokio_postgres::error::SqlState;

use super::copy::{COLUMNS_MAX, CopyError, Decoder};
use super::{begin, lost};
use crate::postgres::{Canceller, Session};
use crate::sink::Pushed;
use crate::snapshot::Span;
use crate::source::{Rows, SourceError};

/// How long the server may be silent inside a COPY: it has nothing to wait for.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Reads `span` into `into` until that has no room or took `rows_max` rows. One row more is read, so
/// that a batch is cut only where another row follows.
pub(super) async fn span<R: Rows>(
    reader: &mut Session,
    span: &Span,
    columns: &[String],
    rows_max: u64,
    into: &mut R,
) -> Result<(), SourceError> {
    if columns.len() > COLUMNS_MAX {
        return Err(SourceError::Refused(format!(
            "the sink takes {} columns, but at most {COLUMNS_MAX} are supported",
            columns.len()
        )));
    }
    let canceller = reader.canceller().clone();
    let transaction = begin(reader).await?;
    let mut decoder = Decoder::new(columns.len(), span.after);
    for query in queries(span, columns, rows_max.saturating_add(1)) {
        if copy(&transaction, &canceller, &query, &mut decoder, into).await? == Pushed::NoRoom {
            break;
        }
    }
    transaction.rollback().await.map_err(lost)
}

/// Runs one COPY until its end or until there is no room.
async fn copy<R: Rows>(
    transaction: &Transaction<'_>,
    canceller: &Canceller,
    query: &str,
    decoder: &mut Decoder,
    into: &mut R,
) -> Result<Pushed, SourceError> {
    let statement = format!("copy ({query}) to stdout (format binary)");
    let opened = tokio::time::timeout(SILENCE_MAX, transaction.copy_out(statement.as_str()));
    let stream = opened.await.map_err(|_| silent())?.map_err(lost)?;
    let mut stream = pin!(stream);
    loop {
        let next = tokio::time::timeout(SILENCE_MAX, stream.next())
            .await
            .map_err(|_| silent())?;
        let chunk = match next {
            None => {
                decoder.end().map_err(unreadable)?;
                return Ok(Pushed::Taken);
            }
            Some(chunk) => chunk.map_err(lost)?,
        };
        if decoder
            .feed(chunk, |row| into.push(row))
            .map_err(unreadable)?
            == Pushed::NoRoom
        {
            break;
        }
    }
    // Never pause a COPY: it would hold its snapshot. Cancel it and read what is on the way.
    canceller.cancel().await.map_err(lost)?;
    loop {
        match tokio::time::timeout(SILENCE_MAX, stream.next())
            .await
            .map_err(|_| silent())?
        {
            None => return Ok(Pushed::NoRoom),
            Some(Ok(_)) => {}
            Some(Err(error)) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
                return Ok(Pushed::NoRoom);
            }
            Some(Err(error)) => return Err(lost(error)),
        }
    }
}

/// The queries that together yield the span in order: transactions that need a start of their own
/// first, then the range above them. Numbers and quoted identifiers only, no parameters: COPY takes
/// none.
fn queries(span: &Span, columns: &[String], limit: u64) -> Vec<String> {
    let list = columns.iter().fold(String::new(), |mut list, name| {
        let _ = write!(list, ", e.{}", quote_identifier(name));
        list
    });
    let until = span.until.map_or_else(String::new, |until| {
        format!(" and (e.tx, e.id) <= ('{}'::xid8, {})", until.tx, until.id)
    });
    let mut queries = Vec::new();
    let singles = span.singles();
    if !singles.is_empty() {
        let txs = join(singles.iter().map(|(tx, _)| tx));
        let ids = join(singles.iter().map(|(_, id)| id));
        queries.push(format!(
            "select r.* from unnest('{{{txs}}}'::xid8[], '{{{ids}}}'::bigint[]) as s (tx, id)
             cross join lateral (
                 select e.tx, e.id{list} from pillarbox.event e
                 where e.tx = s.tx and e.id > s.id{until}
                 order by e.tx, e.id limit {limit}
             ) r
             limit {limit}"
        ));
    }
    let range = span.range();
    if !range.is_empty() {
        queries.push(format!(
            "select e.tx, e.id{list} from pillarbox.event e
             where e.tx >= '{}'::xid8 and e.tx < '{}'::xid8
                 and pg_visible_in_snapshot(e.tx, '{}'::pg_snapshot){until}
             order by e.tx, e.id
             limit {limit}",
            range.start, range.end, span.to
        ));
    }
    queries
}

fn join<T: ToString>(items: impl Iterator<Item = T>) -> String {
    items
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(",")
}

fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn silent() -> SourceError {
    SourceError::Lost(
        "postgresql fell silent while events were read".to_owned(),
        None,
    )
}

fn unreadable(error: CopyError) -> SourceError {
    match error {
        CopyError::Malformed(_) => SourceError::Broken(error.to_string()),
        CopyError::Row(error) => SourceError::Row(error),
    }
}
