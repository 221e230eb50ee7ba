//! Which type a column of one side goes into best on the other. Pure.

use super::column::{ColumnType, Given, Kind};
use super::create::Dialect;
use super::mapping::REQUIRED;
use crate::sink::OutboxColumn;

/// The sink's type for a column of the outbox; `None` when there is none that takes it as it is.
pub(super) fn sink_type(column: &OutboxColumn, dialect: Dialect) -> Option<String> {
    let is_current = dialect == Dialect::Current;
    let of = match Given::from_oid(column.type_oid)? {
        Given::Text | Given::Jsonb => "String",
        Given::Bool if is_current => "Bool",
        Given::Bool => "UInt8",
        Given::Int2 => "Int16",
        Given::Int4 => "Int32",
        Given::Int8 if column.name == "metadata_version" => "UInt64",
        Given::Int8 => "Int64",
        Given::Float4 => "Float32",
        Given::Float8 => "Float64",
        Given::Timestamp if is_current => "DateTime64(6, 'UTC')",
        Given::Timestamp => "DateTime('UTC')",
        Given::Date if is_current => "Date32",
        Given::Date => "Date",
        Given::Uuid => "UUID",
        Given::Numeric => &decimal(&column.type_name),
        Given::Inet if is_current => "IPv6",
        Given::Inet => return None,
        Given::TextArray => "Array(String)",
    };
    let is_required = REQUIRED.contains(&column.name.as_str());
    let is_plain = column.not_null || is_required || of.starts_with("Array");
    Some(match is_plain {
        true => of.to_owned(),
        false => format!("Nullable({of})"),
    })
}

/// `numeric(9,2)` as a Decimal of the same digits.
fn decimal(type_name: &str) -> String {
    let arguments = type_name
        .strip_prefix("numeric(")
        .or_else(|| type_name.strip_prefix("decimal("))
        .and_then(|rest| rest.strip_suffix(')'));
    let arguments = arguments.map_or("38, 9".to_owned(), |digits| {
        digits.replace(' ', "").replace(',', ", ")
    });
    format!("Decimal({arguments})")
}

/// The outbox's type for a column of the sink, with the default that fills it where it cannot be null.
pub(super) fn outbox_type(of: &ColumnType) -> (String, Option<&'static str>) {
    let (name, default) = match &of.kind {
        Kind::String | Kind::FixedString(_) | Kind::Enum { .. } => ("text", "''"),
        Kind::Int {
            bits: 8,
            signed: false,
        }
        | Kind::Int {
            bits: 8 | 16,
            signed: true,
        } => ("smallint", "0"),
        Kind::Int {
            bits: 16,
            signed: false,
        }
        | Kind::Int {
            bits: 32,
            signed: true,
        } => ("integer", "0"),
        Kind::Int { .. } => ("bigint", "0"),
        Kind::Float32 => ("real", "0"),
        Kind::Float64 => ("double precision", "0"),
        Kind::Bool => ("boolean", "false"),
        Kind::Date | Kind::Date32 => ("date", "'1970-01-01'"),
        Kind::DateTime | Kind::DateTime64 { .. } => ("timestamptz", "'1970-01-01 00:00:00+00'"),
        Kind::Uuid => ("uuid", "'00000000-0000-0000-0000-000000000000'"),
        Kind::Decimal { precision, scale } => (&*format!("numeric({precision},{scale})"), "0"),
        Kind::Ipv4 => ("inet", "'0.0.0.0'"),
        Kind::Ipv6 => ("inet", "'::'"),
        Kind::Json => ("json", "'{}'"),
        Kind::Array { .. } => ("text[]", "'{}'"),
    };
    // A name of the Enum would have to be chosen.
    let has_default = !of.nullable && !matches!(of.kind, Kind::Enum { .. });
    (name.to_owned(), has_default.then_some(default))
}
