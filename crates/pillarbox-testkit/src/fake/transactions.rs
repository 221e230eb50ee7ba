//! Transactions as PostgreSQL counts them: ids, snapshots, and what a crash forgets. Pure.

use std::collections::{BTreeMap, BTreeSet};

use pillarbox_relay::snapshot::Snapshot;

/// The first id: below lie those that PostgreSQL keeps for itself.
const FIRST: u64 = 700;

/// A transaction that has an id and has not ended.
#[derive(Clone, Debug, Default)]
struct Running {
    /// Its name, once it is prepared.
    prepared: Option<String>,
}

/// All transactions of a server.
#[derive(Clone, Debug)]
pub(super) struct Transactions {
    next: u64,
    latest_completed: u64,
    running: BTreeMap<u64, Running>,
    /// Committed ones, with the place of their COMMIT in the log.
    committed: BTreeMap<u64, u64>,
    /// The log so far, up to where it is on disk, and where each id appears first.
    written: u64,
    flushed: u64,
    first_records: Vec<(u64, u64)>,
}

impl Transactions {
    pub(super) fn new() -> Self {
        Self {
            next: FIRST,
            latest_completed: FIRST - 1,
            running: BTreeMap::new(),
            committed: BTreeMap::new(),
            written: 0,
            flushed: 0,
            first_records: Vec::new(),
        }
    }

    /// Gives the next id to a transaction that writes for the first time.
    pub(super) fn assign(&mut self) -> u64 {
        let tx = self.next;
        self.next += 1;
        self.running.insert(tx, Running::default());
        self.written += 1;
        self.first_records.push((self.written, tx));
        tx
    }

    /// `pg_current_snapshot()`: up to the latest id that ended, not up to the next one.
    pub(super) fn snapshot(&self) -> Snapshot {
        let xmax = self.latest_completed + 1;
        let running: Vec<String> = self
            .running
            .range(..xmax)
            .map(|(tx, _)| tx.to_string())
            .collect();
        let xmin = self
            .running
            .range(..xmax)
            .next()
            .map_or(xmax, |(tx, _)| *tx);
        let text = format!("{xmin}:{xmax}:{}", running.join(","));
        // It is well formed by construction.
        text.parse().unwrap_or_else(|_| Snapshot::origin())
    }

    /// Whether a statement that begins now sees what `tx` wrote.
    pub(super) fn is_visible(&self, tx: u64) -> bool {
        self.committed.contains_key(&tx)
    }

    pub(super) fn is_running(&self, tx: u64) -> bool {
        self.running.contains_key(&tx)
    }

    /// Ends `tx` well; a durable COMMIT flushes the log up to itself. Says whether it was running.
    pub(super) fn commit(&mut self, tx: u64, is_durable: bool) -> bool {
        if self.running.remove(&tx).is_none() {
            return false;
        }
        self.written += 1;
        self.committed.insert(tx, self.written);
        self.ended(tx);
        if is_durable {
            self.flushed = self.written;
        }
        true
    }

    pub(super) fn abort(&mut self, tx: u64) {
        if self.running.remove(&tx).is_some() {
            self.ended(tx);
        }
    }

    fn ended(&mut self, tx: u64) {
        self.latest_completed = self.latest_completed.max(tx);
    }

    /// PREPARE TRANSACTION: survives the session and a crash.
    pub(super) fn prepare(&mut self, tx: u64, name: &str) -> bool {
        self.written += 1;
        self.flushed = self.written;
        let Some(running) = self.running.get_mut(&tx) else {
            return false;
        };
        running.prepared = Some(name.to_owned());
        true
    }

    pub(super) fn prepared(&self, name: &str) -> Option<u64> {
        let named = |running: &Running| running.prepared.as_deref() == Some(name);
        let mut all = self.running.iter();
        all.find(|(_, running)| named(running)).map(|(tx, _)| *tx)
    }

    /// Everything written so far reaches the disk.
    pub(super) fn flush(&mut self) {
        self.flushed = self.written;
    }

    /// Ends the server and starts it again: returns the transactions of which nothing is left, and
    /// the next id. Ids from there on are given again, those of transactions that had rolled back
    /// included: nothing of them is left either.
    pub(super) fn crash(&mut self) -> (BTreeSet<u64>, u64) {
        let flushed = self.flushed;
        let unprepared = self
            .running
            .extract_if(.., |_, running| running.prepared.is_none());
        let mut lost: BTreeSet<u64> = unprepared.map(|(tx, _)| tx).collect();
        let unflushed = self.committed.extract_if(.., |_, at| *at > flushed);
        lost.extend(unflushed.map(|(tx, _)| tx));
        self.first_records.retain(|(at, _)| *at <= flushed);
        let known = self.first_records.iter().map(|(_, tx)| tx + 1);
        self.next = known.max().unwrap_or(FIRST);
        self.latest_completed = self.next - 1;
        self.written = flushed;
        (lost, self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_what_postgresql_gives() {
        let mut all = Transactions::new();
        assert_eq!(all.snapshot().to_string(), "700:700:");
        let (a, b, c) = (all.assign(), all.assign(), all.assign());
        assert_eq!(all.snapshot().to_string(), "700:700:");
        assert!(all.commit(b, true));
        assert_eq!(all.snapshot().to_string(), "700:702:700");
        all.abort(a);
        assert_eq!(all.snapshot().to_string(), "702:702:");
        assert!(all.commit(c, true));
        assert_eq!(all.snapshot().to_string(), "703:703:");
        assert!(all.is_visible(b) && !all.is_visible(a));
    }

    #[test]
    fn a_crash_counts_ids_from_lower_and_keeps_what_is_prepared() {
        let mut all = Transactions::new();
        let first = all.assign();
        assert!(all.commit(first, true));
        let prepared = all.assign();
        assert!(all.prepare(prepared, "p"));
        let lost = all.assign();
        assert!(all.commit(lost, false));
        let before = all.snapshot();
        assert_eq!(all.crash(), (BTreeSet::from([lost]), lost));
        assert!(all.snapshot().xmax() < before.xmax());
        assert_eq!(all.prepared("p"), Some(prepared));
        assert!(all.is_visible(first) && !all.is_visible(lost));
        assert_eq!(all.assign(), lost, "its id is given again");
    }
}
