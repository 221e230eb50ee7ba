//! The sample application: creates users, and publishes `user_created` in the same transaction.
//!
//! `users` is the use case, `http` its surface, `config` the environment, `server` start and stop.

#![warn(missing_docs)]

mod collected;
mod config;
mod http;
mod server;
mod users;

pub use collected::{collect, collected};
pub use config::{Config, LogFormat};
pub use server::Server;
