//! The integration tests of the testkit, in one binary.

mod clickhouse_current;
mod clickhouse_servers;
mod clickhouse_sink;
mod killed;
mod oracle;
mod outbox;
mod schema;
mod servers;
mod spine_on_fakes;
mod window;
