//! Publishers as applications are: a row of the business and some events in one transaction, in each
//! of the four ways to publish. What became of them is recorded outside of Pillarbox.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::publish::session_lost;
pub(crate) use pillarbox_testkit::publish::{Event, Way, commit};
use pillarbox_testkit::servers::{Postgres, eventually};
use tokio::task::JoinSet;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::scene::PATIENCE;

/// Between two transactions of a publisher: load, and room for the servers on a small machine.
const PACE: Duration = Duration::from_millis(3);

/// Publishers that go on until they are told to stop, and reconnect when the server goes away.
pub(crate) struct Traffic {
    pub(crate) oracle: Arc<Oracle>,
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    writers: JoinSet<Result<()>>,
}

impl Traffic {
    /// Starts `writers` publishers; every third one commits asynchronously if `some_async`.
    pub(crate) async fn start(postgres: &Postgres, writers: u32, some_async: bool) -> Result<Self> {
        Self::resume(postgres, writers, some_async, Arc::default()).await
    }

    /// The same, on top of what earlier publishers have recorded.
    pub(crate) async fn resume(
        postgres: &Postgres,
        writers: u32,
        some_async: bool,
        oracle: Arc<Oracle>,
    ) -> Result<Self> {
        Self::through(postgres, postgres.url(), writers, some_async, oracle).await
    }

    /// The same by another way to the server.
    pub(crate) async fn through(
        postgres: &Postgres,
        url: &str,
        writers: u32,
        some_async: bool,
        oracle: Arc<Oracle>,
    ) -> Result<Self> {
        postgres
            .execute("create table if not exists business (id uuid primary key)")
            .await?;
        let mut traffic = Self {
            oracle,
            stop: Arc::new(AtomicBool::new(false)),
            commits: Arc::new(AtomicU64::new(0)),
            writers: JoinSet::new(),
        };
        for number in 0..writers {
            let writer = Writer {
                url: url.to_owned(),
                number,
                is_async: some_async && number % 3 == 0,
                oracle: Arc::clone(&traffic.oracle),
                stop: Arc::clone(&traffic.stop),
                commits: Arc::clone(&traffic.commits),
            };
            traffic.writers.spawn(writer.run());
        }
        Ok(traffic)
    }

    /// Transactions whose COMMIT was answered.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Waits for so many more of them.
    pub(crate) async fn more(&self, commits: u64) -> Result<()> {
        let until = self.commits() + commits;
        eventually("publishers to go on", PATIENCE, || async {
            Ok((self.commits() >= until).then_some(()))
        })
        .await
    }

    /// Stops the publishers and asks the business table about what was not answered, or was
    /// answered before it was durable.
    pub(crate) async fn finish(mut self, postgres: &Postgres) -> Result<Arc<Oracle>> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.writers.join_next().await {
            ended??;
        }
        let business = postgres.query("select id from business", &[]).await?;
        let committed: std::collections::HashSet<Uuid> =
            business.iter().map(|row| row.get(0)).collect();
        for event in self.oracle.unresolved() {
            // The events of a transaction carry its number in their lower half.
            let known = committed.contains(&transaction_of(event));
            self.oracle.resolve(event, known);
        }
        Ok(self.oracle)
    }
}

/// The first event of a transaction has the id of its business row, each further one the next.
pub(crate) fn transaction_of(event: Uuid) -> Uuid {
    Uuid::from_u128(event.as_u128() & !0xff)
}

struct Writer {
    url: String,
    number: u32,
    is_async: bool,
    oracle: Arc<Oracle>,
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
}

impl Writer {
    async fn run(self) -> Result<()> {
        let mut round = 0_u32;
        while !self.stop.load(Ordering::Relaxed) {
            if let Ok(mut client) = connect(&self.url).await {
                // An error is a server that went away: the events were recorded before.
                while self.transaction(&mut client, &mut round).await? {
                    tokio::time::sleep(PACE).await;
                }
            }
            tokio::time::sleep(PACE).await;
        }
        Ok(())
    }

    /// One transaction; `false` when told to stop, or when the session is lost.
    async fn transaction(&self, client: &mut Client, round: &mut u32) -> Result<bool> {
        *round += 1;
        let business = transaction_of(Uuid::now_v7());
        let events = self.events(business, *round)?;
        let is_rolled_back = round.is_multiple_of(5);
        for event in &events {
            self.oracle.rolled_back(event.event_id);
        }
        let sent = self.send(client, business, *round, &events, is_rolled_back);
        let in_time = tokio::time::timeout(PATIENCE, sent).await;
        let answered = in_time.context("a publisher waits")?;
        if answered.is_ok() && !is_rolled_back {
            self.commits.fetch_add(1, Ordering::Relaxed);
            for event in events.iter().filter(|_| !self.is_async) {
                self.oracle.committed(event.published()?);
            }
        }
        if answered.is_err() && client.is_closed() || self.stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        answered
            .map(|()| true)
            .or_else(|error| match session_lost(&error) {
                true => Ok(false),
                false => Err(error),
            })
    }

    async fn send(
        &self,
        client: &mut Client,
        business: Uuid,
        round: u32,
        events: &[Event],
        is_rolled_back: bool,
    ) -> Result<()> {
        let tx = client.transaction().await?;
        if self.is_async {
            tx.batch_execute("set local synchronous_commit = off")
                .await?;
        }
        tx.execute("insert into business values ($1)", &[&business])
            .await?;
        let way = Way::ALL[(round + self.number) as usize % Way::ALL.len()];
        way.publish(&tx, events).await?;
        if is_rolled_back {
            tx.rollback().await?;
            return Ok(());
        }
        for event in events {
            self.oracle.unanswered(event.published()?);
        }
        tx.commit().await?;
        Ok(())
    }

    fn events(&self, business: Uuid, round: u32) -> Result<Vec<Event>> {
        const DAY_US: i64 = 86_400_000_000;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let now = i64::try_from(now.as_micros())?;
        let event = |nth: u32| {
            let context = format!(
                r#"{{"writer": {}, "round":{round},"event":{nth}}}"#,
                self.number
            );
            Event {
                event_id: Uuid::from_u128(business.as_u128() + u128::from(nth)),
                ..Event::at(now - i64::from(nth % 3) * 20 * DAY_US, "trial", context)
            }
        };
        Ok((0..round % 7 + 1).map(event).collect())
    }
}

async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(async move {
        // Its error also reaches the client's next statement.
        let _ = connection.await;
    });
    Ok(client)
}
