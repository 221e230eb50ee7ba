//! Whether a ledger speaks of this database: transaction ids and snapshots mean nothing in another.
//!
//! `pg_upgrade` and a copy of the files continue the transaction ids; a dump that is restored does not.
//! The difference is read from the rows themselves, never guessed from names or times.

use tokio_postgres::{Client, Row};

const IDENTITY: &str = include_str!("identity/identity.sql");

/// Transaction ids as the server keeps them in rows: the lower 32 bits.
const XID_BITS: u32 = 32;

/// What a database is to the ledger of a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The one in which the ledger was written.
    Same,
    /// The same one in a new cluster: transaction ids go on (`pg_upgrade`).
    Upgraded,
    /// A copy beside the original: transaction ids go on, but the original may go on, too.
    Copied,
    /// Restored from a dump: transaction ids in ledger and outbox are those of another database.
    Restored,
}

impl Identity {
    /// Whether the ledger's snapshots can be compared with every event of the outbox.
    pub fn has_continuous_ids(self) -> bool {
        self != Self::Restored
    }

    /// What happened, for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Same => "the database is the one in which its ledger was written",
            Self::Upgraded => "the database was upgraded",
            Self::Copied => "the database is a copy of the one in which its ledger was written",
            Self::Restored => "the database was restored from a dump",
        }
    }
}

/// Looks at the ledger of a sink.
///
/// # Errors
/// When the ledger cannot be read.
pub async fn identify(client: &Client, sink: i32) -> Result<Identity, tokio_postgres::Error> {
    let row = client.query_one(IDENTITY, &[&sink]).await?;
    Ok(Evidence::from(&row).judge())
}

/// What the ledger says, and what its rows show.
#[derive(Clone, Debug)]
struct Evidence {
    same_cluster: bool,
    same_database: bool,
    /// Seals that were looked at.
    seals: i64,
    /// Transactions that wrote them here.
    writers: i64,
    /// Whether the last of them is a genesis, which may name transactions that end after it.
    is_genesis: bool,
    /// The transaction that wrote the last seal here.
    writer: u64,
    /// Where the snapshot ends that it sealed.
    sealed_to: u64,
    /// The next transaction of this cluster.
    next: u64,
    /// The youngest transaction in the outbox.
    newest: u64,
}

impl From<&Row> for Evidence {
    fn from(row: &Row) -> Self {
        // The server prints numbers; a text that is none would be the largest: restored.
        let number = |column: usize| {
            let text: &str = row.get(column);
            text.parse().unwrap_or(u64::MAX)
        };
        Self {
            same_cluster: row.get(0),
            same_database: row.get(1),
            seals: row.get(2),
            writers: row.get(3),
            is_genesis: row.get(4),
            writer: row.get::<_, i64>(5).cast_unsigned(),
            sealed_to: number(6),
            next: number(7),
            newest: number(8),
        }
    }
}

impl Evidence {
    fn judge(&self) -> Identity {
        if !self.has_continuous_ids() {
            return Identity::Restored;
        }
        match (self.same_cluster, self.same_database) {
            (true, true) => Identity::Same,
            (true, false) => Identity::Copied,
            // Seals that one transaction wrote were copied by it.
            (false, _) if self.seals >= 2 && self.writers == self.seals => Identity::Upgraded,
            (false, _) => Identity::Restored,
        }
    }

    /// Whether the transactions of ledger and outbox can be ones of this cluster: it has come as far,
    /// and had when it wrote the last seal, which no transaction does before what it seals.
    fn has_continuous_ids(&self) -> bool {
        let is_ahead = self.newest < self.next && self.sealed_to <= self.next;
        is_ahead && (self.is_genesis || self.whole_writer() >= self.sealed_to)
    }

    /// The writer with its upper bits: the last one of that number so far.
    fn whole_writer(&self) -> u64 {
        let epoch = self.next >> XID_BITS << XID_BITS;
        let whole = epoch | self.writer;
        match whole < self.next {
            true => whole,
            false => whole.saturating_sub(1 << XID_BITS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ledger of ten batches in the database in which it was written.
    fn at_home() -> Evidence {
        Evidence {
            same_cluster: true,
            same_database: true,
            seals: 10,
            writers: 10,
            is_genesis: false,
            writer: 5_010,
            sealed_to: 5_008,
            next: 5_100,
            newest: 5_099,
        }
    }

    fn elsewhere() -> Evidence {
        Evidence {
            same_cluster: false,
            ..at_home()
        }
    }

    #[test]
    fn an_upgrade_keeps_who_wrote_what() {
        assert_eq!(at_home().judge(), Identity::Same);
        assert_eq!(elsewhere().judge(), Identity::Upgraded);
        let oid_kept = Evidence {
            same_database: false,
            ..elsewhere()
        };
        assert_eq!(oid_kept.judge(), Identity::Upgraded);
        let epochs = Evidence {
            next: (7 << 32) + 50,
            writer: u64::from(u32::MAX) - 3,
            sealed_to: (6 << 32) + u64::from(u32::MAX) - 5,
            newest: (7 << 32) + 3,
            ..elsewhere()
        };
        assert_eq!(epochs.judge(), Identity::Upgraded);
    }

    #[test]
    fn a_dump_is_written_anew() {
        let young = Evidence {
            writer: 740,
            writers: 1,
            next: 760,
            ..elsewhere()
        };
        assert_eq!(young.judge(), Identity::Restored);
        // The counter of the new cluster has come past everything since.
        let later = Evidence {
            next: 900_000,
            ..young.clone()
        };
        assert_eq!(later.judge(), Identity::Restored);
        // It was past everything before: nothing overlaps, but one transaction wrote all seals.
        let old = Evidence {
            writer: 899_000,
            ..later.clone()
        };
        assert_eq!(old.judge(), Identity::Restored);
        // Written row by row, as `pg_dump --inserts` does, before the counter came past them.
        let rows = Evidence {
            writers: 10,
            ..later
        };
        assert_eq!(rows.judge(), Identity::Restored);
        // Nothing but the registration: nobody can tell.
        let fresh = Evidence {
            seals: 1,
            writers: 1,
            is_genesis: true,
            ..elsewhere()
        };
        assert_eq!(fresh.judge(), Identity::Restored);
    }

    #[test]
    fn a_twin_of_the_cluster_is_told_by_its_transactions() {
        let behind = Evidence {
            next: 5_000,
            writer: 4_990,
            ..at_home()
        };
        assert_eq!(behind.judge(), Identity::Restored);
        let rows = Evidence {
            newest: 5_100,
            ..at_home()
        };
        assert_eq!(rows.judge(), Identity::Restored);
        let copy = Evidence {
            same_database: false,
            ..at_home()
        };
        assert_eq!(copy.judge(), Identity::Copied);
    }
}
