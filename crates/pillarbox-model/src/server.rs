//! PostgreSQL as far as the protocol relies on it: transaction ids, visibility, snapshots, and what a
//! crash leaves of commits that nobody waited for.

use pillarbox_relay::snapshot::{Cut, Snapshot};

/// An event of the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// Its place in the order of events. The id, which no crash gives out again, is also its name.
    pub at: Cut,
    /// The leaf that it lies in, or will lie in.
    pub leaf: u8,
    /// Whether the row has been written.
    pub is_stored: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    Running,
    Committed,
    RolledBack,
    /// A crash took it, and its id may be given out again.
    Forgotten,
}

/// A transaction of a publisher, from when it takes its id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transaction {
    pub tx: u64,
    pub fate: Fate,
    pub events: Vec<Event>,
    /// Transactions that had committed when it took its id, by index (INV-10).
    pub began_after: Vec<usize>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Server {
    /// In the order in which they took their ids.
    pub transactions: Vec<Transaction>,
    pub next_tx: u64,
    pub next_id: i64,
    /// No transaction from here on has ended.
    pub xmax: u64,
    /// The log on disk holds every id below this one as given out.
    pub durable_tx: u64,
}

impl Server {
    pub fn new() -> Self {
        Self {
            transactions: Vec::new(),
            next_tx: 1,
            next_id: 1,
            xmax: 1,
            durable_tx: 1,
        }
    }

    pub fn begin(&mut self) {
        let committed = (0..self.transactions.len())
            .filter(|at| self.transactions[*at].fate == Fate::Committed)
            .collect();
        self.transactions.push(Transaction {
            tx: self.next_tx,
            fate: Fate::Running,
            events: Vec::new(),
            began_after: committed,
        });
        self.next_tx += 1;
    }

    /// Draws id and leaf of an event; the row is not there yet.
    pub fn draw(&mut self, at: usize, leaf: u8) {
        let transaction = &mut self.transactions[at];
        transaction.events.push(Event {
            at: Cut {
                tx: transaction.tx,
                id: self.next_id,
            },
            leaf,
            is_stored: false,
        });
        self.next_id += 1;
    }

    /// Writes the rows that were drawn.
    pub fn store(&mut self, at: usize) {
        for event in &mut self.transactions[at].events {
            event.is_stored = true;
        }
    }

    pub fn end(&mut self, at: usize, fate: Fate) {
        let transaction = &mut self.transactions[at];
        transaction.fate = fate;
        self.xmax = self.xmax.max(transaction.tx + 1);
    }

    /// A transaction of the relay itself, which takes an id and commits at once.
    pub fn seal(&mut self, is_durable: bool) {
        self.next_tx += 1;
        self.xmax = self.next_tx;
        if is_durable {
            self.durable_tx = self.next_tx;
        }
    }

    /// Dies and starts again. Of the transactions that are still running nothing remains, nor of those
    /// in `forgotten`; the next id is the lowest that the log allows.
    pub fn crash(&mut self, forgotten: &[usize]) {
        for (at, transaction) in self.transactions.iter_mut().enumerate() {
            if transaction.fate == Fate::Running || forgotten.contains(&at) {
                transaction.fate = Fate::Forgotten;
            }
        }
        let known = self
            .transactions
            .iter()
            .filter(|transaction| transaction.fate == Fate::Committed);
        let next = known.map(|known| known.tx + 1).max().unwrap_or(1);
        self.next_tx = next.max(self.durable_tx);
        self.xmax = self.next_tx;
    }

    /// `pg_current_snapshot()`.
    pub fn snapshot(&self) -> Snapshot {
        let running: Vec<u64> = self
            .transactions
            .iter()
            .filter(|transaction| transaction.fate == Fate::Running && transaction.tx < self.xmax)
            .map(|transaction| transaction.tx)
            .collect();
        let xmin = running.first().copied().unwrap_or(self.xmax);
        let list: Vec<String> = running.iter().map(u64::to_string).collect();
        let text = format!("{xmin}:{}:{}", self.xmax, list.join(","));
        // It is well formed by construction.
        text.parse().unwrap_or_else(|_| Snapshot::origin())
    }

    /// The rows that a statement sees which begins now, in the order of `(tx, id)`.
    pub fn visible(&self) -> impl Iterator<Item = &Event> {
        self.transactions
            .iter()
            .filter(|transaction| transaction.fate == Fate::Committed)
            .flat_map(|transaction| &transaction.events)
    }

    /// Indices of the transactions that have not ended.
    pub fn running(&self) -> impl Iterator<Item = usize> {
        let running = |at: &usize| self.transactions[*at].fate == Fate::Running;
        (0..self.transactions.len()).filter(running)
    }

    /// The transaction of an event, by index.
    pub fn transaction_of(&self, id: i64) -> Option<usize> {
        let has = |transaction: &Transaction| transaction.events.iter().any(|e| e.at.id == id);
        self.transactions.iter().position(has)
    }
}
