//! Between the probe and the seal: the spine's steps from a position to a batch that may be sent.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use uuid::Uuid;

use super::{Halt, Mode, Relay, Tenure};
use crate::batch::{Batch, Builder, Draft, EncodedBlock, Kind, Limits, sink_value};
use crate::clock::Clock;
use crate::sink::{Doubt, Plan as _, Sink};
use crate::snapshot::{Position, Snapshot, Span};
use crate::source::{Session, Source, SourceError, Standing, Unfinished};

/// Where sealing stands. Lives as long as the session: it holds snapshots that are not sealed.
pub(super) struct Sealing {
    origin: u32,
    last_number: i64,
    position: Position,
    unfinished: VecDeque<Unfinished>,
    /// Size of the outbox when the last batch was sealed.
    outbox_bytes: u64,
    /// Whether a drain has seen its one snapshot; under steady load it would never end otherwise.
    has_drained: bool,
}

impl From<Standing> for Sealing {
    fn from(standing: Standing) -> Self {
        Self {
            origin: standing.origin,
            last_number: standing.last_number,
            position: standing.position,
            unfinished: standing.unfinished.into(),
            outbox_bytes: 0,
            has_drained: false,
        }
    }
}

/// A sealed batch with its encoded blocks.
pub(super) struct Prepared {
    pub(super) batch: Batch,
    pub(super) blocks: Vec<EncodedBlock>,
    /// Whether an earlier relay may have sent it.
    pub(super) is_unknown: bool,
    /// What was known about it at `prepared_at`, when the relay had sent `blocks_before` blocks.
    pub(super) doubt: Doubt,
    pub(super) prepared_at: Instant,
    pub(super) blocks_before: u64,
}

impl<S: Source, K: Sink, C: Clock> Relay<S, K, C> {
    /// The next batch: an unfinished one first, a new one only when none is left. `None` when told to
    /// stop, or when a drain has come to its end. Stops only between steps.
    pub(super) async fn prepare(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        mut sealing: Sealing,
    ) -> (Sealing, Result<Option<Prepared>, Halt>) {
        let prepared = self.next_batch(tenure, &mut sealing).await;
        (sealing, prepared)
    }

    async fn next_batch(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        sealing: &mut Sealing,
    ) -> Result<Option<Prepared>, Halt> {
        if self.held_back(tenure).await {
            return Ok(None);
        }
        if let Some(unfinished) = sealing.unfinished.pop_front() {
            return self.rebuild(tenure, unfinished).await.map(Some);
        }
        loop {
            let Some(now) = self.await_window(tenure, sealing).await? else {
                return Ok(None);
            };
            self.moved();
            if let Some(prepared) = self.seal(tenure, sealing, now).await? {
                return Ok(Some(prepared));
            }
        }
    }

    /// Probes until events wait that are old enough or many enough for a batch; the snapshot that
    /// shows them ends the window. `None` when told to stop, or when a drain finds nothing.
    async fn await_window(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        sealing: &mut Sealing,
    ) -> Result<Option<Snapshot>, Halt> {
        let options = &self.options;
        let mut wait = options.probe_min;
        loop {
            self.moved();
            let paused = tenure.switches.borrow().paused;
            let is_drain = tenure.mode == Mode::Drain;
            if tenure.stop.is_cancelled() || (is_drain && paused) {
                return Ok(None);
            }
            // The rest of a cut window does not wait: there is a backlog.
            if sealing.position.is_cut() && !paused {
                return Ok(Some(sealing.position.to.clone()));
            }
            if is_drain && sealing.has_drained {
                return Ok(None);
            }
            if !paused {
                let probe = tenure.session.probe(&sealing.position).await?;
                self.pulse.probed(&probe, self.clock.now());
                let grown = probe.outbox_bytes.saturating_sub(sealing.outbox_bytes);
                let is_large = grown >= options.limits.bytes_max;
                match probe.waiting {
                    Some(age)
                        if age >= options.age_max || is_large || tenure.mode == Mode::Drain =>
                    {
                        sealing.outbox_bytes = probe.outbox_bytes;
                        sealing.has_drained = is_drain;
                        return Ok(Some(probe.snapshot));
                    }
                    Some(age) => wait = (options.age_max - age).min(options.probe_max),
                    None if is_drain => return Ok(None),
                    None => wait = (wait * 2).min(options.probe_max),
                }
            }
            if self.rest(wait.max(options.probe_min), tenure.stop).await {
                return Ok(None);
            }
        }
    }

