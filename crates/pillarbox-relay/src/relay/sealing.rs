//! Between the probe and the seal: the spine's steps from a position to a batch that may be sent.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use tokio::time::Instant;
use tracing::Instrument as _;
use uuid::Uuid;

use super::family::{Family, drift};
use super::reading::Reading;
use super::requests::Wish;
use super::{Halt, Mode, Relay, Tenure};
use crate::batch::{
    Batch, Builder, Draft, EncodedBlock, Kind, Limits, Selection, Store, sink_value,
};
use crate::clock::Clock;
use crate::sink::{Doubt, Plan, RowError, Sink, Terms};
use crate::snapshot::{Position, Snapshot, Span};
use crate::source::{
    DeadLetter, Ending, Outcome, Record, Session, Source, SourceError, Standing, Unfinished,
};
use crate::trace::{self, step_span};

/// The encoder of a sink.
pub(super) type EncoderOf<K> = <<K as Sink>::Plan as Plan>::Encoder;

/// Where sealing stands. Lives as long as the session: it holds snapshots that are not sealed.
pub(super) struct Sealing {
    position: Position,
    unfinished: VecDeque<Unfinished>,
    /// Size of the outbox when the last batch was sealed.
    outbox_bytes: u64,
    /// Whether the last thing to be prepared was one that somebody had asked for.
    has_answered: bool,
    /// Whether a drain has seen its one snapshot; under steady load it would never end otherwise.
    has_drained: bool,
}

