//! A destination in memory that fails as it is told to.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pillarbox_relay::clock::Clock as _;
use pillarbox_relay::sink;
use pillarbox_relay::sink::{
    Delivery, Doubt, Guarantee, Insert, Look, OutboxColumn, Reaction, Resolution, Sink, Trouble,
};
use tokio::sync::watch;
use uuid::Uuid;

use super::clock::FakeClock;
use super::destination::{Attempt, Destination, Effect, Late, Parcel, StoredRow};
use super::doubt::{Doubted, absent};
use super::encoder::{Ask, FakePlan, Layout};
use super::fault::{Fault, Operation, trouble};
use super::gauge::Gauge;
use super::script::Script;
use super::window::Window;

/// What the fake sink calls itself.
pub(super) const SERVER: &str = "fake";

type Observe = Arc<dyn Fn(&Insert<'_>) + Send + Sync>;

/// A destination in memory. Clones share it: one goes into the relay, another one inspects.
#[derive(Clone)]
pub struct FakeSink {
    pub(super) shared: Arc<Shared>,
}

/// What does not change about a sink.
pub(super) struct Manners {
    pub(super) guarantee: Guarantee,
    pub(super) has_batch_column: bool,
    pub(super) never_looks: bool,
    pub(super) window: Window,
    pub(super) deadline: Duration,
    pub(super) layout: Layout,
    pub(super) poison: Ask<bool>,
}

pub(super) struct Shared {
    pub(super) manners: Manners,
    clock: FakeClock,
    released: watch::Sender<u64>,
    hanging: Gauge,
    state: Mutex<State>,
}

pub(super) struct State {
    script: Script<Operation, Fault>,
    pub(super) destination: Destination,
    pub(super) doubts: BTreeMap<String, Doubted>,
    observe: Option<Observe>,
}

impl fmt::Debug for FakeSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeSink")
            .field("guarantee", &self.shared.manners.guarantee)
            .finish_non_exhaustive()
    }
}

impl Default for FakeSink {
    fn default() -> Self {
        Self::builder().build()
    }
}

impl FakeSink {
    pub(super) fn new(manners: Manners, clock: FakeClock, destination: Destination) -> Self {
        let state = State {
            script: Script::default(),
            destination,
            doubts: BTreeMap::new(),
            observe: None,
        };
        Self {
            shared: Arc::new(Shared {
                manners,
                clock,
                released: watch::Sender::new(0),
                hanging: Gauge::default(),
                state: Mutex::new(state),
            }),
        }
    }

    /// A sink of one partition.
    pub fn unpartitioned() -> Self {
        Self::builder().partition_by(|_| String::new()).build()
    }

    /// Queues a fault for the next call of `operation` that has none yet.
    pub fn fail_next(&self, operation: Operation, fault: Fault) {
        self.state().script.queue(operation, fault);
    }

    /// Plans a fault for the call of `operation` with this number, from 0.
    pub fn fail_call(&self, operation: Operation, call: u64, fault: Fault) {
        self.state().script.plan(operation, call, fault);
    }

    /// Makes every call of `operation` fail until [`FakeSink::heal`].
    pub fn fail_always(&self, operation: Operation, fault: Fault) {
        self.state().script.always(operation, fault);
    }

    /// Asks `decide` about each call that nothing else is planned for.
    pub fn fail_by(&self, decide: impl FnMut(Operation, u64) -> Option<Fault> + Send + 'static) {
        self.state().script.decide(decide);
    }

    /// Drops every planned fault, and lets go what is held.
    pub fn heal(&self) {
        self.state().script.clear();
        self.release();
    }

    /// Lets every call that [`Fault::Hold`] holds go on.
    pub fn release(&self) {
        self.shared.released.send_modify(|count| *count += 1);
    }

