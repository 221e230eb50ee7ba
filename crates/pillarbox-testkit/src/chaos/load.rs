//! Publishers of every kind, who go on through everything: rollbacks, savepoints, asynchronous
//! commits, long transactions, events of megabytes, poison.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, NoTls, Transaction};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::poison::{Nature, published};
use super::stage::{EVENT_BYTES_MAX, Stage};
use crate::oracle::Oracle;
use crate::publish::{Event, ODD_CONTEXTS, Way, session_lost};
use crate::servers::Postgres;

/// Publishers beside the long transactions.
const WRITERS: u64 = 6;

/// Between two transactions of a publisher: together about 500 events a second, which leaves two
/// cores room for the servers.
const PACE: std::ops::Range<u64> = 10..50;

/// A publisher whose transaction takes longer gives its session up: behind a dead line it would wait
/// for good.
pub(super) const TRANSACTION_MAX: Duration = Duration::from_secs(20);

/// How long the sessions of publishers may take to end when all of them have left.
const SESSIONS_MAX: Duration = Duration::from_secs(30);

/// The name of a publisher's sessions.
pub(super) const PUBLISHER: &str = "chaos publisher";

/// One event in so many transactions is large.
const LARGE_EVERY: u32 = 40;

/// Smallest of the large ones.
const LARGE_BYTES_MIN: usize = 200_000;

/// All publishers and what they know.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) oracle: Arc<Oracle>,
    stop: CancellationToken,
    writers: JoinSet<Result<()>>,
}

impl Load {
    /// Starts the publishers; every other one through a proxy.
    pub(super) async fn start(stage: &Stage, seed: u64, poison_every: u32) -> Result<Self> {
        let table = "create table business (id uuid primary key)";
        stage.postgres.execute(table).await?;
        let oracle = Arc::new(Oracle::new());
        let stop = CancellationToken::new();
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            let url = match number % 2 {
                0 => stage.postgres.url().to_owned(),
                _ => stage.relays[0].postgres.url(stage.postgres.url())?,
            };
            let writer = Writer {
                url,
                number,
                random: StdRng::seed_from_u64(seed ^ (number << 32)),
                poison_every,
                oracle: Arc::clone(&oracle),
                stop: stop.clone(),
            };
            writers.spawn(async move {
                let written = writer.run().await;
                written.with_context(|| format!("publisher {number}"))
            });
        }
        Ok(Self {
            oracle,
            stop,
            writers,
        })
    }

    /// Ends with an error when a publisher does; never ends otherwise before the stop.
    pub(super) async fn failed(&mut self) -> Result<()> {
        while let Some(ended) = self.writers.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// Lets each publisher end its transaction, then asks the business table about those that were
    /// not answered, or answered before they were durable.
    pub(super) async fn finish(mut self, postgres: &Postgres) -> Result<Arc<Oracle>> {
        self.stop.cancel();
        self.failed().await?;
        sessions_end(postgres).await?;
        let rows = postgres.query("select id from business", &[]).await?;
        let committed: HashSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
        for event in self.oracle.unresolved() {
            let is_there = committed.contains(&transaction_of(event));
            self.oracle.resolve(event, is_there);
        }
        Ok(self.oracle)
    }
}

/// Waits until no COMMIT of a publisher can be under way.
async fn sessions_end(postgres: &Postgres) -> Result<()> {
    let began = Instant::now();
    loop {
        let left = "select count(*) from pg_stat_activity where application_name = $1";
        let rows = postgres.query(left, &[&PUBLISHER]).await?;
        if rows.first().is_some_and(|row| row.get::<_, i64>(0) == 0) {
            return Ok(());
        }
        anyhow::ensure!(
            began.elapsed() < SESSIONS_MAX,
            "publishers have sessions left"
        );
        sleep(Duration::from_millis(50)).await;
    }
}

/// The first event of a transaction has the id of its business row plus one, each further one the
/// next.
fn transaction_of(event: Uuid) -> Uuid {
    Uuid::from_u128(event.as_u128() & !0xfff)
}

struct Writer {
    url: String,
    number: u64,
    random: StdRng,
    poison_every: u32,
    oracle: Arc<Oracle>,
    stop: CancellationToken,
}

impl Writer {
    async fn run(mut self) -> Result<()> {
        while !self.stop.is_cancelled() {
            if let Ok(mut client) = connect(&self.url).await {
                while !self.stop.is_cancelled() {
                    let draft = self.draft()?;
                    match timeout(TRANSACTION_MAX, transact(&mut client, &draft, &self.oracle))
                        .await
                    {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) if session_lost(&error) => break,
                        Ok(Err(error)) => return Err(error),
                        Err(_late) => break,
                    }
                    sleep(self.pace()).await;
                }
            }
            sleep(self.pace()).await;
        }
        Ok(())
    }

    fn pace(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(PACE))
    }

    /// What the next transaction does.
    fn draft(&mut self) -> Result<Draft> {
        let random = &mut self.random;
        let mut draft = Draft::new(random);
        let count = random.random_range(1..8_u32);
        for _ in 0..count {
            draft.add(random, self.poison_every)?;
        }
        if random.random_range(0..LARGE_EVERY) == 0 {
            let bytes = random.random_range(LARGE_BYTES_MIN..EVENT_BYTES_MAX - 100);
            draft.add_large(bytes)?;
        }
        draft.is_async = self.number == 4;
        Ok(draft)
    }
}

