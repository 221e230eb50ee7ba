//! Protections taken out of the fake database, to show what they are for.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::database::FakeDatabase;

/// What a database does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weakness {
    /// The lock of a sink keeps nobody out, as behind a pooler: the ledger's key alone is left.
    pub lock_is_shared: bool,
    /// A number of the ledger can be sealed twice; the later batch takes the place.
    pub takes_taken_numbers: bool,
    /// A leaf is emptied of what was sealed, delivered or not.
    pub truncates_by_position: bool,
}

impl FakeDatabase {
    /// Takes protections away.
    pub fn weaken(&self, weakness: Weakness) {
        let mut state = self.state();
        state.weakness = weakness;
        state.disk.ledger.takes_taken_numbers = weakness.takes_taken_numbers;
    }

    /// The events of committed transactions that the outbox holds.
    pub fn held(&self) -> BTreeSet<Uuid> {
        let state = self.state();
        let rows = state.disk.ring.rows();
        let visible = rows.filter(|row| state.disk.transactions.is_visible(row.at.tx));
        visible.map(|row| row.event.event_id).collect()
    }
}
