//! A PostgreSQL in memory, as far as publishers, `Source` and `Session` can tell.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use pillarbox_relay::batch::{Batch, Kind};
use pillarbox_relay::clock::Clock as _;
use pillarbox_relay::snapshot::Snapshot;
use pillarbox_relay::source::{Outcome, Standing};
use uuid::Uuid;

use super::clock::FakeClock;
use super::event::FakeEvent;
use super::fault::{SessionFault, SessionOperation};
use super::gauge::Gauge;
use super::ledger::Ledger;
use super::letters::{FakeLetter, FakeReplay};
use super::publisher::FakeTransaction;
use super::ring::{Ring, RingSettings};
use super::script::Script;
use super::transactions::Transactions;
use super::weakness::Weakness;

/// What a promotion of a standby takes over, and a crash leaves behind.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) transactions: Transactions,
    pub(super) ring: Ring,
    pub(super) ledger: Ledger,
    /// The events of each committed transaction: what must arrive.
    published: BTreeMap<u64, Vec<Uuid>>,
}

/// A session that lives.
#[derive(Clone, Debug)]
pub(super) struct Connected {
    pub(super) sink: i32,
    pub(super) relay: String,
    /// By a clock that nobody sets.
    pub(super) last_statement: Duration,
    pub(super) has_lock: bool,
}

type Hook = Box<dyn FnOnce() + Send>;

pub(super) struct State {
    pub(super) disk: Disk,
    pub(super) script: Script<SessionOperation, SessionFault>,
    pub(super) sessions: BTreeMap<u64, Connected>,
    last_session: u64,
    /// Transactions of publishers with this number or a lower one died in a crash.
    pub(super) lives: u64,
    pub(super) before_leaf_lock: Option<Hook>,
    pub(super) weakness: Weakness,
    /// Statements of relays that wrote.
    pub(super) writes: u64,
}

/// A database in memory. Clones share it.
#[derive(Clone)]
pub struct FakeDatabase {
    shared: Arc<Shared>,
}

struct Shared {
    clock: FakeClock,
    last_event: AtomicU64,
    reads: Gauge,
    state: Mutex<State>,
}

/// A copy of a database at one moment, as an asynchronous standby has it.
#[derive(Clone, Debug)]
pub struct Replica(Disk);

impl fmt::Debug for FakeDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeDatabase").finish_non_exhaustive()
    }
}

impl FakeDatabase {
    /// An empty database with the schema, on this clock.
    pub fn new(clock: &FakeClock) -> Self {
        let disk = Disk {
            transactions: Transactions::new(),
            ring: Ring::default(),
            ledger: Ledger::new(),
            published: BTreeMap::new(),
        };
        let state = State {
            disk,
            script: Script::default(),
            sessions: BTreeMap::new(),
            last_session: 0,
            lives: 0,
            before_leaf_lock: None,
            weakness: Weakness::default(),
            writes: 0,
        };
        Self {
            shared: Arc::new(Shared {
                clock: clock.clone(),
                last_event: AtomicU64::new(0),
                reads: Gauge::default(),
                state: Mutex::new(state),
            }),
        }
    }

    /// Registers a sink that receives all that the outbox holds.
    pub fn register(&self, sink: &str) -> i32 {
        self.register_at(sink, Snapshot::origin())
    }

    /// Registers a sink that receives what commits from now on.
    pub fn register_from_now(&self, sink: &str) -> i32 {
        let now = self.state().disk.transactions.snapshot();
        self.register_at(sink, now)
    }

    fn register_at(&self, sink: &str, start: Snapshot) -> i32 {
        let origin = self.random_origin();
        self.state().disk.ledger.register(sink, origin, start)
    }

    pub(super) fn random_origin(&self) -> u32 {
        // 23 bits, as `pillarbox.sink` has it.
        1 + u32::try_from(self.shared.clock.below((1 << 23) - 1)).unwrap_or(0)
    }

    /// Begins a transaction of a publisher.
    pub fn begin(&self) -> FakeTransaction {
        let lives = self.state().lives;
        FakeTransaction::new(self.clone(), lives)
    }

