//! In-memory stand-ins for the three traits of the spine, with faults on demand.
//!
//! They pass the same conformance suites as the real things ([`crate::conformance`]), so a test of
//! the spine on them says something about the spine on real servers. Without a script they simply
//! work.

mod clock;
mod destination;
mod encoder;
mod fault;
mod gauge;
mod sink;

pub use clock::FakeClock;
pub use destination::{Attempt, StoredRow};
pub use encoder::{FakeEncoder, FakePlan, Fields};
pub use fault::{Fault, Operation};
pub use gauge::Gauge;
pub use sink::{FakeSink, FakeSinkBuilder};
