//! A source that is watched, and that leaves a protection out where it is told to.

use std::sync::{Mutex, PoisonError};

use pillarbox_relay::batch::{Batch, Selection};
use pillarbox_relay::clock::Clock as _;
use pillarbox_relay::sink::OutboxColumn;
use pillarbox_relay::snapshot::{Position, Snapshot, Span};
use pillarbox_relay::source::{
    Probe, Record, Request, Rows, Session, Source, SourceError, Standby, Standing, Switches,
};

use super::judge::nothing_needed_is_gone;
use super::protection::Protection;
use super::world::Eyes;
use crate::fake::{FakeSession, FakeSource};

/// A source of one relay of the simulation.
#[derive(Clone, Debug)]
pub(super) struct SimSource {
    pub(super) inner: FakeSource,
    pub(super) relay: String,
    pub(super) eyes: Eyes,
}

/// Its session.
#[derive(Debug)]
pub(super) struct SimSession {
    inner: FakeSession,
    relay: String,
    eyes: Eyes,
    /// Batches that were sent before they are sealed.
    unsealed: Mutex<Vec<Batch>>,
    /// The end of a cut window, and the new one with which it is continued.
    moved: Mutex<Option<(Snapshot, Snapshot)>>,
    truncations: Mutex<u64>,
}

impl Source for SimSource {
    type Session = SimSession;

    async fn take_over(&self, standby: Standby) -> Result<Option<SimSession>, SourceError> {
        let inner = self.inner.take_over(standby).await?;
        self.eyes.trace.count("takeovers");
        self.eyes.trace.note(format_args!(
            "{} {}",
            self.relay,
            inner.as_ref().map_or("stands by", |_| "takes over")
        ));
        Ok(inner.map(|inner| SimSession {
            inner,
            relay: self.relay.clone(),
            eyes: self.eyes.clone(),
            unsealed: Mutex::default(),
            moved: Mutex::default(),
            truncations: Mutex::new(0),
        }))
    }
}

impl SimSession {
    fn note<T>(&self, what: &str, number: i64, result: &Result<T, SourceError>) {
        let relay = &self.relay;
        match result {
            Ok(_) => self
                .eyes
                .trace
                .note(format_args!("{relay} {what} {number}")),
            Err(error) => self
                .eyes
                .trace
                .note(format_args!("{relay} {what} {number}: {error}")),
        }
    }

    fn is_without(&self, protection: Protection) -> bool {
        self.eyes.without == Some(protection)
    }

    /// Without the cut rule: the end that takes the place of `snapshot`.
    fn now_for(&self, snapshot: &Snapshot) -> Snapshot {
        let moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        match &*moved {
            Some((old, new)) if old == snapshot => new.clone(),
            _ => snapshot.clone(),
        }
    }

    fn moved_span(&self, span: &Span) -> Span {
        Span {
            from: self.now_for(&span.from),
            to: match span.after {
                Some(_) => self.now_for(&span.to),
                None => span.to.clone(),
            },
            ..span.clone()
        }
    }

    async fn move_end(&self, span: &Span) -> Result<(), SourceError> {
        if !self.is_without(Protection::CutRule) || span.after.is_none() {
            return Ok(());
        }
        let now = self.inner.probe(&Position::from(span)).await?.snapshot;
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Some((span.to.clone(), now));
        Ok(())
    }

    /// Seals what was sent before.
    async fn seal_late(&self) -> Result<(), SourceError> {
        let unsealed = {
            let mut unsealed = self.unsealed.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *unsealed)
        };
        for mut batch in unsealed {
            self.inner.seal(&mut batch).await?;
        }
        Ok(())
    }
}

impl Session for SimSession {
    async fn standing(&self) -> Result<Standing, SourceError> {
        let standing = self.inner.standing().await?;
        for unfinished in &standing.unfinished {
            self.eyes.sealed.note(&unfinished.batch);
        }
        Ok(standing)
    }

    async fn outbox_columns(&self) -> Result<Vec<OutboxColumn>, SourceError> {
        self.inner.outbox_columns().await
    }

    async fn probe(&self, position: &Position) -> Result<Probe, SourceError> {
        let position = Position {
            to: self.now_for(&position.to),
            ..position.clone()
        };
        self.inner.probe(&position).await
    }

    async fn read_selected<R: Rows>(
        &self,
        span: &Span,
        selection: &Selection,
        columns: &[String],
        rows_max: u64,
        into: &mut R,
    ) -> Result<(), SourceError> {
        // A sealed batch that is read again ends where it was sealed.
        if span.until.is_none() {
            self.move_end(span).await?;
        }
        let span = self.moved_span(span);
        self.inner
            .read_selected(&span, selection, columns, rows_max, into)
            .await
    }

    async fn record(&self, record: &mut Record<'_>) -> Result<(), SourceError> {
        for batch in record.batches.iter_mut() {
            batch.span = self.moved_span(&batch.span);
        }
        // A batch that comes with outcomes is the child of one that was sealed.
        let is_new = !record.batches.is_empty() && record.outcomes.is_empty();
        if is_new && self.is_without(Protection::SealBeforeSend) {
            let mut unsealed = self.unsealed.lock().unwrap_or_else(PoisonError::into_inner);
            for batch in record.batches.iter_mut() {
                batch.sealed_at = self.eyes.clock.wall();
                unsealed.push(batch.clone());
            }
            return Ok(());
        }
        self.seal_late().await?;
        let recorded = self.inner.record(record).await;
        for batch in record.batches.iter() {
            self.note("seals", batch.number, &recorded);
            if recorded.is_ok() {
                self.eyes.sealed.note(batch);
            }
        }
        for outcome in record.outcomes {
            self.note("confirms", outcome.number, &recorded);
        }
        if !record.dead.is_empty() {
            self.eyes.trace.count("set aside");
        }
        recorded
    }

    async fn lately_dead(&self) -> Result<u64, SourceError> {
        self.inner.lately_dead().await
    }

    async fn request(&self) -> Result<Option<Request>, SourceError> {
        self.inner.request().await
    }

    async fn forget_request(&self) -> Result<(), SourceError> {
        self.inner.forget_request().await
    }

    async fn refuse(&self, replay: i64, reason: &str) -> Result<(), SourceError> {
        self.inner.refuse(replay, reason).await
    }

    async fn beat(&self) -> Result<Switches, SourceError> {
        self.inner.beat().await
    }

    async fn tend(&self) -> Result<(), SourceError> {
        let tended = self.inner.tend().await;
        let (turns, truncations) = self.eyes.database.ring_counts();
        let mut known = self
            .truncations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *known, truncations) != truncations {
            self.eyes.trace.note(format_args!(
                "ring: {turns} turns, {truncations} truncations"
            ));
            self.eyes.trace.count("truncations");
            nothing_needed_is_gone(&self.eyes);
        }
        tended
    }

    async fn report(&self, stopped: Option<&str>) -> Result<(), SourceError> {
        if let Some(reason) = stopped {
            let relay = &self.relay;
            self.eyes.trace.count("stops");
            self.eyes
                .trace
                .note(format_args!("{relay} stands still: {reason}"));
        }
        self.inner.report(stopped).await
    }

    async fn renew_origin(&self) -> Result<u32, SourceError> {
        let renewed = self.inner.renew_origin().await;
        self.note("renews the origin", 0, &renewed);
        renewed
    }
}
