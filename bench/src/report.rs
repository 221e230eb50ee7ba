//! What was measured: series of figures, one for each round.

use pillarbox_testkit::median::median;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::targets::Verdict;

/// Everything that one run measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) series: Vec<Series>,
    pub(crate) targets: Vec<Verdict>,
    /// Why the run proves nothing; empty when it does.
    pub(crate) failures: Vec<String>,
}

/// One figure, measured once in each round.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Series {
    /// Part of the benchmark: drain, publish, latency, held, growth.
    pub(crate) part: String,
    /// What was measured, unique in its part.
    pub(crate) name: String,
    /// Unit of the values.
    pub(crate) unit: String,
    /// One value for each round.
    pub(crate) values: Vec<f64>,
}

impl Series {
    pub(crate) fn median(&self) -> Option<f64> {
        (!self.values.is_empty()).then(|| median(&self.values))
    }

    pub(crate) fn least(&self) -> Option<f64> {
        self.values.iter().copied().min_by(f64::total_cmp)
    }

    pub(crate) fn most(&self) -> Option<f64> {
        self.values.iter().copied().max_by(f64::total_cmp)
    }
}

impl Report {
    /// Adds the value of one round to a series, and shows it.
    pub(crate) fn add(&mut self, part: &str, name: &str, unit: &str, value: f64) {
        eprintln!("bench: {part}: {name} {} {unit}", figure(value));
        self.note(part, name, unit, value);
    }

    /// Adds the value of one round to a series.
    pub(crate) fn note(&mut self, part: &str, name: &str, unit: &str, value: f64) {
        let mut series = self.series.iter_mut();
        match series.find(|series| series.part == part && series.name == name) {
            Some(series) => series.values.push(value),
            None => self.series.push(Series {
                part: part.to_owned(),
                name: name.to_owned(),
                unit: unit.to_owned(),
                values: vec![value],
            }),
        }
    }

    /// Fails the run, which goes on to its end.
    pub(crate) fn fail(&mut self, reason: String) {
        eprintln!("bench: {reason}");
        self.failures.push(reason);
    }

    pub(crate) fn get(&self, part: &str, name: &str) -> Option<&Series> {
        let mut series = self.series.iter();
        series.find(|series| series.part == part && series.name == name)
    }

    /// The median of a series; `None` where it was not measured.
    pub(crate) fn median(&self, part: &str, name: &str) -> Option<f64> {
        self.get(part, name)?.median()
    }

    /// The largest value of a series; `None` where it was not measured.
    pub(crate) fn most(&self, part: &str, name: &str) -> Option<f64> {
        self.get(part, name)?.most()
    }
}

/// A figure with the digits that mean something.
pub(crate) fn figure(value: f64) -> String {
    let size = value.abs();
    if size >= 1000.0 {
        thousands(value.round() as i64)
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 1.0 || size == 0.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}

fn thousands(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    match value < 0 {
        true => format!("-{text}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_one_or_the_mean_of_both() {
        let mut report = Report::default();
        assert_eq!(report.median("drain", "small"), None);
        for (value, median) in [(3.0, 3.0), (1.0, 2.0), (10.0, 3.0)] {
            report.add("drain", "small", "events/s", value);
            assert_eq!(report.median("drain", "small"), Some(median));
        }
        assert_eq!(report.most("drain", "small"), Some(10.0));
        assert_eq!(report.series.len(), 1);
    }

    #[test]
    fn figures_have_the_digits_that_mean_something() {
        let shown = [1_234_567.4, 999.6, 99.44, 2.345, 0.0714, 0.0].map(figure);
        assert_eq!(
            shown,
            ["1,234,567", "1000", "99.4", "2.35", "0.071", "0.00"]
        );
    }
}
