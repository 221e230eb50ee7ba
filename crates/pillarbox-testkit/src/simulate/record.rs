//! What the publishers know of their events, and what the relays sealed: kept outside of the fakes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pillarbox_relay::batch::Batch;
use pillarbox_relay::sink::Insert;
use uuid::Uuid;

use super::trace::Trace;

/// An event as its publisher knows it. Times are counted in begins and commits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    pub(super) content: u64,
    pub(super) began: u64,
    pub(super) committed: Option<u64>,
}

/// All events of a run. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Record(Arc<Mutex<Events>>);

#[derive(Debug, Default)]
struct Events {
    now: u64,
    said: BTreeMap<Uuid, Said>,
}

impl Record {
    /// A transaction begins: gives the time.
    pub(super) fn begin(&self) -> u64 {
        let mut events = self.events();
        events.now += 1;
        events.now
    }

    pub(super) fn said(&self, event_id: Uuid, content: u64, began: u64) {
        let said = Said {
            content,
            began,
            committed: None,
        };
        self.events().said.insert(event_id, said);
    }

    /// The events' transaction committed.
    pub(super) fn committed(&self, committed: &[Uuid]) {
        let mut events = self.events();
        events.now += 1;
        let now = events.now;
        for event_id in committed {
            if let Some(said) = events.said.get_mut(event_id) {
                said.committed = Some(now);
            }
        }
    }

    pub(super) fn get(&self, event_id: Uuid) -> Option<Said> {
        self.events().said.get(&event_id).copied()
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every batch of one sink that was ever in a ledger, and the bytes that were sent for it (INV-3).
#[derive(Clone, Debug)]
pub(super) struct Sealed {
    trace: Trace,
    batches: Arc<Mutex<Batches>>,
}

#[derive(Debug, Default)]
struct Batches {
    sealed: BTreeMap<Uuid, Batch>,
    bodies: BTreeMap<(Uuid, usize), Vec<u8>>,
}

impl Sealed {
    pub(super) fn new(trace: &Trace) -> Self {
        Self {
            trace: trace.clone(),
            batches: Arc::default(),
        }
    }

    /// A batch is in the ledger.
    pub(super) fn note(&self, batch: &Batch) {
        let mut batches = self.lock();
        let known = batches.sealed.entry(batch.batch_id);
        let known = known.or_insert_with(|| batch.clone());
        if known != batch {
            let number = batch.number;
            self.trace
                .violated(format!("INV-3: batch {number} changed in the ledger"));
        }
    }

    /// An insert arrives at the sink.
    pub(super) fn sent(&self, insert: &Insert<'_>) {
        let mut batches = self.lock();
        let batch = insert.batch;
        let (number, ordinal) = (batch.number, insert.ordinal);
        match batches.sealed.get(&batch.batch_id) {
            None => self
                .trace
                .violated(format!("INV-3: batch {number} was sent before its seal")),
            Some(sealed) if sealed != batch => self
                .trace
                .violated(format!("INV-3: batch {number} is sent as another one")),
            Some(_) => {}
        }
        let body = insert.body.concat();
        let first = batches.bodies.entry((batch.batch_id, ordinal));
        if *first.or_insert_with(|| body.clone()) != body {
            self.trace.violated(format!(
                "INV-3: batch {number} block {ordinal}: other bytes"
            ));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Batches> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
