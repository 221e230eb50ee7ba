//! Reads the events of a span by binary COPY, in the order of `(tx, id)`.

use std::fmt::Write as _;
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio_postgres::error::SqlState;
use tokio_postgres::{CopyOutStream, Transaction};

use super::copy::{COLUMNS_MAX, CopyError, Decoder};
use super::gate::Gate;
use super::outbox::Outbox;
use super::{COLUMNS, begin, column, failed, lost};
use crate::batch::{Selection, Store};
use crate::postgres::{Canceller, Session, quote};
use crate::sink::Pushed;
use crate::snapshot::{Cut, Span};
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
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading<'a> {
    pub(super) sink: i32,
    pub(super) span: &'a Span,
    pub(super) selection: &'a Selection,
    pub(super) columns: &'a [String],
    /// The outbox as it was when the columns were chosen.
    pub(super) outbox: Option<&'a Outbox>,
    pub(super) rows_max: u64,
    /// Whether expressions are computed; else they are null.
    pub(super) computes: bool,
}

impl Reading<'_> {
    /// Whether a value of a row may be one that the server cannot compute.
    fn has_expressions(&self) -> bool {
        let computed = |name: &String| {
            let column = self.outbox.and_then(|outbox| outbox.find(name));
            column.is_some_and(|column| column.expression.is_some())
        };
        self.columns.iter().any(computed)
    }
}

/// How a COPY ended.
#[derive(Debug)]
enum Copied {
    /// With its last row.
    Whole,
    /// There was no room for more.
    NoRoom,
    /// The same, and a cancellation is still on its way: it hits whatever the session does next.
    Cancelling,
    /// The server cannot compute a value of the row after the last one.
    Failed(tokio_postgres::Error),
}

/// Reads into `into` until that has no room or took `rows_max` rows. One row more is read, so that a
/// batch is cut only where another row follows. A row of which a value cannot be computed is refused,
/// and the others are read. Returns whether the session may be used again.
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
    let mut gate = Gate::new(into, columns, reading.outbox);
    let mut span = reading.span.clone();
    let mut rows_max = reading.rows_max;
    loop {
        let rest = Reading {
            span: &span,
            rows_max,
            ..*reading
        };
        let mut decoder = Decoder::new(columns.len(), span.after);
        let copied = pass(reader, &rest, &mut decoder, &mut gate).await?;
        gate.awaited()?;
        let error = match copied {
            Copied::Whole | Copied::NoRoom => return Ok(true),
            Copied::Cancelling => return Ok(false),
            Copied::Failed(error) => error,
        };
        span.after = decoder.last();
        let failed_at = Reading {
            span: &span,
            ..*reading
        };
        let refused = failed::locate(reader, &failed_at, error).await?;
        let at = refused.at();
        gate.refuse_next(refused);
        let alone = Reading {
            rows_max: 0,
            computes: false,
            ..failed_at
        };
        let mut one = Decoder::new(columns.len(), span.after);
        pass(reader, &alone, &mut one, &mut gate).await?;
        match gate.take_refused() {
            Some(Pushed::NoRoom) => return Ok(true),
            Some(Pushed::Taken | Pushed::Skipped) => span.after = Some(at),
            None => return Err(gone(at)),
        }
        rows_max = rows_max.saturating_sub(decoder.taken() + 1);
    }
}

/// Runs the COPYs of a reading until the end, until there is no room, or until one fails.
async fn pass<R: Rows>(
    reader: &mut Session,
    reading: &Reading<'_>,
    decoder: &mut Decoder,
    gate: &mut Gate<'_, R>,
) -> Result<Copied, SourceError> {
    let canceller = reader.canceller().clone();
    let transaction = bounded(lock(reader, reading.outbox)).await?;
    if reading.has_expressions() {
        // What they read may be locked; the outbox must not be held for it.
        const LIMIT: &str = "set local lock_timeout = '1s'";
        bounded(async { transaction.batch_execute(LIMIT).await.map_err(lost) }).await?;
    }
    let mut copied = Copied::Whole;
    for query in queries(reading) {
        let taken = decoder.taken();
        let limit = reading.rows_max.min(ROWS_MAX).saturating_sub(taken) + 1;
        let Some(query) = query(reading, limit) else {
            continue;
        };
        copied = copy(&transaction, &canceller, &query, limit, decoder, gate).await?;
        match copied {
            Copied::Failed(error) if !reading.has_expressions() => return Err(lost(error)),
            Copied::Failed(error) if !failed::is_of_row(&error) => {
                return Err(failed::untold(error));
            }
            Copied::Whole => {}
            _ => break,
        }
    }
    // Hit or not, a cancellation ends the transaction before the session goes.
    let ended = bounded(async { transaction.rollback().await.map_err(lost) }).await;
    match copied {
        Copied::Cancelling => Ok(copied),
        _ => ended.map(|()| copied),
    }
}

