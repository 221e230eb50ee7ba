//! Clocks: lag, retention and the age of a token are differences of PostgreSQL's; people compare all of them.

use std::time::{Duration, SystemTime};

use super::finding::{Findings, Remedy};
use super::{Subject, age};
use crate::exit::Failure;

/// Clocks that differ by less are the same to a reader of logs.
const SKEW_MAX: Duration = Duration::from_secs(5);

pub(super) async fn examine(subject: &Subject<'_>) -> Result<Findings, Failure> {
    let mut findings = Findings::of("clock");
    let asked = SystemTime::now();
    let now = subject
        .client
        .query_one("select pg_catalog.clock_timestamp()", &[]);
    let now: SystemTime = now.await?.get(0);
    judge(
        &mut findings,
        "postgresql",
        skew(asked, SystemTime::now(), now, Duration::ZERO),
    );
    Ok(findings)
}

/// How far a clock is from this machine's at least: it showed `shown`, or up to `grain` more, at some
/// moment between `asked` and `answered`. Negative when it is behind.
pub(super) fn skew(
    asked: SystemTime,
    answered: SystemTime,
    shown: SystemTime,
    grain: Duration,
) -> f64 {
    if let Ok(ahead) = shown.duration_since(answered) {
        return ahead.as_secs_f64();
    }
    let behind = asked.duration_since(shown + grain).unwrap_or_default();
    -behind.as_secs_f64()
}

pub(super) fn judge(findings: &mut Findings, whose: &str, skew: f64) {
    if skew.abs() <= SKEW_MAX.as_secs_f64() {
        findings.ok("skew", format!("{whose} and this machine agree"));
        return;
    }
    let side = if skew > 0.0 { "ahead of" } else { "behind" };
    findings.warning(
        "skew",
        format!(
            "the clock of {whose} is {} {side} this machine's",
            age(skew.abs())
        ),
        Remedy::person("have all machines keep their clocks by NTP: chronyc tracking, timedatectl"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_is_no_skew() {
        let second = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let grain = Duration::from_secs(1);
        for (shown, wanted) in [(100, 0.0), (110, 0.0), (117, 7.0), (99, 0.0), (90, -9.0)] {
            assert_eq!(skew(second(100), second(110), second(shown), grain), wanted);
        }
        assert_eq!(
            skew(second(100), second(110), second(99), Duration::ZERO),
            -1.0
        );
    }

    #[test]
    fn only_what_a_reader_would_notice_is_named() {
        let level = |skew| {
            let mut findings = Findings::of("clock");
            judge(&mut findings, "x", skew);
            findings.list[0].remedy.is_some()
        };
        assert!(!level(4.9) && !level(-4.9) && level(5.1) && level(-3_600.0));
    }
}
