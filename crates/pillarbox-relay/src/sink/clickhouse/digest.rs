//! The digest of a block: a sum modulo 2⁶⁴ of one hash per row, in the relay and in SQL. Pure.
//!
//! A row is hashed over its base columns, each as `<length>:<bytes>` and null as `~`, in the order of
//! [`BASE`]. Numbers are decimal text, times the integer that the column stores, UUIDs canonical text.
//! The hash is ClickHouse's `cityHash64` of one string, the same in 18.16 and today: CityHash64 of
//! CityHash 1.0.2 (Geoff Pike and Jyrki Alakuijala, github.com/google/cityhash).

use super::column::{ColumnType, Kind};
use super::sql;
use super::value::Value;

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
    match value {
        Value::Null => text.push(b'~'),
        Value::Bytes(bytes) => append_framed(text, bytes),
        Value::Signed(number) => append_integer(text, *number),
        Value::Unsigned(number) => append_integer(text, *number),
        Value::Float32(number) => append_float(text, number),
        Value::Float64(number) => append_float(text, number),
        Value::Uuid(uuid) | Value::UuidText(uuid) => {
            let mut framed = *b"36:00000000-0000-0000-0000-000000000000";
            uuid.hyphenated().encode_lower(&mut framed[3..]);
            text.extend_from_slice(&framed);
        }
        Value::Named(name, _) => append_framed(text, name),
        // Of columns that no digest covers; see `covers`.
        Value::Decimal(_) | Value::Octets(_) | Value::Array(_) => {}
    }
}

/// Whether relay and servers agree on the text of a value of this type.
pub(super) fn covers(of: &ColumnType) -> bool {
    match of.kind {
        // Servers cut zeros at the end of a FixedString, and write JSON in their own way.
        Kind::FixedString(_) | Kind::Json | Kind::Array { .. } => false,
        Kind::Decimal { .. } | Kind::Ipv4 | Kind::Ipv6 => false,
        _ => true,
    }
}

fn append_framed(text: &mut Vec<u8>, bytes: &[u8]) {
    make_room(text, bytes.len());
    let digit = |number: usize| b'0' + (number % 10) as u8;
    match bytes.len() {
        // Most are short, and numbers always.
        n @ ..10 => text.extend_from_slice(&[digit(n), b':']),
        n @ ..100 => text.extend_from_slice(&[digit(n / 10), digit(n), b':']),
        n => {
            text.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
            text.push(b':');
        }
    }
    text.extend_from_slice(bytes);
}

/// A text that grew by doubling would hold a large event twice. The columns after one are small.
fn make_room(text: &mut Vec<u8>, more: usize) {
    const SMALL: usize = 4096;
    if more + SMALL > text.capacity() - text.len() {
        text.reserve_exact(more + 2 * SMALL);
    }
}

fn append_integer(text: &mut Vec<u8>, number: impl itoa::Integer) {
    append_framed(text, itoa::Buffer::new().format(number).as_bytes());
}

fn append_float(text: &mut Vec<u8>, number: &impl std::fmt::Display) {
    append_framed(text, number.to_string().as_bytes());
}

/// The hash of a row's text.
pub(super) fn hash(text: &[u8]) -> u64 {
    ch_cityhash102::cityhash64(text)
}

/// A column in the digest of rows that a table holds.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) name: &'a str,
    pub(super) of: &'a ColumnType,
    /// Its type when the rows were sealed, where that was another one.
    pub(super) sealed: Option<ColumnType>,
}

/// The expression that computes the digest of the selected rows in ClickHouse. Without columns it is 0.
pub(super) fn expression(columns: &[Part<'_>]) -> String {
    if columns.is_empty() {
        return "toUInt64(0)".to_owned();
    }
    let parts: Vec<String> = columns.iter().map(part).collect();
    // `concat` wants two arguments at least.
    format!("sum(cityHash64(concat('', {})))", parts.join(", "))
}

fn part(part: &Part<'_>) -> String {
    let Part { name, of, sealed } = part;
    let column = sql::ident(name);
    let present = if of.nullable {
        format!("assumeNotNull({column})")
    } else {
        column.clone()
    };
    let (present, kind) = match sealed {
        Some(sealed) => (
            format!("CAST({present} AS {})", sealed.base()),
            &sealed.kind,
        ),
        None => (present, &of.kind),
    };
    let shown = match kind {
        Kind::String | Kind::Enum { .. } => format!("CAST({present} AS String)"),
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
        // select hex(cityHash64('abc')), on 18.16.1 and 26.9.2.
        assert_eq!(hash(b"abc"), 0x3A91_2F48_3A4E_CE31);
    }

    #[test]
    fn numbers_are_decimal_text() {
        let mut text = Vec::new();
        for value in [
            Value::Unsigned(0),
            Value::Unsigned(u64::MAX),
            Value::Signed(-10),
            Value::Signed(i64::MIN),
            Value::Null,
        ] {
            append(&mut text, &value);
        }
        assert_eq!(
            text,
            b"1:020:184467440737095516153:-1020:-9223372036854775808~"
        );
    }

    #[test]
    fn nothing_has_the_digest_0() {
        assert_eq!(expression(&[]), "toUInt64(0)");
    }
}
