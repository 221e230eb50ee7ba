//! Batches as the ledger stores them.

use std::time::SystemTime;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{GenericClient, Row as SqlRow, Transaction};

use super::read::LETTER;
use super::{COLUMNS, SourceError, begin, lost, micros, timed};
use crate::batch::{Batch, Block, Kind, Selection};
use crate::postgres::{Session, Warnings, quote};
use crate::snapshot::{Cut, Snapshot, Span};
use crate::source::{DeadLetter, Outcome, Record, Replay, Unfinished};

/// Commits a record behind all that was sealed: once that is durable, so are the seals.
///
/// A batch whose seal stopped waiting for a synchronous standby is in the ledger all the same; who
/// finds it must not send it before the standby has it.
pub(super) async fn make_durable(control: &mut Session) -> Result<(), SourceError> {
    const RECORD: &str = "select pg_catalog.pg_logical_emit_message(true, 'pillarbox', ''::text)";
    let warnings = control.warnings().clone();
    timed(async {
        let transaction = begin(control).await?;
        transaction.query_one(RECORD, &[]).await.map_err(lost)?;
        commit_durably(transaction, &warnings).await
    })
    .await
}

/// A COMMIT that stops waiting for a synchronous standby succeeds with a warning: the batch may not
/// survive a failover, so it must not be sent. Warnings of earlier statements say nothing about that.
pub(super) async fn commit_durably(
    transaction: Transaction<'_>,
    warnings: &Warnings,
) -> Result<(), SourceError> {
    warnings.take();
    transaction.commit().await.map_err(lost)?;
    match warnings.take() {
        None => Ok(()),
        Some(warning) => Err(SourceError::Lost(
            format!("the seal is not durable: {warning}"),
            None,
        )),
    }
}

/// Writes everything in `record` inside of the transaction.
pub(super) async fn write(
    transaction: &Transaction<'_>,
    sink: i32,
    relay: &str,
    record: &mut Record<'_>,
) -> Result<(), SourceError> {
    for batch in record.batches.iter_mut() {
        batch.sealed_at = insert_batch(transaction, sink, relay, batch).await?;
    }
    for outcome in record.outcomes {
        confirm(transaction, sink, outcome).await?;
    }
    let first = record.batches.first().map(|batch| batch.number);
    if let Some(number) = first.filter(|_| !record.retried.is_empty()) {
        const RETRYING: &str = include_str!("sql/retrying.sql");
        let (txs, ids) = columns(record.retried.iter());
        let given: &[&(dyn ToSql + Sync)] = &[&sink, &number, &txs, &ids];
        let changed = transaction.execute(RETRYING, given).await.map_err(lost)?;
        if changed != record.retried.len() as u64 {
            let reason = "dead letters were dropped while they were about to be retried";
            return Err(SourceError::Lost(reason.to_owned(), None));
        }
    }
    if let Some(replay) = record.replay {
        answer(transaction, replay, first, None).await?;
    }
    if !record.dead.is_empty() {
        set_aside(transaction, sink, record.dead).await?;
    }
    if let Some(number) = record.settled_retry {
        const RETRIED: &str = include_str!("sql/retried.sql");
        let given: &[&(dyn ToSql + Sync)] = &[&sink, &number];
        transaction.execute(RETRIED, given).await.map_err(lost)?;
    }
    Ok(())
}

/// Records an outcome, unless there is one.
pub(super) async fn confirm(
    client: &impl GenericClient,
    sink: i32,
    outcome: &Outcome,
) -> Result<(), SourceError> {
    const CONFIRM: &str = include_str!("sql/confirm.sql");
    // A batch has at most a few dozen blocks.
    let ordinal = |ordinal: &usize| i16::try_from(*ordinal).unwrap_or(i16::MAX);
    let blocks = outcome.blocks.as_ref();
    let blocks = blocks.map(|blocks| blocks.iter().map(ordinal).collect::<Vec<i16>>());
    let given: &[&(dyn ToSql + Sync)] = &[
        &sink,
        &outcome.number,
        &outcome.ending.as_str(),
        &outcome.rows.cast_signed(),
        &outcome.dead.cast_signed(),
        &blocks,
        &outcome.attempts.cast_signed(),
        &outcome.server,
    ];
    client.execute(CONFIRM, given).await.map_err(lost)?;
    Ok(())
}

