//! The ClickHouse sink on both real engines.

mod digest;
mod doubt;
mod exactness;
mod look;
mod refusal;

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use pillarbox_relay::batch::{Batch, EncodedBlock, Kind, Row, Selection, sink_value};
use pillarbox_relay::sink::clickhouse::{
    ClickHouse, ClickHouseConfig, ClickHousePlan, Compression,
};
use pillarbox_relay::sink::{
    Delivery, Doubt, Encoder, Insert, OutboxColumn, Plan, Pushed, Sink, Trouble,
};
use pillarbox_relay::snapshot::{Cut, Position, Snapshot};
use pillarbox_testkit::conformance::sink::nth;
use pillarbox_testkit::servers::{ClickHouse as Server, Flavour};
use uuid::Uuid;

/// Microseconds from 1970 to PostgreSQL's epoch.
const PG_EPOCH_US: i64 = 946_684_800_000_000;
/// 2026-11-20 12:00:00 UTC.
pub(crate) const NOON_US: i64 = 1_795_176_000_000_000;
const DAY_US: i64 = 86_400_000_000;
const ORIGIN: u32 = 0x12_3456;

/// The table of the problem, exactly.
const FIVE_COLUMNS: &str = "event_type String, event_date_time DateTime, environment String, \
                            event_context String, metadata_version UInt64";

/// An event as the outbox holds it.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    event_id: Uuid,
    event_type: String,
    /// Microseconds since 1970.
    at: i64,
    environment: String,
    event_context: Vec<u8>,
    metadata_version: i64,
}

impl Event {
    pub(crate) fn at(us: i64) -> Self {
        Self {
            event_id: Uuid::now_v7(),
            event_type: "user_created".to_owned(),
            at: us,
            environment: "test".to_owned(),
            event_context: br#"{"user_id": 1, "note": "\u0000 \\ '"}"#.to_vec(),
            metadata_version: 1,
        }
    }

    /// A column in PostgreSQL's binary format.
    fn field(&self, column: &str) -> Option<Vec<u8>> {
        Some(match column {
            "event_id" => self.event_id.as_bytes().to_vec(),
            "event_type" => self.event_type.clone().into_bytes(),
            "event_date_time" | "published_at" => (self.at - PG_EPOCH_US).to_be_bytes().to_vec(),
            "environment" => self.environment.clone().into_bytes(),
            "event_context" => self.event_context.clone(),
            "metadata_version" => self.metadata_version.to_be_bytes().to_vec(),
            _ => return None,
        })
    }
}

/// The columns of an outbox that nobody extended.
pub(crate) fn outbox() -> Vec<OutboxColumn> {
    let column = |name: &str, type_oid, type_name: &str, not_null| OutboxColumn {
        name: name.to_owned(),
        type_oid,
        type_name: type_name.to_owned(),
        not_null,
        expression: None,
    };
    vec![
        column("slot", 21, "smallint", true),
        column("tx", 5069, "xid8", true),
        column("id", 20, "bigint", true),
        column("event_id", 2950, "uuid", true),
        column("event_type", 25, "text", true),
        column("event_date_time", 1184, "timestamp with time zone", true),
        column("environment", 25, "text", true),
        column("event_context", 114, "json", true),
        column("metadata_version", 20, "bigint", true),
        column("trace_parent", 25, "text", false),
        column("published_at", 1184, "timestamp with time zone", true),
    ]
}

fn config(server: &Server, table: &str) -> ClickHouseConfig {
    ClickHouseConfig {
        user: server.user().to_owned(),
        password: server.password().to_owned().into(),
        // By itself it would not: these servers are on this machine.
        compression: Compression::Lz4,
        connect_timeout: Duration::from_secs(5),
        insert_timeout: Duration::from_secs(30),
        query_timeout: Duration::from_secs(30),
        ..ClickHouseConfig::new(server.url(), server.database(), table)
    }
}

fn sink(server: &Server, table: &str) -> Result<ClickHouse> {
    Ok(ClickHouse::new(config(server, table))?)
}

/// Gives the five-column table a deduplication window, where the engine has one.
fn window(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::V18 => "",
        Flavour::V26 => "settings non_replicated_deduplication_window = 1000",
    }
}

