//! What a test makes go wrong at a [`FakeSink`](super::FakeSink), call by call.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use pillarbox_relay::sink::{Reaction, Trouble};

/// An operation of a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// `prepare`.
    Prepare,
    /// `deliver`.
    Deliver,
    /// `resolve`.
    Resolve,
    /// `highest_number`.
    HighestNumber,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Prepare,
        Self::Deliver,
        Self::Resolve,
        Self::HighestNumber,
    ];
}

/// What goes wrong with one call. Operations other than `deliver` only read: for them *before* and
/// *after* mean the same, and what concerns rows does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Refused; nothing was written.
    Refuse(Reaction),
    /// The rows are called bad; nothing was written.
    Reject,
    /// The connection is lost before anything was written: *unknown*.
    FailBefore,
    /// The rows are written and the answer is lost: *unknown*.
    FailAfter,
    /// Half of the rows are written, and no token: *unknown*.
    FailHalfway,
    /// No answer, and nothing is written. Ends by the deadline as *unknown*, or by cancellation.
    Hang,
    /// No answer, but the rows are written at once.
    HangAfter,
    /// The answer is *unknown* now; the rows are written when this many further operations began.
    Late(u32),
    /// It works, but takes this long; cancelled before, it wrote nothing.
    Slow(Duration),
    /// It works once [`FakeSink::release`](super::FakeSink::release) was called.
    Hold,
}

/// Decides about each call by operation and number of the call, from 0.
pub(super) type Decide = Box<dyn FnMut(Operation, u64) -> Option<Fault> + Send>;

/// The faults to come.
#[derive(Default)]
pub(super) struct Script {
    calls: BTreeMap<Operation, u64>,
    planned: BTreeMap<(Operation, u64), Fault>,
    always: BTreeMap<Operation, Fault>,
    decide: Option<Decide>,
    done: BTreeSet<(Operation, u64)>,
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script")
            .field("calls", &self.calls)
            .field("planned", &self.planned)
            .field("always", &self.always)
            .finish_non_exhaustive()
    }
}

impl Script {
    /// The fault of this call, and counts it.
    pub(super) fn next(&mut self, operation: Operation) -> Option<Fault> {
        let call = self.calls.entry(operation).or_default();
        let number = *call;
        *call += 1;
        let fault = self
            .planned
            .remove(&(operation, number))
            .or_else(|| self.always.get(&operation).copied())
            .or_else(|| self.decide.as_mut()?(operation, number));
        if fault.is_some() {
            self.done.insert((operation, number));
        }
        fault
    }

    pub(super) fn calls(&self, operation: Operation) -> u64 {
        self.calls.get(&operation).copied().unwrap_or(0)
    }

    pub(super) fn faults_done(&self) -> usize {
        self.done.len()
    }

    pub(super) fn plan(&mut self, operation: Operation, call: u64, fault: Fault) {
        self.planned.insert((operation, call), fault);
    }

    /// Behind what is planned already.
    pub(super) fn queue(&mut self, operation: Operation, fault: Fault) {
        let mut call = self.calls(operation);
        while self.planned.contains_key(&(operation, call)) {
            call += 1;
        }
        self.planned.insert((operation, call), fault);
    }

    pub(super) fn always(&mut self, operation: Operation, fault: Fault) {
        self.always.insert(operation, fault);
    }

    pub(super) fn decide(&mut self, decide: Decide) {
        self.decide = Some(decide);
    }

    pub(super) fn clear(&mut self) {
        self.planned.clear();
        self.always.clear();
        self.decide = None;
    }
}

pub(super) fn trouble(reason: &str, reaction: Reaction) -> Trouble {
    Trouble {
        code: None,
        reason: reason.to_owned(),
        reaction,
        source: None,
    }
}
