//! Which events a batch holds: differences of PostgreSQL snapshots (PgQ's batch rule), cut by `(tx, id)`.
//!
//! Pure. `source::postgres` turns a [`Span`] into reads, the ledger stores it, and the SQL function
//! `pillarbox.is_done` states [`Position::is_done`] a second time for truncation and accounting.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A `pg_snapshot`: every transaction below `xmax` that is not in `xip` had finished.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    xip: Vec<u64>,
}

impl Snapshot {
    /// The snapshot before every transaction: a sink that starts there receives the whole outbox.
    pub fn origin() -> Self {
        Self {
            xmin: 1,
            xmax: 1,
            xip: Vec::new(),
        }
    }

    /// Transactions below this one had all finished.
    pub fn xmin(&self) -> u64 {
        self.xmin
    }

    /// No transaction from here on had finished.
    pub fn xmax(&self) -> u64 {
        self.xmax
    }

    /// Transactions below `xmax` that were still running, ascending.
    pub fn xip(&self) -> &[u64] {
        &self.xip
    }

    /// The same, but these had not finished. Those from `xmax` on had not anyway.
    #[must_use]
    pub fn with_running(&self, more: impl IntoIterator<Item = u64>) -> Self {
        let more = more.into_iter().filter(|tx| *tx < self.xmax);
        let mut xip: Vec<u64> = self.xip.iter().copied().chain(more).collect();
        xip.sort_unstable();
        xip.dedup();
        Self {
            xmin: xip.first().map_or(self.xmin, |first| self.xmin.min(*first)),
            xmax: self.xmax,
            xip,
        }
    }

    /// Whether transaction `tx` had finished.
    pub fn sees(&self, tx: u64) -> bool {
        tx < self.xmax && self.xip.binary_search(&tx).is_err()
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (position, tx) in self.xip.iter().enumerate() {
            let separator = if position == 0 { "" } else { "," };
            write!(f, "{separator}{tx}")?;
        }
        Ok(())
    }
}

/// A text that is not a `pg_snapshot`.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a snapshot of the form xmin:xmax:xip,xip")]
pub struct NotASnapshot(String);

impl FromStr for Snapshot {
    type Err = NotASnapshot;

    fn from_str(text: &str) -> Result<Self, NotASnapshot> {
        let refuse = || NotASnapshot(text.to_owned());
        let number = |part: &str| part.parse::<u64>().map_err(|_| refuse());
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().ok_or_else(refuse);
        let (xmin, xmax, list) = (number(next()?)?, number(next()?)?, next()?);
        let running = list.split(',').filter(|part| !part.is_empty());
        let xip = running.map(number).collect::<Result<Vec<_>, _>>()?;
        let ascending = xip.is_sorted_by(|a, b| a < b);
        let inside = xip.iter().all(|tx| (xmin..xmax).contains(tx));
        if xmin > xmax || !ascending || !inside {
            return Err(refuse());
        }
        Ok(Self { xmin, xmax, xip })
    }
}

/// A place in the order of events: after the event `(tx, id)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cut {
    /// Transaction id of the event.
    pub tx: u64,
    /// Identity of the event.
    pub id: i64,
}

/// The events of one batch: visible in `to`, not in `from`, after `after`, up to and with `until`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// Start of the window.
    pub from: Snapshot,
    /// End of the window.
    pub to: Snapshot,
    /// Where the batch before this one cut the same window.
    pub after: Option<Cut>,
    /// Where this batch cuts the window; `None` closes it.
    pub until: Option<Cut>,
}

impl Span {
    /// Whether the event at `at` belongs to this span.
    pub fn contains(&self, at: Cut) -> bool {
        self.to.sees(at.tx)
            && !self.from.sees(at.tx)
            && self.after.is_none_or(|after| at > after)
            && self.until.is_none_or(|until| at <= until)
    }

    /// Transactions to read one by one, ascending, each with the id after which to start: the ones
    /// that `from` saw running and `to` saw finished, and the one in which `after` lies.
    ///
    /// Together with [`Span::range`], which lies wholly above them, they cover the span in the order
    /// of `(tx, id)` without a sort and without a scan from `xmin(from)`.
    pub fn singles(&self) -> Vec<(u64, i64)> {
        let first = self.after.map(|after| (after.tx, after.id));
        let finished = self.from.xip.iter().filter(|tx| self.to.sees(**tx));
        let later = finished.filter(|tx| self.after.is_none_or(|after| **tx > after.tx));
        first
            .into_iter()
            .chain(later.map(|tx| (*tx, i64::MIN)))
            .collect()
    }

    /// Transactions `lo..hi` to read in one scan; `to` decides which of them count.
    pub fn range(&self) -> std::ops::Range<u64> {
        let above_cut = self.after.map_or(0, |after| after.tx.saturating_add(1));
        let lo = self.from.xmax.max(above_cut);
        lo..self.to.xmax.max(lo)
    }
}

/// Up to where a sink's sealing has come: what its last genesis or window batch covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Start of the last window.
    pub from: Snapshot,
    /// End of the last window.
    pub to: Snapshot,
    /// Where the last batch cut that window; `None` when it is closed.
    pub until: Option<Cut>,
}

impl Position {
    /// The position of a new sink that starts at `snapshot`.
    pub fn genesis(snapshot: Snapshot) -> Self {
        Self {
            from: snapshot.clone(),
            to: snapshot,
            until: None,
        }
    }

    /// Whether the event at `at` has been sealed at this position. `pillarbox.is_done` says the same.
    pub fn is_done(&self, at: Cut) -> bool {
        self.from.sees(at.tx) || (self.to.sees(at.tx) && self.until.is_none_or(|until| at <= until))
    }

    /// Whether the last window still has events to seal.
    pub fn is_cut(&self) -> bool {
        self.until.is_some()
    }

    /// The span to read next, not yet cut. A cut window keeps its `from` and `to`: continued with a
    /// new snapshot it would skip the events of a transaction that was running before the cut.
    pub fn next_span(&self, now: Snapshot) -> Span {
        match self.until {
            Some(cut) => Span {
                from: self.from.clone(),
                to: self.to.clone(),
                after: Some(cut),
                until: None,
            },
            None => Span {
                from: self.to.clone(),
                to: now,
                after: None,
                until: None,
            },
        }
    }
}

impl From<&Span> for Position {
    fn from(span: &Span) -> Self {
        Self {
            from: span.from.clone(),
            to: span.to.clone(),
            until: span.until,
        }
    }
}

#[cfg(test)]
mod tests;
