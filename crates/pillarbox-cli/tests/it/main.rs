//! The program `pillarbox` as its users meet it: real servers, real processes.

mod program;
mod proof;

mod bad_input;
mod bench;
mod collected;
mod columns;
mod configuration;
mod console;
mod delivery;
mod doctor;
mod intake;
mod pausing;
mod pooled;
mod publishing;
mod readme;
mod recover;
mod refusals;
mod schema;
mod secrets;
mod settings;
