//! Events as benchmarks encode them: PostgreSQL's binary fields, for the recommended table of 18.16.

use bytes::{BufMut as _, Bytes, BytesMut};
use pillarbox_relay::fuzzing::Column;

use crate::publish::TYPES;

/// The recommended table on 18.16.
pub const COLUMNS: [Column<'static>; 6] = [
    ("event_id", 2950, "UUID"),
    ("event_type", 25, "String"),
    ("event_date_time", 1184, "DateTime('UTC')"),
    ("environment", 25, "String"),
    ("event_context", 114, "String"),
    ("metadata_version", 20, "UInt64"),
];
/// How it is partitioned.
pub const PARTITION: &str = "toYYYYMM(event_date_time)";
/// In which order it keeps its rows.
pub const SORTING_KEY: &str =
    "event_type, toStartOfHour(event_date_time), environment, event_date_time";
/// Rows that are encoded again and again: they stay in the cache, as what was just received does.
pub const DISTINCT: usize = 2_000;
/// Rows in PostgreSQL's binary format, with contexts of 314 bytes.
pub fn rows() -> Vec<[Vec<u8>; 6]> {
    const FIRST_US: i64 = (1_795_176_000 - 946_684_800) * 1_000_000;
    let mut state = 0x5EED_u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state ^ (state >> 33)
    };
    let row = |nth: usize| {
        let user = random() % 10_000_000;
        let mut context =
            format!(r#"{{"user_id": {user}, "path": "/api/v1/orders/{nth}", "trace": ""#);
        while context.len() < 312 {
            context.push_str(&format!("{:016x}", random()));
        }
        context.truncate(312);
        context.push_str("\"}");
        let at = FIRST_US + nth as i64 * 1_234_567;
        let id = uuid::Uuid::from_u64_pair(random(), random());
        [
            id.as_bytes().to_vec(),
            TYPES[nth % TYPES.len()].as_bytes().to_vec(),
            at.to_be_bytes().to_vec(),
            b"production".to_vec(),
            context.into_bytes(),
            1_i64.to_be_bytes().to_vec(),
        ]
    };
    (0..DISTINCT).map(row).collect()
}

/// The rows as one binary COPY, with the transaction and the identity in front of each.
pub fn copy_of(rows: &[[Vec<u8>; 6]]) -> Bytes {
    let mut copy = BytesMut::from(&b"PGCOPY\n\xff\r\n\0"[..]);
    copy.put_bytes(0, 8);
    for (id, row) in (1_i64..).zip(rows) {
        copy.put_i16(8);
        for number in [7, id] {
            copy.put_i32(8);
            copy.put_i64(number);
        }
        for field in row {
            copy.put_i32(field.len() as i32);
            copy.put_slice(field);
        }
    }
    copy.put_i16(-1);
    copy.freeze()
}
