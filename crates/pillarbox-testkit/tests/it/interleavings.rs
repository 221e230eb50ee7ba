//! Random interleavings on a real server, kept as a list of operations so that a failure shrinks to the
//! shortest one: publishers, savepoints, prepared transactions, seals, cuts, confirmations in any
//! order, the ring, lost relays and crashes (INV-1, INV-2, INV-3, INV-8).
//!
//! `PILLARBOX_SEED` repeats a run, `PILLARBOX_CASES` makes it longer.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use pillarbox_relay::source::Session;
use pillarbox_testkit::servers::PgVersion;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestCaseError, TestRunner};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::outbox::{Drain, Outbox, backend, exactly_once, publish};

/// Cases of a run in `make test`: a few seconds.
const CASES: u32 = 8;

/// Tries to make a failing case shorter: each takes as long as a case.
const SHRINKS_MAX: u32 = 200;

const PUBLISHERS: usize = 3;

/// What happens next. What cannot happen in the state that is reached does not.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Begin(usize, Level),
    Publish(usize, i32),
    /// Sets a savepoint, or a later one of the same name.
    Savepoint(usize),
    RollBackTo(usize),
    Commit(usize),
    RollBack(usize),
    Prepare(usize),
    CommitPrepared(usize),
    RollBackPrepared(usize),
    /// Seals a batch of so many rows at most; small ones cut their window.
    Seal(u64),
    /// Confirms one of the batches that are sealed and open.
    Confirm(usize),
    Turn,
    Tend,
    /// Ends the sessions of the relay; another one takes over.
    KillRelay,
    /// Kills PostgreSQL and starts it again.
    Crash,
}

#[derive(Clone, Copy, Debug)]
enum Level {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

impl Level {
    fn begin(self) -> &'static str {
        match self {
            Self::ReadCommitted => "begin isolation level read committed",
            Self::RepeatableRead => "begin isolation level repeatable read",
            Self::Serializable => "begin isolation level serializable",
        }
    }
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    use Operation as O;
    let level = prop_oneof![
        Just(Level::ReadCommitted),
        Just(Level::RepeatableRead),
        Just(Level::Serializable)
    ];
    let who = 0..PUBLISHERS;
    let operation = prop_oneof![
        6 => (who.clone(), level).prop_map(|(who, level)| O::Begin(who, level)),
        10 => (who.clone(), 1..5).prop_map(|(who, count)| O::Publish(who, count)),
        2 => who.clone().prop_map(O::Savepoint),
        2 => who.clone().prop_map(O::RollBackTo),
        6 => who.clone().prop_map(O::Commit),
        2 => who.clone().prop_map(O::RollBack),
        2 => who.prop_map(O::Prepare),
        2 => any::<usize>().prop_map(O::CommitPrepared),
        1 => any::<usize>().prop_map(O::RollBackPrepared),
        8 => (1_u64..6).prop_map(O::Seal),
        6 => any::<usize>().prop_map(O::Confirm),
        3 => Just(O::Turn),
        4 => Just(O::Tend),
        2 => Just(O::KillRelay),
        1 => Just(O::Crash),
    ];
    vec(operation, 20..90)
}

/// A publisher, with the events of its open transaction.
struct Publisher {
    session: Client,
    open: Option<Vec<Uuid>>,
    /// How many of them were there when the savepoint was set.
    savepoint: Option<usize>,
}

/// The server, and what must come of what was done to it.
struct World {
    outbox: Outbox,
    publishers: Vec<Publisher>,
    prepared: BTreeMap<String, Vec<Uuid>>,
    next_name: u32,
    committed: Vec<Uuid>,
    drain: Drain,
    /// Everything that was sealed, as it would be sent.
    batches: Vec<Vec<Uuid>>,
    /// What is sealed and not confirmed, by number.
    open: BTreeMap<i64, Vec<Uuid>>,
}

impl World {
    /// Nothing is open and nothing waits, whatever the case before left behind.
    async fn on(outbox: Outbox) -> Result<Self> {
        let prepared = outbox.admin.query("select gid from pg_prepared_xacts", &[]);
        for row in prepared.await? {
            let forget = format!("rollback prepared '{}'", row.get::<_, String>(0));
            outbox.admin.batch_execute(&forget).await?;
        }
        let mut drain = outbox.drain("main").await?;
        drain.all(1_000).await?;
        for slot in 0..4 {
            outbox.turn_to(slot).await?;
            drain.session.tend().await?;
        }
        outbox.turn_to(0).await?;
        let mut world = Self {
            outbox,
            publishers: Vec::new(),
            prepared: BTreeMap::new(),
            next_name: 0,
            committed: Vec::new(),
            drain,
            batches: Vec::new(),
            open: BTreeMap::new(),
        };
        world.connect_publishers().await?;
        Ok(world)
    }

