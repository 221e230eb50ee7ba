//! What drains took, and the digest's share of it with its spread. Pure.

use std::fmt;

use pillarbox_testkit::median::median;

/// What one drain took: CPU seconds per million events but for the last two.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) relay: f64,
    pub(crate) postgres: f64,
    pub(crate) clickhouse: f64,
    /// CPU seconds of ClickHouse to count and digest a million events, as `verify` does.
    pub(crate) verify: f64,
    pub(crate) events_per_s: f64,
    pub(crate) peak_mib: f64,
}

impl Figures {
    pub(crate) fn total(&self) -> f64 {
        self.relay + self.postgres + self.clickhouse
    }

    pub(crate) fn means(of: &[Self]) -> Self {
        let mean = |figure: fn(&Self) -> f64| of.iter().map(figure).sum::<f64>() / of.len() as f64;
        Self {
            relay: mean(|figures| figures.relay),
            postgres: mean(|figures| figures.postgres),
            clickhouse: mean(|figures| figures.clickhouse),
            verify: mean(|figures| figures.verify),
            events_per_s: mean(|figures| figures.events_per_s),
            peak_mib: mean(|figures| figures.peak_mib),
        }
    }

    pub(crate) fn print(&self, label: &str) {
        println!(
            "drain: {label:<16} relay {:.3}  postgresql {:.3}  clickhouse {:.3}  total {:.3}  \
             | verify {:.3} | {:.0} events/s | relay's peak {:.0} MiB",
            self.relay,
            self.postgres,
            self.clickhouse,
            self.total(),
            self.verify,
            self.events_per_s,
            self.peak_mib
        );
    }
}

/// What the digest takes of the CPU time of a drain, in per cent.
///
/// It is computed in the relay, so that the rest of the drain is only what it is compared with: one round's
/// share is the relay's difference divided by the total with the digest.
#[derive(Debug, PartialEq)]
pub(crate) struct Share {
    /// The sum of the differences divided by the sum of the totals: a long round weighs more.
    pub(crate) pooled: f64,
    /// Standard error of the pooled share, a ratio of two sums (Cochran, Sampling Techniques, chapter 6).
    error: f64,
    /// The smallest share of a round, the median, the largest.
    rounds: [f64; 3],
}

impl Share {
    /// Of rounds with and without the digest, two at least.
    pub(crate) fn new(with: &[Figures], without: &[Figures]) -> Self {
        let pairs = with.iter().zip(without);
        let costs: Vec<(f64, f64)> = pairs
            .map(|(with, without)| (100.0 * (with.relay - without.relay), with.total()))
            .collect();
        let sum: f64 = costs.iter().map(|(cost, _)| cost).sum();
        let total: f64 = costs.iter().map(|(_, total)| total).sum();
        let pooled = sum / total;
        let squares: f64 = costs
            .iter()
            .map(|(cost, total)| (cost - pooled * total).powi(2))
            .sum();
        let count = costs.len() as f64;
        let shares: Vec<f64> = costs.iter().map(|(cost, total)| cost / total).collect();
        Self {
            pooled,
            error: (squares * count / (count - 1.0)).sqrt() / total,
            rounds: [
                shares.iter().copied().fold(f64::INFINITY, f64::min),
                median(&shares),
                shares.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ],
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, middle, most] = self.rounds;
        write!(
            f,
            "{:.1} % pooled, standard error {:.1}; single rounds {least:.1} to {most:.1} %, median {middle:.1} %",
            self.pooled, self.error
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(relay: f64, clickhouse: f64) -> Figures {
        Figures {
            relay,
            clickhouse,
            ..Figures::default()
        }
    }

    #[test]
    fn rounds_are_pooled_by_their_totals() {
        let with = [drain(2.0, 8.0), drain(6.0, 24.0)];
        let share = Share::new(&with, &[drain(1.5, 9.0), drain(5.5, 1.0)]);
        // 5 % of 10 s, 1.7 % of 30 s: 1 s of 40 s.
        assert!((share.pooled - 2.5).abs() < 1e-9, "{share:?}");
        assert!((share.error - 1.25).abs() < 1e-9, "{share:?}");
        assert_eq!(
            share.to_string(),
            "2.5 % pooled, standard error 1.2; single rounds 1.7 to 5.0 %, median 3.3 %"
        );
    }

    #[test]
    fn rounds_that_agree_have_no_error() {
        let share = Share::new(&[drain(2.0, 8.0); 3], &[drain(1.5, 8.0); 3]);
        assert_eq!((share.pooled, share.error), (5.0, 0.0));
    }
}