/// The table of the problem, with a window where the engine has one.
async fn five(server: &Server) -> Result<ClickHouse> {
    let window = window(server.flavour());
    let create = format!(
        "create table five ({FIVE_COLUMNS}) engine = MergeTree order by event_type {window}"
    );
    server.query(&create).await?;
    sink(server, "five")
}

pub(crate) fn insert<'a>(
    batch: &'a Batch,
    blocks: &'a [EncodedBlock],
    ordinal: usize,
) -> Insert<'a> {
    Insert {
        batch,
        ordinal,
        body: &blocks[ordinal].body,
    }
}

/// A sealed batch of the events and its encoded blocks.
pub(crate) fn seal(
    plan: &ClickHousePlan,
    number: i64,
    events: &[Event],
) -> Result<(Batch, Vec<EncodedBlock>)> {
    let mut encoder = plan.encoder(None, None);
    for (id, event) in events.iter().enumerate() {
        let owned: Vec<_> = plan
            .columns()
            .iter()
            .map(|column| event.field(column))
            .collect();
        let fields: Vec<_> = owned.iter().map(Option::as_deref).collect();
        let at = Cut {
            tx: 700,
            id: i64::try_from(id)?,
        };
        if encoder.push(&Row {
            at,
            fields: &fields,
        })? == Pushed::NoRoom
        {
            bail!("event {id} found no room");
        }
    }
    let blocks = encoder.finish(sink_value(ORIGIN, number));
    let map: Vec<_> = blocks.iter().map(|encoded| encoded.block.clone()).collect();
    let position = Position::genesis(Snapshot::origin());
    let batch = Batch {
        number,
        batch_id: Uuid::new_v4(),
        origin: ORIGIN,
        kind: Kind::Window,
        parent: None,
        root: None,
        selection: Selection::default(),
        terms: Some(plan.terms().clone()),
        span: position.next_span(Snapshot::origin()),
        rows: map.iter().map(|block| block.rows).sum(),
        bytes: 0,
        digest: map
            .iter()
            .fold(0, |sum, block| sum.wrapping_add(block.digest)),
        blocks: map,
        sealed_at: SystemTime::now(),
    };
    Ok((batch, blocks))
}

/// Rows and digest of what the table holds of a batch (INV-13).
async fn held(sink: &ClickHouse, plan: &ClickHousePlan, batch: &Batch) -> Result<(u64, u64)> {
    let values = batch.sink_value()..=batch.sink_value();
    let held = sink
        .held_between(plan, batch.terms.as_ref(), values)
        .await?;
    let digests = held.iter().map(|held| held.digest);
    Ok((
        held.iter().map(|held| held.rows).sum(),
        digests.fold(0, u64::wrapping_add),
    ))
}

/// Sends one block.
async fn send(
    sink: &ClickHouse,
    plan: &ClickHousePlan,
    batch: &Batch,
    blocks: &[EncodedBlock],
    ordinal: usize,
) -> Delivery {
    let insert = Insert {
        batch,
        ordinal,
        body: &blocks[ordinal].body,
    };
    sink.deliver(plan, &insert, nth(1)).await
}

/// Sends all blocks; each must be delivered.
async fn deliver(
    sink: &ClickHouse,
    plan: &ClickHousePlan,
    batch: &Batch,
    blocks: &[EncodedBlock],
) -> Result<()> {
    for ordinal in 0..blocks.len() {
        match send(sink, plan, batch, blocks, ordinal).await {
            Delivery::Delivered(_) => {}
            other => bail!("block {ordinal}: {other:?}"),
        }
    }
    Ok(())
}

fn young() -> Doubt {
    Doubt {
        age: Duration::from_secs(1),
        blocks_since: 0,
        ..Doubt::NONE
    }
}

fn old() -> Doubt {
    Doubt {
        age: Duration::from_secs(1_000_000),
        blocks_since: 1_000_000,
        ..Doubt::NONE
    }
}

/// Why a preparation was refused.
async fn refusal(sink: &ClickHouse) -> Result<Trouble> {
    sink.prepare(&outbox())
        .await
        .err()
        .context("the preflight passed")
}

async fn number(server: &Server, sql: &str) -> Result<u64> {
    Ok(server.query(sql).await?.trim().parse()?)
}
