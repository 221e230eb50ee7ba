//! The integration tests of the testkit, in one binary.

mod servers;
