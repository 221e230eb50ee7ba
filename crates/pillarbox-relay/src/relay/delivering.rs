//! From a family to its outcome: every block is sent until it is delivered or refused.

use std::sync::atomic::Ordering;

use tokio::time::Instant;
use tracing::Instrument as _;

use super::family::{Family, State};
use super::halt::stopped;
use super::sealing::Prepared;
use super::{Halt, Relay, Tenure};
use crate::clock::Clock;
use crate::failpoint::step;
use crate::sink::{Attempt, Delivery, Doubt, Insert, Look, Reaction, Resolution, Sink, Trouble};
use crate::source::{DeadLetter, Outcome, Record, Session, Source};
use crate::trace::step_span;

/// What became of one batch's blocks.
pub(super) struct Sent {
    /// Of the blocks that arrived.
    pub(super) outcome: Outcome,
    /// Blocks of which nothing was written, and why.
    pub(super) refused: Vec<(usize, Trouble)>,
}

/// What became of a block.
enum BlockEnd {
    /// It is in the sink; names the server that said so.
    Delivered(String),
    /// Nothing of it was written, and it cannot be as it is.
    Refused(Trouble),
    /// A stop was requested before that.
    Stopped,
}

/// What is known of a block while it is sent.
struct Sending {
    is_unknown: bool,
    /// An attempt in doubt stays in doubt while later ones are refused: by the time that one gets
    /// through, the destination may have forgotten the token.
    was_unknown: bool,
    /// Why the last attempt was too large.
    too_large: Option<Trouble>,
    /// When the last attempt ended.
    sent_at: Option<Instant>,
    attempt: u32,
    failures: u32,
}

impl<S: Source, K: Sink, C: Clock> Relay<S, K, C> {
    /// Delivers a family, and says so where somebody collects traces and errors.
    pub(super) async fn deliver(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        family: Family,
    ) -> Result<(), Halt> {
        let (span, batch, rows) = (family.span.clone(), family.root, family.rows);
        let ended = self.deliver_pieces(tenure, family).instrument(span.clone());
        let ended = ended.await;
        if let Err(halt @ Halt::Stopped(..)) = &ended {
            let error: &dyn std::error::Error = halt;
            let sink = &self.options.sink;
            span.in_scope(|| tracing::error!(%sink, batch, rows, error, "a batch stops its sink"));
        }
        ended
    }

    /// Delivers every piece of a family, then records what became of it.
    async fn deliver_pieces(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        mut family: Family,
    ) -> Result<(), Halt> {
        let Ok(_permit) = tenure.permits.acquire().await else {
            return Ok(());
        };
        let _in_flight = self.pulse.delivering();
        let began = self.clock.now();
        while let Some(piece) = family.next() {
            // What is left of a family is settled by the next tenure.
            if !family.outcomes.is_empty() && tenure.stop.is_cancelled() {
                return Ok(());
            }
            let prepared = match piece.state {
                State::Ready(prepared) => prepared,
                State::Sealed(unfinished) => self.rebuild(tenure, unfinished).await?,
            };
            let Some(sent) = self.deliver_batch(tenure, &prepared).await? else {
                return Ok(());
            };
            if sent.refused.is_empty() {
                family.settle(prepared.batch, sent.outcome);
            } else {
                let divided = self.divide(tenure, prepared.batch, sent, piece.depth, &mut family);
                divided.await?;
            }
        }
        step!("before-confirm");
        let record = &mut Record {
            outcomes: &family.outcomes,
            dead: &family.dead,
            settled_retry: family.settled_retry(),
            ..Record::default()
        };
        let confirmed = tenure.session.record(record);
        confirmed.instrument(step_span!("confirm")).await?;
        self.tell(&family, began);
        tenure.session.report(None).await?;
        Ok(())
    }

    /// Logs and counts what was recorded.
    fn tell(&self, family: &Family, began: Instant) {
        for (batch, outcome) in family.settled.iter().zip(&family.outcomes) {
            self.pulse
                .delivered(batch, outcome, began, self.clock.now());
            tracing::info!(
                batch = batch.number,
                sink = %self.options.sink,
                kind = batch.kind.as_str(),
                rows = outcome.rows,
                dead = outcome.dead,
                bytes = batch.bytes,
                blocks = batch.blocks.len(),
                attempts = outcome.attempts,
                server = %outcome.server,
                took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                "delivered"
            );
        }
        self.tell_dead(&family.dead);
    }

