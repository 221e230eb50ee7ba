//! Batches as the ledger stores them.

use std::time::SystemTime;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row as SqlRow, Transaction};

use super::{SourceError, begin, lost, micros, timed};
use crate::batch::{Batch, Block, Kind};
use crate::postgres::{Session, Warnings};
use crate::snapshot::{Cut, Snapshot, Span};
use crate::source::Unfinished;

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

pub(super) async fn insert_batch(
    transaction: &Transaction<'_>,
    sink: i32,
    relay: &str,
    batch: &Batch,
) -> Result<SystemTime, SourceError> {
    const SEAL: &str = include_str!("sql/seal.sql");
    let blocks = serde_json::to_string(&batch.blocks).map_err(|error| {
        SourceError::Broken(format!("the block map cannot be written: {error}"))
    })?;
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
    ];
    match transaction.query_one(SEAL, given).await {
        Ok(row) => Ok(row.get(0)),
        Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
            Err(SourceError::Fenced(batch.number))
        }
        Err(error) => Err(lost(error)),
    }
}

pub(super) fn unfinished(row: &SqlRow) -> Result<Unfinished, SourceError> {
    let number: i64 = row.get(0);
    let blocks: Vec<Block> = serde_json::from_str(row.get(13)).map_err(|error| {
        SourceError::Broken(format!(
            "the block map of batch {number} cannot be read: {error}"
        ))
    })?;
    let batch = Batch {
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
    };
    let blocks_since = row.get::<_, i64>(16).cast_unsigned();
    Ok(Unfinished {
        batch,
        age: micros(row.get(15)),
        blocks_since,
    })
}

fn kind(word: &str) -> Result<Kind, SourceError> {
    let kinds = [
        Kind::Genesis,
        Kind::Window,
        Kind::Child,
        Kind::Replay,
        Kind::Repair,
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
    let tx = tx
        .parse()
        .map_err(|_| SourceError::Broken(format!("the ledger has the transaction id {tx:?}")))?;
    Ok(Some(Cut { tx, id }))
}

fn halves(cut: Option<Cut>) -> (Option<String>, Option<i64>) {
    (cut.map(|cut| cut.tx.to_string()), cut.map(|cut| cut.id))
}