    async fn connect_publishers(&mut self) -> Result<()> {
        self.publishers.clear();
        for _ in 0..PUBLISHERS {
            self.publishers.push(Publisher {
                session: self.outbox.server.connect().await?,
                open: None,
                savepoint: None,
            });
        }
        Ok(())
    }

    async fn perform(&mut self, operation: Operation) -> Result<()> {
        match operation {
            Operation::Begin(who, _)
            | Operation::Publish(who, _)
            | Operation::Savepoint(who)
            | Operation::RollBackTo(who)
            | Operation::Commit(who)
            | Operation::RollBack(who)
            | Operation::Prepare(who) => self.act(who, operation).await,
            Operation::CommitPrepared(which) => self.settle(which, true).await,
            Operation::RollBackPrepared(which) => self.settle(which, false).await,
            Operation::Seal(rows_max) => self.seal(rows_max).await,
            Operation::Confirm(which) => self.confirm(which).await,
            Operation::Turn => {
                let next = (self.outbox.slot().await? + 1) % 4;
                if self.outbox.is_empty(next).await? {
                    self.outbox.turn_to(next).await?;
                }
                Ok(())
            }
            Operation::Tend => {
                self.drain.session.tend().await?;
                self.is_as_sealed().await
            }
            Operation::KillRelay => self.kill_relay().await,
            Operation::Crash => self.crash().await,
        }
    }

    /// What a publisher does within its transaction, or to begin one.
    async fn act(&mut self, who: usize, operation: Operation) -> Result<()> {
        let publisher = &mut self.publishers[who];
        let session = &publisher.session;
        let Some(events) = &mut publisher.open else {
            match operation {
                Operation::Begin(_, level) => {
                    session.batch_execute(level.begin()).await?;
                    publisher.open = Some(Vec::new());
                }
                Operation::Publish(_, count) => {
                    self.committed.extend(publish(session, count).await?);
                }
                _ => {}
            }
            return Ok(());
        };
        match operation {
            Operation::Publish(_, count) => events.extend(publish(session, count).await?),
            Operation::Savepoint(_) => {
                session.batch_execute("savepoint s").await?;
                publisher.savepoint = Some(events.len());
            }
            Operation::RollBackTo(_) => {
                if let Some(kept) = publisher.savepoint {
                    session.batch_execute("rollback to savepoint s").await?;
                    events.truncate(kept);
                }
            }
            Operation::Commit(_) => {
                session.batch_execute("commit").await?;
                self.committed.append(events);
            }
            Operation::RollBack(_) => session.batch_execute("rollback").await?,
            Operation::Prepare(_) => {
                self.next_name += 1;
                let name = format!("p{}", self.next_name);
                let prepare = format!("prepare transaction '{name}'");
                session.batch_execute(&prepare).await?;
                self.prepared.insert(name, std::mem::take(events));
            }
            _ => {}
        }
        let ends = [
            Operation::Commit(who),
            Operation::RollBack(who),
            Operation::Prepare(who),
        ];
        let kind = std::mem::discriminant(&operation);
        if ends.iter().any(|end| std::mem::discriminant(end) == kind) {
            (publisher.open, publisher.savepoint) = (None, None);
        }
        Ok(())
    }

    async fn settle(&mut self, which: usize, is_kept: bool) -> Result<()> {
        let names: Vec<String> = self.prepared.keys().cloned().collect();
        let Some(name) = names.get(which % names.len().max(1)) else {
            return Ok(());
        };
        let how = if is_kept { "commit" } else { "rollback" };
        let settle = format!("{how} prepared '{name}'");
        self.outbox.admin.batch_execute(&settle).await?;
        let events = self.prepared.remove(name).context("a prepared one")?;
        if is_kept {
            self.committed.extend(events);
        }
        Ok(())
    }

    async fn seal(&mut self, rows_max: u64) -> Result<()> {
        if let Some(sealed) = self.drain.seal(rows_max).await? {
            self.batches.push(sealed.ids());
            self.open.insert(sealed.batch.number, sealed.ids());
            self.drain.unfinished.push(sealed.batch);
        }
        Ok(())
    }

