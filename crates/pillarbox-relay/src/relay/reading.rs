//! From a span to encoded rows: what the outbox gives, in a builder.

use tokio::time::Instant;
use tracing::Instrument as _;

use super::sealing::EncoderOf;
use super::{Halt, Relay, Tenure};
use crate::batch::{Builder, Limits, Selection};
use crate::clock::Clock;
use crate::sink::{Plan, Reaction, RowError, Sink, Terms, Trouble};
use crate::snapshot::Span;
use crate::source::{Session, Source, SourceError};
use crate::trace::step_span;

/// What to read and encode.
pub(super) struct Reading<'a> {
    pub(super) span: &'a Span,
    pub(super) selection: &'a Selection,
    pub(super) limits: Limits,
    /// Rows to set aside at most; with 0, one that the sink cannot represent is an error.
    pub(super) dead_max: u64,
    /// Whether a value that is not there yet is waited for, where the configuration says so.
    pub(super) is_waiting: bool,
    /// On what the batch was sealed, where it was.
    pub(super) terms: Option<&'a Terms>,
}

impl<S: Source, K: Sink, C: Clock> Relay<S, K, C> {
    /// Reads and encodes; waits where the next row has to be waited for.
    pub(super) async fn read(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        reading: Reading<'_>,
    ) -> Result<Builder<EncoderOf<K>>, Halt> {
        let Reading {
            span,
            selection,
            limits,
            dead_max,
            is_waiting,
            terms,
        } = reading;
        let columns = &tenure.plan.columns_for(terms);
        // Rows that are left out count for the source, too.
        let is_whole = selection.only.is_none() && selection.without.is_empty();
        let rows_max = if is_whole { limits.rows_max } else { u64::MAX };
        let began = self.clock.now();
        let mut failures = 0;
        loop {
            let encoder = tenure.plan.encoder(selection.only.as_deref(), terms);
            let mut builder = Builder::new(encoder, limits)
                .without(&selection.without)
                .setting_aside(dead_max);
            if !is_waiting {
                builder = builder.never_waiting();
            }
            let session = tenure.session;
            let read = session.read_selected(span, selection, columns, rows_max, &mut builder);
            match read.instrument(step_span!("read")).await {
                Ok(()) => return Ok(builder),
                Err(SourceError::Awaited(value)) => {
                    failures += 1;
                    self.await_value(tenure, &value, failures, began).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits a while for what an event refers to.
    async fn await_value(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        value: &RowError,
        failures: u32,
        began: Instant,
    ) -> Result<(), Halt> {
        self.moved();
        let trouble = Trouble {
            code: None,
            reason: format!("{value}; the events after it wait, too"),
            reaction: Reaction::Soon,
            source: None,
        };
        tracing::warn!(
            error = &trouble as &dyn std::error::Error,
            "an event waits for a value"
        );
        self.pulse
            .not_ready(trouble.reason.clone(), self.clock.now());
        // A batch before it that is delivered meanwhile takes it back.
        tenure.session.report(Some(&trouble.reason)).await?;
        let stopped = self.bear(tenure.mode, trouble, failures, began, tenure.stop);
        match stopped.await? {
            true => Err(Halt::Source(SourceError::Lost(
                "told to stop while an event waited for a value".to_owned(),
                None,
            ))),
            false => Ok(()),
        }
    }

    /// Rows that are set aside from one batch: one more than is borne, which shows that it is too many.
    pub(super) fn dead_max(&self) -> u64 {
        self.options.poison.rows_max.saturating_add(1)
    }
}
