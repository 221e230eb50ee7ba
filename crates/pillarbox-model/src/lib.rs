//! The protocol, every interleaving of it at a small bound (DESIGN 4 and 5; INV-1, 2, 3, 8, 10).
//!
//! Three models, each of the part in which its faults meet; together they cover the path of an event:
//!
//! - [`windows`]: publishers, snapshots, cuts, a server that crashes → what is sealed;
//! - [`leaves`]: leaves that turn and are emptied beside publishers and two sinks → what may be truncated;
//! - [`deliveries`]: two relays, a ledger, tokens, lost answers, late inserts → what is in the sink.
//!
//! Windows and positions are computed by `pillarbox_relay::snapshot` itself, so what is checked is that
//! code. Everything else is stated here a second time, as small as it can be. Left out: values of
//! columns, blocks (a batch has one), partitions, time (what time decides may happen at any moment,
//! within the bounds that a rule names), bisection and dead letters, and waiting: a step that cannot be
//! taken now is taken later.
//!
//! Each protection can be switched off. Its test, a negative control, expects the model to find what
//! it protects from, and prints a short way there.

pub mod deliveries;
pub mod leaves;
mod server;
pub mod windows;
