//! Writers: the business step and its events in one transaction, each in its own way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use pillarbox::RawEvent;
use serde_json::value::RawValue;
use tokio::task::JoinSet;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{Json, ToSql, Type};
use tokio_postgres::{Client, NoTls, Transaction};
use uuid::Uuid;

use super::Stop;
use super::context::{Made, Maker};
use crate::record::{Draft, Record};

/// How often the long transaction publishes, and how often it does before it ends.
const LONG_PAUSE: Duration = Duration::from_millis(100);
const LONG_EVENTS: usize = 50;

const INSERT: &str = "
    insert into pillarbox.event (
        event_id, event_type, event_date_time, environment, event_context, metadata_version
    ) values ($1, $2, $3, $4, $5::text::json, $6)";

const COPY: &str = "
    copy pillarbox.event (
        event_id, event_type, event_date_time, environment, event_context, metadata_version
    ) from stdin binary";

const BATCH: &str = "
    select pillarbox.publish_batch(
        event_types => $1, event_contexts => $2::text[]::json[], event_date_times => $3,
        environments => $4, metadata_versions => $5, event_ids => $6
    )";

/// The ways to publish; each runs on a session of its own.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// One event, by the crate `pillarbox`.
    Single,
    /// Many events, some behind a savepoint that is rolled back now and then.
    Savepoint,
    /// Plain INSERTs.
    Insert,
    /// COPY.
    Copy,
    /// `pillarbox.publish_batch`.
    Batch,
    /// A transaction that stays open across many batches of the relay.
    Long,
    /// Contexts of 100 KB to 1 MB.
    Large,
}

impl Way {
    const ALL: [Self; 8] = [
        Self::Single,
        Self::Single,
        Self::Savepoint,
        Self::Insert,
        Self::Copy,
        Self::Batch,
        Self::Long,
        Self::Large,
    ];

    /// Between two transactions: together about 2,000 events a second, far below what two cores
    /// can carry, so that a lag is the relay's and not the machine's.
    fn pause(self) -> Duration {
        Duration::from_millis(match self {
            Self::Single => 20,
            Self::Savepoint => 60,
            Self::Insert => 50,
            Self::Copy => 400,
            Self::Batch => 300,
            Self::Long => 200,
            Self::Large => 500,
        })
    }

    /// Whether its transaction of this number is rolled back: one in eight, of the long ones, which
    /// are few, every second.
    fn is_undone(self, number: usize) -> bool {
        match self {
            Self::Long => number % 2 == 1,
            _ => number % 8 == 7,
        }
    }
}

pub(super) async fn start(
    generators: &mut JoinSet<Result<()>>,
    url: &str,
    record: &Arc<Record>,
    stop: &Stop,
) -> Result<()> {
    for way in Way::ALL {
        let client = connect(url).await?;
        let (record, stop) = (Arc::clone(record), Arc::clone(stop));
        generators.spawn(async move {
            let written = write(way, client, &record, &stop).await;
            written.with_context(|| format!("writer {way:?}"))
        });
    }
    Ok(())
}

async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .context("connecting a writer to postgresql")?;
    // It ends with the client; its error also reaches the client's next statement.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

/// Runs transactions until told to stop.
async fn write(way: Way, mut client: Client, record: &Record, stop: &Stop) -> Result<()> {
    let mut maker = Maker::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut draft = Draft::new();
        let mut tx = client.transaction().await?;
        business_step(&tx, way, draft.receipt).await?;
        match way {
            Way::Single => {
                let made = maker.event("order_placed")?;
                publish(&mut tx, &made.raw).await?;
                draft.events.push(made.published);
            }
            Way::Savepoint => savepoint(&mut tx, &mut maker, &mut draft).await?,
            Way::Insert => insert(&tx, &mut maker, &mut draft).await?,
            Way::Copy => copy(&tx, &mut maker, &mut draft).await?,
            Way::Batch => batch(&tx, &mut maker, &mut draft).await?,
            Way::Long => long(&mut tx, &mut maker, &mut draft, stop).await?,
            Way::Large => {
                let made = maker.large("report_exported")?;
                publish(&mut tx, &made.raw).await?;
                draft.events.push(made.published);
            }
        }
        end(tx, draft, way.is_undone(number), record).await?;
        tokio::time::sleep(way.pause()).await;
    }
    Ok(())
}

async fn business_step(tx: &Transaction<'_>, way: Way, receipt: Uuid) -> Result<()> {
    const STEP: &str = "insert into public.receipts (receipt, writer) values ($1, $2)";
    tx.execute(STEP, &[&receipt, &format!("{way:?}")]).await?;
    Ok(())
}

/// Ends the transaction and records what is known then.
async fn end(tx: Transaction<'_>, draft: Draft, undo: bool, record: &Record) -> Result<()> {
    if undo {
        tx.rollback().await?;
        record.rolled_back(&draft);
        return Ok(());
    }
    match tx.commit().await {
        Ok(()) => record.committed(&draft),
        Err(error) => {
            record.unanswered(draft);
            return Err(error).context("commit");
        }
    }
    Ok(())
}

