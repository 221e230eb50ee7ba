//! A batch and what it was split into: delivered piece by piece, and settled as one.

use tracing::Span;

use super::options::Poison;
use super::sealing::Prepared;
use crate::batch::{Batch, Kind, Store};
use crate::source::{DeadLetter, Outcome, Unfinished};

/// A batch with the pieces of it that are still to be delivered. Largest pieces go first, so that most
/// of a batch has arrived before its poison is searched for.
pub(super) struct Family {
    /// Number of its first batch.
    pub(super) root: i64,
    /// What traces show of it.
    pub(super) span: Span,
    /// Rows of its first batch.
    pub(super) rows: u64,
    is_retry: bool,
    pieces: Vec<Piece>,
    /// What is known of the pieces that need no further insert; recorded together at the end.
    pub(super) outcomes: Vec<Outcome>,
    pub(super) dead: Vec<DeadLetter>,
    /// The batches of `outcomes`.
    pub(super) settled: Vec<Batch>,
    /// Refused blocks by depth. Those of one depth share no row, and each holds poison: the largest
    /// number is one that the poison cannot be below.
    refused: Vec<u64>,
    /// Events that were set aside within the last hour, when this was asked.
    pub(super) lately: Option<u64>,
}

/// A sealed batch of a family.
pub(super) struct Piece {
    /// How often the first batch was split to get it.
    pub(super) depth: usize,
    pub(super) state: State,
}

/// How far a piece is.
pub(super) enum State {
    /// Encoded.
    Ready(Prepared),
    /// Sealed by an earlier tenure; to be read again.
    Sealed(Unfinished),
}

impl Piece {
    fn batch(&self) -> &Batch {
        match &self.state {
            State::Ready(prepared) => &prepared.batch,
            State::Sealed(unfinished) => &unfinished.batch,
        }
    }
}

impl Family {
    /// Of one batch that is not a child.
    pub(super) fn of(prepared: Prepared, span: Span) -> Self {
        let batch = &prepared.batch;
        let is_retry = batch.kind == Kind::Retry;
        let mut family = Self::new(batch.family(), batch.rows, is_retry, span);
        family.add(0, State::Ready(prepared));
        family
    }

    /// Of children that an earlier tenure left behind.
    pub(super) fn left_behind(root: i64, children: Vec<Unfinished>, span: Span) -> Self {
        let rows = children.first().map_or(0, |child| child.family_rows);
        let mut stores = children.iter().map(|child| child.batch.selection.store);
        // A replay of a retry has the store of that one.
        let is_retry = stores.any(|store| store == Store::Retried(root));
        let mut family = Self::new(root, rows, is_retry, span);
        for child in children {
            family.add(0, State::Sealed(child));
        }
        family
    }

    /// Bytes of the events that it holds in memory.
    pub(super) fn bytes(&self) -> u64 {
        let batches = self.pieces.iter().map(Piece::batch);
        batches.map(|batch| batch.bytes).sum()
    }

    fn new(root: i64, rows: u64, is_retry: bool, span: Span) -> Self {
        Self {
            span,
            root,
            rows,
            is_retry,
            pieces: Vec::new(),
            outcomes: Vec::new(),
            dead: Vec::new(),
            settled: Vec::new(),
            refused: Vec::new(),
            lately: None,
        }
    }

    pub(super) fn add(&mut self, depth: usize, state: State) {
        self.pieces.push(Piece { depth, state });
    }

    /// The largest piece that is left.
    pub(super) fn next(&mut self) -> Option<Piece> {
        let pieces = self.pieces.iter().enumerate();
        let (largest, _) = pieces.max_by_key(|(_, piece)| piece.batch().rows)?;
        Some(self.pieces.swap_remove(largest))
    }

    /// A piece needs no further insert.
    pub(super) fn settle(&mut self, batch: Batch, outcome: Outcome) {
        self.outcomes.push(outcome);
        self.settled.push(batch);
    }

    /// A block of a piece was refused for its rows.
    pub(super) fn refuse(&mut self, depth: usize) {
        if self.refused.len() <= depth {
            self.refused.resize(depth + 1, 0);
        }
        self.refused[depth] += 1;
    }

    /// Poison rows that it has at least.
    pub(super) fn poison(&self) -> u64 {
        self.refused.iter().copied().max().unwrap_or(0)
    }

    /// Why so much poison is none. What was set aside before and is retried in vain is no news.
    pub(super) fn drift(&self, limits: &Poison) -> Option<String> {
        if self.is_retry {
            return None;
        }
        drift(limits, self.poison(), self.rows, self.lately.unwrap_or(0))
    }

    /// The retry that it settles.
    pub(super) fn settled_retry(&self) -> Option<i64> {
        self.is_retry.then_some(self.root)
    }
}

/// Why so many bad rows are no poison but a change of the application or of the table. Pure.
pub(super) fn drift(limits: &Poison, poison: u64, rows: u64, lately: u64) -> Option<String> {
    let (rows_max, share_max) = (limits.rows_max, limits.share_max);
    // The share of a handful of rows says nothing.
    #[allow(clippy::cast_precision_loss)]
    let is_large = rows >= SHARE_ROWS_MIN && poison as f64 > share_max * rows as f64;
    let what = if is_large {
        format!("at least {poison} of {rows} events of a batch")
    } else if poison + lately > rows_max {
        format!("at least {} events within the last hour", poison + lately)
    } else {
        return None;
    };
    Some(format!(
        "the sink refuses {what}: that is a change of the table or of the application, not poison, so \
         nothing more was set aside; mend the table or its constraints and the relay goes on by itself; if \
         they are poison, raise relay.poison_max_rows ({rows_max}) or relay.poison_max_share \
         ({share_max}) and start the relay again"
    ))
}

/// Rows of a batch from which on a share of them is judged.
const SHARE_ROWS_MIN: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Poison = Poison {
        rows_max: 50,
        share_max: 0.1,
    };

    #[test]
    fn a_share_is_judged_from_a_hundred_rows_on() {
        assert_eq!(drift(&LIMITS, 10, 10, 0), None);
        assert_eq!(drift(&LIMITS, 10, 100, 0), None);
        assert!(drift(&LIMITS, 11, 100, 0).is_some());
    }

    #[test]
    fn a_number_is_judged_over_an_hour() {
        assert_eq!(drift(&LIMITS, 1, 1, 49), None);
        assert!(drift(&LIMITS, 1, 1, 50).is_some());
        assert!(drift(&LIMITS, 51, 100_000, 0).is_some());
    }

    #[test]
    fn refused_blocks_of_one_depth_count_once() {
        let mut family = Family::new(7, 1_000, false, Span::none());
        for depth in [0, 1, 1, 2, 2, 2] {
            family.refuse(depth);
        }
        assert_eq!(family.poison(), 3);
    }
}
