//! Types of sink columns, and how a PostgreSQL value becomes one of them. Pure.
//!
//! Times finer than the sink's precision are cut towards the past, so that an event never moves into
//! a later second, day or partition than it happened in.

use std::fmt;

use jiff::tz::TimeZone;

/// Microseconds from 1970-01-01 to 2000-01-01, PostgreSQL's epoch.
const PG_EPOCH_US: i64 = 946_684_800_000_000;
/// Days from 1970-01-01 to 2000-01-01.
const PG_EPOCH_DAYS: i64 = 10_957;
/// First day of Date32 and DateTime64, 1900-01-01, as days since 1970.
const FIRST_DAY: i64 = -25_567;
/// Last day of Date32 and DateTime64, 2299-12-31, as days since 1970.
const LAST_DAY: i64 = 120_529;
const DAY_S: i64 = 86_400;

/// What a PostgreSQL column holds, as far as this sink tells types apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    Text,
    Jsonb,
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Timestamp,
    Date,
    Uuid,
}

impl Given {
    /// By object identifier of the type (`pg_type.dat` of PostgreSQL; they never change).
    pub(super) fn from_oid(oid: u32) -> Option<Self> {
        Some(match oid {
            16 => Self::Bool,
            // bytea, name, text, json, bpchar, varchar: their bytes are taken as they are.
            17 | 19 | 25 | 114 | 1042 | 1043 => Self::Text,
            20 => Self::Int8,
            21 => Self::Int2,
            23 => Self::Int4,
            700 => Self::Float4,
            701 => Self::Float8,
            1082 => Self::Date,
            // timestamp without time zone is taken as UTC.
            1114 | 1184 => Self::Timestamp,
            2950 => Self::Uuid,
            3802 => Self::Jsonb,
            _ => return None,
        })
    }
}

/// A type of a sink column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    String,
    Int { bits: u32, signed: bool },
    Float32,
    Float64,
    Bool,
    Date,
    Date32,
    DateTime,
    DateTime64 { precision: u32 },
    Uuid,
}

/// The type of a sink column, with what surrounds it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ColumnType {
    pub(super) kind: Kind,
    pub(super) nullable: bool,
    /// Time zone named by the type.
    pub(super) zone: Option<TimeZone>,
    /// The type written into the block: without `LowCardinality`, which servers add by themselves.
    pub(super) wire: String,
}

impl ColumnType {
    /// Reads a type as `system.columns` shows it; `None` when this sink cannot write it.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let plain = inside(name, "LowCardinality").unwrap_or(name);
        let (base, nullable) = match inside(plain, "Nullable") {
            Some(base) => (base, true),
            None => (plain, false),
        };
        let (kind, zone) = parse_base(base)?;
        let wire = plain.to_owned();
        Some(Self {
            kind,
            nullable,
            zone,
            wire,
        })
    }

    /// Whether values of `given` can be written into this column at all.
    pub(super) fn accepts(&self, given: Given) -> bool {
        use Given as G;
        match self.kind {
            Kind::String => matches!(given, G::Text | G::Jsonb | G::Uuid),
            Kind::Int { .. } => matches!(given, G::Int2 | G::Int4 | G::Int8 | G::Bool),
            Kind::Bool => given == G::Bool,
            Kind::Float32 => given == G::Float4,
            Kind::Float64 => matches!(given, G::Float4 | G::Float8),
            Kind::Date | Kind::Date32 => given == G::Date,
            Kind::DateTime | Kind::DateTime64 { .. } => matches!(given, G::Timestamp | G::Date),
            Kind::Uuid => given == G::Uuid,
        }
    }
}

/// `inside("A(b)", "A")` is `b`.
fn inside<'a>(name: &'a str, outer: &str) -> Option<&'a str> {
    name.strip_prefix(outer)?
        .strip_prefix('(')?
        .strip_suffix(')')
}

fn parse_base(name: &str) -> Option<(Kind, Option<TimeZone>)> {
    let int = |bits, signed| Some((Kind::Int { bits, signed }, None));
    let plain = |kind| Some((kind, None));
    match name {
        "String" => plain(Kind::String),
        "UInt8" => int(8, false),
        "UInt16" => int(16, false),
        "UInt32" => int(32, false),
        "UInt64" => int(64, false),
        "Int8" => int(8, true),
        "Int16" => int(16, true),
        "Int32" => int(32, true),
        "Int64" => int(64, true),
        "Float32" => plain(Kind::Float32),
        "Float64" => plain(Kind::Float64),
        "Bool" => plain(Kind::Bool),
        "Date" => plain(Kind::Date),
        "Date32" => plain(Kind::Date32),
        "DateTime" => plain(Kind::DateTime),
        "UUID" => plain(Kind::Uuid),
        _ => parse_time(name),
    }
}

fn parse_time(name: &str) -> Option<(Kind, Option<TimeZone>)> {
    if let Some(zone) = inside(name, "DateTime") {
        return Some((Kind::DateTime, Some(zone_of(zone)?)));
    }
    let mut arguments = inside(name, "DateTime64")?.splitn(2, ',');
    let precision = arguments.next()?.trim().parse().ok().filter(|p| *p <= 9)?;
    let zone = match arguments.next() {
        Some(zone) => Some(zone_of(zone.trim())?),
        None => None,
    };
    Some((Kind::DateTime64 { precision }, zone))
}

fn zone_of(quoted: &str) -> Option<TimeZone> {
    let name = quoted.strip_prefix('\'')?.strip_suffix('\'')?;
    TimeZone::get(name).ok()
}

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
}

/// Why a value does not fit, without the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    Null,
    Malformed,
    Range(&'static str),
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "it is null and the sink's column is not nullable",
            Self::Malformed => "its bytes are not of the type that the outbox declares",
            Self::Range(why) => why,
        })
    }
}

const BEFORE: Misfit = Misfit::Range("it lies before the first time that the sink's type can hold");
const AFTER: Misfit = Misfit::Range("it lies after the last time that the sink's type can hold");
const INFINITE: Misfit = Misfit::Range("it is infinite");
const NEGATIVE: Misfit = Misfit::Range("it is negative and the sink's type is unsigned");
const TOO_LARGE: Misfit = Misfit::Range("it is too large for the sink's type");
const TOO_SMALL: Misfit = Misfit::Range("it is too small for the sink's type");

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
