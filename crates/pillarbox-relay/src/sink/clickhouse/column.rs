//! Types of outbox and sink columns, and which of them fit. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::tz::TimeZone;

/// Digits of the widest Decimal.
const PRECISION_MAX: u32 = 76;

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
    Numeric,
    Inet,
    TextArray,
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
            // cidr, inet.
            650 | 869 => Self::Inet,
            701 => Self::Float8,
            // name[], text[], bpchar[], varchar[].
            1003 | 1009 | 1014 | 1015 => Self::TextArray,
            1082 => Self::Date,
            // timestamp without time zone is taken as UTC.
            1114 | 1184 => Self::Timestamp,
            1700 => Self::Numeric,
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
    /// Bytes, filled up with zeros.
    FixedString(usize),
    Enum {
        is_wide: bool,
        names: Arc<BTreeMap<Vec<u8>, i16>>,
    },
    Decimal {
        precision: u32,
        scale: u32,
    },
    Ipv4,
    Ipv6,
    /// Written as text, which the server parses.
    Json,
    /// Of String.
    Array {
        has_nulls: bool,
    },
    Int {
        bits: u32,
        signed: bool,
    },
    Float32,
    Float64,
    Bool,
    Date,
    Date32,
    DateTime,
    DateTime64 {
        precision: u32,
    },
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
        if nullable && matches!(kind, Kind::Array { .. }) {
            return None;
        }
        let wire = match kind {
            Kind::Array { .. } => plain.replace("LowCardinality(String)", "String"),
            _ => plain.to_owned(),
        };
        Some(Self {
            kind,
            nullable,
            zone,
            wire,
        })
    }

    /// The type without `Nullable`.
    pub(super) fn base(&self) -> &str {
        inside(&self.wire, "Nullable").unwrap_or(&self.wire)
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
            Kind::FixedString(_) | Kind::Enum { .. } => given == G::Text,
            Kind::Decimal { .. } => {
                matches!(given, G::Numeric | G::Int2 | G::Int4 | G::Int8)
            }
            Kind::Ipv4 | Kind::Ipv6 => given == G::Inet,
            Kind::Json => matches!(given, G::Text | G::Jsonb),
            Kind::Array { .. } => given == G::TextArray,
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
        "IPv4" => plain(Kind::Ipv4),
        "IPv6" => plain(Kind::Ipv6),
        "JSON" => plain(Kind::Json),
        _ if inside(name, "JSON").is_some() => plain(Kind::Json),
        _ => parse_time(name).or_else(|| plain(parse_with_arguments(name)?)),
    }
}

fn parse_with_arguments(name: &str) -> Option<Kind> {
    if let Some(length) = inside(name, "FixedString") {
        return length.parse().ok().map(Kind::FixedString);
    }
    if let Some(arguments) = inside(name, "Decimal") {
        let (precision, scale) = arguments.split_once(',')?;
        let (precision, scale) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
        let is_known = (1..=PRECISION_MAX).contains(&precision) && scale <= precision;
        return is_known.then_some(Kind::Decimal { precision, scale });
    }
    if let Some(of) = inside(name, "Array") {
        let of = inside(of, "LowCardinality").unwrap_or(of);
        return match of {
            "String" => Some(Kind::Array { has_nulls: false }),
            "Nullable(String)" => Some(Kind::Array { has_nulls: true }),
            _ => None,
        };
    }
    let (is_wide, names) = match (inside(name, "Enum8"), inside(name, "Enum16")) {
        (Some(names), _) => (false, names),
        (None, Some(names)) => (true, names),
        (None, None) => return None,
    };
    let names = Arc::new(parse_names(names)?);
    Some(Kind::Enum { is_wide, names })
}

/// `'a' = 1, 'b' = 2`, as the server shows the values of an Enum: with `\\` and `\'` in names.
fn parse_names(mut rest: &str) -> Option<BTreeMap<Vec<u8>, i16>> {
    let mut names = BTreeMap::new();
    loop {
        let quoted = rest.strip_prefix('\'')?;
        let mut name = String::new();
        let mut characters = quoted.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '\'') => break at,
                (_, '\\') => name.push(unescaped(characters.next()?.1)),
                (_, character) => name.push(character),
            }
        };
        let value = quoted.get(end + 1..)?.strip_prefix(" = ")?;
        let (code, more) = match value.split_once(", ") {
            Some((code, more)) => (code, Some(more)),
            None => (value, None),
        };
        names.insert(name.into_bytes(), code.parse().ok()?);
        match more {
            Some(more) => rest = more,
            None => return Some(names),
        }
    }
}

/// What a letter behind a backslash stands for in ClickHouse's quoted texts.
fn unescaped(letter: char) -> char {
    match letter {
        'n' => '\n',
        't' => '\t',
        'r' => '\r',
        'b' => '\u{8}',
        'f' => '\u{c}',
        '0' => '\0',
        other => other,
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

impl Kind {
    /// Bytes of a value; `None` when it carries its own length.
    pub(super) fn width(&self) -> Option<usize> {
        Some(match self {
            Self::String | Self::Json | Self::Array { .. } => return None,
            Self::FixedString(width) => *width,
            Self::Int { bits, .. } => *bits as usize / 8,
            Self::Bool | Self::Enum { is_wide: false, .. } => 1,
            Self::Date | Self::Enum { is_wide: true, .. } => 2,
            Self::Date32 | Self::DateTime | Self::Float32 | Self::Ipv4 => 4,
            Self::DateTime64 { .. } | Self::Float64 => 8,
            Self::Uuid | Self::Ipv6 => 16,
            Self::Decimal { precision, .. } => match precision {
                ..=9 => 4,
                10..=18 => 8,
                19..=38 => 16,
                _ => 32,
            },
        })
    }
}
