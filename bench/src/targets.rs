//! The targets, and what a machine must reach for its figures to prove anything. Pure.

use serde::{Deserialize, Serialize};

use crate::report::{Report, figure};

/// What is asked of one figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// A target: its name, what it asks, and where its value comes from.
struct Target {
    name: &'static str,
    bound: Bound,
    value: Value,
}

/// How a value is made of series, each given by part and name.
enum Value {
    Median(&'static str, &'static str),
    /// The largest value of any of the series.
    Most(&'static str, &'static [&'static str]),
    /// The median of the first series divided by that of the second.
    Ratio(&'static str, &'static str, &'static str),
    /// The smallest of such ratios.
    SmallestRatio(&'static str, [(&'static str, &'static str); 2]),
    /// The median of the first series, which counts only while the second is at most so much.
    While(&'static str, &'static str, &'static str, f64),
}

/// What each figure has to reach.
const TARGETS: [Target; 15] = [
    target(
        "drain_small_vs_client",
        Bound::AtLeast(2.0),
        Value::Ratio("drain", "small/pillarbox", "small/client"),
    ),
    target(
        "drain_small_vs_curl",
        Bound::AtLeast(1.0),
        Value::Ratio("drain", "small/pillarbox", "small/curl"),
    ),
    target(
        "drain_small_vs_floor",
        Bound::AtLeast(0.85),
        Value::Median("drain", "small/pillarbox floor"),
    ),
    target(
        "drain_small_vs_poller",
        Bound::AtLeast(20.0),
        Value::Ratio("drain", "small/pillarbox", "small/poller/1000"),
    ),
    target(
        "drain_large_vs_client",
        Bound::AtLeast(2.5),
        Value::SmallestRatio(
            "drain",
            [
                ("100KB/pillarbox", "100KB/client"),
                ("5MB/pillarbox", "5MB/client"),
            ],
        ),
    ),
    target(
        "relay_cpu",
        Bound::AtMost(0.5),
        Value::Median("drain", "small/pillarbox cpu own"),
    ),
    target(
        "publish_insert",
        Bound::AtLeast(0.97),
        Value::Ratio("publish", "insert/4/300B", "heap/4/300B"),
    ),
    target(
        "publish_function",
        Bound::AtLeast(0.90),
        Value::Ratio("publish", "function/4/300B", "heap/4/300B"),
    ),
    target(
        "latency_1s",
        Bound::AtMost(1.3),
        Value::While("latency", "1s/1000 p99", "1s/1000 inserts", 1.0),
    ),
    target(
        "latency_100ms",
        Bound::AtMost(0.350),
        Value::While("latency", "100ms/1000 p99", "100ms/1000 inserts", 10.0),
    ),
    target(
        "held_snapshot",
        Bound::AtMost(1.5),
        Value::Ratio("held", "ring 5M", "ring 0"),
    ),
    target(
        "memory_drain",
        Bound::AtMost(400.0),
        Value::Most("drain", &["small/pillarbox memory"]),
    ),
    target(
        "memory_large",
        Bound::AtMost(400.0),
        Value::Most("drain", &["100KB/pillarbox memory", "5MB/pillarbox memory"]),
    ),
    target(
        "memory_steady",
        Bound::AtMost(64.0),
        Value::Most("latency", &["memory_steady"]),
    ),
    target(
        "growth",
        Bound::AtLeast(0.9),
        Value::Ratio("growth", "10M", "100k"),
    ),
];

/// Rates that the references reached where the targets were set, in events per second. A machine on which
/// one comes out far below is sick or busy, and a ratio to it flatters.
const REFERENCES: [(&str, f64); 3] = [
    ("small/client", 390_000.0),
    ("small/curl", 280_000.0),
    ("small/poller/1000", 29_000.0),
];

/// How much of that a reference must reach.
const REFERENCE_SHARE_MIN: f64 = 0.7;

const fn target(name: &'static str, bound: Bound, value: Value) -> Target {
    Target { name, bound, value }
}

/// A target beside what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) name: String,
    pub(crate) value: f64,
    bound: Bound,
    pub(crate) is_met: bool,
}

impl Verdict {
    /// Such as `≥ 2.00`.
    pub(crate) fn target(&self) -> String {
        match self.bound {
            Bound::AtLeast(least) => format!(">={}", figure(least)),
            Bound::AtMost(most) => format!("<={}", figure(most)),
        }
    }

    /// The line that ends a run.
    pub(crate) fn line(&self) -> String {
        format!(
            "bench: {} value={} target={} {}",
            self.name,
            figure(self.value),
            self.target(),
            if self.is_met { "ok" } else { "short" }
        )
    }
}

impl Value {
    /// The value, and whether it counts; `None` where a part of it was not measured.
    fn of(&self, report: &Report) -> Option<(f64, bool)> {
        let ratio = |part: &str, above: &str, below: &str| {
            Some(report.median(part, above)? / report.median(part, below)?)
        };
        match self {
            Self::Median(part, name) => Some((report.median(part, name)?, true)),
            Self::Most(part, names) => {
                let most = names.iter().map(|name| report.most(part, name));
                let most: Option<Vec<f64>> = most.collect();
                Some((most?.into_iter().max_by(f64::total_cmp)?, true))
            }
            Self::Ratio(part, above, below) => Some((ratio(part, above, below)?, true)),
            Self::SmallestRatio(part, [one, two]) => {
                let one = ratio(part, one.0, one.1)?;
                Some((one.min(ratio(part, two.0, two.1)?), true))
            }
            Self::While(part, name, limited, most) => {
                let counts = report.median(part, limited)? <= *most;
                Some((report.median(part, name)?, counts))
            }
        }
    }
}

/// Every target of which all was measured.
pub(crate) fn judge(report: &Report) -> Vec<Verdict> {
    let measured = TARGETS.iter().filter_map(|target| {
        let (value, counts) = target.value.of(report)?;
        let is_within = match target.bound {
            Bound::AtLeast(least) => value >= least,
            Bound::AtMost(most) => value <= most,
        };
        Some(Verdict {
            name: target.name.to_owned(),
            value,
            bound: target.bound,
            is_met: counts && is_within,
        })
    });
    measured.collect()
}

/// The references that were so slow that the run proves nothing.
pub(crate) fn slow_references(report: &Report) -> Vec<String> {
    let slow = REFERENCES.iter().filter_map(|(name, usual)| {
        let rate = report.median("drain", name)?;
        (rate < usual * REFERENCE_SHARE_MIN).then(|| {
            format!(
                "the reference {name} made {} events/s, far below the {} it is known for: this machine is \
                 slow or busy, so the ratios prove nothing; try again when it does little else",
                figure(rate),
                figure(*usual)
            )
        })
    });
    slow.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(series: &[(&str, &str, f64)]) -> Report {
        let mut report = Report::default();
        for (part, name, value) in series {
            report.add(part, name, "", *value);
        }
        report
    }

    #[test]
    fn a_target_is_judged_when_all_of_it_was_measured() {
        let report = report(&[
            ("drain", "small/pillarbox", 800_000.0),
            ("drain", "small/client", 390_000.0),
            ("drain", "small/poller/1000", 50_000.0),
            ("drain", "100KB/pillarbox", 900.0),
            ("drain", "100KB/client", 300.0),
        ]);
        let lines: Vec<String> = judge(&report).iter().map(Verdict::line).collect();
        assert_eq!(
            lines,
            [
                "bench: drain_small_vs_client value=2.05 target=>=2.00 ok",
                "bench: drain_small_vs_poller value=16.0 target=>=20.0 short",
            ]
        );
    }

    #[test]
    fn the_smaller_ratio_counts() {
        let report = report(&[
            ("drain", "100KB/pillarbox", 900.0),
            ("drain", "100KB/client", 300.0),
            ("drain", "5MB/pillarbox", 20.0),
            ("drain", "5MB/client", 10.0),
        ]);
        let verdicts = judge(&report);
        assert_eq!(verdicts[0].value, 2.0);
        assert!(!verdicts[0].is_met);
    }

    #[test]
    fn a_latency_bought_by_more_inserts_falls_short() {
        for (inserts, is_met) in [(0.9, true), (1.2, false)] {
            let report = report(&[
                ("latency", "1s/1000 p99", 1.1),
                ("latency", "1s/1000 inserts", inserts),
            ]);
            assert_eq!(judge(&report)[0].is_met, is_met);
        }
    }

    #[test]
    fn a_slow_reference_is_named() {
        let measured = [
            ("drain", "small/client", 272_999.0),
            ("drain", "small/curl", 200_000.0),
        ];
        let slow = slow_references(&report(&measured));
        assert_eq!(slow.len(), 1);
        assert!(
            slow[0].contains("small/client made 272,999 events/s"),
            "{slow:?}"
        );
    }
}
