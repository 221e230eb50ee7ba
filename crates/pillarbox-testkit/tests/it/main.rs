//! The integration tests of the testkit, in one binary.

// Clippy knows `#[test]` functions as tests, but not what they call.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod chaos_on_servers;
mod clickhouse_current;
mod clickhouse_servers;
mod clickhouse_sink;
mod columns;
mod conformance_clickhouse;
mod conformance_fakes;
mod conformance_postgres;
mod destination;
mod documents;
mod doubling;
mod environment;
mod faults;
mod hidden;
mod intake;
mod interleavings;
mod killed;
mod ledger;
mod main_job;
mod oracle;
mod outbox;
mod plans;
mod poison;
mod privileges;
mod publishing;
mod recovery;
mod replicated;
mod ring;
mod scene;
mod schema;
mod servers;
#[cfg(feature = "simulate")]
mod simulated;
mod spine_on_fakes;
mod tenure;
mod traffic;
mod window;
mod wire_clickhouse;
mod wire_postgres;
