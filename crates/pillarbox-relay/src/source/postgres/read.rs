//! Reads the events of a span by binary COPY, in the order of `(tx, id)`.

use std::fmt::Write as _;
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio_postgres::error::SqlState;
use tokio_postgres::{CopyOutStream, Transaction};

use super::copy::{COLUMNS_MAX, CopyError, Decoder};
use super::{COLUMNS, begin, column, lost};
use crate::postgres::{Canceller, Session};
use crate::sink::{OutboxColumn, Pushed};
use crate::snapshot::Span;
use crate::source::{Rows, SourceError};

/// How long the server may be silent inside a COPY: it has nothing to wait for.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long a cancellation may take to arrive after its connection was closed: it is a signal. One
/// that comes later still costs a tenure, no event.
const CANCELLATION_SECONDS_MAX: f64 = 0.05;

/// Reads `span` into `into` until that has no room or took `rows_max` rows. One row more is read, so
/// that a batch is cut only where another row follows.
pub(super) async fn span<R: Rows>(
    reader: &mut Session,
    span: &Span,
    planned: Option<&[OutboxColumn]>,
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
    let transaction = bounded(lock(reader, planned)).await?;
    let mut decoder = Decoder::new(columns.len(), span.after);
    let list = select_list(columns);
    for query in [singles, range] {
        let limit = rows_max.saturating_sub(decoder.taken()).saturating_add(1);
        let Some(query) = query(span, &list, limit) else {
            continue;
        };
        if copy(&transaction, &canceller, &query, limit, &mut decoder, into).await?
            == Pushed::NoRoom
        {
            break;
        }
    }
    bounded(async { transaction.rollback().await.map_err(lost) }).await
}

/// Begins with the lock on the outbox and its leaves. A COPY takes its snapshot before it takes the
/// lock: behind an ALTER that rewrites the table it would see no rows, and say nothing.
async fn lock<'a>(
    reader: &'a mut Session,
    planned: Option<&[OutboxColumn]>,
) -> Result<Transaction<'a>, SourceError> {
    const LOCK: &str = "lock table pillarbox.event in access share mode";
    let transaction = begin(reader).await?;
    transaction.batch_execute(LOCK).await.map_err(lost)?;
    let rows = transaction.query(COLUMNS, &[]).await.map_err(lost)?;
    if planned.is_some_and(|planned| !rows.iter().map(column).eq(planned.iter().cloned())) {
        return Err(SourceError::Changed);
    }
    Ok(transaction)
}

async fn bounded<T>(step: impl Future<Output = Result<T, SourceError>>) -> Result<T, SourceError> {
    tokio::time::timeout(SILENCE_MAX, step)
        .await
        .map_err(|_| silent())?
}

/// Runs one COPY until its end or until there is no room.
async fn copy<R: Rows>(
    transaction: &Transaction<'_>,
    canceller: &Canceller,
    query: &str,
    limit: u64,
    decoder: &mut Decoder,
    into: &mut R,
) -> Result<Pushed, SourceError> {
    let statement = format!("copy ({query}) to stdout (format binary)");
    let opened = tokio::time::timeout(SILENCE_MAX, transaction.copy_out(statement.as_str()));
    let stream = opened.await.map_err(|_| silent())?.map_err(lost)?;
    let mut stream = pin!(stream);
    let last = decoder.taken() + limit - 1;
    loop {
        let Some(chunk) = next(&mut stream).await? else {
            decoder.end().map_err(unreadable)?;
            return Ok(Pushed::Taken);
        };
        let chunk = chunk.map_err(lost)?;
        let pushed = decoder.feed(chunk, |row| into.push(row));
        if pushed.map_err(unreadable)? == Pushed::NoRoom {
            break;
        }
    }
    // The row without room was the last one of the query: the COPY is at its end.
    let is_last = decoder.taken() >= last;
    // Never pause a COPY: it would hold its snapshot. Cancel it and read what is on the way.
    if !is_last {
        bounded(async { canceller.cancel().await.map_err(lost) }).await?;
    }
    while let Some(chunk) = next(&mut stream).await? {
        if let Err(error) = chunk {
            return cancelled(error);
        }
    }
    if is_last {
        return Ok(Pushed::NoRoom);
    }
    // It ended by itself: the cancellation is still on its way and would hit the next statement.
    let wait = format!("select pg_catalog.pg_sleep({CANCELLATION_SECONDS_MAX})");
    bounded(async {
        match transaction.batch_execute(&wait).await {
            Ok(()) => Ok(Pushed::NoRoom),
            Err(error) => cancelled(error),
        }
    })
    .await
}

async fn next(
    stream: &mut Pin<&mut CopyOutStream>,
) -> Result<Option<Result<Bytes, tokio_postgres::Error>>, SourceError> {
    tokio::time::timeout(SILENCE_MAX, stream.next())
        .await
        .map_err(|_| silent())
}

fn cancelled(error: tokio_postgres::Error) -> Result<Pushed, SourceError> {
    if error.code() == Some(&SqlState::QUERY_CANCELED) {
        return Ok(Pushed::NoRoom);
    }
    Err(lost(error))
}

/// The columns after `tx` and `id`. The queries below hold numbers and quoted identifiers only, no
/// parameters: COPY takes none.
fn select_list(columns: &[String]) -> String {
    columns.iter().fold(String::new(), |mut list, name| {
        let _ = write!(list, ", e.{}", quote_identifier(name));
        list
    })
}

/// The transactions of the span that need a start of their own; all lie below [`range`].
fn singles(span: &Span, list: &str, limit: u64) -> Option<String> {
    let singles = span.singles();
    let (txs, ids) = (
        join(singles.iter().map(|(tx, _)| tx)),
        join(singles.iter().map(|(_, id)| id)),
    );
    let until = until(span);
    (!singles.is_empty()).then(|| {
        format!(
            "select r.* from unnest('{{{txs}}}'::xid8[], '{{{ids}}}'::bigint[]) as s (tx, id)
             cross join lateral (
                 select e.tx, e.id{list} from pillarbox.event e
                 where e.tx = s.tx and e.id > s.id{until}
                 order by e.tx, e.id limit {limit}
             ) r
             limit {limit}"
        )
    })
}

/// The transactions of the span that are read in one scan.
fn range(span: &Span, list: &str, limit: u64) -> Option<String> {
    let range = span.range();
    let until = until(span);
    (!range.is_empty()).then(|| {
        format!(
            "select e.tx, e.id{list} from pillarbox.event e
             where e.tx >= '{}'::xid8 and e.tx < '{}'::xid8
                 and pg_visible_in_snapshot(e.tx, '{}'::pg_snapshot){until}
             order by e.tx, e.id
             limit {limit}",
            range.start, range.end, span.to
        )
    })
}

fn until(span: &Span) -> String {
    span.until.map_or_else(String::new, |until| {
        format!(" and (e.tx, e.id) <= ('{}'::xid8, {})", until.tx, until.id)
    })
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
