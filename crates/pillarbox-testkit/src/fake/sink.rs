//! A destination in memory that fails as it is told to.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pillarbox_relay::clock::Clock as _;
use pillarbox_relay::sink::{
    Delivery, Doubt, Guarantee, Insert, Look, OutboxColumn, Reaction, Resolution, Sink, Trouble,
};
use tokio::sync::watch;
use uuid::Uuid;

use super::clock::FakeClock;
use super::destination::{Attempt, Destination, Parcel, StoredRow};
use super::encoder::{Ask, FakePlan, Fields, Layout};
use super::fault::{Fault, Operation, trouble};
use super::gauge::Gauge;
use super::script::Script;

/// What the fake sink calls itself.
const SERVER: &str = "fake";

type Observe = Arc<dyn Fn(&Insert<'_>) + Send + Sync>;

/// A destination in memory. Clones share it: one goes into the relay, another one inspects.
#[derive(Clone)]
pub struct FakeSink {
    shared: Arc<Shared>,
}

struct Shared {
    guarantee: Guarantee,
    has_batch_column: bool,
    deadline: Duration,
    layout: Layout,
    poison: Ask<bool>,
    clock: FakeClock,
    released: watch::Sender<u64>,
    hanging: Gauge,
    state: Mutex<State>,
}

struct State {
    script: Script<Operation, Fault>,
    destination: Destination,
    observe: Option<Observe>,
}

/// How a [`FakeSink`] is.
#[derive(Clone)]
pub struct FakeSinkBuilder {
    guarantee: Guarantee,
    has_batch_column: bool,
    window_blocks: usize,
    partitions_max: usize,
    deadline: Duration,
    partition: Ask<String>,
    refuse_row: Ask<Option<String>>,
    poison: Ask<bool>,
    clock: Option<FakeClock>,
}

impl fmt::Debug for FakeSinkBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeSinkBuilder")
            .field("guarantee", &self.guarantee)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for FakeSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeSink")
            .field("guarantee", &self.shared.guarantee)
            .finish_non_exhaustive()
    }
}

impl Default for FakeSink {
    fn default() -> Self {
        Self::builder().build()
    }
}

