//! A relay, the fakes it stands on, and the oracle: what was published against what is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pillarbox_relay::relay::{Drained, Halt, Options, Relay};
use pillarbox_testkit::fake::{
    FakeClock, FakeDatabase, FakeSink, FakeSinkBuilder, FakeSource, LetterState, Operation,
    SessionOperation,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The name of the sink.
pub(super) const SINK: &str = "events";

/// Longer than every wait of the spine together, in virtual time.
const PATIENCE: Duration = Duration::from_secs(3600);

/// After this long no insert is on its way any more: above the deadline of the sinks here.
const ZOMBIES_MAX: Duration = Duration::from_secs(100);

/// Between two looks at a condition, at most.
const LOOK_MAX: Duration = Duration::from_millis(500);

type Spine = Relay<FakeSource, FakeSink, FakeClock>;

pub(super) struct World {
    pub(super) clock: FakeClock,
    pub(super) database: FakeDatabase,
    pub(super) sink: FakeSink,
    pub(super) options: Options,
}

/// A relay at work in a task.
pub(super) struct Running {
    pub(super) stop: CancellationToken,
    task: JoinHandle<Result<(), Halt>>,
}

impl World {
    /// Batches of at most three rows, so that few events make many batches.
    pub(super) fn new() -> Self {
        Self::with(FakeSink::builder().deadline(Duration::from_secs(60)), 1)
    }

    pub(super) fn with(sink: FakeSinkBuilder, seed: u64) -> Self {
        let clock = FakeClock::new(seed);
        let database = FakeDatabase::new(&clock);
        database.register(SINK);
        let mut options = Options::default();
        options.limits.rows_max = 3;
        Self {
            sink: sink.clock(&clock).build(),
            database,
            clock,
            options,
        }
    }

    pub(super) fn relay(&self, name: &str) -> Arc<Spine> {
        let source = self.database.source(SINK, name);
        let sink = self.sink.clone();
        Arc::new(Relay::new(
            source,
            sink,
            self.clock.clone(),
            self.options.clone(),
        ))
    }

    pub(super) fn start(&self, name: &str) -> Running {
        self.start_with(name, CancellationToken::new())
    }

    /// Starts one that nobody else holds up.
    pub(super) async fn start_active(&self, name: &str) -> Running {
        let relay = self.start(name);
        self.until("it is active", |world| {
            world.database.active_sessions() == 1
        })
        .await;
        relay
    }

    pub(super) fn start_with(&self, name: &str, stop: CancellationToken) -> Running {
        let relay = self.relay(name);
        let until = stop.clone();
        let task = tokio::spawn(async move { relay.run(&until).await });
        Running { stop, task }
    }

    pub(super) async fn drain(&self) -> Result<Drained, Halt> {
        self.relay("drain").drain(&CancellationToken::new()).await
    }

    /// Drains again and again until one goes through.
    pub(super) async fn drain_until_done(&self) {
        for _ in 0..50 {
            if self.drain().await.is_ok() && self.is_settled() {
                return;
            }
        }
        panic!("fifty drains were not enough");
    }

    /// Waits in virtual time.
    pub(super) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let waiting = async {
            let mut look = Duration::from_millis(5);
            while !condition(self) {
                tokio::time::sleep(look).await;
                look = (look * 5 / 4).min(LOOK_MAX);
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("{what}: not within {PATIENCE:?} of virtual time");
        }
    }

    pub(super) async fn until_settled(&self) {
        self.until("everything delivered and confirmed", Self::is_settled)
            .await;
    }

    /// Whether every committed event is stored or set aside and every batch has its outcome.
    pub(super) fn is_settled(&self) -> bool {
        let ended = self.ended_events();
        let published = self.database.published();
        let standing = self.database.standing(SINK);
        published.iter().all(|event| ended.contains_key(event))
            && standing.is_some_and(|standing| standing.unfinished.is_empty())
    }

    /// How often each event is in the sink or among the dead letters.
    fn ended_events(&self) -> BTreeMap<Uuid, u64> {
        let mut ended = self.sink.events();
        for event in self.dead() {
            *ended.entry(event).or_default() += 1;
        }
        ended
    }

    /// The events that are set aside.
    pub(super) fn dead(&self) -> BTreeSet<Uuid> {
        let letters = self.database.dead_letters(SINK).into_iter();
        let dead = letters.filter(|letter| letter.state != LetterState::Delivered);
        dead.map(|letter| letter.event_id).collect()
    }

    /// INV-1 and INV-2: what is stored or set aside is what was published, each once.
    pub(super) fn assert_exact(&self, context: &str) {
        let published = self.database.published();
        let expected: BTreeMap<_, u64> = published.into_iter().map(|event| (event, 1)).collect();
        let ended = self.ended_events();
        if ended == expected {
            return;
        }
        let lost = expected.keys().filter(|id| !ended.contains_key(*id));
        let phantom = ended.keys().filter(|id| !expected.contains_key(*id));
        let doubled = ended.values().filter(|count| **count > 1);
        panic!(
            "{context}: {} published; {} lost, {} phantom, {} doubled; inserts {:#?}",
            expected.len(),
            lost.count(),
            phantom.count(),
            doubled.count(),
            self.sink.inserts()
        );
    }

    /// Waits out every zombie and backoff, then compares.
    pub(super) async fn assert_exact_for_good(&self, context: &str) {
        tokio::time::sleep(ZOMBIES_MAX).await;
        self.sink.commit_late();
        self.assert_exact(context);
    }

    /// Calls `at` when the `call`-th operation of the relay begins, of the session or of the sink.
    pub(super) fn at_operation(&self, call: u64, at: impl Fn() + Send + Sync + 'static) {
        let count = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let at = Arc::new(at);
        let (count_too, at_too) = (Arc::clone(&count), Arc::clone(&at));
        let tick = move |count: &std::sync::atomic::AtomicU64| {
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == call
        };
        self.database.fail_by(move |_: SessionOperation, _| {
            if tick(&count) {
                at();
            }
            None
        });
        self.sink.fail_by(move |_: Operation, _| {
            if tick(&count_too) {
                at_too();
            }
            None
        });
    }
}

impl Running {
    /// Asks it to stop and waits for the end.
    pub(super) async fn stop(self) -> Result<(), Halt> {
        self.stop.cancel();
        self.ended().await
    }

    /// Waits for the end.
    pub(super) async fn ended(self) -> Result<(), Halt> {
        match tokio::time::timeout(PATIENCE, self.task).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => panic!("the relay panicked: {error}"),
            Err(_) => panic!("the relay did not end within {PATIENCE:?} of virtual time"),
        }
    }

    /// Ends it as `kill -9` does.
    pub(super) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
