//! The destination's partition expression, evaluated before the insert. Pure.
//!
//! Deduplication is per partition, so each partition of a batch gets its own insert; the relay must
//! know, before it seals, which rows share one.

use jiff::Timestamp;
use jiff::civil;
use jiff::tz::TimeZone;

use super::column::{ColumnType, Kind};
use super::value::Value;

const DAY_S: i64 = 86_400;
/// Days that a Date can hold, from 1970-01-01 on.
const DATE_DAYS: i64 = 1 << 16;
/// 1970-01-01 was a Thursday: three days after a Monday.
const EPOCH_WEEKDAY: i64 = 3;

/// How the server turns a time into a date.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Calendar {
    /// Zone of the column, or the server's.
    pub(super) zone: TimeZone,
    /// Old servers (18.16 does) know no day before 1970-01-01, not even as a local date.
    pub(super) starts_1970: bool,
}

/// A partition expression that the relay can evaluate.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rule {
    /// No PARTITION BY, or `tuple()`.
    One,
    /// A function of the column at this index.
    Of {
        function: Function,
        column: usize,
        /// Ticks per second of a time; `None` when the column is a Date.
        ticks: Option<i64>,
        /// Whether it is a DateTime64, of which `toDate` wraps around where Date ends.
        wraps: bool,
        calendar: Calendar,
    },
}

/// A function of a time that ClickHouse and the relay both have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Month,
    Day,
    Date,
    Monday,
}

/// Identifies a partition of one table: a number derived from the date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(i64);

impl Key {
    /// A later date has a larger one.
    pub(super) fn number(self) -> i64 {
        self.0
    }
}

impl Rule {
    /// Reads `system.tables.partition_key`. `server_zone` is for columns that name none; `find` gives index and type of a column that the relay
    /// fills.
    ///
    /// # Errors
    /// What is not supported, as the end of a sentence.
    pub(super) fn parse(
        expression: &str,
        server_zone: Option<TimeZone>,
        starts_1970: bool,
        find: impl Fn(&str) -> Option<(usize, ColumnType)>,
    ) -> Result<Self, String> {
        let text = expression.trim();
        if text.is_empty() || text == "tuple()" {
            return Ok(Self::One);
        }
        let refused =
            || format!("the partition expression {text} is not one that the relay evaluates");
        let (name, rest) = text.split_once('(').ok_or_else(refused)?;
        let function = match name {
            "toYYYYMM" => Function::Month,
            "toYYYYMMDD" => Function::Day,
            "toDate" => Function::Date,
            "toMonday" => Function::Monday,
            _ => return Err(refused()),
        };
        let mut arguments = rest.strip_suffix(')').ok_or_else(refused)?.splitn(2, ',');
        let column_name = arguments
            .next()
            .unwrap_or_default()
            .trim()
            .trim_matches('`');
        let named_zone = arguments.next().map(|zone| zone.trim().trim_matches('\''));
        let (column, of) = find(column_name).ok_or_else(|| {
            format!("the partition expression {text} needs a column that the relay does not fill")
        })?;
        let ticks = match (&of.kind, of.nullable) {
            (Kind::Date, false) => None,
            (Kind::DateTime, false) => Some(1),
            (Kind::DateTime64 { precision }, false) => Some(10_i64.pow(*precision)),
            _ => return Err(refused()),
        };
        let zone = match named_zone {
            // A Date has no zone.
            _ if ticks.is_none() => TimeZone::UTC,
            Some(zone) => TimeZone::get(zone).map_err(|_| refused())?,
            None => of.zone.or(server_zone).ok_or_else(|| {
                format!("the partition expression {text} depends on the server's time zone, which the relay does not know")
            })?,
        };
        Ok(Self::Of {
            function,
            column,
            ticks,
            wraps: matches!(of.kind, Kind::DateTime64 { .. }),
            calendar: Calendar { zone, starts_1970 },
        })
    }

    /// The text of a partition as ClickHouse's `toString` of the expression gives it.
    pub(super) fn text(&self, key: Key) -> String {
        match self {
            Self::One => String::new(),
            Self::Of {
                function: Function::Month | Function::Day,
                ..
            } => key.0.to_string(),
            // Old servers show their first day as no day at all, but not as a Monday.
            Self::Of {
                function: Function::Date,
                calendar,
                ..
            } if calendar.starts_1970 && key.0 == 0 => "0000-00-00".to_owned(),
            Self::Of { .. } => civil_of(key.0).to_string(),
        }
    }
}

/// Evaluates a rule row by row. Remembers the bounds of the last day: events come nearly in order.
#[derive(Debug)]
pub(super) struct Evaluator {
    day: std::ops::Range<i64>,
    key: Key,
}

impl Evaluator {
    pub(super) fn new() -> Self {
        Self {
            day: 0..0,
            key: Key(0),
        }
    }

