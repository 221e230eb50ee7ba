//! The digest of a block: a sum modulo 2⁶⁴ of one hash per row, in the relay and in SQL. Pure.
//!
//! A row is hashed over its base columns, each as `<length>:<bytes>` and null as `~`, in the order of
//! [`BASE`]. Numbers are decimal text, times the integer that the column stores, UUIDs canonical text.
//! The hash is ClickHouse's `murmurHash3_64`, the same in 18.16 and today: the two halves of
//! MurmurHash3_x64_128 with seed 0, combined by XOR (Austin Appleby, MurmurHash3.cpp).

use std::io::Write as _;

use super::column::{ColumnType, Kind, Value};
use super::sql;

/// The columns that a digest covers, where the sink has them, in the order in which it hashes them.
pub(super) const BASE: [&str; 8] = [
    "event_id",
    "event_type",
    "event_date_time",
    "environment",
    "event_context",
    "metadata_version",
    "trace_parent",
    "published_at",
];

/// Appends a value to the text of its row.
pub(super) fn append(text: &mut Vec<u8>, value: &Value<'_>) {
    // Writing to a Vec cannot fail.
    let _ = match value {
        Value::Null => text.write_all(b"~"),
        Value::Bytes(bytes) => {
            append_decimal(text, bytes.len() as u64);
            text.push(b':');
            text.write_all(bytes)
        }
        Value::Signed(number) => {
            let digits = u64::from(decimal_digits(number.unsigned_abs())) + u64::from(*number < 0);
            append_decimal(text, digits);
            text.push(b':');
            if *number < 0 {
                text.push(b'-');
            }
            append_decimal(text, number.unsigned_abs());
            Ok(())
        }
        Value::Unsigned(number) => {
            append_decimal(text, decimal_digits(*number).into());
            text.push(b':');
            append_decimal(text, *number);
            Ok(())
        }
        Value::Float32(number) => {
            let shown = number.to_string();
            write!(text, "{}:{shown}", shown.len())
        }
        Value::Float64(number) => {
            let shown = number.to_string();
            write!(text, "{}:{shown}", shown.len())
        }
        Value::Uuid(uuid) | Value::UuidText(uuid) => {
            let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
            text.extend_from_slice(b"36:");
            text.write_all(uuid.hyphenated().encode_lower(&mut buffer).as_bytes())
        }
    };
}

fn decimal_digits(number: u64) -> u32 {
    number.checked_ilog10().map_or(1, |log| log + 1)
}

fn append_decimal(text: &mut Vec<u8>, mut number: u64) {
    let start = text.len();
    loop {
        // A remainder of ten is one digit.
        text.push(b'0' + (number % 10) as u8);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    text[start..].reverse();
}

/// The hash of a row's text.
pub(super) fn hash(text: &[u8]) -> u64 {
    // Reading from a slice cannot fail.
    let both = murmur3::murmur3_x64_128(&mut &text[..], 0).unwrap_or_default();
    (both as u64) ^ ((both >> 64) as u64)
}

/// The expression that computes the digest of the selected rows in ClickHouse. Without columns it is 0.
pub(super) fn expression(columns: &[(String, ColumnType)]) -> String {
    if columns.is_empty() {
        return "toUInt64(0)".to_owned();
    }
    let parts: Vec<String> = columns.iter().map(|(name, of)| part(name, of)).collect();
    // `concat` wants two arguments at least.
    format!("sum(murmurHash3_64(concat('', {})))", parts.join(", "))
}

fn part(name: &str, of: &ColumnType) -> String {
    let column = sql::ident(name);
    let present = if of.nullable {
        format!("assumeNotNull({column})")
    } else {
        column.clone()
    };
    let shown = match of.kind {
        Kind::String => format!("CAST({present} AS String)"),
        Kind::DateTime => format!("toString(toUInt32({present}))"),
        Kind::DateTime64 { .. } => format!("toString(reinterpret({present}, 'Int64'))"),
        Kind::Date => format!("toString(toUInt16({present}))"),
        Kind::Date32 => format!("toString(toInt32({present}))"),
        Kind::Bool => format!("toString(toUInt8({present}))"),
        _ => format!("toString({present})"),
    };
    let framed = format!("toString(length({shown})), ':', {shown}");
    if of.nullable {
        format!("if(isNull({column}), '~', concat({framed}))")
    } else {
        framed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_servers() {
        // select hex(murmurHash3_64('abc')), on 18.16.1 and 26.9.2.
        assert_eq!(hash(b"abc"), 0x8F34_4B7E_1967_5535);
    }

    #[test]
    fn numbers_are_decimal_text() {
        let mut text = Vec::new();
        for value in [
            Value::Unsigned(0),
            Value::Unsigned(u64::MAX),
            Value::Signed(-10),
            Value::Null,
        ] {
            append(&mut text, &value);
        }
        assert_eq!(text, b"1:020:184467440737095516153:-10~");
    }

    #[test]
    fn nothing_has_the_digest_0() {
        assert_eq!(expression(&[]), "toUInt64(0)");
    }
}
