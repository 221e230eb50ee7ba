//! The program `pillarbox` as its users meet it: real servers, real processes.

mod program;

mod configuration;
mod delivery;
mod publishing;
mod readme;
mod refusals;
mod schema;
mod secrets;
mod settings;