/// A transaction before it is sent.
#[derive(Debug)]
pub(super) struct Draft {
    id: Uuid,
    /// Ways, events, and whether each part is behind a savepoint that is kept or rolled back.
    parts: Vec<(Way, Vec<Event>, Part)>,
    is_rolled_back: bool,
    is_async: bool,
    /// What is waited between two parts, for transactions that stay open.
    pub(super) pause: Duration,
    events: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Plain,
    SavepointKept,
    SavepointRolledBack,
}

impl Draft {
    pub(super) fn new(random: &mut StdRng) -> Self {
        Self {
            id: transaction_of(Uuid::now_v7()),
            parts: Vec::new(),
            is_rolled_back: random.random_range(0..5) == 0,
            is_async: false,
            pause: Duration::ZERO,
            events: 0,
        }
    }

    /// Some small events, published in one way.
    pub(super) fn add(&mut self, random: &mut StdRng, poison_every: u32) -> Result<()> {
        let part = match random.random_range(0..8) {
            0 => Part::SavepointKept,
            1 => Part::SavepointRolledBack,
            _ => Part::Plain,
        };
        let way = Way::ALL[random.random_range(0..Way::ALL.len())];
        let count = random.random_range(1..4_u32);
        let events = (0..count).map(|_| {
            let context = match random.random_range(0..4) {
                0 => ODD_CONTEXTS[random.random_range(0..ODD_CONTEXTS.len())].to_owned(),
                _ => format!(r#"{{"number":{}}}"#, random.random::<u32>()),
            };
            let months_ago = random.random_range(0..3);
            self.event(context, months_ago, Nature::random(random, poison_every))
        });
        let events = events.collect::<Result<_>>()?;
        self.parts.push((way, events, part));
        Ok(())
    }

    fn add_large(&mut self, bytes: usize) -> Result<()> {
        let context = format!(r#"{{"large":"{}"}}"#, "0123456789".repeat(bytes / 10));
        let event = self.event(context, 0, Nature::Good)?;
        self.parts.push((Way::Function, vec![event], Part::Plain));
        Ok(())
    }

    fn event(&mut self, context: String, months_ago: i64, nature: Nature) -> Result<Event> {
        const MONTH_US: i64 = 31 * 86_400_000_000;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let time_us = i64::try_from(now.as_micros())? - months_ago * MONTH_US + nature.later_us();
        self.events += 1;
        Ok(Event {
            event_id: Uuid::from_u128(self.id.as_u128() + u128::from(self.events)),
            ..Event::at(time_us, nature.event_type(), context)
        })
    }
}

/// Sends a transaction; the oracle knows before each step what it may lead to.
pub(super) async fn transact(client: &mut Client, draft: &Draft, oracle: &Oracle) -> Result<()> {
    let events = || draft.parts.iter().flat_map(|(_, events, _)| events);
    for event in events() {
        oracle.rolled_back(event.event_id);
    }
    let mut tx = client.transaction().await?;
    if draft.is_async {
        tx.batch_execute("set local synchronous_commit = off")
            .await?;
    }
    let business = "insert into business values ($1)";
    tx.execute(business, &[&draft.id]).await?;
    for (way, events, part) in &draft.parts {
        publish(&mut tx, *way, events, *part).await?;
        sleep(draft.pause).await;
    }
    if draft.is_rolled_back {
        return Ok(tx.rollback().await?);
    }
    let kept = draft
        .parts
        .iter()
        .filter(|(_, _, part)| *part != Part::SavepointRolledBack);
    let kept: Vec<&Event> = kept.flat_map(|(_, events, _)| events).collect();
    for event in &kept {
        oracle.unanswered(published(event)?);
    }
    tx.commit().await?;
    if !draft.is_async {
        for event in &kept {
            oracle.committed(published(event)?);
        }
    }
    Ok(())
}

async fn publish(tx: &mut Transaction<'_>, way: Way, events: &[Event], part: Part) -> Result<()> {
    if part == Part::Plain {
        return way.publish(tx, events).await;
    }
    let savepoint = tx.transaction().await?;
    way.publish(&savepoint, events).await?;
    match part {
        Part::SavepointRolledBack => savepoint.rollback().await?,
        _ => savepoint.commit().await?,
    }
    Ok(())
}

/// A publisher's session.
pub(super) async fn connect(url: &str) -> Result<Client> {
    let mut config: tokio_postgres::Config = url.parse()?;
    config
        .application_name(PUBLISHER)
        .connect_timeout(Duration::from_secs(5));
    let connected = timeout(Duration::from_secs(5), config.connect(NoTls)).await;
    let (client, connection) = connected.context("no session in time")??;
    // It ends with the client; its error also reaches the client's next statement.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}
