//! Every model, visited whole, and every protection, switched off.

mod deliveries;
mod leaves;
mod visit;
mod windows;
