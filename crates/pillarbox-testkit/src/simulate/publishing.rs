//! Publishers: transactions of every kind.

use std::time::Duration;

use pillarbox_relay::clock::Clock as _;
use uuid::Uuid;

use super::record::Record;
use super::scenario::POISON;
use super::world::Eyes;
use crate::fake::FakeTransaction;

/// A long transaction takes so long.
const LONG_MS_MAX: u64 = 20_000;

/// One event in so many is poison to some sinks.
const POISON_RARITY: u64 = 30;

/// How a transaction ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Commit,
    CommitAsync,
    RollBack,
    Prepare,
}

/// One transaction, under way.
struct Publisher<'a> {
    eyes: &'a Eyes,
    transaction: FakeTransaction,
    began: u64,
}

impl Publisher<'_> {
    /// Publishes an event of the last three months.
    fn publish(&mut self, slot: usize) -> Uuid {
        let (random, database) = (&self.eyes.clock, &self.eyes.database);
        let padding = match random.below(POISON_RARITY) {
            0 => POISON.to_owned(),
            _ => "x".repeat(random.below(40) as usize),
        };
        let mut event =
            database.event(format!("{{\"n\":{},\"p\":\"{padding}\"}}", random.random()));
        event.event_date_time -= Duration::from_secs(random.below(90) * 86_400);
        event.metadata_version = random.below(3).cast_signed();
        let (event_id, content) = (event.event_id, event.content());
        self.eyes.record.said(event_id, content, self.began);
        self.transaction.insert(slot, event);
        event_id
    }

    fn publish_some(&mut self, most: u64) {
        for _ in 0..self.eyes.clock.below(most) {
            let slot = self.eyes.database.slot();
            self.publish(slot);
        }
    }
}

/// Runs one transaction from begin to end. `number` names it where it is prepared.
pub(super) async fn publish(eyes: Eyes, number: u64) {
    let random = eyes.clock.clone();
    let end = match random.below(12) {
        0 | 1 => End::RollBack,
        2 | 3 => End::CommitAsync,
        4 => End::Prepare,
        _ => End::Commit,
    };
    let mut publisher = Publisher {
        eyes: &eyes,
        transaction: eyes.database.begin(),
        began: eyes.record.begin(),
    };
    match random.below(10) {
        // A publisher stalled between choosing its leaf and writing into it.
        0 => {
            let slot = eyes.database.slot();
            publisher.publish_some(3);
            wait(&eyes, LONG_MS_MAX).await;
            publisher.publish(slot);
        }
        1 => {
            for _ in 0..random.below(5) {
                publisher.publish_some(3);
                wait(&eyes, LONG_MS_MAX / 4).await;
            }
        }
        2 => {
            publisher.publish_some(4);
            let savepoint = publisher.transaction.savepoint();
            publisher.publish_some(4);
            if random.below(2) == 0 {
                publisher.transaction.rollback_to(savepoint);
            }
            publisher.publish_some(3);
        }
        3 => publisher.publish_some(60),
        4 => {
            publisher.publish_some(6);
            wait(&eyes, 300).await;
        }
        _ => publisher.publish_some(6),
    }
    finish(&eyes, publisher.transaction, end, number).await;
}

async fn finish(eyes: &Eyes, transaction: FakeTransaction, end: End, number: u64) {
    let record: &Record = &eyes.record;
    let committed = match end {
        End::RollBack => return transaction.rollback(),
        End::Commit => transaction.commit(),
        End::CommitAsync => transaction.commit_async(),
        End::Prepare => {
            let name = format!("p{number}");
            let events = transaction.events();
            if transaction.prepare(&name).is_err() {
                return;
            }
            wait(eyes, 2 * LONG_MS_MAX).await;
            return settle_prepared(eyes, &name, &events);
        }
    };
    if let Ok(events) = committed {
        record.committed(&events);
        eyes.trace
            .note(format_args!("tx {number} {end:?}: {} events", events.len()));
    }
}

/// Commits a prepared transaction or rolls it back, if a failover left it there.
fn settle_prepared(eyes: &Eyes, name: &str, events: &[Uuid]) {
    let is_committed = eyes.clock.below(4) > 0;
    if !is_committed {
        // It is not there any more after a failover.
        drop(eyes.database.rollback_prepared(name));
    } else if eyes.database.commit_prepared(name).is_ok() {
        eyes.record.committed(events);
        eyes.trace
            .note(format_args!("{name} committed: {} events", events.len()));
    }
}

async fn wait(eyes: &Eyes, most_ms: u64) {
    let wait = Duration::from_millis(eyes.clock.below(most_ms));
    eyes.clock.sleep(wait).await;
}