    async fn confirm(&mut self, which: usize) -> Result<()> {
        let open = &mut self.drain.unfinished;
        if !open.is_empty() {
            let batch = open.remove(which % open.len());
            self.drain.confirm(&batch).await?;
            self.open.remove(&batch.number);
        }
        Ok(())
    }

    /// INV-3, INV-8: every open batch can be read again as it was sealed.
    async fn is_as_sealed(&self) -> Result<()> {
        let numbers: Vec<i64> = self.drain.unfinished.iter().map(|b| b.number).collect();
        let open: Vec<i64> = self.open.keys().copied().collect();
        ensure!(numbers == open, "open are {open:?}, found {numbers:?}");
        for batch in &self.drain.unfinished {
            let read = self.drain.read_again(batch).await?;
            let ids: Vec<Uuid> = read.events.iter().map(|(_, id)| *id).collect();
            ensure!(
                ids == self.open[&batch.number],
                "batch {} was sealed with {} events and gives {}",
                batch.number,
                batch.rows,
                ids.len()
            );
        }
        Ok(())
    }

    /// Who lost its session seals nothing more; the next one finds what is open.
    async fn kill_relay(&mut self) -> Result<()> {
        let mut kept = vec![backend(&self.outbox.admin).await?];
        for publisher in &self.publishers {
            // A transaction that failed answers nothing, and none here does.
            kept.push(backend(&publisher.session).await?);
        }
        let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                    where backend_type = 'client backend' and pid <> all ($1)";
        self.outbox.admin.query_one(kill, &[&kept]).await?;
        ensure!(
            self.drain.seal(1).await.is_err(),
            "a seal without a session"
        );
        self.take_over().await
    }

    async fn take_over(&mut self) -> Result<()> {
        self.drain = self.outbox.drain("main").await?;
        self.is_as_sealed().await
    }

    /// What committed and what was prepared survives; what was open does not.
    async fn crash(&mut self) -> Result<()> {
        self.outbox.server.kill()?;
        self.outbox.server.restart().await?;
        self.outbox.reconnect().await?;
        self.connect_publishers().await?;
        self.take_over().await
    }

    /// Ends all that is open, delivers the rest, and asks the oracle.
    async fn finish(mut self) -> Result<Outbox> {
        for who in 0..PUBLISHERS {
            self.act(who, Operation::Commit(who)).await?;
        }
        while !self.prepared.is_empty() {
            self.settle(0, true).await?;
        }
        self.is_as_sealed().await?;
        while !self.drain.unfinished.is_empty() {
            self.confirm(0).await?;
        }
        self.batches.extend(self.drain.all(7).await?);
        self.drain.session.tend().await?;
        exactly_once(&self.committed, &self.batches);
        Ok(self.outbox)
    }
}

/// One case on the server of the run; gives it back for the next.
async fn run(outbox: Outbox, operations: &[Operation]) -> Result<Outbox> {
    let mut world = World::on(outbox).await?;
    for operation in operations {
        let done = world.perform(*operation).await;
        done.with_context(|| format!("{operation:?}"))?;
    }
    world.finish().await
}

/// INV-1, INV-2, INV-3, INV-8: the oracle of every case is the list of what committed.
#[test]
fn each_interleaving_is_sealed_exactly_once() -> Result<()> {
    let seed = match std::env::var("PILLARBOX_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => Uuid::new_v4().as_u64_pair().0,
    };
    println!("PILLARBOX_SEED={seed}");
    let cases = match std::env::var("PILLARBOX_CASES") {
        Ok(cases) => cases.parse()?,
        Err(_) => CASES,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    // A case that fails keeps its server; the next one starts another.
    let server = std::sync::Mutex::new(None);
    let mut runner = TestRunner::new(ProptestConfig {
        cases,
        max_shrink_iters: SHRINKS_MAX,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..ProptestConfig::default()
    });
    let ran = runner.run(&operations(), |operations| {
        let kept = server.lock().ok().and_then(|mut kept| kept.take());
        let outcome = runtime.block_on(async {
            let outbox = match kept {
                Some(outbox) => outbox,
                None => Outbox::start(PgVersion::V15).await?,
            };
            run(outbox, &operations).await
        });
        let outbox = outcome.map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
        if let Ok(mut kept) = server.lock() {
            *kept = Some(outbox);
        }
        Ok(())
    });
    ran.map_err(|failure| anyhow::anyhow!("{failure}"))
}
