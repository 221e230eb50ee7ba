//! The main job on real servers: from a committed transaction into ClickHouse, each event once.

mod atomic;
mod contexts;
mod drain;
mod frozen;
mod guarantee;
mod mended;
mod outage;
mod replayed;
mod restart;
mod stand_by;
mod truncation;
mod two_relays;
mod volume;
