//! What surrounds the path: sessions that end, limits that others set, poolers, clocks, a full disk,
//! and an operator who stops the relay at any moment. Each ends with every event there once.

mod dba_limits;
mod full_disk;
mod killed_sessions;
mod pooled_publishers;
mod set_clock;
mod strangers;
mod terminated;
mod upgrade;
