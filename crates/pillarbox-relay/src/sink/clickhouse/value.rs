//! How a value of PostgreSQL becomes one of a sink column. Pure.
//!
//! Times finer than the sink's precision are cut towards the past, so that an event never moves into
//! a later second, day or partition than it happened in. Every other value fits whole or not at all.

use std::fmt;

use super::column::{ColumnType, Given, Kind};
use super::decimal;

/// Microseconds from 1970-01-01 to 2000-01-01, PostgreSQL's epoch.
const PG_EPOCH_US: i64 = 946_684_800_000_000;
/// Days from 1970-01-01 to 2000-01-01.
const PG_EPOCH_DAYS: i64 = 10_957;
/// First day of Date32 and DateTime64, 1900-01-01, as days since 1970.
const FIRST_DAY: i64 = -25_567;
/// Last day of Date32 and DateTime64, 2299-12-31, as days since 1970.
const LAST_DAY: i64 = 120_529;
const DAY_S: i64 = 86_400;

/// A value as a sink column represents it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Null,
    Bytes(&'a [u8]),
    Signed(i64),
    Unsigned(u64),
    Float32(f32),
    Float64(f64),
    Uuid(uuid::Uuid),
    /// A UUID in a String column.
    UuidText(uuid::Uuid),
    /// A name of an Enum.
    Named(&'a [u8], i16),
    /// The digits of a Decimal as one number, little-endian, in two's complement.
    Decimal([u8; 32]),
    /// An IPv6 address, in the order of the network.
    Octets([u8; 16]),
    Array(Elements<'a>),
}

/// The elements of a PostgreSQL array of text that was checked to be whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Elements<'a>(&'a [u8]);

impl<'a> Iterator for Elements<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            self.0 = rest;
            return Some(None);
        };
        let (element, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(Some(element))
    }
}

/// Why a value does not fit, without the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    Null,
    /// Longer than the sink's FixedString of so many bytes.
    Long(usize),
    Malformed,
    Range(&'static str),
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "it is null and the sink's column is not nullable",
            Self::Malformed => "its bytes are not of the type that the outbox declares",
            Self::Range(why) => why,
            Self::Long(width) => {
                return write!(f, "it is longer than the {width} bytes of the sink's type");
            }
        })
    }
}

const BEFORE: Misfit = Misfit::Range("it lies before the first time that the sink's type can hold");
const AFTER: Misfit = Misfit::Range("it lies after the last time that the sink's type can hold");
const INFINITE: Misfit = Misfit::Range("it is infinite");
const NEGATIVE: Misfit = Misfit::Range("it is negative and the sink's type is unsigned");
const NOT_NAMED: Misfit = Misfit::Range("it is none of the names of the sink's Enum");
const NETWORK: Misfit = Misfit::Range("it is a network, not one address");
const NOT_V4: Misfit = Misfit::Range("it is an IPv6 address and the sink's type is IPv4");
const DIMENSIONS: Misfit = Misfit::Range("it has more than one dimension");
const NULL_ELEMENT: Misfit =
    Misfit::Range("it has a null element and the sink's array is not of Nullable");
pub(super) const FINER: Misfit = Misfit::Range("it has more decimal places than the sink's type");
pub(super) const TOO_LARGE: Misfit = Misfit::Range("it is too large for the sink's type");
pub(super) const TOO_SMALL: Misfit = Misfit::Range("it is too small for the sink's type");

/// Turns a value in PostgreSQL's binary format into one of the sink's column.
pub(super) fn convert<'a>(
    given: Given,
    to: &ColumnType,
    field: Option<&'a [u8]>,
) -> Result<Value<'a>, Misfit> {
    let Some(field) = field else {
        return if to.nullable {
            Ok(Value::Null)
        } else {
            Err(Misfit::Null)
        };
    };
    match (given, &to.kind) {
        (Given::Text, Kind::Enum { names, .. }) => match names.get_key_value(field) {
            Some((_, code)) => Ok(Value::Named(field, *code)),
            None => Err(NOT_NAMED),
        },
        (Given::Text, Kind::FixedString(width)) if field.len() > *width => {
            Err(Misfit::Long(*width))
        }
        (Given::Text, _) => Ok(Value::Bytes(field)),
        (Given::Jsonb, _) => match field {
            // The first byte is the version of jsonb's binary format.
            [1, text @ ..] => Ok(Value::Bytes(text)),
            _ => Err(Misfit::Malformed),
        },
        (Given::Uuid, kind) => {
            let uuid = uuid::Uuid::from_slice(field).map_err(|_| Misfit::Malformed)?;
            let as_text = *kind == Kind::String;
            Ok(if as_text {
                Value::UuidText(uuid)
            } else {
                Value::Uuid(uuid)
            })
        }
        (Given::Bool, _) => Ok(Value::Unsigned(u64::from(array::<1>(field)?[0]))),
        (Given::Inet, kind) => address(field, kind),
        (Given::TextArray, kind) => elements(field, kind),
        (Given::Numeric, Kind::Decimal { precision, scale }) => {
            decimal::from_numeric(field, *precision, *scale).map(Value::Decimal)
        }
        (Given::Numeric, _) => Err(Misfit::Malformed),
        (Given::Int2, kind) => int(i16::from_be_bytes(array(field)?).into(), kind),
        (Given::Int4, kind) => int(i32::from_be_bytes(array(field)?).into(), kind),
        (Given::Int8, kind) => int(i64::from_be_bytes(array(field)?), kind),
        (Given::Float4, Kind::Float32) => Ok(Value::Float32(f32::from_be_bytes(array(field)?))),
        (Given::Float4, _) => Ok(Value::Float64(f32::from_be_bytes(array(field)?).into())),
        (Given::Float8, _) => Ok(Value::Float64(f64::from_be_bytes(array(field)?))),
        (Given::Timestamp, kind) => instant(unix_us(field)?, kind),
        (Given::Date, kind) => day(unix_days(field)?, kind),
    }
}