    pub(super) fn tell_dead(&self, dead: &[DeadLetter]) {
        for letter in dead {
            tracing::warn!(
                batch = letter.number,
                tx = letter.at.tx,
                id = letter.at.id,
                reason = %letter.reason,
                "an event was set aside; see: pillarbox dead-letters list"
            );
        }
    }

    /// Sends every block of a batch; `None` when told to stop before the end.
    async fn deliver_batch(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        prepared: &Prepared,
    ) -> Result<Option<Sent>, Halt> {
        let batch = &prepared.batch;
        let mut outcome = Outcome::delivered(batch.number, batch.rows);
        let mut refused = Vec::new();
        for (ordinal, encoded) in prepared.blocks.iter().enumerate() {
            let insert = Insert {
                batch,
                ordinal,
                body: &encoded.body,
            };
            let settled = self.deliver_block(tenure, prepared, &insert, &mut outcome.attempts);
            match settled.await? {
                BlockEnd::Delivered(server) => outcome.server = server,
                BlockEnd::Refused(trouble) => {
                    outcome.rows -= encoded.block.rows;
                    refused.push((ordinal, trouble));
                }
                BlockEnd::Stopped => return Ok(None),
            }
        }
        if !refused.is_empty() {
            let is_refused = |ordinal: &usize| refused.iter().any(|(other, _)| other == ordinal);
            let all = 0..prepared.blocks.len();
            outcome.blocks = Some(all.filter(|ordinal| !is_refused(ordinal)).collect());
        }
        Ok(Some(Sent { outcome, refused }))
    }

    /// Sends a block until it is delivered or refused.
    async fn deliver_block(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        prepared: &Prepared,
        insert: &Insert<'_>,
        attempts: &mut u32,
    ) -> Result<BlockEnd, Halt> {
        let began = self.clock.now();
        let mut sending = Sending {
            is_unknown: prepared.is_unknown,
            was_unknown: prepared.is_unknown,
            too_large: None,
            sent_at: None,
            attempt: 0,
            failures: 0,
        };
        loop {
            self.moved();
            if tenure.switches.borrow().paused {
                // What was decided before a pause may no longer hold after it.
                sending.is_unknown = sending.was_unknown;
            }
            if self.held_back(tenure).await {
                return Ok(BlockEnd::Stopped);
            }
            let step = if sending.is_unknown {
                self.settle_doubt(tenure, prepared, insert, &mut sending)
                    .await?
            } else {
                sending.attempt += 1;
                *attempts += 1;
                self.attempt(tenure, prepared, insert, &mut sending).await?
            };
            let trouble = match step {
                Ok(Some(end)) => return Ok(end),
                Ok(None) => continue,
                Err(trouble) => trouble,
            };
            sending.failures += 1;
            self.pulse.retrying();
            self.log_trouble(insert, &sending, &trouble);
            let borne = self.bear(tenure.mode, trouble, sending.failures, began, tenure.stop);
            if borne.await? {
                return Ok(BlockEnd::Stopped);
            }
        }
    }

    fn log_trouble(&self, insert: &Insert<'_>, sending: &Sending, trouble: &Trouble) {
        let (batch, block) = (insert.batch.number, insert.ordinal);
        let (attempt, is_unknown) = (sending.attempt, sending.is_unknown);
        let error: &dyn std::error::Error = trouble;
        tracing::warn!(
            batch,
            block,
            attempt,
            is_unknown,
            error,
            "not delivered yet"
        );
    }

    /// Asks the sink about an attempt in doubt. An end, or `None` to send again, or trouble to bear.
    async fn settle_doubt(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        prepared: &Prepared,
        insert: &Insert<'_>,
        sending: &mut Sending,
    ) -> Result<Result<Option<BlockEnd>, Trouble>, Halt> {
        let doubt = self.doubt(tenure, prepared, sending);
        let resolved = self.sink.resolve(&tenure.plan, insert, doubt);
        match resolved.instrument(step_span!("resolve")).await {
            Ok(Resolution::Resend) => {
                // Old servers answer a block of another type with an error that says nothing else.
                self.plan_is_current(tenure).await?;
                sending.is_unknown = false;
                match sending.too_large.take() {
                    Some(trouble) => {
                        let refused = self.refused(tenure, prepared, insert, trouble, sending);
                        refused.await
                    }
                    None => Ok(Ok(None)),
                }
            }
            Ok(Resolution::Delivered(server)) => Ok(Ok(Some(BlockEnd::Delivered(server)))),
            Ok(Resolution::Undecidable(trouble)) => Err(stopped(trouble)),
            Err(trouble) => Ok(Err(trouble)),
        }
    }