impl FakeSinkBuilder {
    /// How it keeps a batch from being written twice; by token unless set.
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.guarantee = guarantee;
        self
    }

    /// Without the column `batch` it cannot look; with it unless called.
    pub fn without_batch_column(mut self) -> Self {
        self.has_batch_column = false;
        self
    }

    /// Tokens that each partition remembers; 10,000 unless set.
    pub fn window_blocks(mut self, blocks: usize) -> Self {
        self.window_blocks = blocks;
        self
    }

    /// Partitions in one batch at most; 32 unless set.
    pub fn partitions_max(mut self, partitions: usize) -> Self {
        self.partitions_max = partitions;
        self
    }

    /// After this long a hanging call answers *unknown*; 5 minutes unless set.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The partition of a row; the month of `event_date_time` unless set.
    pub fn partition_by(
        mut self,
        partition: impl Fn(&Fields<'_>) -> String + Send + Sync + 'static,
    ) -> Self {
        self.partition = Arc::new(partition);
        self
    }

    /// Rows that the encoder cannot represent, with the reason; none unless set.
    pub fn refuse_rows(
        mut self,
        refuse: impl Fn(&Fields<'_>) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.refuse_row = Arc::new(refuse);
        self
    }

    /// Rows for which the destination rejects the block they are in; none unless set.
    pub fn poison(mut self, poison: impl Fn(&Fields<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.poison = Arc::new(poison);
        self
    }

    /// The clock of its deadline; one of its own unless set.
    pub fn clock(mut self, clock: &FakeClock) -> Self {
        self.clock = Some(clock.clone());
        self
    }

    /// The sink.
    pub fn build(self) -> FakeSink {
        let layout = Layout {
            columns: Vec::new(),
            guarantee: self.guarantee,
            partition: self.partition,
            partitions_max: self.partitions_max,
            refuse_row: self.refuse_row,
            batches: Gauge::default(),
        };
        let state = State {
            script: Script::default(),
            destination: Destination::new(self.window_blocks),
            observe: None,
        };
        FakeSink {
            shared: Arc::new(Shared {
                guarantee: self.guarantee,
                has_batch_column: self.has_batch_column,
                deadline: self.deadline,
                layout,
                poison: self.poison,
                clock: self.clock.unwrap_or_default(),
                released: watch::Sender::new(0),
                hanging: Gauge::default(),
                state: Mutex::new(state),
            }),
        }
    }
}

impl FakeSink {
    /// A sink that remembers tokens and has a partition for each month, unless told otherwise.
    pub fn builder() -> FakeSinkBuilder {
        FakeSinkBuilder {
            guarantee: Guarantee::Token,
            has_batch_column: true,
            window_blocks: 10_000,
            partitions_max: 32,
            deadline: Duration::from_secs(300),
            partition: Arc::new(|fields| fields.month().unwrap_or_default()),
            refuse_row: Arc::new(|_| None),
            poison: Arc::new(|_| false),
            clock: None,
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

    /// Writes the late inserts now.
    pub fn commit_late(&self) {
        let mut state = self.state();
        for parcel in std::mem::take(&mut state.destination.late) {
            state
                .destination
                .write(&parcel, self.shared.guarantee, true);
        }
    }

    /// Makes every partition forget its tokens, as time or other writers would.
    pub fn forget_tokens(&self) {
        self.state().destination.forget_tokens();
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

    /// The tokens that a partition remembers, oldest first.
    pub fn tokens(&self, partition: &str) -> Vec<String> {
        self.state().destination.tokens(partition)
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
        self.shared.layout.batches.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call, lets late inserts come nearer, and gives the call's fault.
    fn begin(&self, operation: Operation) -> Option<Fault> {
        let mut state = self.state();
        state.destination.operation_begins(self.shared.guarantee);
        state.script.next(operation)
    }

    fn look_at(&self, insert: &Insert<'_>, is_fenced: bool) -> Look {
        let Some(block) = insert.batch.blocks.get(insert.ordinal) else {
            return Look::Blind;
        };
        let mut state = self.state();
        if is_fenced {
            state.destination.fence(&insert.token());
        }
        match state.destination.look(insert.batch.sink_value(), block) {
            (0, _) => Look::Nothing,
            found if found == (block.rows, block.digest) => Look::All(SERVER.to_owned()),
            _ => Look::Other(trouble(
                "some of the rows are there, or others",
                Reaction::Stop,
            )),
        }
    }

    async fn hang(&self) {
        let _hanging = self.shared.hanging.enter();
        self.shared.clock.sleep(self.shared.deadline).await;
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
            Some(Fault::FailBefore | Fault::FailAfter | Fault::FailHalfway | Fault::Late(_)) => {
                Err(trouble("the fake hung up", Reaction::Backoff))
            }
        }
    }

    fn write(&self, parcel: &Parcel, is_whole: bool) {
        self.state()
            .destination
            .write(parcel, self.shared.guarantee, is_whole);
    }

    fn written(&self, parcel: &Parcel) -> Delivery {
        self.write(parcel, true);
        Delivery::Delivered(SERVER.to_owned())
    }

    /// Whether the block's token is surely remembered.
    fn is_remembered(&self, doubt: Doubt) -> bool {
        let window = self.state().destination.window_blocks as u64;
        self.shared.guarantee == Guarantee::Token && doubt.blocks_since < window / 2
    }
}

impl Sink for FakeSink {
    type Plan = FakePlan;

    async fn prepare(&self, outbox: &[OutboxColumn]) -> Result<FakePlan, Trouble> {
        self.reading(Operation::Prepare).await?;
        let mut layout = self.shared.layout.clone();
        layout.columns = FakePlan::columns_of(outbox);
        Ok(FakePlan(Arc::new(layout)))
    }

    async fn deliver(&self, plan: &FakePlan, insert: &Insert<'_>, _attempt: u32) -> Delivery {
        tokio::task::yield_now().await;
        let observe = self.state().observe.clone();
        if let Some(observe) = observe {
            observe(insert);
        }
        let fault = self.begin(Operation::Deliver);
        let mut parcel = Parcel::new(plan, insert);
        let unknown = |reason| Delivery::Unknown(trouble(reason, Reaction::Backoff));
        if parcel.is_poisoned(&self.shared.poison) {
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
                self.shared.clock.sleep(wait).await;
                return self.written(&parcel);
            }
            Some(Fault::Hold) => {
                self.hold().await;
                return self.written(&parcel);
            }
            Some(Fault::FailBefore) => {}
            Some(Fault::FailAfter) => self.write(&parcel, true),
            Some(Fault::FailHalfway) => self.write(&parcel, false),
            Some(Fault::Late(operations)) => {
                parcel.operations_left = operations;
                self.state().destination.late.push(parcel);
            }
            Some(Fault::Hang) => self.hang().await,
            Some(Fault::HangAfter) => {
                self.write(&parcel, true);
                self.hang().await;
            }
        }
        unknown("the fake gave no answer")
    }

    async fn resolve(
        &self,
        _plan: &FakePlan,
        insert: &Insert<'_>,
        doubt: Doubt,
    ) -> Result<Resolution, Trouble> {
        self.reading(Operation::Resolve).await?;
        if self.shared.guarantee == Guarantee::AtLeastOnce || self.is_remembered(doubt) {
            return Ok(Resolution::Resend);
        }
        let stop = |reason| Ok(Resolution::Undecidable(trouble(reason, Reaction::Stop)));
        if !self.shared.has_batch_column {
            return stop("the token may be forgotten, and there is no column batch");
        }
        Ok(match self.look_at(insert, true) {
            Look::Nothing => Resolution::Resend,
            Look::All(server) => Resolution::Delivered(server),
            Look::Other(trouble) => Resolution::Undecidable(trouble),
            Look::Blind | Look::Unchanged => return stop("the batch has no such block"),
        })
    }

    async fn look(
        &self,
        plan: &FakePlan,
        insert: &Insert<'_>,
        doubt: Option<Doubt>,
    ) -> Result<Look, Trouble> {
        self.reading(Operation::Resolve).await?;
        Ok(match self.shared.has_batch_column {
            true => self.look_at(insert, doubt.is_some()),
            false if Parcel::new(plan, insert).is_poisoned(&self.shared.poison) => Look::Unchanged,
            false => Look::Blind,
        })
    }

    async fn highest_number(&self, _plan: &FakePlan, origin: u32) -> Result<Option<i64>, Trouble> {
        self.reading(Operation::HighestNumber).await?;
        if !self.shared.has_batch_column {
            return Err(trouble("there is no column batch", Reaction::Stop));
        }
        Ok(self.state().destination.highest_number(origin))
    }
}