    /// Calls `observe` with each insert as it arrives, before anything else happens to it.
    pub fn observe(&self, observe: impl Fn(&Insert<'_>) + Send + Sync + 'static) {
        self.state().observe = Some(Arc::new(observe));
    }

    /// Every row, by partition and in the order of writing.
    pub fn rows(&self) -> Vec<StoredRow> {
        self.state().destination.rows().cloned().collect()
    }

    /// How often each event is there.
    pub fn events(&self) -> BTreeMap<Uuid, u64> {
        let state = self.state();
        let mut events = BTreeMap::new();
        for row in state.destination.rows() {
            *events.entry(row.event_id).or_default() += 1;
        }
        events
    }

    /// Rows by partition.
    pub fn partitions(&self) -> BTreeMap<String, Vec<StoredRow>> {
        let mut partitions: BTreeMap<String, Vec<StoredRow>> = BTreeMap::new();
        for row in self.rows() {
            partitions
                .entry(row.partition.clone())
                .or_default()
                .push(row);
        }
        partitions
    }

    /// Every insert that reached the destination, in order.
    pub fn inserts(&self) -> Vec<Attempt> {
        self.state().destination.inserts.clone()
    }

    /// How often an operation was called.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.state().script.calls(operation)
    }

    /// How many faults were played.
    pub fn faults_played(&self) -> u64 {
        self.state().script.played()
    }

    /// Calls that hang or are held at this moment.
    pub fn hanging(&self) -> u64 {
        self.shared.hanging.now()
    }

    /// Batches whose encoder or bytes are alive (INV-7).
    pub fn batches(&self) -> Gauge {
        self.shared.manners.layout.batches.clone()
    }

    /// Time as the destination tells it: nobody's wall clock moves it.
    pub(super) fn now(&self) -> Duration {
        self.shared.clock.elapsed()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call, lets late inserts come nearer, and gives the call's fault.
    fn begin(&self, operation: Operation) -> Option<Fault> {
        let now = self.now();
        let mut state = self.state();
        state.destination.operation_begins(now);
        state.script.next(operation)
    }

    async fn hang(&self) {
        let _hanging = self.shared.hanging.enter();
        self.shared.clock.sleep(self.shared.manners.deadline).await;
    }

    async fn hold(&self) {
        let _hanging = self.shared.hanging.enter();
        // The sender lives as long as the sink: this cannot fail.
        let _ = self.shared.released.subscribe().changed().await;
    }

    /// The fault of an operation that only reads.
    async fn reading(&self, operation: Operation) -> Result<(), Trouble> {
        tokio::task::yield_now().await;
        match self.begin(operation) {
            None => Ok(()),
            Some(Fault::Refuse(reaction)) => Err(trouble("the fake refuses", reaction)),
            Some(Fault::Reject) => Err(trouble("the fake refuses", Reaction::Stop)),
            Some(Fault::Slow(wait)) => {
                self.shared.clock.sleep(wait).await;
                Ok(())
            }
            Some(Fault::Hold) => {
                self.hold().await;
                Ok(())
            }
            Some(Fault::Hang | Fault::HangAfter) => {
                self.hang().await;
                Err(trouble("the fake did not answer", Reaction::Backoff))
            }
            Some(_) => Err(trouble("the fake hung up", Reaction::Backoff)),
        }
    }

    pub(super) fn write(&self, parcel: &Parcel, effect: Effect) -> bool {
        let now = self.now();
        self.state().destination.write(parcel, effect, now)
    }
}

impl Sink for FakeSink {
    type Plan = FakePlan;

    async fn prepare(&self, outbox: &[OutboxColumn]) -> Result<FakePlan, Trouble> {
        self.reading(Operation::Prepare).await?;
        self.preflight()?;
        let mut layout = self.shared.manners.layout.clone();
        layout.columns = FakePlan::columns_of(outbox);
        layout.terms.proven.clone_from(&layout.columns);
        Ok(FakePlan(Arc::new(layout)))
    }