/// Answers a wish for a replay, with the batch or with the reason why there is none.
pub(super) async fn answer(
    client: &impl GenericClient,
    replay: i64,
    number: Option<i64>,
    refused: Option<&str>,
) -> Result<(), SourceError> {
    const ANSWERED: &str = include_str!("sql/answered.sql");
    let given: &[&(dyn ToSql + Sync)] = &[&replay, &number, &refused];
    client.execute(ANSWERED, given).await.map_err(lost)?;
    Ok(())
}

async fn set_aside(
    transaction: &Transaction<'_>,
    sink: i32,
    dead: &[DeadLetter],
) -> Result<(), SourceError> {
    const SET_ASIDE: &str = include_str!("sql/set_aside.sql");
    const SET_ASIDE_AGAIN: &str = include_str!("sql/set_aside_again.sql");
    let numbers: Vec<i64> = dead.iter().map(|letter| letter.number).collect();
    let (txs, ids) = columns(dead.iter().map(|letter| &letter.at));
    let codes: Vec<Option<i32>> = dead
        .iter()
        .map(|letter| letter.code.and_then(|code| i32::try_from(code).ok()))
        .collect();
    let names: Vec<&Option<String>> = dead.iter().map(|letter| &letter.column).collect();
    let reasons: Vec<&String> = dead.iter().map(|letter| &letter.reason).collect();
    let given: &[&(dyn ToSql + Sync)] = &[&sink, &numbers, &txs, &ids, &codes, &names, &reasons];
    let known = transaction.execute(SET_ASIDE_AGAIN, given).await;
    let known = known.map_err(lost)?;
    let columns = transaction.query(COLUMNS, &[]).await.map_err(lost)?;
    let added: Vec<&str> = columns.iter().map(|column| column.get(0)).collect();
    let added = added.into_iter().filter(|name| !LETTER.contains(name));
    let (names, values): (Vec<_>, Vec<_>) = added
        .map(|name| {
            (
                quote::literal(name),
                format!("e.{}::text", quote::identifier(name)),
            )
        })
        .unzip();
    let array = |items: Vec<String>| format!("array[{}]::text[]", items.join(", "));
    let statement = SET_ASIDE
        .replace("{names}", &array(names))
        .replace("{values}", &array(values));
    let new = transaction.execute(&statement, given).await.map_err(lost)?;
    if known + new == dead.len() as u64 {
        return Ok(());
    }
    Err(SourceError::Broken(format!(
        "{} instead of {} events to set aside were found; somebody changed or removed them",
        known + new,
        dead.len()
    )))
}

fn columns<'a>(cuts: impl Iterator<Item = &'a Cut>) -> (Vec<String>, Vec<i64>) {
    cuts.map(|cut| (cut.tx.to_string(), cut.id)).unzip()
}

async fn insert_batch(
    transaction: &Transaction<'_>,
    sink: i32,
    relay: &str,
    batch: &Batch,
) -> Result<SystemTime, SourceError> {
    const SEAL: &str = include_str!("sql/seal.sql");
    let unwritable = |error: serde_json::Error| {
        SourceError::Broken(format!("a batch cannot be written: {error}"))
    };
    let blocks = serde_json::to_string(&batch.blocks).map_err(unwritable)?;
    let selection = match batch.selection.is_all() {
        true => None,
        false => Some(serde_json::to_string(&batch.selection).map_err(unwritable)?),
    };
    let terms = batch.terms.as_ref().map(serde_json::to_string);
    let terms = terms.transpose().map_err(unwritable)?;
    let span = &batch.span;
    let (after_tx, after_id) = halves(span.after);
    let (until_tx, until_id) = halves(span.until);
    let (from, to) = (span.from.to_string(), span.to.to_string());
    let given: &[&(dyn ToSql + Sync)] = &[
        &sink,
        &batch.number,
        &batch.batch_id,
        &batch.origin.cast_signed(),
        &batch.kind.as_str(),
        &from,
        &to,
        &after_tx,
        &after_id,
        &until_tx,
        &until_id,
        &batch.rows.cast_signed(),
        &batch.bytes.cast_signed(),
        &batch.digest.cast_signed(),
        &blocks,
        &relay,
        &batch.parent,
        &batch.root,
        &selection,
        &terms,
    ];
    match transaction.query_opt(SEAL, given).await {
        Ok(Some(row)) => Ok(row.get(0)),
        Ok(None) => Err(SourceError::Fenced(batch.number)),
        Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
            Err(SourceError::Fenced(batch.number))
        }
        Err(error) => Err(lost(error)),
    }
}