    /// Sends the block once. An end, or trouble to bear.
    async fn attempt(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        prepared: &Prepared,
        insert: &Insert<'_>,
        sending: &mut Sending,
    ) -> Result<Result<Option<BlockEnd>, Trouble>, Halt> {
        let delivery = self.send(tenure, insert, sending.attempt).await?;
        sending.sent_at = Some(self.clock.now());
        match delivery {
            Delivery::Delivered(server) => {
                self.pressure.ease();
                Ok(Ok(Some(BlockEnd::Delivered(server))))
            }
            Delivery::Retry(trouble) => {
                sending.is_unknown = sending.was_unknown;
                if trouble.reaction == Reaction::Slower {
                    self.pressure.rise();
                }
                Ok(Err(trouble))
            }
            Delivery::Rejected(trouble) => {
                let refused = self.refused(tenure, prepared, insert, trouble, sending);
                refused.await
            }
            Delivery::Unknown(trouble) => {
                self.pulse.unknown();
                (sending.is_unknown, sending.was_unknown) = (true, true);
                if trouble.reaction == Reaction::Halve && rows(insert) > 1 {
                    sending.too_large = Some(trouble.clone());
                }
                Ok(Err(trouble))
            }
        }
    }

    /// A block was refused for its rows or its size. That is believed when the plan is not out of date
    /// and nothing of the block is in the sink.
    async fn refused(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        prepared: &Prepared,
        insert: &Insert<'_>,
        trouble: Trouble,
        sending: &mut Sending,
    ) -> Result<Result<Option<BlockEnd>, Trouble>, Halt> {
        sending.is_unknown = sending.was_unknown;
        match self.is_planned_anew(tenure).await? {
            Ok(true) => return Err(Halt::Replan(trouble)),
            Ok(false) => {}
            Err(not_planned) => return Ok(Err(not_planned)),
        }
        let doubt = sending
            .was_unknown
            .then(|| self.doubt(tenure, prepared, sending));
        let is_for_rows = trouble.reaction != Reaction::Halve;
        Ok(match self.sink.look(&tenure.plan, insert, doubt).await {
            Ok(Look::Nothing) => Ok(Some(BlockEnd::Refused(trouble))),
            Ok(Look::All(server)) => Ok(Some(BlockEnd::Delivered(server))),
            Ok(Look::Other(other)) => return Err(stopped(other)),
            Ok(Look::Blind | Look::Unchanged) if doubt.is_none() => {
                Ok(Some(BlockEnd::Refused(trouble)))
            }
            Ok(Look::Unchanged) if is_for_rows => Ok(Some(BlockEnd::Refused(trouble))),
            Ok(Look::Blind) if is_for_rows => return Err(stopped(blind(trouble))),
            // The same token again: it may fit at another time.
            Ok(Look::Blind | Look::Unchanged) => Err(trouble),
            Err(trouble) => Err(trouble),
        })
    }

    async fn send(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        insert: &Insert<'_>,
        number: u32,
    ) -> Result<Delivery, Halt> {
        // Whoever lost the lock must not send: the new holder may be looking into the sink.
        let attempt = Attempt::new(number, self.clock.now());
        tenure.session.beat().await?;
        step!("before-send");
        self.pulse.inserting();
        self.blocks.fetch_add(1, Ordering::Relaxed);
        let block = insert.ordinal;
        let delivery = self.sink.deliver(&tenure.plan, insert, attempt);
        let delivery = delivery.instrument(step_span!("insert", block = block, attempt = number));
        let delivery = delivery.await;
        step!("block-answered");
        Ok(delivery)
    }

    fn doubt(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        prepared: &Prepared,
        sending: &Sending,
    ) -> Doubt {
        let now = self.clock.now();
        let blocks = self.blocks.load(Ordering::Relaxed) - prepared.blocks_before;
        Doubt {
            age: prepared.doubt.age + (now - prepared.prepared_at),
            blocks_since: prepared.doubt.blocks_since + blocks,
            quiet: now - sending.sent_at.unwrap_or(tenure.began),
        }
    }
}

/// Why a refused block stays as it is.
fn blind(trouble: Trouble) -> Trouble {
    Trouble {
        reason: format!(
            "{}; an attempt before may have been applied, the table was changed since, and without the \
             column batch nobody can tell, so the block is not split; mend what refuses it",
            trouble.reason
        ),
        reaction: Reaction::Stop,
        ..trouble
    }
}

fn rows(insert: &Insert<'_>) -> u64 {
    let block = insert.batch.blocks.get(insert.ordinal);
    block.map_or(0, |block| block.rows)
}