    async fn deliver(
        &self,
        plan: &FakePlan,
        insert: &Insert<'_>,
        _attempt: sink::Attempt,
    ) -> Delivery {
        tokio::task::yield_now().await;
        let observe = self.state().observe.clone();
        if let Some(observe) = observe {
            observe(insert);
        }
        let fault = self.begin(Operation::Deliver);
        let mut parcel = Parcel::new(plan, insert);
        let unknown = |reason| Delivery::Unknown(trouble(reason, Reaction::Backoff));
        if parcel.is_poisoned(&self.shared.manners.poison) {
            return Delivery::Rejected(trouble("the fake rejects a row", Reaction::Replan));
        }
        match fault {
            None => return self.written(&parcel),
            Some(Fault::Refuse(reaction)) => {
                return Delivery::Retry(trouble("the fake refuses", reaction));
            }
            Some(Fault::Reject) => {
                return Delivery::Rejected(trouble("the fake rejects", Reaction::Replan));
            }
            Some(Fault::Slow(wait)) => {
                let running = self.state().destination.begin(insert.token());
                self.shared.clock.sleep(wait).await;
                let is_whole = self.state().destination.end(running);
                if is_whole {
                    return self.written(&parcel);
                }
            }
            Some(Fault::Hold) => {
                self.hold().await;
                return self.written(&parcel);
            }
            Some(Fault::FailBefore) => {}
            Some(Fault::FailAfter) => drop(self.write(&parcel, Effect::Whole)),
            Some(Fault::FailHalfway) => drop(self.write(&parcel, Effect::Half)),
            Some(Fault::TokenOnly) => drop(self.write(&parcel, Effect::TokenOnly)),
            Some(Fault::FailInView) => {
                self.write(&parcel, Effect::SourceOnly);
                return self.failed_in_view(&insert.token());
            }
            Some(Fault::Twice) => {
                self.write(&parcel, Effect::Whole);
                return self.written(&parcel);
            }
            Some(Fault::Late(operations)) => {
                parcel.late = Late::Operations(operations);
                self.state().destination.late.push(parcel);
            }
            Some(Fault::LateBy(wait)) => {
                parcel.late = Late::Until(self.now() + wait);
                self.state().destination.late.push(parcel);
            }
            Some(Fault::Hang) => self.hang().await,
            Some(Fault::HangAfter) => {
                self.write(&parcel, Effect::Whole);
                self.hang().await;
            }
        }
        self.state().doubts.entry(insert.token()).or_default();
        unknown("the fake gave no answer")
    }

    async fn resolve(
        &self,
        _plan: &FakePlan,
        insert: &Insert<'_>,
        doubt: Doubt,
    ) -> Result<Resolution, Trouble> {
        self.reading(Operation::Resolve).await?;
        let manners = &self.shared.manners;
        if manners.guarantee == Guarantee::AtLeastOnce || manners.never_looks {
            return Ok(Resolution::Resend);
        }
        let stop = |trouble| Ok(Resolution::Undecidable(trouble));
        let token = insert.token();
        if self.take_view_failures(&token) {
            return stop(trouble("a view fails again and again", Reaction::Stop));
        }
        let is_remembered = self.is_remembered(insert.batch, doubt);
        if !manners.has_batch_column {
            return match is_remembered {
                true => Ok(Resolution::Resend),
                false => stop(trouble(
                    "the token may be forgotten, and there is no column batch",
                    Reaction::Stop,
                )),
            };
        }
        let seen = self.look_at(insert.batch, insert.ordinal, true);
        let mut state = self.state();
        match seen {
            Look::Nothing => {
                let doubted = state.doubts.entry(token).or_default();
                match std::mem::take(&mut doubted.was_absent) {
                    true => stop(absent()),
                    false => Ok(Resolution::Resend),
                }
            }
            // A view may still lack the rows: the token completes it.
            Look::All(_) if is_remembered && !state.destination.views.is_empty() => {
                Ok(Resolution::Resend)
            }
            Look::All(server) => {
                state.doubts.remove(&token);
                Ok(Resolution::Delivered(server))
            }
            Look::Other(other) => stop(other),
            Look::Blind | Look::Unchanged => {
                stop(trouble("the batch has no such block", Reaction::Stop))
            }
        }
    }

    async fn look(
        &self,
        plan: &FakePlan,
        insert: &Insert<'_>,
        doubt: Option<Doubt>,
    ) -> Result<Look, Trouble> {
        self.reading(Operation::Resolve).await?;
        let poison = &self.shared.manners.poison;
        Ok(match self.shared.manners.has_batch_column {
            true => self.look_at(insert.batch, insert.ordinal, doubt.is_some()),
            false if Parcel::new(plan, insert).is_poisoned(poison) => Look::Unchanged,
            false => Look::Blind,
        })
    }

    async fn highest_number(&self, _plan: &FakePlan, origin: u32) -> Result<Option<i64>, Trouble> {
        self.reading(Operation::HighestNumber).await?;
        if !self.shared.manners.has_batch_column {
            return Err(trouble("there is no column batch", Reaction::Stop));
        }
        Ok(self.state().destination.highest_number(origin))
    }
}