/// A batch from the first nineteen columns of a row.
pub(super) fn batch(row: &SqlRow) -> Result<Batch, SourceError> {
    let number: i64 = row.get(0);
    let unreadable = |error: serde_json::Error| {
        SourceError::Broken(format!("batch {number} cannot be read: {error}"))
    };
    let blocks: Vec<Block> = serde_json::from_str(row.get(13)).map_err(unreadable)?;
    let selection = match row.get::<_, Option<&str>>(17) {
        None => Selection::default(),
        Some(text) => serde_json::from_str(text).map_err(unreadable)?,
    };
    let terms = row.get::<_, Option<&str>>(18).map(serde_json::from_str);
    Ok(Batch {
        number,
        batch_id: row.get(1),
        origin: origin(row, 2)?,
        kind: kind(row.get(3))?,
        span: Span {
            from: snapshot(row, 4)?,
            to: snapshot(row, 5)?,
            after: cut(row, 6)?,
            until: cut(row, 8)?,
        },
        rows: row.get::<_, i64>(10).cast_unsigned(),
        bytes: row.get::<_, i64>(11).cast_unsigned(),
        digest: row.get::<_, i64>(12).cast_unsigned(),
        blocks,
        sealed_at: row.get(14),
        parent: row.get(15),
        root: row.get(16),
        selection,
        terms: terms.transpose().map_err(unreadable)?,
    })
}

pub(super) fn unfinished(row: &SqlRow) -> Result<Unfinished, SourceError> {
    Ok(Unfinished {
        batch: batch(row)?,
        age: micros(row.get(19)),
        blocks_since: row.get::<_, i64>(20).cast_unsigned(),
        family_rows: row.get::<_, i64>(21).cast_unsigned(),
    })
}

/// A wish for a replay; an error text when its batch is gone.
pub(super) fn replay(row: &SqlRow) -> Result<Result<Replay, (i64, String)>, SourceError> {
    let (replay, parent): (i64, i64) = (row.get(19), row.get(21));
    if row.get::<_, Option<i64>>(0).is_none() {
        let reason = format!("batch {parent} is not in the ledger, or no longer");
        return Ok(Err((replay, reason)));
    }
    let batch = batch(row)?;
    let (txs, ids): (Vec<&str>, Vec<i64>) = (row.get(25), row.get(26));
    let mut without = batch.selection.without.clone();
    for (tx, id) in txs.into_iter().zip(ids) {
        let tx = tx.parse().map_err(|_| not_a_transaction(tx))?;
        without.push(Cut { tx, id });
    }
    without.sort_unstable();
    without.dedup();
    let (since, until): (Option<i64>, Option<i64>) = (row.get(23), row.get(24));
    let selection = Selection {
        only: row
            .get::<_, Option<String>>(22)
            .or_else(|| batch.selection.only.clone()),
        times: since.zip(until).or(batch.selection.times),
        without,
        ..batch.selection.clone()
    };
    Ok(Ok(Replay {
        replay,
        kind: kind(row.get(20))?,
        batch,
        selection,
    }))
}

fn not_a_transaction(tx: &str) -> SourceError {
    SourceError::Broken(format!("the ledger has the transaction id {tx:?}"))
}

fn kind(word: &str) -> Result<Kind, SourceError> {
    let kinds = [
        Kind::Genesis,
        Kind::Window,
        Kind::Child,
        Kind::Replay,
        Kind::Repair,
        Kind::Retry,
    ];
    let found = kinds.into_iter().find(|kind| kind.as_str() == word);
    found.ok_or_else(|| SourceError::Broken(format!("the ledger has a batch of kind {word:?}")))
}

pub(super) fn origin(row: &SqlRow, column: usize) -> Result<u32, SourceError> {
    u32::try_from(row.get::<_, i32>(column))
        .map_err(|_| SourceError::Broken("the ledger has a negative origin".to_owned()))
}

pub(super) fn snapshot(row: &SqlRow, column: usize) -> Result<Snapshot, SourceError> {
    let text: &str = row.get(column);
    text.parse()
        .map_err(|error| SourceError::Broken(format!("the ledger is damaged: {error}")))
}

/// A cut in two columns, the transaction as text.
pub(super) fn cut(row: &SqlRow, column: usize) -> Result<Option<Cut>, SourceError> {
    let (tx, id): (Option<&str>, Option<i64>) = (row.get(column), row.get(column + 1));
    let Some((tx, id)) = tx.zip(id) else {
        return Ok(None);
    };
    let tx = tx.parse().map_err(|_| not_a_transaction(tx))?;
    Ok(Some(Cut { tx, id }))
}

fn halves(cut: Option<Cut>) -> (Option<String>, Option<i64>) {
    (cut.map(|cut| cut.tx.to_string()), cut.map(|cut| cut.id))
}
