//! What people want to be delivered again: dead letters, and whole batches.

use super::reading::Reading;
use super::sealing::{EncoderOf, Prepared, Sketch};
use super::{Halt, Relay, Tenure};
use crate::batch::{Builder, Kind, Limits, Row, Selection, Store};
use crate::clock::Clock;
use crate::sink::{Encoder, Plan, Pushed, Reaction, RowError, Sink, Trouble};
use crate::snapshot::{Cut, Position, Span};
use crate::source::{Closed, Record, Replay, Request, Rows, Session, Source};

/// Whether something is to be delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Nothing.
    None,
    /// Something, and not yet.
    Later,
    /// Something.
    Now,
}

impl Wish {
    /// Why a drain ends beside one.
    pub(super) fn held_back() -> Trouble {
        Trouble {
            code: None,
            reason: "a batch is to be delivered again, but another session holds the ring: a relay that \
                     does the same, pillarbox recover, or pillarbox sink create"
                .to_owned(),
            reaction: Reaction::Backoff,
            source: None,
        }
    }
}

impl<S: Source, K: Sink, C: Clock> Relay<S, K, C> {
    /// Whether there is a wish; the switches are as old as the last beat.
    pub(super) async fn wish(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
    ) -> Result<Wish, Halt> {
        let mut place = tenure.request.lock().await;
        if place.is_none() {
            *place = tenure.session.request().await?;
        }
        Ok(match &*place {
            None => Wish::None,
            Some(Request::Later) => {
                *place = None;
                Wish::Later
            }
            Some(_) => Wish::Now,
        })
    }

    /// Seals a batch for the oldest wish; `None` when it cannot be granted, or holds nothing.
    pub(super) async fn answer_request(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        position: &Position,
    ) -> Result<Option<Prepared>, Halt> {
        let request = tenure.request.lock().await.take();
        match request {
            None | Some(Request::Later) => Ok(None),
            Some(Request::Retry) => self.retry(tenure, position).await,
            Some(Request::Replay(replay)) => self.replay(tenure, *replay).await,
        }
    }

    /// Seals as many of the dead letters to retry as fit into a batch.
    async fn retry(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        position: &Position,
    ) -> Result<Option<Prepared>, Halt> {
        // The letters are chosen by their state; the span only orders them.
        let mut span = Span {
            from: position.to.clone(),
            to: position.to.clone(),
            after: None,
            until: None,
        };
        let selection = Selection {
            store: Store::Requested,
            ..Selection::default()
        };
        let mut limits = self.options.limits;
        limits.rows_max = limits.rows_max.min(RETRIED_MAX);
        let builder = Builder::new(tenure.plan.encoder(None, None), limits);
        let mut taker = Taker {
            builder: builder.setting_aside(self.dead_max()).never_waiting(),
            taken: Vec::new(),
        };
        let columns = tenure.plan.columns();
        tenure
            .session
            .read_selected(&span, &selection, columns, limits.rows_max, &mut taker)
            .await?;
        let Taker { builder, taken } = taker;
        if taken.is_empty() {
            return Ok(None);
        }
        span.until = builder.cut();
        let sketch = Sketch {
            kind: Kind::Retry,
            parent: None,
            span,
            selection,
        };
        let with = Record {
            retried: &taken,
            ..Record::default()
        };
        self.seal(tenure, builder, sketch, with).await
    }

    /// Seals a batch with the events of another one, if the outbox still has all of them.
    async fn replay(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        replay: Replay,
    ) -> Result<Option<Prepared>, Halt> {
        let Replay {
            replay,
            kind,
            batch,
            selection,
        } = replay;
        let builder = self.read_all(tenure, &batch.span, &selection).await?;
        let taken = builder.rows() + builder.dead();
        let left_out = (selection.without.len() - batch.selection.without.len()) as u64;
        // What a repair leaves out may be of other pieces of the same.
        let is_whole = kind == Kind::Replay
            && (&selection.only, selection.times) == (&batch.selection.only, batch.selection.times);
        // After the read: a leaf that was emptied before it ended is seen by what is counted now.
        let left = if is_whole {
            taken + left_out
        } else {
            let whole = self.read_all(tenure, &batch.span, &batch.selection).await?;
            whole.rows() + whole.dead()
        };
        // Dead letters stay; one that is not among these has been retried by another batch since.
        let may_be_gone = kind == Kind::Repair || batch.selection.store == Store::Outbox;
        let refusal = if may_be_gone && left < batch.rows {
            Some(format!(
                "the outbox no longer holds the events of batch {}: {left} of {} are left; they are kept \
                 for the retention, see: pillarbox settings",
                batch.number, batch.rows
            ))
        } else if builder.cut().is_some() {
            Some(format!(
                "the events of batch {} lie in more partitions of the table than one batch may have",
                batch.number
            ))
        } else if taken == 0 {
            Some(format!("batch {} has no such events", batch.number))
        } else {
            None
        };
        if let Some(reason) = refusal {
            tenure.session.refuse(replay, &reason).await?;
            return Ok(None);
        }
        let sketch = Sketch {
            kind,
            parent: Some(batch.number),
            span: batch.span,
            selection,
        };
        let with = Record {
            replay: Some(replay),
            ..Record::default()
        };
        self.seal(tenure, builder, sketch, with).await
    }

    async fn read_all(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        span: &Span,
        selection: &Selection,
    ) -> Result<Builder<EncoderOf<K>>, Halt> {
        let limits = Limits {
            rows_max: u64::MAX,
            bytes_max: u64::MAX,
        };
        let reading = Reading {
            span,
            selection,
            limits,
            dead_max: self.dead_max(),
            is_waiting: false,
            terms: None,
        };
        self.read(tenure, reading).await
    }
}

/// Dead letters in one batch at most: each is named in the statement that seals it.
const RETRIED_MAX: u64 = 10_000;

/// Remembers which rows a builder took.
struct Taker<E> {
    builder: Builder<E>,
    taken: Vec<Cut>,
}

impl<E: Encoder> Rows for Taker<E> {
    fn push(&mut self, row: &Row<'_>) -> Result<Pushed, RowError> {
        let pushed = self.builder.push(row)?;
        if pushed == Pushed::Taken {
            self.taken.push(row.at);
        }
        Ok(pushed)
    }

    fn refuse(&mut self, error: RowError) -> Result<Pushed, RowError> {
        let at = error.at();
        let pushed = self.builder.refuse(error)?;
        if pushed == Pushed::Taken {
            self.taken.push(at);
        }
        Ok(pushed)
    }

    fn leaves_out(&mut self, row: &Row<'_>) -> bool {
        self.builder.leaves_out(row)
    }

    fn close(&mut self) -> Closed {
        self.builder.close()
    }
}