/// The queries of a reading, in their order.
pub(super) fn queries(reading: &Reading<'_>) -> &'static [Query] {
    match reading.selection.store {
        Store::Outbox => &[singles, range],
        Store::Requested | Store::Retried(_) => &[letters],
    }
}

/// Begins with the lock on the outbox and its leaves. A COPY takes its snapshot before it takes the
/// lock: behind an ALTER that rewrites the table it would see no rows, and say nothing.
pub(super) async fn lock<'a>(
    reader: &'a mut Session,
    planned: Option<&Outbox>,
) -> Result<Transaction<'a>, SourceError> {
    const LOCK: &str = "lock table pillarbox.event in access share mode";
    let transaction = begin(reader).await?;
    transaction.batch_execute(LOCK).await.map_err(lost)?;
    let rows = transaction.query(COLUMNS, &[]).await.map_err(lost)?;
    if planned.is_some_and(|planned| !rows.iter().map(column).eq(planned.table.iter().cloned())) {
        return Err(SourceError::Changed);
    }
    Ok(transaction)
}

pub(super) async fn bounded<T>(
    step: impl Future<Output = Result<T, SourceError>>,
) -> Result<T, SourceError> {
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
    gate: &mut Gate<'_, R>,
) -> Result<Copied, SourceError> {
    let statement = format!("copy ({query}) to stdout (format binary)");
    let opened = tokio::time::timeout(SILENCE_MAX, transaction.copy_out(statement.as_str()));
    let stream = match opened.await.map_err(|_| silent())? {
        Ok(stream) => stream,
        Err(error) => return Ok(Copied::Failed(error)),
    };
    let mut stream = pin!(stream);
    let last = decoder.taken() + limit - 1;
    loop {
        let chunk = match next(&mut stream).await? {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return Ok(Copied::Failed(error)),
            None => {
                decoder.end().map_err(unreadable)?;
                return Ok(Copied::Whole);
            }
        };
        let pushed = decoder.feed(chunk, |row| gate.push(row));
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
            // Of a row after the one without room.
            Err(error) if failed::is_of_row(&error) => break,
            Err(error) => return Err(lost(error)),
        }
    }
    Ok(match is_last {
        true => Copied::NoRoom,
        // It ended by itself.
        false => Copied::Cancelling,
    })
}

/// The next row of a COPY. Most are there already, and a timer costs as much as decoding one does.
async fn next(
    stream: &mut Pin<&mut CopyOutStream>,
) -> Result<Option<Result<Bytes, tokio_postgres::Error>>, SourceError> {
    if let Some(ready) = stream.next().now_or_never() {
        return Ok(ready);
    }
    tokio::time::timeout(SILENCE_MAX, stream.next())
        .await
        .map_err(|_| silent())
}