    /// The partition of a row.
    pub(super) fn key(&mut self, rule: &Rule, values: &[Value<'_>]) -> Key {
        let Rule::Of {
            function,
            column,
            ticks,
            wraps,
            calendar,
        } = rule
        else {
            return Key(0);
        };
        let stored = match values.get(*column) {
            Some(Value::Unsigned(value)) => value.cast_signed(),
            Some(Value::Signed(value)) => *value,
            _ => 0,
        };
        let Some(ticks) = ticks else {
            return function.of_days(stored, *wraps);
        };
        let seconds = stored.div_euclid(*ticks);
        if !self.day.contains(&seconds) {
            let (days, bounds) = day_around(seconds, &calendar.zone);
            let first = if calendar.starts_1970 { 0 } else { i64::MIN };
            self.day = bounds;
            self.key = function.of_days(days.max(first), *wraps);
        }
        self.key
    }
}

/// The civil day that holds an instant, and its bounds in seconds since 1970.
fn day_around(seconds: i64, zone: &TimeZone) -> (i64, std::ops::Range<i64>) {
    let utc = seconds.div_euclid(DAY_S);
    let plain = (utc, utc * DAY_S..(utc + 1) * DAY_S);
    if *zone == TimeZone::UTC {
        return plain;
    }
    let local = || -> Result<(i64, std::ops::Range<i64>), jiff::Error> {
        let date = zone.to_datetime(Timestamp::from_second(seconds)?).date();
        let start = date.to_zoned(zone.clone())?.timestamp().as_second();
        let end = date
            .tomorrow()?
            .to_zoned(zone.clone())?
            .timestamp()
            .as_second();
        Ok((days_of(date), start..end))
    };
    // Outside of the years that jiff knows no sink type has values.
    local().unwrap_or(plain)
}

fn days_of(date: civil::Date) -> i64 {
    let epoch = civil::date(1970, 1, 1);
    i64::from((date - epoch).get_days())
}

fn civil_of(days: i64) -> civil::Date {
    let span = jiff::Span::new().try_days(days).unwrap_or_default();
    civil::date(1970, 1, 1).saturating_add(span)
}

impl Function {
    /// Of a day, as days since 1970. `Date` has 2¹⁶ days from there on; what happens to others was
    /// tried on 26.9.
    fn of_days(self, days: i64, wraps: bool) -> Key {
        let date = || civil_of(days);
        let month = |date: civil::Date| i64::from(date.year()) * 100 + i64::from(date.month());
        Key(match self {
            Self::Month => month(date()),
            Self::Day => month(date()) * 100 + i64::from(date().day()),
            Self::Date if wraps => days.rem_euclid(DATE_DAYS),
            Self::Date => days.max(0),
            Self::Monday => {
                let monday = days - (days + EPOCH_WEEKDAY).rem_euclid(7);
                monday.clamp(0, DATE_DAYS - 1)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::Weekday;

    use super::*;

    fn rule(expression: &str, of: &str) -> Result<Rule, String> {
        let of = ColumnType::parse(of);
        Rule::parse(expression, Some(TimeZone::UTC), false, |name| {
            (name == "event_date_time")
                .then(|| of.clone())
                .flatten()
                .map(|of| (0, of))
        })
    }

    fn shown(expression: &str, of: &str, value: i64) -> String {
        let rule = rule(expression, of).unwrap();
        let key = Evaluator::new().key(&rule, &[Value::Signed(value)]);
        rule.text(key)
    }

    #[test]
    fn functions_of_a_time() {
        let us = 1_793_491_199_999_999; // 2026-10-31 23:59:59.999999 UTC
        let utc = "DateTime64(6, 'UTC')";
        assert_eq!(shown("toYYYYMM(event_date_time)", utc, us), "202610");
        assert_eq!(shown("toYYYYMMDD(event_date_time)", utc, us), "20261031");
        assert_eq!(shown("toDate(event_date_time)", utc, us), "2026-10-31");
        assert_eq!(shown("toMonday(event_date_time)", utc, us), "2026-10-26");
        let berlin = "DateTime64(6, 'Europe/Berlin')";
        assert_eq!(shown("toYYYYMM(event_date_time)", berlin, us), "202611");
        assert_eq!(
            shown("toYYYYMM(event_date_time, 'Asia/Tokyo')", utc, us),
            "202611"
        );
        assert_eq!(shown("", utc, us), "");
        assert_eq!(shown("tuple()", utc, us), "");
    }

    #[test]
    fn a_day_has_the_length_that_its_zone_gives_it() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let (_, summer_ends) = day_around(1_792_900_000, &zone); // 2026-10-25
        assert_eq!(summer_ends.end - summer_ends.start, 25 * 3600);
    }

    #[test]
    fn mondays() {
        for day in 0..1000 {
            let monday = Function::Monday.of_days(day, false).0;
            assert!(monday <= day && day - monday < 7);
            assert!(monday == 0 || civil_of(monday).weekday() == Weekday::Monday);
        }
    }

    #[test]
    fn an_unknown_zone_is_refused_where_it_matters() {
        let rule = |of: &str| {
            let of = ColumnType::parse(of).unwrap();
            Rule::parse("toYYYYMM(event_date_time)", None, false, |_| {
                Some((0, of.clone()))
            })
        };
        assert!(rule("DateTime").unwrap_err().contains("time zone"));
        assert!(rule("DateTime('UTC')").is_ok());
        assert!(rule("Date").is_ok());
    }

    #[test]
    fn others_are_refused_by_name() {
        let utc = "DateTime('UTC')";
        for expression in [
            "toStartOfHour(event_date_time)",
            "(a, b)",
            "intDiv(toUInt32(x), 7)",
            "event_type",
        ] {
            assert!(rule(expression, utc).unwrap_err().contains(expression));
        }
        assert!(
            rule("toYYYYMM(inserted_at)", utc)
                .unwrap_err()
                .contains("does not fill")
        );
    }
}
