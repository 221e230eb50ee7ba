//! A publisher's transaction on the fake database.

use anyhow::{Result, bail};
use uuid::Uuid;

use pillarbox_relay::clock::Clock as _;

use super::database::FakeDatabase;
use super::event::FakeEvent;

/// A place in a transaction to which it can roll back.
#[derive(Clone, Copy, Debug)]
pub struct Savepoint(i64);

/// A transaction of a publisher; dropped, it rolls back.
#[derive(Debug)]
pub struct FakeTransaction {
    database: FakeDatabase,
    /// The life of the server in which it began.
    life: u64,
    tx: Option<u64>,
}

impl FakeTransaction {
    pub(super) fn new(database: FakeDatabase, life: u64) -> Self {
        Self {
            database,
            life,
            tx: None,
        }
    }

    /// Publishes an event with this payload.
    pub fn publish(&mut self, event_context: impl Into<Vec<u8>>) -> Uuid {
        let event = self.database.event(event_context);
        self.publish_event(event)
    }

    /// Publishes an event.
    pub fn publish_event(&mut self, event: FakeEvent) -> Uuid {
        let slot = self.database.slot();
        self.insert(slot, event)
    }

    /// Inserts into a slot that was chosen earlier: a publisher stalled in between.
    pub fn insert(&mut self, slot: usize, event: FakeEvent) -> Uuid {
        let event_id = event.event_id;
        let Some(tx) = self.write() else {
            return event_id;
        };
        let now = self.database.clock().wall();
        self.database.state().disk.ring.insert(slot, tx, event, now);
        event_id
    }

    /// Makes it take its id, as any write does. `None` after a crash.
    pub fn write(&mut self) -> Option<u64> {
        let mut state = self.database.state();
        if state.lives != self.life {
            return None;
        }
        let transactions = &mut state.disk.transactions;
        Some(*self.tx.get_or_insert_with(|| transactions.assign()))
    }

    /// The events that it published.
    pub fn events(&self) -> Vec<Uuid> {
        let state = self.database.state();
        let rows = state.disk.ring.rows();
        let own = rows.filter(|row| Some(row.at.tx) == self.tx);
        own.map(|row| row.event.event_id).collect()
    }

    /// SAVEPOINT.
    pub fn savepoint(&self) -> Savepoint {
        Savepoint(self.database.state().disk.ring.last_id())
    }

    /// ROLLBACK TO SAVEPOINT: what it published since then is gone.
    pub fn rollback_to(&mut self, savepoint: Savepoint) {
        let mut state = self.database.state();
        if let Some(tx) = self.tx.filter(|_| state.lives == self.life) {
            state.disk.ring.undo(tx, savepoint.0);
        }
    }

    /// Commits, and gives the events.
    ///
    /// # Errors
    /// When the server crashed since the beginning.
    pub fn commit(self) -> Result<Vec<Uuid>> {
        self.end(true)
    }

    /// Commits with `synchronous_commit = off`: a crash may lose it.
    ///
    /// # Errors
    /// When the server crashed since the beginning.
    pub fn commit_async(self) -> Result<Vec<Uuid>> {
        self.end(false)
    }

    fn end(mut self, is_durable: bool) -> Result<Vec<Uuid>> {
        let mut state = self.database.state();
        if state.lives != self.life {
            bail!("the server crashed");
        }
        Ok(match self.tx.take() {
            None => Vec::new(),
            Some(tx) => state.commit(tx, is_durable),
        })
    }

    /// PREPARE TRANSACTION.
    ///
    /// # Errors
    /// When it wrote nothing, or the server crashed since the beginning.
    pub fn prepare(mut self, name: &str) -> Result<()> {
        let mut state = self.database.state();
        match self.tx.take() {
            Some(tx) if state.lives == self.life => {
                state.disk.transactions.prepare(tx, name);
                Ok(())
            }
            _ => bail!("there is nothing to prepare"),
        }
    }

    /// Rolls back.
    pub fn rollback(self) {
        drop(self);
    }
}

impl Drop for FakeTransaction {
    fn drop(&mut self) {
        if let Some(tx) = self.tx {
            let mut state = self.database.state();
            if state.lives == self.life {
                state.disk.transactions.abort(tx);
            }
        }
    }
}
