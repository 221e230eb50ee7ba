//! In-memory stand-ins for the three traits of the spine, with faults on demand.
//!
//! They pass the same conformance suites as the real things ([`crate::conformance`]), so a test of
//! the spine on them says something about the spine on real servers. Without a script they simply
//! work.

mod builder;
mod clock;
mod database;
mod destination;
mod doubt;
mod encoder;
mod event;
mod fault;
mod gauge;
mod ledger;
mod letters;
mod publisher;
mod ring;
mod script;
mod session;
mod sink;
mod source;
mod surroundings;
mod transactions;
mod view;
mod weakness;
mod window;

pub use builder::FakeSinkBuilder;
pub use clock::FakeClock;
pub use database::{FakeDatabase, Replica};
pub use destination::{Attempt, StoredRow};
pub use encoder::{FakeEncoder, FakePlan, Fields};
pub use event::{FakeEvent, outbox_columns};
pub use fault::{Fault, Operation, SessionFault, SessionOperation};
pub use gauge::{Alive, Gauge};
pub use letters::{FakeLetter, FakeReplay, LetterState};
pub use publisher::{FakeTransaction, Savepoint};
pub use ring::RingSettings;
pub use session::FakeSession;
pub use sink::FakeSink;
pub use source::FakeSource;
pub use weakness::Weakness;
