//! Publishing on a real PostgreSQL with the schema that `pillarbox migrate` installs.

#![allow(
    clippy::unwrap_used,
    reason = "tests; clippy exempts only the functions marked as such"
)]

mod bouncer;
mod conformance;
mod examples;
mod server;
mod session;
