//! The real spine on fakes with paused time: every fault at every step, without a real sleep.

mod bounds;
mod chaos;
mod exactly_once;
mod life;
mod order;
mod poison;
mod trouble;
mod world;
