//! What the spine shows of itself while it runs, for health checks and metrics.
//!
//! The spine tells each step in one line; nothing here decides anything, and nothing is done per row.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::batch::Batch;
use crate::metric::Meters;
use crate::sink::Guarantee;
use crate::source::{Outcome, Probe, Unfinished};

/// A relay that has been asking to take over for this long has reached PostgreSQL, and so stands by:
/// connecting fails sooner than this.
const CONNECTED_AFTER: Duration = Duration::from_secs(15);

/// What a relay is for its sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Another relay is active, or PostgreSQL was not reached yet.
    Standby,
    /// It delivers.
    Active,
    /// The sink stands still until somebody mends something.
    Stopped,
}

impl Role {
    /// The word in answers and documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Active => "active",
            Self::Stopped => "stopped",
        }
    }
}

/// What a relay shows at one moment.
#[derive(Clone, Debug)]
pub struct Vitals {
    /// Name of the sink.
    pub sink: String,
    /// What the relay is for it.
    pub role: Role,
    /// For how long.
    pub role_age: Duration,
    /// Whether it makes progress, or waits where waiting is right.
    pub is_alive: bool,
    /// Whether it delivers, or could take over.
    pub is_ready: bool,
    /// Why it is not ready. Holds no secret and no payload.
    pub reason: Option<String>,
    /// How the sink keeps a batch from being written twice, once that is known.
    pub guarantee: Option<Guarantee>,
    /// Time since its last step as the active relay.
    pub progress_age: Duration,
    /// Batches delivered by this process.
    pub batches: u64,
    /// Events delivered by this process.
    pub rows: u64,
    /// Time since the last batch was delivered by this process.
    pub delivery_age: Option<Duration>,
    /// Age of the oldest event that is not delivered; zero when there is none, or on stand-by.
    pub lag: Duration,
}

/// Follows one relay. Shared by the spine, which tells, and by those who look.
pub struct Pulse {
    sink: String,
    stuck_after: Duration,
    meters: Meters,
    state: Mutex<State>,
}

struct State {
    role: Role,
    role_since: Instant,
    reason: Option<String>,
    /// Since when it has been asking to take over.
    asking_since: Option<Instant>,
    guarantee: Option<Guarantee>,
    progress: Instant,
    has_ended: bool,
    batches: u64,
    rows: u64,
    delivered_at: Option<Instant>,
    /// When the oldest event that is not sealed was published, by the last probe.
    waiting_since: Option<Instant>,
    /// The same of every batch that is sealed and not delivered.
    open: BTreeMap<i64, Instant>,
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulse")
            .field("sink", &self.sink)
            .finish_non_exhaustive()
    }
}

/// A delivery that is counted as in flight until this is dropped.
#[derive(Debug)]
pub(crate) struct InFlight<'a>(&'a Pulse);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.meters.in_flight.decrement(1.0);
    }
}

impl State {
    fn become_role(&mut self, role: Role, reason: Option<String>, now: Instant) {
        if self.role != role {
            (self.role, self.role_since) = (role, now);
        }
        self.reason = reason;
    }

    fn lag(&self, now: Instant) -> Duration {
        let oldest = self.open.values().copied().chain(self.waiting_since).min();
        oldest.map_or(Duration::ZERO, |oldest| now - oldest)
    }
}

impl Pulse {
    /// Of a relay that has not done anything yet.
    pub fn new(sink: &str, stuck_after: Duration, now: Instant) -> Self {
        let state = State {
            role: Role::Standby,
            role_since: now,
            reason: Some("the relay is starting: postgresql was not reached yet".to_owned()),
            asking_since: None,
            guarantee: None,
            progress: now,
            has_ended: false,
            batches: 0,
            rows: 0,
            delivered_at: None,
            waiting_since: None,
            open: BTreeMap::new(),
        };
        Self {
            sink: sink.to_owned(),
            stuck_after,
            meters: Meters::new(sink),
            state: Mutex::new(state),
        }
    }

    /// What there is to see.
    pub fn vitals(&self, now: Instant) -> Vitals {
        let state = self.state();
        let progress_age = now - state.progress;
        let has_connected = state
            .asking_since
            .is_some_and(|since| now - since >= CONNECTED_AFTER);
        let reason = match state.role {
            Role::Standby if has_connected => None,
            _ => state.reason.clone(),
        };
        Vitals {
            sink: self.sink.clone(),
            role: state.role,
            role_age: now - state.role_since,
            // A stand-by makes no steps; every question that it asks has a deadline of its own.
            is_alive: state.has_ended
                || state.role == Role::Standby
                || progress_age <= self.stuck_after,
            is_ready: reason.is_none(),
            reason,
            guarantee: state.guarantee,
            progress_age,
            batches: state.batches,
            rows: state.rows,
            delivery_age: state.delivered_at.map(|at| now - at),
            lag: state.lag(now),
        }
    }

