//! What a run of chaos came to.

use std::fmt;
use std::time::Duration;

use pillarbox_relay::verify::{Finding, Proof};

use super::poison::Letters;
use crate::oracle::Verdict;

/// Fewer events than this in a minute have shown nothing.
const PUBLISHED_PER_MINUTE: u64 = 1_000;

/// Findings of `verify` that are named.
const SHOWN_MAX: usize = 10;

/// What happened, and what the comparison found.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub(super) seed: u64,
    /// How long things broke, which may be longer than was asked for.
    pub(super) broke_for: Duration,
    pub(super) faults: u32,
    /// Kinds of fault that happened too seldom.
    pub(super) missing: Vec<String>,
    pub(super) unknown: u64,
    pub(super) resent: u64,
    pub(super) takeovers: u64,
    pub(super) relays_ended: u32,
    /// Whether the relays did not catch up by themselves.
    pub(super) is_late: bool,
    pub(super) letters: Letters,
    pub(super) proof: Proof,
    pub(super) verdict: Verdict,
}

impl Outcome {
    /// What the comparison found.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// How many faults happened.
    pub fn faults(&self) -> u32 {
        self.faults
    }

    /// Why the run counts as failed; empty when all holds.
    pub fn complaints(&self) -> Vec<String> {
        let mut found = self.broken_promises();
        found.extend(self.shows_too_little());
        found
    }

    /// What must not be, however short the run.
    pub fn broken_promises(&self) -> Vec<String> {
        let (verdict, proof) = (&self.verdict, &self.proof);
        let mut found = Vec::new();
        if !verdict.holds() {
            found.push(verdict.explain().trim_end().to_owned());
        }
        if verdict.delivered + verdict.dead != verdict.published {
            found.push("published is not delivered + dead".to_owned());
        }
        let findings = proof.findings.iter();
        found.extend(findings.take(SHOWN_MAX).map(differs));
        if proof.findings.len() > SHOWN_MAX {
            found.push(format!("verify: {} differ", proof.findings.len()));
        }
        if proof.unprovable > 0 {
            found.push(format!("verify: {} blocks unprovable", proof.unprovable));
        }
        if proof.rows != verdict.delivered {
            let (proven, delivered) = (proof.rows, verdict.delivered);
            found.push(format!("verify: {proven} of {delivered} rows are proven"));
        }
        if self.letters.unsettled > 0 {
            let count = self.letters.unsettled;
            found.push(format!("dead letters that nobody settles: {count}"));
        }
        if self.is_late {
            found.push("the relays did not catch up by themselves".to_owned());
        }
        if self.relays_ended > 0 {
            found.push(format!("relays ended by themselves: {}", self.relays_ended));
        }
        found
    }

    fn shows_too_little(&self) -> Vec<String> {
        let missing = self.missing.iter();
        let mut found: Vec<String> = missing.map(|kind| format!("too seldom: {kind}")).collect();
        let letters = &self.letters;
        let counts = [
            ("unknown", self.unknown),
            ("resent", self.resent),
            ("taken over", self.takeovers),
            ("set aside for its encoding", letters.unrepresentable),
            ("set aside for a refusal", letters.refused),
            ("retried in vain", letters.in_vain),
            ("delivered by a retry", letters.delivered),
        ];
        let never = counts.iter().filter(|(_, count)| *count == 0);
        found.extend(never.map(|(what, _)| format!("nothing was ever {what}")));
        let least = PUBLISHED_PER_MINUTE * self.broke_for.as_secs() / 60;
        if self.verdict.published < least {
            found.push(format!("fewer than {least} events were published"));
        }
        found
    }
}

fn differs(finding: &Finding) -> String {
    format!(
        "verify: batch {} in partition '{}': {}, {} rows of {}",
        finding.number,
        finding.partition,
        finding.difference.as_str(),
        finding.held_rows,
        finding.expected_rows
    )
}

