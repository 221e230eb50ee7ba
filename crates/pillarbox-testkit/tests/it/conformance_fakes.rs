//! The fakes pass the suites that the real things pass.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use pillarbox_relay::clock::SystemClock;
use pillarbox_relay::sink::{Delivery, Guarantee, Reaction, Sink as _};
use pillarbox_testkit::conformance::outbox::{Loss, Publisher, SourceWorld};
use pillarbox_testkit::conformance::sink::{Mishap, SinkWorld, events, nth, seal};
use pillarbox_testkit::conformance::surroundings::{self, SharedWorld};
use pillarbox_testkit::conformance::{clock, sink, source};
use pillarbox_testkit::fake::{
    FakeClock, FakeDatabase, FakeSink, FakeSinkBuilder, FakeSource, FakeTransaction, Fault,
    Operation, RingSettings, SessionFault, SessionOperation, outbox_columns,
};
use uuid::Uuid;

const SINK: &str = "events";

struct FakeOutbox {
    clock: FakeClock,
    database: FakeDatabase,
    relays: std::sync::atomic::AtomicU64,
}

struct FakePublisher(FakeTransaction);

impl Publisher for FakePublisher {
    async fn publish(&mut self, count: usize) -> Result<Vec<Uuid>> {
        Ok((0..count).map(|_| self.0.publish("{}")).collect())
    }

    async fn commit(self) -> Result<()> {
        self.0.commit().map(drop)
    }

    async fn rollback(self) -> Result<()> {
        self.0.rollback();
        Ok(())
    }
}

impl SourceWorld for FakeOutbox {
    type Source = FakeSource;
    type Publisher = FakePublisher;

    fn source(&self) -> Result<FakeSource> {
        let number = self
            .relays
            .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(self.database.source(SINK, &format!("relay {number}")))
    }

    fn impatient(&self, takeover_after: Duration) -> Result<FakeSource> {
        Ok(self.source()?.takeover_after(takeover_after))
    }

    async fn set_clock_forward(&self, by: Duration) -> Result<bool> {
        self.clock.jump(by);
        Ok(true)
    }

    async fn begin(&self) -> Result<FakePublisher> {
        Ok(FakePublisher(self.database.begin()))
    }

    async fn kill_sessions(&self) -> Result<()> {
        self.database.kill_sessions(SINK);
        Ok(())
    }

    async fn set_paused(&self, paused: bool) -> Result<()> {
        self.database.set_paused(SINK, paused);
        Ok(())
    }

    async fn retire(&self) -> Result<()> {
        self.database.retire(SINK);
        Ok(())
    }

    async fn stopped_reason(&self) -> Result<Option<String>> {
        Ok(self.database.stopped_reason(SINK))
    }

    async fn hurry_ring(&self) -> Result<()> {
        self.database.set_ring(RingSettings {
            leaf_bytes_max: 1,
            leaf_age_max: Duration::from_secs(600),
            retention: Duration::ZERO,
            is_checked_under_lock: true,
        });
        Ok(())
    }

    async fn events_held(&self) -> Result<usize> {
        Ok(self.database.committed_rows())
    }

    async fn lose_session(&self, at: Loss) -> Result<bool> {
        let (operation, fault) = match at {
            Loss::BeforeSeal => (SessionOperation::Seal, SessionFault::LostBefore),
            Loss::AfterSeal => (SessionOperation::Seal, SessionFault::LostAfter),
            Loss::SealUnanswered => (SessionOperation::Seal, SessionFault::HangAfter),
            Loss::BeforeConfirm => (SessionOperation::Confirm, SessionFault::LostBefore),
            Loss::AfterConfirm => (SessionOperation::Confirm, SessionFault::LostAfter),
        };
        self.database.fail_next(operation, fault);
        Ok(true)
    }
}

#[tokio::test(start_paused = true)]
async fn the_fake_source_conforms() -> Result<()> {
    source::source(async || {
        let clock = FakeClock::new(11);
        let database = FakeDatabase::new(&clock);
        database.register(SINK);
        Ok(FakeOutbox {
            clock,
            database,
            relays: Default::default(),
        })
    })
    .await
}

struct FakeTable(FakeSink);

impl SinkWorld for FakeTable {
    type Sink = FakeSink;

    fn sink(&self) -> &FakeSink {
        &self.0
    }

    fn keeps_batch(&self) -> bool {
        true
    }

