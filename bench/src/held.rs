//! What a snapshot that somebody holds does to one batch: of the outbox, and of a queue worked off by DELETE.
//!
//! A batch of the outbox takes the time from the commit of 1,000 events until they are sealed in the ledger:
//! the relay's probe, reading, encoding and the seal. What ClickHouse takes then is the same at any time, and
//! would hide a change. A batch of the queue takes from `select … for update skip locked` to the commit.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::eventually;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::{Client, GenericClient, Statement};

use crate::bench::Bench;
use crate::line::Line;
use crate::report::{Report, figure};
use crate::stage::Stage;

const PART: &str = "held";
/// Events published under the snapshot, and what the point is called.
const POINTS: [(u64, &str); 3] = [(0, "0"), (1_000_000, "1M"), (5_000_000, "5M")];
/// Events of a batch.
const BATCH: u64 = 1_000;
/// Batches of the ring and of the queue at each point, and at each minute of the live run. Those of the ring
/// are short, and so differ more by what else the machine does.
const BATCHES: (usize, usize) = (61, 21);
const BATCHES_LIVE: (usize, usize) = (21, 7);
/// Rows of a transaction of the fast fill.
const CHUNK: u64 = 50_000;
/// Two beats of the relay's tending, and some.
const PATIENCE: Duration = Duration::from_secs(120);

const LIVE_MINUTES: u64 = 10;
const LIVE_EVENTS_PER_S: u64 = 2_000;
const LIVE_TICK: Duration = Duration::from_millis(100);

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let stage = Stage::start(report).await?;
    let mut pair = Pair::start(&stage, bench).await?;
    for (events, name) in POINTS {
        if events > 0 {
            pair.fill(bench.count(events)).await?;
        }
        pair.measure(name, BATCHES, report).await?;
    }
    pair.finish().await?;
    if bench.full {
        live(bench, report).await?;
    }
    Ok(())
}

/// The same at the pace of an application: 2,000 events a second for ten minutes.
async fn live(bench: &Bench, report: &mut Report) -> Result<()> {
    let stage = Stage::start(report).await?;
    let mut pair = Pair::start(&stage, bench).await?;
    let ticks = 60_000 / LIVE_TICK.as_millis();
    let events = LIVE_EVENTS_PER_S * LIVE_TICK.as_millis() as u64 / 1_000;
    let minutes = bench.count(LIVE_MINUTES);
    for minute in 0..=minutes {
        let name = format!("live {minute}min");
        pair.measure(&name, BATCHES_LIVE, report).await?;
        if minute == minutes {
            break;
        }
        let mut tick = interval(LIVE_TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for _ in 0..ticks {
            tick.tick().await;
            pair.publish(events).await?;
            pair.enqueue(events).await?;
            pair.queued += events;
            while pair.queued >= BATCH {
                pair.take().await?;
            }
        }
    }
    pair.finish().await
}

/// The line, a queue beside it, and a session that holds a snapshot.
struct Pair<'a> {
    line: Line<'a>,
    client: Client,
    consumer: Client,
    take: Statement,
    delete: Statement,
    /// Its transaction is idle until the end.
    _holder: Client,
    published: u64,
    /// Rows that wait in the queue.
    queued: u64,
}

impl<'a> Pair<'a> {
    async fn start(stage: &'a Stage, bench: &'a Bench) -> Result<Self> {
        // It looks for events all the time, so that a batch does not wait for the next look.
        let eager = [
            ("MAX_AGE", "1ms"),
            ("PROBE_MIN", "1ms"),
            ("PROBE_MAX", "1ms"),
        ];
        let line = Line::start(stage, bench, &eager).await?;
        let settings = [
            "settings",
            "--retention",
            "0 seconds",
            "--leaf-bytes-max",
            "32MiB",
        ];
        line.outbox.pillarbox(&settings, None).await?;
        let client = line.outbox.connect().await?;
        let consumer = line.outbox.connect().await?;
        client.batch_execute(include_str!("held/queue.sql")).await?;
        let take = consumer.prepare(include_str!("held/take.sql")).await?;
        let delete = "delete from public.queue where id = any($1)";
        let delete = consumer.prepare(delete).await?;
        let holder = line.outbox.connect().await?;
        holder
            .batch_execute(
                "begin isolation level repeatable read; select 1 from pg_catalog.pg_class limit 1",
            )
            .await?;
        Ok(Self {
            line,
            client,
            consumer,
            take,
            delete,
            _holder: holder,
            published: 0,
            queued: 0,
        })
    }

    /// Publishes up to so many events in all, which the relay delivers meanwhile; the same rows go through
    /// the queue, and are deleted in bulk.
    async fn fill(&mut self, up_to: u64) -> Result<()> {
        while self.published < up_to {
            let events = CHUNK.min(up_to - self.published);
            let queue = async {
                self.enqueue(events).await?;
                self.consumer
                    .execute("delete from public.queue", &[])
                    .await?;
                anyhow::Ok(())
            };
            tokio::try_join!(insert(&self.client, "pillarbox.event", events), queue)?;
            self.published += events;
        }
        Ok(())
    }

