//! A `timestamptz` as PostgreSQL sends it: microseconds since 2000-01-01 UTC.

use std::time::{Duration, SystemTime};

/// 2000-01-01 UTC in seconds since the Unix epoch.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);
/// The bounds of `timestamptz` (`MIN_TIMESTAMP` and `END_TIMESTAMP` in datatype/timestamp.h): 4714 BC
/// to 294276 AD.
const RANGE_US: std::ops::Range<i64> = -211_813_488_000_000_000..9_223_371_331_200_000_000;

/// An instant that PostgreSQL can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timestamp(pub(crate) i64);

impl Timestamp {
    /// The microsecond in which `time` lies; `None` outside of what PostgreSQL can hold.
    pub(crate) fn new(time: SystemTime) -> Option<Self> {
        let nanos = match time.duration_since(SystemTime::UNIX_EPOCH + POSTGRES_EPOCH) {
            Ok(after) => i128::try_from(after.as_nanos()).ok()?,
            Err(before) => -i128::try_from(before.duration().as_nanos()).ok()?,
        };
        let micros = i64::try_from(nanos.div_euclid(1_000)).ok()?;
        RANGE_US.contains(&micros).then_some(Self(micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(unix: i128) -> Option<i64> {
        let distance = Duration::from_nanos(unix.unsigned_abs() as u64);
        let time = if unix < 0 {
            SystemTime::UNIX_EPOCH - distance
        } else {
            SystemTime::UNIX_EPOCH + distance
        };
        Timestamp::new(time).map(|timestamp| timestamp.0)
    }

    #[test]
    fn an_instant_becomes_the_microsecond_it_lies_in() {
        assert_eq!(micros(946_684_800_000_000_000), Some(0));
        assert_eq!(micros(946_684_800_000_001_999), Some(1));
        assert_eq!(micros(946_684_799_999_999_999), Some(-1));
        assert_eq!(micros(0), Some(-946_684_800_000_000));
        assert_eq!(micros(-1), Some(-946_684_800_000_001));
    }

    #[test]
    fn an_instant_that_postgresql_cannot_hold_is_refused() {
        let far = |secs| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(secs));
        assert!(far(9_224_318_015_999).and_then(Timestamp::new).is_some());
        assert_eq!(far(9_224_318_016_000).and_then(Timestamp::new), None);
        assert_eq!(far(u64::MAX >> 1).and_then(Timestamp::new), None);
    }
}