    async fn stored(&self) -> Result<BTreeMap<Uuid, (u64, Vec<u8>)>> {
        let mut stored: BTreeMap<Uuid, (u64, Vec<u8>)> = BTreeMap::new();
        for row in self.0.rows() {
            let entry = stored.entry(row.event_id);
            entry.or_insert((0, row.event_context)).0 += 1;
        }
        Ok(stored)
    }

    async fn fail(&self, mishap: Mishap) -> Result<bool> {
        let fault = match mishap {
            Mishap::Refused => Fault::Refuse(Reaction::Backoff),
            Mishap::LostBefore => Fault::FailBefore,
            Mishap::LostAfter => Fault::FailAfter,
            Mishap::Unanswered => Fault::HangAfter,
            Mishap::Late => Fault::Late(1),
        };
        self.0.fail_next(Operation::Deliver, fault);
        Ok(true)
    }

    async fn heal(&self) -> Result<()> {
        self.0.heal();
        Ok(())
    }
}

/// A table that others write into and that has a view.
struct SharedTable {
    table: FakeTable,
    view: std::sync::OnceLock<FakeSink>,
}

impl SharedTable {
    const WINDOW: usize = 8;

    fn new() -> Self {
        let sink = FakeSink::builder().window_blocks(Self::WINDOW).build();
        Self {
            table: FakeTable(sink),
            view: std::sync::OnceLock::new(),
        }
    }
}

impl SinkWorld for SharedTable {
    type Sink = FakeSink;

    fn sink(&self) -> &FakeSink {
        self.view.get().unwrap_or(&self.table.0)
    }

    fn keeps_batch(&self) -> bool {
        true
    }

    async fn stored(&self) -> Result<BTreeMap<Uuid, (u64, Vec<u8>)>> {
        FakeTable(self.sink().clone()).stored().await
    }

    async fn fail(&self, _: Mishap) -> Result<bool> {
        Ok(false)
    }

    async fn heal(&self) -> Result<()> {
        Ok(())
    }
}

impl SharedWorld for SharedTable {
    async fn crowd_out(&self) -> Result<()> {
        self.sink().written_by_others(Self::WINDOW as u64);
        Ok(())
    }

    async fn add_view(&self, has_window: bool) -> Result<()> {
        let window = if has_window { 100 } else { 0 };
        let sink = FakeSink::builder().window_blocks(100).view(window).build();
        anyhow::ensure!(self.view.set(sink).is_ok(), "one view");
        Ok(())
    }

    async fn set_view_broken(&self, is_broken: bool) -> Result<()> {
        self.sink().set_views_broken(is_broken);
        Ok(())
    }

    async fn viewed(&self) -> Result<BTreeMap<Uuid, u64>> {
        Ok(self.sink().views().remove(0))
    }
}

#[tokio::test(start_paused = true)]
async fn the_fake_sink_that_is_shared_conforms() -> Result<()> {
    surroundings::surroundings(async || Ok(SharedTable::new())).await
}

/// What a window behind a view is for: three sends, three rows, nine in the view.
#[tokio::test(start_paused = true)]
async fn negative_control_a_view_target_without_a_window_inflates() -> Result<()> {
    let sink = FakeSink::builder().view(0).build();
    // It would refuse to plan.
    let plan = FakeSink::default().prepare(&outbox_columns()).await?;
    let parcel = seal(&plan, 1, &events(3, 0))?;
    for attempt in 1..=3 {
        let sent = sink.deliver(&plan, &parcel.insert(0), nth(attempt)).await;
        assert!(matches!(sent, Delivery::Delivered(_)), "{sent:?}");
    }
    let counts: u64 = sink.views()[0].values().sum();
    assert_eq!((sink.rows().len(), counts), (3, 9));
    Ok(())
}

async fn conforms(builder: FakeSinkBuilder) -> Result<()> {
    sink::sink(async || Ok(FakeTable(builder.clone().build()))).await
}

#[tokio::test(start_paused = true)]
async fn the_fake_sink_with_tokens_conforms() -> Result<()> {
    conforms(FakeSink::builder()).await
}

#[tokio::test(start_paused = true)]
async fn the_fake_sink_that_is_looked_into_conforms() -> Result<()> {
    conforms(FakeSink::builder().guarantee(Guarantee::Lookup)).await
}

#[tokio::test(start_paused = true)]
async fn the_fake_clock_conforms() -> Result<()> {
    for seed in 0..20 {
        clock::clock(&FakeClock::new(seed)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_clock_of_the_machine_conforms() -> Result<()> {
    clock::clock(&SystemClock).await
}
