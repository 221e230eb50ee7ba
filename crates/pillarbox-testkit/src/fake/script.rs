//! Which call of which operation goes wrong, and how: shared by the fakes.

use std::collections::BTreeMap;
use std::fmt;

type Decide<O, F> = Box<dyn FnMut(O, u64) -> Option<F> + Send>;

/// The faults to come, by operation and number of the call, from 0.
pub(super) struct Script<O, F> {
    calls: BTreeMap<O, u64>,
    planned: BTreeMap<(O, u64), F>,
    always: BTreeMap<O, F>,
    decide: Option<Decide<O, F>>,
    played: u64,
}

impl<O, F> Default for Script<O, F> {
    fn default() -> Self {
        Self {
            calls: BTreeMap::new(),
            planned: BTreeMap::new(),
            always: BTreeMap::new(),
            decide: None,
            played: 0,
        }
    }
}

impl<O: fmt::Debug, F: fmt::Debug> fmt::Debug for Script<O, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script")
            .field("calls", &self.calls)
            .field("planned", &self.planned)
            .field("always", &self.always)
            .finish_non_exhaustive()
    }
}

impl<O: Ord + Copy, F: Copy> Script<O, F> {
    /// The fault of this call, and counts it.
    pub(super) fn next(&mut self, operation: O) -> Option<F> {
        let call = self.calls.entry(operation).or_default();
        let number = *call;
        *call += 1;
        let fault = self
            .planned
            .remove(&(operation, number))
            .or_else(|| self.always.get(&operation).copied())
            .or_else(|| self.decide.as_mut()?(operation, number));
        self.played += u64::from(fault.is_some());
        fault
    }

    pub(super) fn calls(&self, operation: O) -> u64 {
        self.calls.get(&operation).copied().unwrap_or(0)
    }

    /// How many calls had a fault.
    pub(super) fn played(&self) -> u64 {
        self.played
    }

    pub(super) fn plan(&mut self, operation: O, call: u64, fault: F) {
        self.planned.insert((operation, call), fault);
    }

    /// Behind what is planned already.
    pub(super) fn queue(&mut self, operation: O, fault: F) {
        let mut call = self.calls(operation);
        while self.planned.contains_key(&(operation, call)) {
            call += 1;
        }
        self.planned.insert((operation, call), fault);
    }

    pub(super) fn always(&mut self, operation: O, fault: F) {
        self.always.insert(operation, fault);
    }

    pub(super) fn decide(&mut self, decide: impl FnMut(O, u64) -> Option<F> + Send + 'static) {
        self.decide = Some(Box::new(decide));
    }

    pub(super) fn clear(&mut self) {
        self.planned.clear();
        self.always.clear();
        self.decide = None;
    }
}