    /// Brings the gauges up to date that change with time alone. For whoever reads the metrics.
    pub fn gauge(&self, now: Instant) {
        let vitals = self.vitals(now);
        let is = |role| if vitals.role == role { 1.0 } else { 0.0 };
        let progress_age = match vitals.role {
            Role::Standby => Duration::ZERO,
            Role::Active | Role::Stopped => vitals.progress_age,
        };
        self.meters.lag.set(vitals.lag);
        self.meters.progress_age.set(progress_age);
        self.meters.active.set(is(Role::Active));
        self.meters.stopped.set(is(Role::Stopped));
    }

    /// The relay ended and says why; others in its process may go on.
    pub fn ended(&self, reason: String, now: Instant) {
        let mut state = self.state();
        state.has_ended = true;
        state.become_role(Role::Stopped, Some(reason), now);
    }

    /// PostgreSQL could not be reached, or was lost.
    pub fn set_back(&self, reason: String, now: Instant) {
        let mut state = self.state();
        state.asking_since = None;
        state.waiting_since = None;
        state.open.clear();
        state.become_role(Role::Standby, Some(reason), now);
    }

    pub(crate) fn asking(&self, now: Instant) {
        self.state().asking_since = Some(now);
    }

    pub(crate) fn took_over(&self, now: Instant) {
        let mut state = self.state();
        (state.asking_since, state.progress) = (None, now);
        let reason = "the sink was not looked at yet".to_owned();
        state.become_role(Role::Active, Some(reason), now);
    }

    pub(crate) fn moved(&self, now: Instant) {
        self.state().progress = now;
    }

    pub(crate) fn progress_age(&self, now: Instant) -> Duration {
        now - self.state().progress
    }

    /// Nothing can be sealed yet. Why it was stopped before that stays the better reason.
    pub(crate) fn not_ready(&self, reason: String, now: Instant) {
        let mut state = self.state();
        if state.role == Role::Active {
            state.become_role(Role::Active, Some(reason), now);
        }
    }

    pub(crate) fn planned(&self, guarantee: Guarantee) {
        self.state().guarantee = Some(guarantee);
        self.meters.guarantee.set(match guarantee {
            Guarantee::Token => 2.0,
            Guarantee::Lookup => 1.0,
            Guarantee::AtLeastOnce => 0.0,
        });
    }

    /// The sink is planned, and the ledger was read. A sink that was stopped is so until a batch that
    /// it may have been stopped for is delivered.
    pub(crate) fn standing(&self, unfinished: &[Unfinished], now: Instant) {
        let mut state = self.state();
        state.waiting_since = None;
        let since = |open: &Unfinished| (open.batch.number, ago(now, open.age));
        state.open = unfinished.iter().map(since).collect();
        if state.role == Role::Active || unfinished.is_empty() {
            state.become_role(Role::Active, None, now);
        }
    }

    pub(crate) fn stopped(&self, reason: &str, now: Instant) {
        let reason = Some(reason.to_owned());
        self.state().become_role(Role::Stopped, reason, now);
    }

    pub(crate) fn probed(&self, probe: &Probe, now: Instant) {
        self.state().waiting_since = probe.waiting.map(|age| ago(now, age));
        // Gauges are floating-point numbers; an outbox of petabytes may be rounded.
        #[allow(clippy::cast_precision_loss)]
        self.meters.outbox_bytes.set(probe.outbox_bytes as f64);
    }

    pub(crate) fn sealed(&self, batch: &Batch, began: Instant, now: Instant) {
        let mut state = self.state();
        let oldest = state.waiting_since.unwrap_or(began);
        state.open.insert(batch.number, oldest);
        if batch.span.until.is_none() {
            // What came after the window is for the next probe to see.
            state.waiting_since = None;
        }
        self.meters.seal.record(now - began);
    }

    pub(crate) fn delivering(&self) -> InFlight<'_> {
        self.meters.in_flight.increment(1.0);
        InFlight(self)
    }

    pub(crate) fn inserting(&self) {
        self.meters.inserts.increment(1);
    }

    pub(crate) fn unknown(&self) {
        self.meters.unknown.increment(1);
    }

    pub(crate) fn retrying(&self) {
        self.meters.retries.increment(1);
    }

    pub(crate) fn delivered(&self, batch: &Batch, outcome: &Outcome, began: Instant, now: Instant) {
        let mut state = self.state();
        state.batches += 1;
        state.rows += outcome.rows;
        state.delivered_at = Some(now);
        state.open.remove(&batch.number);
        state.become_role(Role::Active, None, now);
        self.meters.batches.increment(1);
        self.meters.rows.increment(outcome.rows);
        self.meters.dead.increment(outcome.dead);
        self.meters.bytes.increment(batch.bytes);
        self.meters.delivery.record(now - began);
    }

    /// Batches and events delivered.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.batches, state.rows)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A clock that started later cannot show an earlier moment.
fn ago(now: Instant, age: Duration) -> Instant {
    now.checked_sub(age).unwrap_or(now)
}

#[cfg(test)]
mod tests;
