//! What is private otherwise, for the fuzz targets of `fuzz/` and for `make digest-cost`. The feature `fuzzing` is
//! for them alone: it is never on by default, and nothing here is kept stable.

pub use crate::config::fuzzing::read_configuration;
pub use crate::sink::clickhouse::fuzzing::{
    Column, Encoded, FuzzedEncoder, Reading, read_answer, sink_types,
};
pub use crate::source::postgres::fuzzing::{CopiedRow, count_copied, decode_copy};
