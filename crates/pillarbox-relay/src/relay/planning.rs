//! Before anything is sealed: the sink's plan, and whether this server's ledger still speaks of the
//! history that the sink has seen.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::halt::stopped;
use super::{Halt, Mode, Relay, Tenure};
use crate::clock::Clock;
use crate::sink::{Plan as _, Reaction, Sink, Trouble};
use crate::source::{Session, Source, Standing};

/// A plan that was compared with the sink is good for this long: poison is found by many refusals.
const PLAN_FRESH: Duration = Duration::from_secs(10);

impl<S: Source, K: Sink, C: Clock> Relay<S, K, C> {
    /// Asks the sink for a plan until it answers; `None` when told to stop before that.
    pub(super) async fn plan(
        &self,
        session: &S::Session,
        mode: Mode,
        stop: &CancellationToken,
    ) -> Result<Option<K::Plan>, Halt> {
        let began = self.clock.now();
        let mut failures = 0;
        loop {
            self.moved();
            let columns = session.outbox_columns().await?;
            let planned = tokio::select! { biased;
                () = stop.cancelled() => return Ok(None),
                planned = self.sink.prepare(&columns) => planned,
            };
            let trouble = match planned {
                Ok(plan) => {
                    self.pulse.planned(plan.guarantee());
                    return Ok(Some(plan));
                }
                Err(trouble) if trouble.reaction == Reaction::Replan => {
                    return Err(stopped(trouble));
                }
                Err(trouble) => trouble,
            };
            failures += 1;
            tracing::warn!(
                error = &trouble as &dyn std::error::Error,
                "the sink is not ready yet"
            );
            let reason = format!("the sink is not ready yet: {}", trouble.reason);
            self.pulse.not_ready(reason, self.clock.now());
            if self.bear(mode, trouble, failures, began, stop).await? {
                return Ok(None);
            }
        }
    }

    /// Ends a plan that the destination's columns have left behind. Asked between a snapshot and its
    /// read, so that an event that was published after a column was added arrives with it.
    pub(super) async fn plan_is_current(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
    ) -> Result<(), Halt> {
        if self.sink.is_current(&tenure.plan).await {
            return Ok(());
        }
        Err(Halt::Outdated(Trouble {
            code: None,
            reason: "the columns of the sink changed".to_owned(),
            reaction: Reaction::Replan,
            source: None,
        }))
    }

    /// Whether the sink or the outbox would now be planned otherwise than this tenure did.
    pub(super) async fn is_planned_anew(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
    ) -> Result<Result<bool, Trouble>, Halt> {
        let mut checked_at = tenure.plan_checked_at.lock().await;
        let now = self.clock.now();
        if checked_at.is_some_and(|checked| now - checked < PLAN_FRESH) {
            return Ok(Ok(false));
        }
        let columns = tenure.session.outbox_columns().await?;
        let planned = self.sink.prepare(&columns).await;
        if planned.is_ok() {
            *checked_at = Some(now);
        }
        Ok(planned.map(|plan| plan != tenure.plan))
    }

    /// Stops when the sink holds batches that this ledger has never sealed: the server was set back, as
    /// by a snapshot of its machine, which leaves no other trace. Returns whether to stop.
    pub(super) async fn look_back(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        standing: &Standing,
    ) -> Result<bool, Halt> {
        let began = self.clock.now();
        let mut failures = 0;
        let surplus = loop {
            self.moved();
            let (known, since) = (standing.last_number, standing.last_sealed_at);
            let asked = tokio::select! { biased;
                () = tenure.stop.cancelled() => return Ok(true),
                asked = self.sink.surplus(&tenure.plan, standing.origin, known, since) => asked,
            };
            let trouble = match asked {
                Ok(surplus) => break surplus,
                Err(trouble) => trouble,
            };
            failures += 1;
            let stop = tenure.stop;
            if self
                .bear(tenure.mode, trouble, failures, began, stop)
                .await?
            {
                return Ok(true);
            }
        };
        match surplus {
            None => Ok(false),
            Some(number) => Err(Halt::Stopped(
                format!(
                    "this server was set back: the sink holds batch {number}, the ledger ends with \
                     {}; run: pillarbox recover",
                    standing.last_number
                ),
                None,
            )),
        }
    }

    /// After a failover: goes on under a new origin if the sink holds nothing that this server has
    /// forgotten. Returns whether to stop.
    pub(super) async fn judge_timeline(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        standing: &mut Standing,
    ) -> Result<bool, Halt> {
        let began = self.clock.now();
        let mut failures = 0;
        let highest = loop {
            self.moved();
            let asked = tokio::select! { biased;
                () = tenure.stop.cancelled() => return Ok(true),
                asked = self.sink.highest_number(&tenure.plan, standing.origin) => asked,
            };
            let trouble = match asked {
                Ok(highest) => break highest.unwrap_or(0),
                Err(trouble) => trouble,
            };
            failures += 1;
            let stop = tenure.stop;
            if self
                .bear(tenure.mode, trouble, failures, began, stop)
                .await?
            {
                return Ok(true);
            }
        };
        if highest > standing.last_number {
            return Err(Halt::Stopped(
                format!(
                    "this server was promoted without the last seals: the sink holds batch \
                     {highest}, the ledger ends with {}; run: pillarbox recover",
                    standing.last_number
                ),
                None,
            ));
        }
        standing.origin = tenure.session.renew_origin().await?;
        tracing::warn!(
            origin = standing.origin,
            "the server was promoted: going on"
        );
        Ok(false)
    }
}
