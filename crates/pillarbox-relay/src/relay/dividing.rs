//! A refused block is split into two children until its poison stands alone (INV-9).

use std::time::SystemTime;

use uuid::Uuid;

use super::delivering::Sent;
use super::family::{Family, State};
use super::reading::Reading;
use super::sealing::{EncoderOf, Prepared};
use super::{Halt, Relay, Tenure};
use crate::batch::{Batch, Block, Builder, Kind, Limits, Row, Selection, sink_value};
use crate::clock::Clock;
use crate::sink::{Doubt, Plan, Pushed, Reaction, RowError, Sink, Trouble};
use crate::snapshot::{Cut, Span};
use crate::source::{
    Closed, DeadLetter, Ending, Outcome, Record, Rows, Session, Source, SourceError,
};

/// One half of a block, encoded but not sealed.
struct Half<E> {
    span: Span,
    selection: Selection,
    builder: Builder<E>,
}

/// Halves of one block.
type Halves<K> = Vec<Half<EncoderOf<K>>>;

impl<S: Source, K: Sink, C: Clock> Relay<S, K, C> {
    /// Sets the rows of refused blocks aside where they stand alone, else seals children in their place.
    pub(super) async fn divide(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        batch: Batch,
        sent: Sent,
        depth: usize,
        family: &mut Family,
    ) -> Result<(), Halt> {
        let Sent {
            mut outcome,
            refused,
        } = sent;
        for (_, trouble) in &refused {
            if trouble.reaction != Reaction::Halve {
                family.refuse(depth);
            }
        }
        if family.lately.is_none() {
            family.lately = Some(tenure.session.lately_dead().await?);
        }
        if let Some(reason) = family.drift(&self.options.poison) {
            let refusal = refused.into_iter().next().map(|(_, trouble)| trouble);
            return Err(Halt::Stopped(reason, refusal));
        }
        let is_alone = |(ordinal, _): &(usize, Trouble)| batch.blocks[*ordinal].rows == 1;
        if refused.iter().all(is_alone) {
            for (ordinal, trouble) in refused {
                let at = self.place(tenure, &batch, &batch.blocks[ordinal]).await?;
                family.dead.push(DeadLetter {
                    number: batch.number,
                    at,
                    code: trouble.code,
                    column: None,
                    reason: trouble.reason,
                });
                outcome.dead += 1;
            }
            if outcome.rows == 0 {
                outcome.ending = Ending::Dead;
            }
            family.settle(batch, outcome);
            return Ok(());
        }
        outcome.ending = Ending::Split;
        let mut halves: Halves<K> = Vec::new();
        for (ordinal, trouble) in refused {
            let block = &batch.blocks[ordinal];
            if depth == 0 {
                tracing::warn!(
                    batch = batch.number,
                    block = ordinal,
                    rows = block.rows,
                    error = &trouble as &dyn std::error::Error,
                    "the sink refuses a block: splitting it until what it refuses stands alone"
                );
            }
            halves.extend(self.halve(tenure, &batch, block).await?);
        }
        let children = self.seal_children(tenure, &batch, outcome, family.root, halves);
        for child in children.await? {
            family.add(depth + 1, State::Ready(child));
        }
        Ok(())
    }