fn array<const N: usize>(field: &[u8]) -> Result<[u8; N], Misfit> {
    field.try_into().map_err(|_| Misfit::Malformed)
}

/// Microseconds since 1970 of a timestamp.
fn unix_us(field: &[u8]) -> Result<i64, Misfit> {
    match i64::from_be_bytes(array(field)?) {
        i64::MIN | i64::MAX => Err(INFINITE),
        us => us.checked_add(PG_EPOCH_US).ok_or(AFTER),
    }
}

/// Days since 1970 of a date.
fn unix_days(field: &[u8]) -> Result<i64, Misfit> {
    match i32::from_be_bytes(array(field)?) {
        i32::MIN | i32::MAX => Err(INFINITE),
        days => Ok(i64::from(days) + PG_EPOCH_DAYS),
    }
}

fn int(value: i64, kind: &Kind) -> Result<Value<'static>, Misfit> {
    if let Kind::Decimal { precision, scale } = *kind {
        return decimal::from_int(value, precision, scale).map(Value::Decimal);
    }
    let Kind::Int { bits, signed } = *kind else {
        return Err(Misfit::Malformed);
    };
    if !signed {
        let value = u64::try_from(value).map_err(|_| NEGATIVE)?;
        return if value <= u64::MAX >> (64 - bits) {
            Ok(Value::Unsigned(value))
        } else {
            Err(TOO_LARGE)
        };
    }
    let highest = i64::MAX >> (64 - bits);
    match value {
        v if v > highest => Err(TOO_LARGE),
        v if v < -highest - 1 => Err(TOO_SMALL),
        v => Ok(Value::Signed(v)),
    }
}

fn instant(us: i64, kind: &Kind) -> Result<Value<'static>, Misfit> {
    let Kind::DateTime64 { precision } = *kind else {
        let seconds = us.div_euclid(1_000_000);
        return match seconds {
            ..0 => Err(BEFORE),
            s if s > i64::from(u32::MAX) => Err(AFTER),
            s => Ok(Value::Unsigned(s.cast_unsigned())),
        };
    };
    match us.div_euclid(1_000_000 * DAY_S) {
        ..FIRST_DAY => return Err(BEFORE),
        days if days > LAST_DAY => return Err(AFTER),
        _ => {}
    }
    let ticks = if precision <= 6 {
        us.div_euclid(10_i64.pow(6 - precision))
    } else {
        let out_of_range = if us < 0 { BEFORE } else { AFTER };
        us.checked_mul(10_i64.pow(precision - 6))
            .ok_or(out_of_range)?
    };
    Ok(Value::Signed(ticks))
}

fn day(days: i64, kind: &Kind) -> Result<Value<'static>, Misfit> {
    match kind {
        Kind::Date => match days {
            ..0 => Err(BEFORE),
            d if d > i64::from(u16::MAX) => Err(AFTER),
            d => Ok(Value::Unsigned(d.cast_unsigned())),
        },
        Kind::Date32 => match days {
            ..FIRST_DAY => Err(BEFORE),
            d if d > LAST_DAY => Err(AFTER),
            d => Ok(Value::Signed(d)),
        },
        // A date reaches further than microseconds do.
        other => {
            let out_of_range = if days < 0 { BEFORE } else { AFTER };
            let us = days.checked_mul(DAY_S * 1_000_000).ok_or(out_of_range)?;
            instant(us, other)
        }
    }
}

/// An inet or cidr: family, bits of the network, whether it is a cidr, length, address.
fn address(field: &[u8], kind: &Kind) -> Result<Value<'static>, Misfit> {
    let [_, bits, _, _, address @ ..] = field else {
        return Err(Misfit::Malformed);
    };
    if usize::from(*bits) != address.len() * 8 {
        return Err(NETWORK);
    }
    match (kind, address.len()) {
        (Kind::Ipv4, 4) => Ok(Value::Unsigned(u32::from_be_bytes(array(address)?).into())),
        (Kind::Ipv4, 16) => Err(NOT_V4),
        (Kind::Ipv6, 16) => Ok(Value::Octets(array(address)?)),
        (Kind::Ipv6, 4) => {
            let address = std::net::Ipv4Addr::from(array::<4>(address)?);
            Ok(Value::Octets(address.to_ipv6_mapped().octets()))
        }
        _ => Err(Misfit::Malformed),
    }
}

/// An array: dimensions, whether it has nulls, type of its elements, then length and lower bound of
/// each dimension, then its elements.
fn elements<'a>(field: &'a [u8], kind: &Kind) -> Result<Value<'a>, Misfit> {
    let (head, rest) = field.split_at_checked(12).ok_or(Misfit::Malformed)?;
    let rest = match i32::from_be_bytes(array(&head[..4])?) {
        0 => &[][..],
        1 => rest.get(8..).ok_or(Misfit::Malformed)?,
        _ => return Err(DIMENSIONS),
    };
    let elements = Elements(rest);
    let mut checked = elements;
    let has_null = checked.any(|element| element.is_none());
    if has_null && *kind != (Kind::Array { has_nulls: true }) {
        return Err(NULL_ELEMENT);
    }
    checked.by_ref().for_each(drop);
    match checked.0.is_empty() {
        true => Ok(Value::Array(elements)),
        false => Err(Misfit::Malformed),
    }
}
