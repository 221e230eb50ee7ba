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
use crate::batch::{Selection, Store};
use crate::postgres::{Canceller, Session, quote};
use crate::sink::{OutboxColumn, Pushed};
use crate::snapshot::Span;
use crate::source::{Rows, SourceError};

/// How long the server may be silent inside a COPY: it has nothing to wait for.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// More rows than any span has, and few enough for a LIMIT.
const ROWS_MAX: u64 = 1 << 40;

/// The outbox columns that a dead letter has, too; the others are in its `more`, as text.
pub(super) const LETTER: [&str; 10] = [
    "tx",
    "id",
    "event_id",
    "event_type",
    "event_date_time",
    "environment",
    "event_context",
    "metadata_version",
    "trace_parent",
    "published_at",
];

/// What to read.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    pub(super) sink: i32,
    pub(super) span: &'a Span,
    pub(super) selection: &'a Selection,
    pub(super) columns: &'a [String],
    /// The outbox as it was when the columns were chosen.
    pub(super) outbox: Option<&'a [OutboxColumn]>,
    pub(super) rows_max: u64,
}

/// How a COPY ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copied {
    /// With its last row.
    Whole,
    /// There was no room for more.
    NoRoom,
    /// The same, and a cancellation is still on its way: it hits whatever the session does next.
    Cancelling,
}

/// Reads into `into` until that has no room or took `rows_max` rows. One row more is read, so that a
/// batch is cut only where another row follows. Returns whether the session may be used again.
pub(super) async fn read<R: Rows>(
    reader: &mut Session,
    reading: &Reading<'_>,
    into: &mut R,
) -> Result<bool, SourceError> {
    let columns = reading.columns;
    if columns.len() > COLUMNS_MAX {
        return Err(SourceError::Refused(format!(
            "the sink takes {} columns, but at most {COLUMNS_MAX} are supported",
            columns.len()
        )));
    }
    let canceller = reader.canceller().clone();
    let transaction = bounded(lock(reader, reading.outbox)).await?;
    let mut decoder = Decoder::new(columns.len(), reading.span.after);
    let queries: &[Query] = match reading.selection.store {
        Store::Outbox => &[singles, range],
        Store::Requested | Store::Retried(_) => &[letters],
    };
    for query in queries {
        let limit = reading
            .rows_max
            .min(ROWS_MAX)
            .saturating_sub(decoder.taken())
            + 1;
        let Some(query) = query(reading, limit) else {
            continue;
        };
        match copy(&transaction, &canceller, &query, limit, &mut decoder, into).await? {
            Copied::Whole => {}
            Copied::NoRoom => break,
            Copied::Cancelling => {
                // Hit or not, it ends the transaction before the session goes.
                let _ = bounded(async { transaction.rollback().await.map_err(lost) }).await;
                return Ok(false);
            }
        }
    }
    bounded(async { transaction.rollback().await.map_err(lost) }).await?;
    Ok(true)
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
) -> Result<Copied, SourceError> {
    let statement = format!("copy ({query}) to stdout (format binary)");
    let opened = tokio::time::timeout(SILENCE_MAX, transaction.copy_out(statement.as_str()));
    let stream = opened.await.map_err(|_| silent())?.map_err(lost)?;
    let mut stream = pin!(stream);
    let last = decoder.taken() + limit - 1;
    loop {
        let Some(chunk) = next(&mut stream).await? else {
            decoder.end().map_err(unreadable)?;
            return Ok(Copied::Whole);
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
        match chunk {
            Ok(_) => {}
            Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
                return Ok(Copied::NoRoom);
            }
            Err(error) => return Err(lost(error)),
        }
    }
    Ok(match is_last {
        true => Copied::NoRoom,
        // It ended by itself.
        false => Copied::Cancelling,
    })
}

async fn next(
    stream: &mut Pin<&mut CopyOutStream>,
) -> Result<Option<Result<Bytes, tokio_postgres::Error>>, SourceError> {
    tokio::time::timeout(SILENCE_MAX, stream.next())
        .await
        .map_err(|_| silent())
}

/// A query for at most so many rows. The queries hold numbers and quoted names and texts only, no
/// parameters: COPY takes none.
type Query = fn(&Reading<'_>, u64) -> Option<String>;

/// The columns after `tx` and `id`.
fn select_list(reading: &Reading<'_>) -> String {
    let columns = reading.columns.iter();
    columns.fold(String::new(), |mut list, name| {
        let _ = write!(list, ", e.{}", quote::identifier(name));
        list
    })
}

/// The transactions of the span that need a start of their own; all lie below [`range`].
fn singles(reading: &Reading<'_>, limit: u64) -> Option<String> {
    let singles = reading.span.singles();
    let (txs, ids) = (
        join(singles.iter().map(|(tx, _)| tx)),
        join(singles.iter().map(|(_, id)| id)),
    );
    let (list, until, times) = (select_list(reading), until(reading.span), times(reading));
    (!singles.is_empty()).then(|| {
        format!(
            "select r.* from unnest('{{{txs}}}'::xid8[], '{{{ids}}}'::bigint[]) as s (tx, id)
             cross join lateral (
                 select e.tx, e.id{list} from pillarbox.event e
                 where e.tx = s.tx and e.id > s.id{until}{times}
                 order by e.tx, e.id limit {limit}
             ) r
             limit {limit}"
        )
    })
}

/// The transactions of the span that are read in one scan.
fn range(reading: &Reading<'_>, limit: u64) -> Option<String> {
    let range = reading.span.range();
    let (list, until, times) = (select_list(reading), until(reading.span), times(reading));
    (!range.is_empty()).then(|| {
        format!(
            "select e.tx, e.id{list} from pillarbox.event e
             where e.tx >= '{}'::xid8 and e.tx < '{}'::xid8
                 and pg_visible_in_snapshot(e.tx, '{}'::pg_snapshot){until}{times}
             order by e.tx, e.id
             limit {limit}",
            range.start, range.end, reading.span.to
        )
    })
}

/// Dead letters that are retried.
fn letters(reading: &Reading<'_>, limit: u64) -> Option<String> {
    let mut list = String::new();
    for column in reading.columns {
        let quoted = quote::identifier(column);
        if LETTER.contains(&column.as_str()) {
            let _ = write!(list, ", e.{quoted}");
            continue;
        }
        let mut outbox = reading.outbox.iter().copied().flatten();
        let type_name = outbox.find(|known| known.name == *column);
        let type_name = type_name.map_or("text", |known| &known.type_name);
        let _ = write!(
            list,
            ", (e.more ->> {})::{type_name}",
            quote::literal(column)
        );
    }
    let which = match reading.selection.store {
        Store::Outbox => return None,
        Store::Requested => "e.state = 'requested'".to_owned(),
        Store::Retried(number) => format!("e.retry_number = {number}"),
    };
    let after = reading.span.after.map_or_else(String::new, |after| {
        format!(" and (e.tx, e.id) > ('{}'::xid8, {})", after.tx, after.id)
    });
    let (until, times) = (until(reading.span), times(reading));
    Some(format!(
        "select e.tx, e.id{list} from pillarbox.dead_letter e
         where e.sink = {} and {which}{after}{until}{times}
         order by e.tx, e.id
         limit {limit}",
        reading.sink
    ))
}

fn times(reading: &Reading<'_>) -> String {
    let of = |us: i64| format!("'epoch'::timestamptz + {us} * interval '1 microsecond'");
    reading
        .selection
        .times
        .map_or_else(String::new, |(since, until)| {
            format!(
                " and e.event_date_time >= {} and e.event_date_time < {}",
                of(since),
                of(until)
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
