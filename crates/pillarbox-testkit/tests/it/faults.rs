//! The cases of docs/FAULTS.md that need more than the tests of a property: publishers, the ring and
//! second attempts at their worst, each to the end, where the oracle compares.

mod crowd;
mod publishers;
mod resends;
mod rotation;
