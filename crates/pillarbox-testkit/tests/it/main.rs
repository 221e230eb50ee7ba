//! The integration tests of the testkit, in one binary.

mod clickhouse_current;
mod clickhouse_servers;
mod oracle;
mod servers;