    /// Reads, encodes and seals the next piece of the window that ends with `now`.
    async fn seal(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        sealing: &mut Sealing,
        now: Snapshot,
    ) -> Result<Option<Prepared>, Halt> {
        let began = self.clock.now();
        let number = sealing.last_number + 1;
        let mut span = sealing.position.next_span(now);
        let value = sink_value(sealing.origin, number);
        let draft = self.read(tenure, &span, value, self.options.limits).await?;
        if draft.rows == 0 {
            // The rows of a cut window cannot go away: batch by batch they were seen to follow.
            return match span.after {
                None => Ok(None),
                Some(_) => Err(SourceError::Broken(
                    "the rest of a cut window is gone from the outbox; somebody deleted or \
                     truncated events"
                        .to_owned(),
                )
                .into()),
            };
        }
        span.until = draft.cut;
        let mut batch = Batch {
            number,
            batch_id: Uuid::new_v4(),
            origin: sealing.origin,
            kind: Kind::Window,
            span,
            rows: draft.rows,
            bytes: draft.bytes,
            digest: draft.digest(),
            blocks: draft.block_map(),
            sealed_at: SystemTime::UNIX_EPOCH,
        };
        tenure.session.seal(&mut batch).await?;
        self.pulse.sealed(&batch, began, self.clock.now());
        sealing.position = Position::from(&batch.span);
        sealing.last_number = number;
        let doubt = Doubt {
            age: Duration::ZERO,
            blocks_since: 0,
        };
        Ok(Some(self.prepared(batch, draft.blocks, false, doubt)))
    }

    /// Reads and encodes a sealed batch again; it must come out as it was sealed (INV-3).
    async fn rebuild(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        unfinished: Unfinished,
    ) -> Result<Prepared, Halt> {
        self.moved();
        let Unfinished {
            batch,
            age,
            blocks_since,
        } = unfinished;
        tracing::info!(
            batch = batch.number,
            rows = batch.rows,
            "settling an unfinished batch"
        );
        let limits = Limits {
            rows_max: batch.rows.saturating_add(1),
            bytes_max: u64::MAX,
        };
        let draft = self
            .read(tenure, &batch.span, batch.sink_value(), limits)
            .await?;
        if !draft.is_as_sealed(&batch) {
            return Err(SourceError::Broken(format!(
                "batch {} was sealed with {} rows and digest {:016x}, but the outbox now gives {} \
                 rows and digest {:016x}: events were changed or removed, or the table's columns \
                 or partition expression changed",
                batch.number,
                batch.rows,
                batch.digest,
                draft.rows,
                draft.digest()
            ))
            .into());
        }
        Ok(self.prepared(batch, draft.blocks, true, Doubt { age, blocks_since }))
    }

    async fn read(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        span: &Span,
        sink_value: u64,
        limits: Limits,
    ) -> Result<Draft, Halt> {
        let mut builder = Builder::new(tenure.plan.encoder(sink_value), limits);
        let columns = tenure.plan.columns();
        tenure
            .session
            .read(span, columns, limits.rows_max, &mut builder)
            .await?;
        Ok(builder.finish())
    }

    fn prepared(
        &self,
        batch: Batch,
        blocks: Vec<EncodedBlock>,
        is_unknown: bool,
        doubt: Doubt,
    ) -> Prepared {
        Prepared {
            batch,
            blocks,
            is_unknown,
            doubt,
            prepared_at: self.clock.now(),
            blocks_before: self.blocks.load(Ordering::Relaxed),
        }
    }
}
