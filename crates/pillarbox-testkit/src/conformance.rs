//! One suite for each trait of the spine: the fakes and the real servers pass the same one.
//!
//! A suite takes a factory of worlds, each with a fresh implementation and what a test must be able
//! to do around it, and follows the protocol in the trait's documentation sentence by sentence, then
//! again with faults.

pub mod clock;
pub mod outbox;
pub mod reader;
pub mod sink;
pub mod source;
pub mod surroundings;
