//! The sample application on a real PostgreSQL, in process and as a program.

#![allow(
    clippy::unwrap_used,
    reason = "tests; clippy exempts only the functions marked as such"
)]

mod app;
mod program;
mod requests;
