//! The targets of earlier runs: side by side they tell a regression from a slow hour. Pure.

use serde::{Deserialize, Serialize};

use crate::report::Report;
use crate::targets::Verdict;

/// Runs that the document shows.
const SHOWN: usize = 5;

/// The runs that were kept, the oldest first.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct History(Vec<Run>);

/// What is kept of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) is_full: bool,
    pub(crate) targets: Vec<Verdict>,
    /// Why the run proves nothing; empty when it does.
    pub(crate) failures: Vec<String>,
}

impl History {
    pub(crate) fn add(&mut self, report: &Report) {
        self.0.push(Run {
            date: report.machine.date.clone(),
            commit: report.machine.commit.clone(),
            is_full: report.machine.is_full,
            targets: report.targets.clone(),
            failures: report.failures.clone(),
        });
    }

    /// The newest ones, the oldest of them first.
    pub(crate) fn shown(&self) -> &[Run] {
        &self.0[self.0.len().saturating_sub(SHOWN)..]
    }
}

impl Run {
    pub(crate) fn command(&self) -> &'static str {
        command(self.is_full)
    }

    pub(crate) fn verdict(&self, target: &str) -> Option<&Verdict> {
        self.targets.iter().find(|verdict| verdict.name == target)
    }
}

/// What makes such a run.
pub(crate) fn command(is_full: bool) -> &'static str {
    if is_full {
        "make bench-full"
    } else {
        "make bench"
    }
}