/// A query for at most so many rows. The queries hold numbers, quoted names and texts, and the
/// expressions of the configuration only, no parameters: COPY takes none.
pub(super) type Query = fn(&Reading<'_>, u64) -> Option<String>;

/// `rows`, which are in order, with the columns after `tx` and `id`. Expressions stand above the order and
/// the limit: a row is computed when it is sent, and not before those in front of it.
fn columns_of(reading: &Reading<'_>, rows: &str) -> String {
    let columns = reading.columns.iter();
    let list = columns.fold(String::new(), |mut list, name| {
        let _ = write!(list, ", {}", value(name, reading));
        list
    });
    format!("select e.tx, e.id{list} from ({rows}) e")
}

/// What is selected of each row beneath that.
fn star(reading: &Reading<'_>) -> String {
    if reading.has_expressions() {
        return "e.*".to_owned();
    }
    let keys = "e.tx, e.id".to_owned();
    reading.columns.iter().fold(keys, |list, name| {
        format!("{list}, e.{}", quote::identifier(name))
    })
}

/// A column of `e`, or the expression for it, as the type that was planned. Of an expression that gives
/// several rows, or none, the server makes an error or null.
pub(super) fn value(name: &str, reading: &Reading<'_>) -> String {
    let column = reading.outbox.and_then(|outbox| outbox.find(name));
    match column.and_then(|column| column.expression.as_ref().map(|of| (of, column))) {
        Some((_, column)) if !reading.computes => format!("null::{}", column.type_name),
        Some((expression, column)) => {
            format!("{}::{}", expression.scalar(), column.type_name)
        }
        None => format!("e.{}", quote::identifier(name)),
    }
}

/// The transactions of the span that need a start of their own; all lie below [`range`].
fn singles(reading: &Reading<'_>, limit: u64) -> Option<String> {
    let singles = reading.span.singles();
    let (txs, ids) = (
        join(singles.iter().map(|(tx, _)| tx)),
        join(singles.iter().map(|(_, id)| id)),
    );
    let (star, until, times) = (star(reading), until(reading.span), times(reading));
    (!singles.is_empty()).then(|| {
        let rows = format!(
            "select r.* from unnest('{{{txs}}}'::xid8[], '{{{ids}}}'::bigint[]) as s (tx, id)
             cross join lateral (
                 select {star} from pillarbox.event e
                 where e.tx = s.tx and e.id > s.id{until}{times}
                 order by e.tx, e.id limit {limit}
             ) r
             limit {limit}"
        );
        columns_of(reading, &rows)
    })
}

/// The transactions of the span that are read in one scan.
fn range(reading: &Reading<'_>, limit: u64) -> Option<String> {
    let range = reading.span.range();
    let (star, until, times) = (star(reading), until(reading.span), times(reading));
    (!range.is_empty()).then(|| {
        let rows = format!(
            "select {star} from pillarbox.event e
             where e.tx >= '{}'::xid8 and e.tx < '{}'::xid8
                 and pg_visible_in_snapshot(e.tx, '{}'::pg_snapshot){until}{times}
             order by e.tx, e.id
             limit {limit}",
            range.start, range.end, reading.span.to
        );
        columns_of(reading, &rows)
    })
}

/// Dead letters that are retried.
fn letters(reading: &Reading<'_>, limit: u64) -> Option<String> {
    let which = match reading.selection.store {
        Store::Outbox => return None,
        Store::Requested => "e.state = 'requested'".to_owned(),
        Store::Retried(number) => format!("e.retry_number = {number}"),
    };
    let after = reading.span.after.map_or_else(String::new, |after| {
        format!(" and (e.tx, e.id) > ('{}'::xid8, {})", after.tx, after.id)
    });
    let (star, until, times) = (star(reading), until(reading.span), times(reading));
    let rows = format!(
        "select {star} from {} e
         where e.sink = {} and {which}{after}{until}{times}
         order by e.tx, e.id
         limit {limit}",
        store(reading),
        reading.sink
    );
    Some(columns_of(reading, &rows))
}

/// Where the events lie: the outbox, or the dead letters with the columns that users added.
pub(super) fn store(reading: &Reading<'_>) -> String {
    if reading.selection.store == Store::Outbox {
        return "pillarbox.event".to_owned();
    }
    let outbox = reading.outbox.map_or(&[][..], |outbox| &outbox.table);
    let added = outbox
        .iter()
        .filter(|column| !LETTER.contains(&column.name.as_str()));
    let added = added.fold(String::new(), |mut list, column| {
        let (name, of) = (&column.name, &column.type_name);
        let text = quote::literal(name);
        let _ = write!(
            list,
            ", (d.more ->> {text})::{of} as {}",
            quote::identifier(name)
        );
        list
    });
    let kept = LETTER.map(|name| format!(", d.{name}")).concat();
    format!("(select d.sink, d.state, d.retry_number{kept}{added} from pillarbox.dead_letter d)")
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

fn gone(at: Cut) -> SourceError {
    SourceError::Broken(format!(
        "the event (tx {}, id {}) is gone from the outbox while it was read",
        at.tx, at.id
    ))
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