    async fn publish(&mut self, events: u64) -> Result<()> {
        insert(&self.client, "pillarbox.event", events).await?;
        self.published += events;
        Ok(())
    }

    async fn enqueue(&self, events: u64) -> Result<()> {
        insert(&self.consumer, "public.queue", events).await
    }

    /// Both batch times and both sizes, when everything before has come to rest.
    async fn measure(
        &mut self,
        name: &str,
        batches: (usize, usize),
        report: &mut Report,
    ) -> Result<()> {
        let (ring_bytes, queue_bytes) = self.settle().await?;
        let mib = |bytes: i64| bytes as f64 / f64::from(1 << 20);
        let (ring, queue) = (format!("ring {name}"), format!("queue {name}"));
        report.add(PART, &format!("{ring} size"), "MiB", mib(ring_bytes));
        report.add(PART, &format!("{queue} size"), "MiB", mib(queue_bytes));
        for _ in 0..batches.0 {
            let (sealed, delivered) = self.ring_batch().await?;
            report.note(PART, &ring, "ms", sealed);
            report.note(PART, &format!("{ring} delivered"), "ms", delivered);
        }
        for _ in 0..batches.1 {
            self.enqueue(BATCH).await?;
            self.queued += BATCH;
            let took = self.take().await?;
            report.note(PART, &queue, "ms", took);
        }
        for of in [ring, queue] {
            let median = report.median(PART, &of).context("a batch")?;
            eprintln!("bench: {PART}: {of} {} ms (median)", figure(median));
        }
        Ok(())
    }

    /// Waits until all is delivered and merged and the ring has given its space back, as far as it can.
    /// Gives the bytes of the ring and of the queue.
    async fn settle(&self) -> Result<(i64, i64)> {
        self.line.wait_for_delivery(self.published).await?;
        self.line.wait_for_merges().await?;
        eventually("the ring to give its space back", PATIENCE, || async {
            let row = self
                .client
                .query_one(include_str!("held/sizes.sql"), &[])
                .await?;
            Ok(row.get::<_, bool>(2).then(|| (row.get(0), row.get(1))))
        })
        .await
        .with_context(|| self.line.relay_log())
    }

    /// Milliseconds from the commit of a batch of events until it was sealed, and until it was delivered.
    async fn ring_batch(&mut self) -> Result<(f64, f64)> {
        const LAST: &str = "select max(number) from pillarbox.batch";
        const SEALED: &str = "
            select b.rows, b.sealed_at, d.delivered_at
            from pillarbox.batch b join pillarbox.delivery d using (sink, number)
            where b.number = $1";
        let last: i64 = self.client.query_one(LAST, &[]).await?.get(0);
        let transaction = self.client.transaction().await?;
        insert(&transaction, "pillarbox.event", BATCH).await?;
        // Before the commit: the relay may have sealed the batch before the answer to that is here.
        let now = "select pg_catalog.clock_timestamp()";
        let committing: SystemTime = transaction.query_one(now, &[]).await?.get(0);
        transaction.commit().await?;
        self.published += BATCH;
        let row = eventually("the delivery of a batch", PATIENCE, || async {
            Ok(self.client.query_opt(SEALED, &[&(last + 1)]).await?)
        })
        .await
        .with_context(|| self.line.relay_log())?;
        let rows: i64 = row.get(0);
        ensure!(rows.cast_unsigned() == BATCH, "a batch of {rows} events");
        let ms = |at: SystemTime| -> Result<f64> {
            Ok(at.duration_since(committing)?.as_secs_f64() * 1e3)
        };
        Ok((ms(row.get(1))?, ms(row.get(2))?))
    }

    /// Milliseconds that a consumer of the queue takes for a batch.
    async fn take(&mut self) -> Result<f64> {
        let began = Instant::now();
        let transaction = self.consumer.transaction().await?;
        let rows = transaction.query(&self.take, &[]).await?;
        ensure!(
            rows.len() as u64 == BATCH,
            "{} rows in the queue",
            rows.len()
        );
        let ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        transaction.execute(&self.delete, &[&ids]).await?;
        transaction.commit().await?;
        self.queued -= BATCH;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }

    /// Every event must have arrived.
    async fn finish(self) -> Result<()> {
        self.line.wait_for_delivery(self.published).await?;
        self.line.check_exactly_once(self.published).await
    }
}

/// One transaction of so many rows.
async fn insert(client: &impl GenericClient, table: &str, rows: u64) -> Result<()> {
    let statement = format!(
        "insert into {table} (event_type, event_context)
         select 'order_placed', ('{{\"user_id\": ' || n || ', \"path\": \"/api/v1/orders/' || n || '\"}}')::json
         from generate_series(1, {rows}) n"
    );
    client.execute(&statement, &[]).await?;
    Ok(())
}