/// The line with which `make chaos` ends.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "chaos: seed={} faults={} unknown={} resent={} takeovers={} {}",
            self.seed, self.faults, self.unknown, self.resent, self.takeovers, self.verdict
        )
    }
}

#[cfg(test)]
mod tests {
    use pillarbox_relay::verify::Difference;

    use super::*;
    use crate::oracle::Finding as Found;

    /// A run of five minutes that shows enough and breaks nothing.
    fn good() -> Outcome {
        Outcome {
            seed: 7,
            broke_for: Duration::from_secs(300),
            faults: 63,
            missing: Vec::new(),
            unknown: 1,
            resent: 1,
            takeovers: 1,
            relays_ended: 0,
            is_late: false,
            letters: Letters {
                unrepresentable: 1,
                refused: 2,
                in_vain: 1,
                delivered: 1,
                unsettled: 0,
            },
            proof: Proof {
                batches: 100,
                rows: 4_998,
                ..Proof::default()
            },
            verdict: Verdict {
                published: 5_000,
                delivered: 4_998,
                dead: 2,
                ..Verdict::default()
            },
        }
    }

    type Change = fn(&mut Outcome);

    fn complains(changes: &[Change], of: fn(&Outcome) -> Vec<String>) {
        for (nth, change) in changes.iter().enumerate() {
            let mut outcome = good();
            change(&mut outcome);
            assert!(!of(&outcome).is_empty(), "change {nth}: {outcome}");
            assert!(!outcome.complaints().is_empty(), "change {nth}: {outcome}");
        }
    }

    fn one() -> Found {
        Found {
            count: 1,
            ..Found::default()
        }
    }

    #[test]
    fn a_good_run_has_no_complaint_and_says_so() {
        assert_eq!(good().complaints(), [""; 0]);
        let line = "chaos: seed=7 faults=63 unknown=1 resent=1 takeovers=1 published=5000 \
                    delivered=4998 dead=2 lost=0 duplicated=0 phantom=0 altered=0";
        assert_eq!(good().to_string(), line);
    }

    #[test]
    fn each_broken_promise_is_a_complaint() {
        let changes: [Change; 12] = [
            |outcome| outcome.verdict.lost = one(),
            |outcome| outcome.verdict.duplicated = one(),
            |outcome| outcome.verdict.phantom = one(),
            |outcome| outcome.verdict.altered = one(),
            |outcome| outcome.verdict.misplaced = one(),
            |outcome| outcome.verdict.unresolved = one(),
            |outcome| outcome.verdict.dead = 1,
            |outcome| outcome.proof.rows -= 1,
            |outcome| outcome.proof.unprovable = 1,
            |outcome| outcome.letters.unsettled = 1,
            |outcome| outcome.is_late = true,
            |outcome| outcome.relays_ended = 1,
        ];
        complains(&changes, Outcome::broken_promises);
        let mut outcome = good();
        outcome.proof.findings.push(Finding {
            number: 11,
            partition: "202611".to_owned(),
            difference: Difference::Surplus,
            expected_rows: 3,
            held_rows: 6,
        });
        assert_eq!(
            outcome.broken_promises(),
            ["verify: batch 11 in partition '202611': surplus, 6 rows of 3"]
        );
    }

    #[test]
    fn a_run_that_shows_too_little_is_a_complaint() {
        let changes: [Change; 9] = [
            |outcome| outcome.missing.push("relay killed: 2 of 3".to_owned()),
            |outcome| outcome.unknown = 0,
            |outcome| outcome.resent = 0,
            |outcome| outcome.takeovers = 0,
            |outcome| outcome.letters.unrepresentable = 0,
            |outcome| outcome.letters.refused = 0,
            |outcome| outcome.letters.in_vain = 0,
            |outcome| outcome.letters.delivered = 0,
            |outcome| outcome.broke_for = Duration::from_secs(301),
        ];
        complains(&changes, Outcome::shows_too_little);
    }
}
