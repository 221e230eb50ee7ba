//! What a run of chaos came to.

use std::fmt;
use std::time::Duration;

use crate::oracle::Verdict;

/// Fewer events than this in a minute have shown nothing.
const PUBLISHED_PER_MINUTE: u64 = 1_000;

/// What happened, and what the comparison found.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub(super) seed: u64,
    pub(super) duration: Duration,
    pub(super) faults: u32,
    /// Kinds of fault that happened too seldom.
    pub(super) missing: Vec<String>,
    pub(super) unknown: u64,
    pub(super) resent: u64,
    pub(super) takeovers: u64,
    pub(super) relays_ended: u32,
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
        let mut found = Vec::new();
        if !self.verdict.holds() {
            found.push(self.verdict.explain().trim_end().to_owned());
        }
        if self.verdict.delivered + self.verdict.dead != self.verdict.published {
            found.push("published is not delivered + dead".to_owned());
        }
        let missing = self.missing.iter();
        found.extend(missing.map(|kind| format!("too seldom: {kind}")));
        let counts = [
            ("unknown", self.unknown),
            ("resent", self.resent),
            ("taken over", self.takeovers),
        ];
        let never = counts.iter().filter(|(_, count)| *count == 0);
        found.extend(never.map(|(what, _)| format!("nothing was ever {what}")));
        let least = PUBLISHED_PER_MINUTE * self.duration.as_secs() / 60;
        if self.verdict.published < least {
            found.push(format!("fewer than {least} events were published"));
        }
        if self.relays_ended > 0 {
            found.push(format!("relays ended by themselves: {}", self.relays_ended));
        }
        found
    }
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