impl From<Standing> for Sealing {
    fn from(standing: Standing) -> Self {
        Self {
            position: standing.position,
            unfinished: standing.unfinished.into(),
            outbox_bytes: 0,
            has_answered: false,
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

/// What a batch is, before it has a number.
pub(super) struct Sketch {
    pub(super) kind: Kind,
    pub(super) parent: Option<i64>,
    pub(super) span: Span,
    pub(super) selection: Selection,
}

impl Sketch {
    /// The batch with this number; the events in `dead` do not belong to it.
    fn batch(
        self,
        origin: u32,
        number: i64,
        terms: &Terms,
        draft: &Draft,
        dead: &[DeadLetter],
    ) -> Batch {
        let mut selection = self.selection;
        if selection.store == Store::Requested {
            selection.store = Store::Retried(number);
        }
        selection
            .without
            .extend(dead.iter().map(|letter| letter.at));
        selection.without.sort_unstable();
        Batch {
            number,
            batch_id: Uuid::new_v4(),
            origin,
            kind: self.kind,
            parent: self.parent,
            root: None,
            span: self.span,
            selection,
            terms: Some(terms.clone()),
            rows: draft.rows,
            bytes: draft.bytes,
            digest: draft.digest(),
            blocks: draft.block_map(),
            sealed_at: SystemTime::UNIX_EPOCH,
        }
    }
}

/// What comes next.
enum Next {
    /// Events wait; the snapshot ends their window. With the trace context of one of the first.
    Window(Snapshot, Option<String>),
    /// Something is to be delivered again.
    Request,
}

impl Next {
    fn trace_parent(&self) -> Option<&str> {
        match self {
            Self::Window(_, trace_parent) => trace_parent.as_deref(),
            Self::Request => None,
        }
    }
}

impl<S: Source, K: Sink, C: Clock> Relay<S, K, C> {
    /// The next batch: an unfinished one first, a new one only when none is left. `None` when told to
    /// stop, or when a drain has come to its end. Stops only between steps.
    pub(super) async fn prepare(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        mut sealing: Sealing,
    ) -> (Sealing, Result<Option<Family>, Halt>) {
        let prepared = self.next_batch(tenure, &mut sealing).await;
        (sealing, prepared)
    }

    async fn next_batch(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        sealing: &mut Sealing,
    ) -> Result<Option<Family>, Halt> {
        if self.held_back(tenure).await {
            return Ok(None);
        }
        if let Some(unfinished) = sealing.unfinished.pop_front() {
            return self.resume(tenure, sealing, unfinished).await.map(Some);
        }
        loop {
            let Some(next) = self.await_next(tenure, sealing).await? else {
                return Ok(None);
            };
            self.plan_is_current(tenure).await?;
            sealing.has_answered = matches!(next, Next::Request);
            let span = trace::batch(&self.options.sink, next.trace_parent());
            let prepared = async {
                match next {
                    Next::Window(now, _) => self.seal_window(tenure, sealing, now).await,
                    Next::Request => self.answer_request(tenure, &sealing.position).await,
                }
            };
            let prepared = prepared.instrument(span.clone()).await?;
            self.moved();
            if let Some(prepared) = prepared {
                trace::is_of(&span, &prepared.batch);
                return Ok(Some(Family::of(prepared, span)));
            }
        }
    }

    /// What an earlier tenure left behind; the children of one family together.
    async fn resume(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        sealing: &mut Sealing,
        first: Unfinished,
    ) -> Result<Family, Halt> {
        let Some(root) = first.batch.root else {
            let span = trace::batch(&self.options.sink, None);
            trace::is_of(&span, &first.batch);
            let rebuilt = self.rebuild(tenure, first).instrument(span.clone());
            return Ok(Family::of(rebuilt.await?, span));
        };
        let others = std::mem::take(&mut sealing.unfinished);
        let (siblings, others): (Vec<_>, Vec<_>) = others
            .into_iter()
            .partition(|other| other.batch.root == Some(root));
        sealing.unfinished = others.into();
        let mut children = vec![first];
        children.extend(siblings);
        let span = trace::batch(&self.options.sink, None);
        Ok(Family::left_behind(root, children, span))
    }

    /// Probes until events wait that are old enough or many enough for a batch, or until there is a
    /// wish for something to be delivered again. `None` when a stop was requested, or a drain is at its end.
    async fn await_next(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        sealing: &mut Sealing,
    ) -> Result<Option<Next>, Halt> {
        let options = &self.options;
        let began = self.clock.now();
        let mut wait = options.probe_min;
        loop {
            self.moved();
            let (paused, has_requests) = {
                let switches = tenure.switches.borrow();
                (switches.paused, switches.has_requests)
            };
            let is_drain = tenure.mode == Mode::Drain;
            if tenure.stop.is_cancelled() || (is_drain && paused) {
                return Ok(None);
            }
            // The rest of a cut window does not wait: there is a backlog. Behind one that lasts, wishes
            // would wait for ever: it goes first only when one was granted last.
            let is_cut = sealing.position.is_cut() && !paused;
            if is_cut && sealing.has_answered {
                return Ok(Some(Next::Window(sealing.position.to.clone(), None)));
            }
            let wish = match has_requests && !paused {
                true => self.wish(tenure).await?,
                false => Wish::None,
            };
            if wish == Wish::Now {
                return Ok(Some(Next::Request));
            }
            if is_cut {
                return Ok(Some(Next::Window(sealing.position.to.clone(), None)));
            }
            let is_done = is_drain && wish == Wish::None;
            if is_drain && self.clock.now() - began > options.drain_patience {
                return Err(Halt::GaveUp(Wish::held_back()));
            }
            if is_done && sealing.has_drained {
                return Ok(None);
            }
            if !(paused || sealing.has_drained) {
                let probe = tenure.session.probe(&sealing.position).await?;
                self.pulse.probed(&probe, self.clock.now());
                let grown = probe.outbox_bytes.saturating_sub(sealing.outbox_bytes);
                let is_large = grown >= options.limits.bytes_max;
                let age_max = self.pressure.age(options.age_max);
                match probe.waiting {
                    Some(age) if age >= age_max || is_large || is_drain => {
                        sealing.outbox_bytes = probe.outbox_bytes;
                        sealing.has_drained = is_drain;
                        return Ok(Some(Next::Window(probe.snapshot, probe.trace_parent)));
                    }
                    Some(age) => wait = (age_max - age).min(options.probe_max),
                    None if is_done => return Ok(None),
                    None => wait = (wait * 2).min(options.probe_max),
                }
            }
            if self.rest(wait.max(options.probe_min), tenure.stop).await {
                return Ok(None);
            }
        }
    }

    /// Reads, encodes and seals the next piece of the window that ends with `now`.
    async fn seal_window(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        sealing: &mut Sealing,
        now: Snapshot,
    ) -> Result<Option<Prepared>, Halt> {
        let mut span = sealing.position.next_span(now);
        let reading = Reading {
            span: &span,
            selection: &Selection::default(),
            limits: self.options.limits,
            dead_max: self.dead_max(),
            is_waiting: true,
            terms: None,
        };
        let builder = self.read(tenure, reading).await?;
        if builder.rows() + builder.dead() == 0 {
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
        span.until = builder.cut();
        let sketch = Sketch {
            kind: Kind::Window,
            parent: None,
            span,
            selection: Selection::default(),
        };
        let position = Position::from(&sketch.span);
        let prepared = self
            .seal(tenure, builder, sketch, Record::default())
            .await?;
        sealing.position = position;
        Ok(prepared)
    }

    /// Seals what a builder took, as one batch under the next number, and sets aside with it what the
    /// sink cannot represent; `None` when nothing else was in it.
    pub(super) async fn seal(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        builder: Builder<EncoderOf<K>>,
        sketch: Sketch,
        with: Record<'_>,
    ) -> Result<Option<Prepared>, Halt> {
        let began = self.clock.now();
        self.judge_dead(tenure, sketch.kind, builder.rows(), builder.dead())
            .await?;
        let mut last = tenure.last_number.lock().await;
        let number = *last + 1;
        let draft = builder.finish(sink_value(tenure.origin, number));
        let dead: Vec<DeadLetter> = draft
            .dead
            .iter()
            .map(|error| unrepresentable(number, error))
            .collect();
        let outcome = Outcome {
            ending: Ending::Dead,
            dead: dead.len() as u64,
            ..Outcome::delivered(number, 0)
        };
        let is_empty = draft.rows == 0;
        let terms = tenure.plan.terms();
        let mut batches = [sketch.batch(tenure.origin, number, terms, &draft, &dead)];
        let record = &mut Record {
            batches: &mut batches,
            outcomes: if is_empty {
                std::slice::from_ref(&outcome)
            } else {
                &[]
            },
            dead: &dead,
            ..with
        };
        let sealed = tenure.session.record(record);
        sealed.instrument(step_span!("seal")).await?;
        *last = number;
        drop(last);
        let [batch] = batches;
        self.pulse.sealed(&batch, began, self.clock.now());
        self.tell_dead(&dead);
        if is_empty {
            let now = self.clock.now();
            self.pulse.delivered(&batch, &outcome, began, now);
            return Ok(None);
        }
        Ok(Some(self.prepared(batch, draft.blocks, false, Doubt::NONE)))
    }

    /// Whether rows that the sink cannot represent may be set aside: not when the plan is out of date,
    /// and not so many of them that it must be the table or the application that changed.
    async fn judge_dead(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        kind: Kind,
        rows: u64,
        dead: u64,
    ) -> Result<(), Halt> {
        if dead == 0 {
            return Ok(());
        }
        match self.is_planned_anew(tenure).await? {
            Ok(false) => {}
            Ok(true) => return Err(SourceError::Changed.into()),
            Err(trouble) => return Err(Halt::Replan(trouble)),
        }
        if kind == Kind::Retry {
            return Ok(());
        }
        let lately = tenure.session.lately_dead().await?;
        match drift(&self.options.poison, dead, rows + dead, lately) {
            None => Ok(()),
            Some(reason) => Err(Halt::Stopped(reason, None)),
        }
    }

    /// Reads and encodes a sealed batch again; it must come out as it was sealed (INV-3).
    pub(super) async fn rebuild(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        unfinished: Unfinished,
    ) -> Result<Prepared, Halt> {
        self.moved();
        let Unfinished {
            batch,
            age,
            blocks_since,
            ..
        } = unfinished;
        tracing::info!(
            batch = batch.number,
            rows = batch.rows,
            "settling an unfinished batch"
        );
        if let Some(gone) = gone(&batch, &tenure.plan.columns_for(batch.terms.as_ref())) {
            return Err(gone.into());
        }
        let limits = Limits {
            rows_max: batch.rows.saturating_add(1),
            bytes_max: u64::MAX,
        };
        let reading = Reading {
            span: &batch.span,
            selection: &batch.selection,
            limits,
            dead_max: 0,
            is_waiting: true,
            terms: batch.terms.as_ref(),
        };
        let draft = self.read(tenure, reading).await?.finish(batch.sink_value());
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
        let doubt = Doubt {
            age,
            blocks_since,
            ..Doubt::NONE
        };
        Ok(self.prepared(batch, draft.blocks, true, doubt))
    }

    pub(super) fn prepared(
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

/// A column that a sealed batch is proven by, and that can no longer be read.
fn gone(batch: &Batch, columns: &[String]) -> Option<SourceError> {
    let mut proven = batch.terms.iter().flat_map(|terms| &terms.proven);
    let name = proven.find(|name| !columns.contains(name))?;
    Some(SourceError::Broken(format!(
        "batch {} was sealed when the sink had the column {name}, which it has no longer; add it \
         again until the batch is delivered",
        batch.number
    )))
}

fn unrepresentable(number: i64, error: &RowError) -> DeadLetter {
    DeadLetter {
        number,
        at: error.at(),
        code: None,
        column: Some(error.column.clone()),
        reason: error.reason.clone(),
    }
}
