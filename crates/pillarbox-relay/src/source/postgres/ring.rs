//! Turns the ring and empties its leaves (INV-6, INV-8).
//!
//! A leaf is emptied only after: a check without a lock; the lock, which proves that no writer is in
//! flight there; and, in a later statement, the check again, which then sees all that ever committed
//! there. Without the second check, events that commit between the first one and the lock are lost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use super::{begin, lost, timed};
use crate::failpoint::step;
use crate::postgres::Session;
use crate::schema::LOCK_CLASS;
use crate::source::SourceError;

/// Number of leaves.
const LEAVES: i16 = 4;

/// Object of the lock that decides who turns and truncates; `pillarbox.register_sink` takes it too.
pub(super) const LOCK_RING: i32 = 0;

/// How often ledger rows past their retention are looked for.
const PRUNE_INTERVAL: Duration = Duration::from_secs(600);

/// What tends the ring, and what it remembers.
#[derive(Debug)]
pub(super) struct Ring {
    session: Session,
    /// Per sink, the batch up to which all are known to have an outcome; once so, always so.
    known_safe: BTreeMap<i32, i64>,
    pruned: Option<Instant>,
}

/// One leaf.
struct Leaf {
    slot: i16,
    is_current: bool,
    bytes: i64,
    is_empty: bool,
    is_due: bool,
}

impl Ring {
    pub(super) fn new(session: Session) -> Self {
        Self {
            session,
            known_safe: BTreeMap::new(),
            pruned: None,
        }
    }

    /// Turns the ring and empties leaves where that is due. Writes nothing where it is not (INV-11).
    pub(super) async fn tend(&mut self) -> Result<(), SourceError> {
        let leaves = timed(self.leaves()).await?;
        timed(self.turn(&leaves)).await?;
        let full = leaves
            .iter()
            .filter(|leaf| !leaf.is_current && !leaf.is_empty);
        let slots: Vec<(i16, i64)> = full.map(|leaf| (leaf.slot, leaf.bytes)).collect();
        if slots.is_empty() {
            return Ok(());
        }
        timed(self.learn_safe()).await?;
        for (slot, bytes) in slots {
            if timed(self.empty(slot)).await? {
                tracing::info!(slot, bytes, "a leaf of the ring was emptied");
            }
        }
        Ok(())
    }

    /// The safe number below which ledger rows of `sink` may be forgotten, when it is time to look.
    pub(super) fn prune_due(&mut self, sink: i32) -> Option<i64> {
        if self
            .pruned
            .is_some_and(|pruned| pruned.elapsed() < PRUNE_INTERVAL)
        {
            return None;
        }
        let safe = self.known_safe.get(&sink).copied()?;
        self.pruned = Some(Instant::now());
        Some(safe)
    }

    async fn leaves(&self) -> Result<Vec<Leaf>, SourceError> {
        const LIST: &str = include_str!("sql/leaves.sql");
        let rows = self.session.client().query(LIST, &[]).await.map_err(lost)?;
        let leaf = |row: &tokio_postgres::Row| Leaf {
            slot: row.get(0),
            is_current: row.get(1),
            bytes: row.get(2),
            is_empty: row.get(3),
            is_due: row.get(4),
        };
        Ok(rows.iter().map(leaf).collect())
    }

    /// Moves the position on when the current leaf is large or old and the next one is empty.
    async fn turn(&mut self, leaves: &[Leaf]) -> Result<(), SourceError> {
        let Some(current) = leaves.iter().find(|leaf| leaf.is_current) else {
            return Err(SourceError::Broken(
                "pillarbox.ring_position is not a slot of the ring".to_owned(),
            ));
        };
        let next = (current.slot + 1) % LEAVES;
        let next_is_empty = leaves.iter().any(|leaf| leaf.slot == next && leaf.is_empty);
        if !current.is_due || !next_is_empty {
            return Ok(());
        }
        const TURN: &str = "
            select pg_catalog.setval('pillarbox.ring_position', $1::bigint)
            where pillarbox.ring_slot() = $2";
        let transaction = begin(&mut self.session).await?;
        if locked(&transaction).await? {
            let given: &[&(dyn ToSql + Sync)] = &[&i64::from(next), &current.slot];
            transaction.query(TURN, given).await.map_err(lost)?;
            step!("ring-turned");
        }
        transaction.commit().await.map_err(lost)
    }

    async fn learn_safe(&mut self) -> Result<(), SourceError> {
        const SAFE: &str = include_str!("sql/safe.sql");
        let (sinks, numbers) = self.known();
        let rows = self
            .session
            .client()
            .query(SAFE, &[&sinks, &numbers])
            .await
            .map_err(lost)?;
        self.known_safe = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        Ok(())
    }

    /// Empties leaf `slot` if nobody needs it and nobody is in it.
    async fn empty(&mut self, slot: i16) -> Result<bool, SourceError> {
        let (sinks, numbers) = self.known();
        let needed = include_str!("sql/leaf_needed.sql").replace("{slot}", &slot.to_string());
        let busy = include_str!("sql/leaf_busy.sql").replace("{slot}", &slot.to_string());
        let lock = format!(
            "set local lock_timeout = '20ms';
             lock table only pillarbox.event_{slot} in access exclusive mode"
        );
        let transaction = begin(&mut self.session).await?;
        if !locked(&transaction).await? {
            return Ok(false);
        }
        let given: &[&(dyn ToSql + Sync)] = &[&sinks, &numbers];
        if transaction
            .query_one(&needed, given)
            .await
            .map_err(lost)?
            .get(0)
        {
            return Ok(false);
        }
        if transaction
            .query_one(&busy, &[])
            .await
            .map_err(lost)?
            .get(0)
        {
            return Ok(false);
        }
        step!("leaf-checked");
        match transaction.batch_execute(&lock).await {
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => return Ok(false),
            other => other.map_err(lost)?,
        }
        step!("leaf-locked");
        if is_checked_under_lock()
            && transaction
                .query_one(&needed, given)
                .await
                .map_err(lost)?
                .get(0)
        {
            return Ok(false);
        }
        step!("leaf-checked-again");
        let truncate = format!("truncate table only pillarbox.event_{slot}");
        transaction.batch_execute(&truncate).await.map_err(lost)?;
        step!("leaf-truncated");
        transaction.commit().await.map_err(lost)?;
        step!("leaf-emptied");
        Ok(true)
    }

    fn known(&self) -> (Vec<i32>, Vec<i64>) {
        self.known_safe
            .iter()
            .map(|(sink, number)| (*sink, *number))
            .unzip()
    }
}

async fn locked(transaction: &tokio_postgres::Transaction<'_>) -> Result<bool, SourceError> {
    const LOCK: &str = "select pg_catalog.pg_try_advisory_xact_lock($1, $2)";
    let row = transaction
        .query_one(LOCK, &[&LOCK_CLASS, &LOCK_RING])
        .await
        .map_err(lost)?;
    Ok(row.get(0))
}

/// Always, but for the negative control that shows what the second check is for.
fn is_checked_under_lock() -> bool {
    #[cfg(feature = "failpoints")]
    fail::fail_point!("skip-check-under-lock", |_| false);
    true
}