async fn publish(tx: &mut Transaction<'_>, event: &RawEvent) -> Result<()> {
    pillarbox::publish(tx, event).await?;
    Ok(())
}

async fn publish_all(tx: &mut Transaction<'_>, made: Vec<Made>) -> Result<Vec<Made>> {
    let events: Vec<RawEvent> = made.iter().map(|made| made.raw.clone()).collect();
    pillarbox::publish_all(tx, &events).await?;
    Ok(made)
}

async fn savepoint(tx: &mut Transaction<'_>, maker: &mut Maker, draft: &mut Draft) -> Result<()> {
    let count = maker.count(2..20);
    let made = publish_all(tx, maker.events("cart_changed", count)?).await?;
    draft.events.extend(made.iter().map(|made| made.published));
    for _ in 0..maker.count(1..4) {
        let mut inner = tx.transaction().await?;
        let made = publish_all(&mut inner, maker.events("coupon_tried", 3)?).await?;
        let events = made.iter().map(|made| made.published);
        if maker.chance(0.5) {
            inner.rollback().await?;
            draft.undone.extend(events.map(|event| event.event_id));
        } else {
            inner.commit().await?;
            draft.events.extend(events);
        }
    }
    Ok(())
}

async fn insert(tx: &Transaction<'_>, maker: &mut Maker, draft: &mut Draft) -> Result<()> {
    let statement = tx.prepare(INSERT).await?;
    for _ in 0..maker.count(1..6) {
        let made = maker.event("stock_moved")?;
        let raw = &made.raw;
        let (environment, version) = (raw.environment(), i64::try_from(raw.metadata_version())?);
        let parameters: [&(dyn ToSql + Sync); 6] = [
            &raw.event_id(),
            &raw.event_type(),
            &raw.event_date_time(),
            &environment,
            &raw.event_context(),
            &version,
        ];
        tx.execute(&statement, &parameters).await?;
        draft.events.push(made.published);
    }
    Ok(())
}

async fn copy(tx: &Transaction<'_>, maker: &mut Maker, draft: &mut Draft) -> Result<()> {
    let count = maker.count(200..700);
    let types = [
        Type::UUID,
        Type::TEXT,
        Type::TIMESTAMPTZ,
        Type::TEXT,
        Type::JSON,
        Type::INT8,
    ];
    let sink = tx.copy_in(COPY).await?;
    let mut rows = std::pin::pin!(BinaryCopyInWriter::new(sink, &types));
    for made in maker.events("page_viewed", count)? {
        let raw = &made.raw;
        let context: &RawValue = serde_json::from_str(raw.event_context())?;
        let row: [&(dyn ToSql + Sync); 6] = [
            &raw.event_id(),
            &raw.event_type(),
            &raw.event_date_time(),
            &raw.environment(),
            &Json(context),
            &i64::try_from(raw.metadata_version())?,
        ];
        rows.as_mut().write(&row).await?;
        draft.events.push(made.published);
    }
    rows.as_mut().finish().await?;
    Ok(())
}

async fn batch(tx: &Transaction<'_>, maker: &mut Maker, draft: &mut Draft) -> Result<()> {
    let count = maker.count(50..150);
    let made = maker.events("price_changed", count)?;
    let raw: Vec<&RawEvent> = made.iter().map(|made| &made.raw).collect();
    let types: Vec<&str> = raw.iter().map(|raw| raw.event_type()).collect();
    let contexts: Vec<&str> = raw.iter().map(|raw| raw.event_context()).collect();
    let times: Vec<_> = raw.iter().map(|raw| raw.event_date_time()).collect();
    let environments: Vec<_> = raw.iter().map(|raw| raw.environment()).collect();
    let versions = raw.iter().map(|raw| i64::try_from(raw.metadata_version()));
    let versions: Vec<i64> = versions.collect::<Result<_, _>>()?;
    let ids: Vec<Uuid> = raw.iter().map(|raw| raw.event_id()).collect();
    let returned = tx
        .query(
            BATCH,
            &[&types, &contexts, &times, &environments, &versions, &ids],
        )
        .await?;
    let returned: Vec<Uuid> = returned.iter().map(|row| row.get(0)).collect();
    anyhow::ensure!(
        returned == ids,
        "publish_batch returned other ids than it was given"
    );
    draft.events.extend(made.iter().map(|made| made.published));
    Ok(())
}

async fn long(
    tx: &mut Transaction<'_>,
    maker: &mut Maker,
    draft: &mut Draft,
    stop: &Stop,
) -> Result<()> {
    for _ in 0..LONG_EVENTS {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let made = match maker.chance(0.2) {
            true => maker.late("import_progressed")?,
            false => maker.event("import_progressed")?,
        };
        publish(tx, &made.raw).await?;
        draft.events.push(made.published);
        tokio::time::sleep(LONG_PAUSE).await;
    }
    Ok(())
}