    /// Publishes `count` events in one transaction.
    ///
    /// # Errors
    /// Never without a crash.
    pub fn publish(&self, count: usize) -> Result<Vec<Uuid>> {
        let mut transaction = self.begin();
        for _ in 0..count {
            transaction.publish(r#"{"n":1}"#);
        }
        transaction.commit()
    }

    /// An event that happens now, with an identity of its own.
    pub fn event(&self, event_context: impl Into<Vec<u8>>) -> FakeEvent {
        let number = self.shared.last_event.fetch_add(1, Ordering::Relaxed) + 1;
        let event_id = Uuid::from_u64_pair(0x0190_0000_0000_7000, number | 1 << 63);
        FakeEvent::new(event_id, self.shared.clock.wall(), event_context)
    }

    /// COMMIT PREPARED.
    ///
    /// # Errors
    /// When there is no such transaction.
    pub fn commit_prepared(&self, name: &str) -> Result<()> {
        let mut state = self.state();
        let Some(tx) = state.disk.transactions.prepared(name) else {
            bail!("there is no prepared transaction {name}");
        };
        state.commit(tx, true);
        Ok(())
    }

    /// ROLLBACK PREPARED.
    ///
    /// # Errors
    /// When there is no such transaction.
    pub fn rollback_prepared(&self, name: &str) -> Result<()> {
        let mut state = self.state();
        let Some(tx) = state.disk.transactions.prepared(name) else {
            bail!("there is no prepared transaction {name}");
        };
        state.disk.transactions.abort(tx);
        Ok(())
    }

    /// The events of all committed transactions: what must end in each sink exactly once.
    pub fn published(&self) -> BTreeSet<Uuid> {
        self.state()
            .disk
            .published
            .values()
            .flatten()
            .copied()
            .collect()
    }

    /// The slot that a publisher would read now.
    pub fn slot(&self) -> usize {
        self.state().disk.ring.slot()
    }

    /// Changes the settings of the ring.
    pub fn set_ring(&self, settings: RingSettings) {
        self.state().disk.ring.settings = settings;
    }

    /// How often the ring turned and how many leaves were emptied.
    pub fn ring_counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.disk.ring.turns, state.disk.ring.truncations)
    }

    /// Rows in the outbox, dead ones included.
    pub fn outbox_rows(&self) -> usize {
        self.state().disk.ring.rows().count()
    }

    /// Committed events in the outbox.
    pub fn committed_rows(&self) -> usize {
        let state = self.state();
        let transactions = &state.disk.transactions;
        let rows = state.disk.ring.rows();
        rows.filter(|row| transactions.is_visible(row.at.tx))
            .count()
    }

    /// Runs once between the check of a leaf and its lock.
    pub fn before_leaf_lock(&self, hook: impl FnOnce() + Send + 'static) {
        // What an unused hook holds may itself need the database when it is dropped.
        let unused = self.state().before_leaf_lock.replace(Box::new(hook));
        drop(unused);
    }

    /// Ends the server and starts it again. Sessions and unprepared transactions end; commits that
    /// did not wait for the disk are lost if `loses_unflushed`.
    pub fn crash(&self, loses_unflushed: bool) {
        self.state().crash(loses_unflushed);
    }

    /// A copy of what is committed now, for [`FakeDatabase::promote`].
    pub fn replica(&self) -> Replica {
        Replica(self.state().disk.clone())
    }

    /// A failover: the database goes on from the copy, on a new timeline.
    pub fn promote(&self, replica: Replica) {
        let mut state = self.state();
        state.disk = replica.0;
        state.crash(true);
        state.disk.ledger.timeline += 1;
    }

    /// Ends every session of the relays of a sink, as `pg_terminate_backend` does.
    pub fn kill_sessions(&self, sink: &str) {
        let mut state = self.state();
        if let Some(sink) = state.disk.ledger.sink(sink) {
            state.sessions.retain(|_, session| session.sink != sink);
        }
    }

    /// Queues a fault for the next call of `operation` that has none yet.
    pub fn fail_next(&self, operation: SessionOperation, fault: SessionFault) {
        self.state().script.queue(operation, fault);
    }

    /// Plans a fault for the call of `operation` with this number, from 0.
    pub fn fail_call(&self, operation: SessionOperation, call: u64, fault: SessionFault) {
        self.state().script.plan(operation, call, fault);
    }

    /// Makes every call of `operation` fail until [`FakeDatabase::heal`].
    pub fn fail_always(&self, operation: SessionOperation, fault: SessionFault) {
        self.state().script.always(operation, fault);
    }

    /// Asks `decide` about each call that nothing else is planned for.
    pub fn fail_by(
        &self,
        decide: impl FnMut(SessionOperation, u64) -> Option<SessionFault> + Send + 'static,
    ) {
        self.state().script.decide(decide);
    }

    /// Drops every planned fault.
    pub fn heal(&self) {
        self.state().script.clear();
    }

    /// How often an operation was called.
    pub fn calls(&self, operation: SessionOperation) -> u64 {
        self.state().script.calls(operation)
    }

    /// How many faults were played.
    pub fn faults_played(&self) -> u64 {
        self.state().script.played()
    }

    /// Sets or lifts a person's pause.
    pub fn set_paused(&self, sink: &str, paused: bool) {
        self.change(sink, |sink| sink.paused = paused);
    }

    /// Retires a sink.
    pub fn retire(&self, sink: &str) {
        self.change(sink, |sink| sink.retired = true);
    }

    /// Why the sink stands still, as reported.
    pub fn stopped_reason(&self, sink: &str) -> Option<String> {
        let state = self.state();
        let sink = state.disk.ledger.sink(sink)?;
        state.disk.ledger.sinks.get(&sink)?.stopped.clone()
    }

    fn change(&self, sink: &str, change: impl FnOnce(&mut super::ledger::Registered)) {
        let mut state = self.state();
        let sink = state.disk.ledger.sink(sink);
        if let Some(sink) = sink.and_then(|sink| state.disk.ledger.sinks.get_mut(&sink)) {
            change(sink);
        }
    }

    /// Every batch of a sink, by number, genesis included.
    pub fn batches(&self, sink: &str) -> Vec<Batch> {
        let state = self.state();
        let sink = state.disk.ledger.sink(sink).unwrap_or_default();
        state.disk.ledger.batches(sink).cloned().collect()
    }

    /// One batch.
    pub fn batch(&self, sink: &str, number: i64) -> Option<Batch> {
        let state = self.state();
        let sink = state.disk.ledger.sink(sink)?;
        state.disk.ledger.batch(sink, number).cloned()
    }

    /// What became of a batch.
    pub fn outcome(&self, sink: &str, number: i64) -> Option<Outcome> {
        let state = self.state();
        let sink = state.disk.ledger.sink(sink)?;
        state.disk.ledger.outcome(sink, number).cloned()
    }

    /// The events of a sink that were set aside, in the order of `(tx, id)`.
    pub fn dead_letters(&self, sink: &str) -> Vec<FakeLetter> {
        let state = self.state();
        let sink = state.disk.ledger.sink(sink).unwrap_or_default();
        state.disk.ledger.letters.of(sink).cloned().collect()
    }

    /// Asks for a retry of every dead letter of a sink.
    pub fn request_retry(&self, sink: &str) {
        let mut state = self.state();
        if let Some(sink) = state.disk.ledger.sink(sink) {
            state.disk.ledger.letters.request(sink);
        }
    }

    /// Asks for a batch to be delivered again.
    pub fn request_replay(&self, sink: &str, number: i64) {
        let mut state = self.state();
        let ledger = &mut state.disk.ledger;
        let found = ledger.sink(sink);
        let batch = found.and_then(|sink| Some((sink, ledger.batch(sink, number)?.clone())));
        if let Some((sink, batch)) = batch {
            let wishes = ledger.letters.replays.entry(sink).or_default();
            wishes.push(FakeReplay {
                replay: i64::try_from(wishes.len()).unwrap_or(i64::MAX),
                parent: number,
                number: None,
                refused: None,
                kind: Kind::Replay,
                selection: batch.selection,
            });
        }
    }

    /// What was asked to be delivered again.
    pub fn replays(&self, sink: &str) -> Vec<FakeReplay> {
        let state = self.state();
        let found = state.disk.ledger.sink(sink);
        let wishes = found.and_then(|sink| state.disk.ledger.letters.replays.get(&sink));
        wishes.cloned().unwrap_or_default()
    }

    /// Number of the safe position of a sink.
    pub fn safe_number(&self, sink: &str) -> Option<i64> {
        let now = self.shared.clock.wall();
        let state = self.state();
        let sink = state.disk.ledger.sink(sink)?;
        Some(state.disk.ledger.safe(sink, now)?.0)
    }

    /// Where a sink stands, as `standing` would say.
    pub fn standing(&self, sink: &str) -> Option<Standing> {
        let now = self.shared.clock.wall();
        let state = self.state();
        let sink = state.disk.ledger.sink(sink)?;
        state.disk.ledger.standing(sink, now).ok()
    }

    /// Statements of relays that wrote anything (INV-11).
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    /// Transactions that hold a snapshot to read events (INV-5).
    pub fn reads(&self) -> Gauge {
        self.shared.reads.clone()
    }

    /// Sessions that hold a sink's lock.
    pub fn active_sessions(&self) -> usize {
        let state = self.state();
        state.sessions.values().filter(|one| one.has_lock).count()
    }

    pub(super) fn clock(&self) -> &FakeClock {
        &self.shared.clock
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn connect(&mut self, sink: i32, relay: &str, now: Duration) -> u64 {
        self.last_session += 1;
        let session = Connected {
            sink,
            relay: relay.to_owned(),
            last_statement: now,
            has_lock: false,
        };
        self.sessions.insert(self.last_session, session);
        self.last_session
    }

    /// Commits a publisher's transaction.
    pub(super) fn commit(&mut self, tx: u64, is_durable: bool) -> Vec<Uuid> {
        let rows = self.disk.ring.rows().filter(|row| row.at.tx == tx);
        let events: Vec<Uuid> = rows.map(|row| row.event.event_id).collect();
        if !self.disk.transactions.commit(tx, is_durable) {
            return Vec::new();
        }
        self.disk.published.insert(tx, events.clone());
        events
    }

    pub(super) fn crash(&mut self, loses_unflushed: bool) {
        if !loses_unflushed {
            self.disk.transactions.flush();
        }
        let (lost, next) = self.disk.transactions.crash();
        self.disk.ring.forget(&lost, next);
        for tx in lost {
            self.disk.published.remove(&tx);
        }
        self.sessions.clear();
        self.lives += 1;
    }

    /// A transaction of a relay that wrote: it takes an id and waits for the disk.
    pub(super) fn wrote(&mut self) {
        self.writes += 1;
        let tx = self.disk.transactions.assign();
        self.disk.transactions.commit(tx, true);
    }
}