    /// Reads both halves of a block again; a block of one row is a half by itself.
    async fn halve(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        batch: &Batch,
        block: &Block,
    ) -> Result<Halves<K>, Halt> {
        let selection = Selection {
            only: Some(block.partition.clone()),
            ..batch.selection.clone()
        };
        let mut halves = Vec::new();
        let mut after = batch.span.after;
        let mut left = block.rows;
        while left > 0 {
            let is_first = halves.is_empty() && left > 1;
            let rows_max = if is_first { left.div_ceil(2) } else { left };
            let mut span = Span {
                after,
                ..batch.span.clone()
            };
            let limits = Limits {
                rows_max,
                bytes_max: u64::MAX,
            };
            let reading = Reading {
                span: &span,
                selection: &selection,
                limits,
                dead_max: 0,
                is_waiting: true,
                terms: None,
            };
            let builder = self.read(tenure, reading).await?;
            if builder.rows() != rows_max || (is_first && builder.cut().is_none()) {
                return Err(SourceError::Broken(format!(
                    "block '{}' of batch {} was sealed with {} rows, but the outbox no longer gives \
                     them",
                    block.partition, batch.number, block.rows
                ))
                .into());
            }
            left -= rows_max;
            if is_first {
                after = builder.cut();
                span.until = after;
            }
            let selection = selection.clone();
            halves.push(Half {
                span,
                selection,
                builder,
            });
        }
        Ok(halves)
    }

    /// Seals children and records that their parent was split, as one.
    async fn seal_children(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        parent: &Batch,
        outcome: Outcome,
        root: i64,
        halves: Halves<K>,
    ) -> Result<Vec<Prepared>, Halt> {
        let mut last = tenure.last_number.lock().await;
        let mut children = Vec::new();
        let mut bodies = Vec::new();
        for half in halves {
            let number = *last + 1 + children.len() as i64;
            let draft = half.builder.finish(sink_value(tenure.origin, number));
            children.push(Batch {
                number,
                batch_id: Uuid::new_v4(),
                origin: tenure.origin,
                kind: Kind::Child,
                parent: Some(parent.number),
                root: Some(root),
                span: half.span,
                selection: half.selection,
                terms: Some(tenure.plan.terms().clone()),
                rows: draft.rows,
                bytes: draft.bytes,
                digest: draft.digest(),
                blocks: draft.block_map(),
                sealed_at: SystemTime::UNIX_EPOCH,
            });
            bodies.push(draft.blocks);
        }
        let record = &mut Record {
            batches: &mut children,
            outcomes: &[outcome],
            ..Record::default()
        };
        tenure.session.record(record).await?;
        *last += children.len() as i64;
        drop(last);
        let pairs = children.into_iter().zip(bodies);
        Ok(pairs
            .map(|(child, blocks)| self.prepared(child, blocks, false, Doubt::NONE))
            .collect())
    }

    /// Where the one row of a block stands.
    async fn place(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        batch: &Batch,
        block: &Block,
    ) -> Result<Cut, Halt> {
        let selection = Selection {
            only: Some(block.partition.clone()),
            ..batch.selection.clone()
        };
        let limits = Limits {
            rows_max: 1,
            bytes_max: u64::MAX,
        };
        let encoder = tenure.plan.encoder(selection.only.as_deref(), None);
        let mut finder = Finder {
            builder: Builder::new(encoder, limits).without(&selection.without),
            at: None,
        };
        let columns = tenure.plan.columns();
        tenure
            .session
            .read_selected(&batch.span, &selection, columns, u64::MAX, &mut finder)
            .await?;
        finder.at.ok_or_else(|| {
            SourceError::Broken(format!(
                "the one event of block '{}' of batch {} is gone",
                block.partition, batch.number
            ))
            .into()
        })
    }
}

/// Remembers where the first row stood that a builder took.
struct Finder<E> {
    builder: Builder<E>,
    at: Option<Cut>,
}

impl<E: crate::sink::Encoder> Rows for Finder<E> {
    fn push(&mut self, row: &Row<'_>) -> Result<Pushed, RowError> {
        let pushed = self.builder.push(row)?;
        if pushed == Pushed::Taken {
            self.at = Some(row.at);
            return Ok(Pushed::NoRoom);
        }
        Ok(pushed)
    }

    fn refuse(&mut self, error: RowError) -> Result<Pushed, RowError> {
        self.builder.refuse(error)
    }

    fn leaves_out(&mut self, row: &Row<'_>) -> bool {
        self.builder.leaves_out(row)
    }

    fn close(&mut self) -> Closed {
        self.builder.close()
    }
}
