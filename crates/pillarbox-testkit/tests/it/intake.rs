//! Intakes: entries of Redis and lines of files become rows of the outbox, each once (INV-14).

mod import;
mod killed;
mod lost;
mod queue;
mod restored;
mod taking;
mod trouble;
