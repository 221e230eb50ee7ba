//! What databases and tables of benchmarks are called: a prefix, when the benchmark began, and chance.

use std::time::{Duration, SystemTime};

use uuid::Uuid;

const PREFIX: &str = "pillarbox_bench_";

/// Hexadecimal digits of the seconds since 1970.
const TIME_DIGITS: usize = 8;

/// All of them.
const DIGITS: usize = 16;

/// A name that nothing else has.
pub(super) fn new(now: SystemTime) -> String {
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.unwrap_or_default().as_secs();
    let chance = Uuid::new_v4().simple().to_string();
    format!(
        "{PREFIX}{seconds:0TIME_DIGITS$x}{}",
        &chance[..DIGITS - TIME_DIGITS]
    )
}

/// When the benchmark of that name began; `None` when it is not a name of ours.
pub(super) fn began(name: &str) -> Option<SystemTime> {
    let digits = name.strip_prefix(PREFIX)?;
    let is_digit = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    if digits.len() != DIGITS || !digits.chars().all(is_digit) {
        return None;
    }
    let seconds = u64::from_str_radix(&digits[..TIME_DIGITS], 16).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_when_it_was_given() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_894_466);
        let (one, other) = (new(now), new(now));
        assert_ne!(one, other);
        assert_eq!(began(&one), Some(now));
        assert!(one.starts_with("pillarbox_bench_6b0b2cc2"), "{one}");
    }

    #[test]
    fn other_names_are_not_ours() {
        for other in [
            "pillarbox_bench_0123456789abcde",
            "pillarbox_bench_0123456789abcdef0",
            "pillarbox_bench_0123456789ABCDEF",
            "pillarbox_bench_0123456789abcdeg",
            "my_pillarbox_bench_0123456789abcdef",
            "pillarbox_bench_results",
            "pillarbox_bench_",
            "pillarbox_bench_ééééééé0",
        ] {
            assert_eq!(began(other), None, "{other}");
        }
    }
}
