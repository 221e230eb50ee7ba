//! What the tests, the demo and the benchmarks stand on: real servers, started for one process.

pub mod chaos;
pub mod conformance;
pub mod cpu;
pub mod fake;
pub mod median;
pub mod oracle;
pub mod proof;
pub mod proxy;
pub mod publish;
#[cfg(feature = "measure")]
pub mod sample;
pub mod servers;
#[cfg(feature = "simulate")]
pub mod simulate;
