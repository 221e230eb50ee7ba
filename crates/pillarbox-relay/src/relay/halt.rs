//! How the spine ends.

use std::time::Duration;

use crate::sink::{Reaction, Trouble};
use crate::source::SourceError;

/// Why a relay ended, or a tenure of it.
#[derive(Debug, thiserror::Error)]
pub enum Halt {
    /// The session with the source is gone; the next tenure goes on from the ledger.
    #[error(transparent)]
    Source(SourceError),
    /// Somebody has to mend something first.
    #[error("the sink stands still: {0}")]
    Stopped(String, #[source] Option<Trouble>),
    /// Columns of the sink or the outbox may have changed: plan again.
    #[error("columns have changed: {0}")]
    Replan(Trouble),
    /// Columns were seen to be others than those of the plan: plan again.
    #[error("{0}")]
    Outdated(Trouble),
    /// The destination took nothing for longer than a drain may wait.
    #[error("the destination does not take the events: {0}")]
    GaveUp(Trouble),
    /// Nothing moved for longer than any deadline.
    #[error("the relay made no progress for {0:?}")]
    Stuck(Duration),
    /// Another relay is active for this sink.
    #[error("another relay is active for this sink")]
    NotActive,
    /// The sink was retired.
    #[error("the sink was retired")]
    Retired,
}

impl From<SourceError> for Halt {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Broken(reason) => Self::Stopped(reason, None),
            SourceError::Row(error) | SourceError::Awaited(error) => {
                Self::Stopped(error.to_string(), None)
            }
            SourceError::Changed => Self::Outdated(Trouble {
                code: None,
                reason: error.to_string(),
                reaction: Reaction::Replan,
                source: None,
            }),
            lost => Self::Source(lost),
        }
    }
}

/// What a drain did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Batches delivered.
    pub batches: u64,
    /// Events delivered.
    pub rows: u64,
}

/// A stop for the reason of `trouble`.
pub(super) fn stopped(trouble: Trouble) -> Halt {
    Halt::Stopped(trouble.reason.clone(), Some(trouble))
}
