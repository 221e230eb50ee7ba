//! The ClickHouse sink on both engines passes the suite that the fake passes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use pillarbox_relay::sink::clickhouse::{ClickHouse, ClickHouseConfig, Compression, CreateOptions};
use pillarbox_testkit::conformance::sink::{self, Mishap, SinkWorld};
use pillarbox_testkit::conformance::surroundings::{self, SharedWorld};
use pillarbox_testkit::servers::{ClickHouse as Server, Flavour};
use uuid::Uuid;

/// Above what an insert of the suite needs, below the patience of a test.
const INSERT_TIMEOUT: Duration = Duration::from_secs(5);

/// A table of its own on a server that the worlds share.
struct Table<'a> {
    server: &'a Server,
    sink: ClickHouse,
    name: String,
}

impl<'a> Table<'a> {
    async fn create(server: &'a Server, name: &str) -> Result<Self> {
        let config = ClickHouseConfig {
            user: server.user().to_owned(),
            password: server.password().to_owned().into(),
            // By itself it would not: these servers are on this machine.
            compression: Compression::Lz4,
            insert_timeout: INSERT_TIMEOUT,
            query_timeout: Duration::from_secs(30),
            ..ClickHouseConfig::new(server.url(), server.database(), name)
        };
        let sink = ClickHouse::new(config)?;
        sink.create(&CreateOptions::default()).await?;
        let name = format!("{}.{name}", server.database());
        Ok(Self { server, sink, name })
    }
}

impl SinkWorld for Table<'_> {
    type Sink = ClickHouse;

    fn sink(&self) -> &ClickHouse {
        &self.sink
    }

    fn keeps_batch(&self) -> bool {
        true
    }

    async fn stored(&self) -> Result<BTreeMap<Uuid, (u64, Vec<u8>)>> {
        let query = format!(
            "select toString(event_id), toString(count()), hex(any(event_context)) from {} \
             where environment <> 'other' group by event_id format TabSeparated",
            self.name
        );
        let answer = self.server.query(&query).await?;
        let line = |line: &str| -> Result<(Uuid, (u64, Vec<u8>))> {
            let mut fields = line.split('\t');
            let mut next = || fields.next().with_context(|| line.to_owned());
            let (event, count, context) = (next()?, next()?, next()?);
            let bytes = context.as_bytes().chunks(2).map(|pair| {
                let pair = std::str::from_utf8(pair)?;
                Ok(u8::from_str_radix(pair, 16)?)
            });
            let bytes = bytes.collect::<Result<Vec<u8>>>()?;
            Ok((event.parse()?, (count.parse()?, bytes)))
        };
        answer.lines().map(line).collect()
    }

    async fn fail(&self, mishap: Mishap) -> Result<bool> {
        match mishap {
            Mishap::Refused => self.server.stop().await?,
            Mishap::Unanswered => self.server.pause()?,
            // Only a proxy between the two could do these.
            Mishap::LostBefore | Mishap::LostAfter | Mishap::Late => return Ok(false),
        }
        Ok(true)
    }

    async fn heal(&self) -> Result<()> {
        match self.server.pid() {
            None => self.server.restart().await,
            Some(_) => self.server.resume(),
        }
    }
}

/// Tokens that the table remembers once others are to crowd them out.
const FEW: u32 = 8;

impl SharedWorld for Table<'_> {
    async fn crowd_out(&self) -> Result<()> {
        let name = &self.name;
        let setting = "non_replicated_deduplication_window";
        let few = format!("alter table {name} modify setting {setting} = {FEW}");
        self.server.query(&few).await?;
        for nth in 0..=FEW {
            let block = format!(
                "insert into {name} (event_id, event_type, event_date_time, environment) \
                 settings async_insert = 0, insert_deduplication_token = 'other {nth}' values \
                 (generateUUIDv4(), 'n{nth}', toDateTime64(1769903998, 6, 'UTC'), 'other')"
            );
            self.server.query(&block).await?;
        }
        Ok(())
    }

    async fn add_view(&self, has_window: bool) -> Result<()> {
        let (name, window) = (&self.name, if has_window { 100 } else { 0 });
        let target = format!(
            "create table {name}_target (event_id UUID) engine = MergeTree order by event_id \
             settings non_replicated_deduplication_window = {window}"
        );
        self.server.query(&target).await?;
        self.set_view_broken(false).await
    }

    async fn set_view_broken(&self, is_broken: bool) -> Result<()> {
        let name = &self.name;
        // Each event has the version 1.
        let column = match is_broken {
            true => "if(throwIf(metadata_version = 1) = 0, event_id, event_id) as event_id",
            false => "event_id",
        };
        let view = format!(
            "create or replace materialized view {name}_view to {name}_target as select {column} \
             from {name}"
        );
        self.server.query(&view).await?;
        Ok(())
    }

    async fn viewed(&self) -> Result<BTreeMap<Uuid, u64>> {
        let query = format!(
            "select toString(event_id), toString(count()) from {}_target group by event_id \
             format TabSeparated",
            self.name
        );
        let answer = self.server.query(&query).await?;
        let line = |line: &str| -> Result<(Uuid, u64)> {
            let (event, count) = line.split_once('\t').context("two columns")?;
            Ok((event.parse()?, count.parse()?))
        };
        answer.lines().map(line).collect()
    }
}

/// 18.16 knows neither tokens nor a window for tables of this kind.
#[tokio::test]
async fn the_sink_on_clickhouse_26_9_that_is_shared_conforms() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    let count = AtomicU32::new(0);
    surroundings::surroundings(async || {
        let name = format!("shared_{}", count.fetch_add(1, Ordering::SeqCst));
        Table::create(&server, &name).await
    })
    .await
}

async fn conforms(flavour: Flavour) -> Result<()> {
    let server = Server::start(flavour).await?;
    let count = AtomicU32::new(0);
    sink::sink(async || {
        let name = format!("world_{}", count.fetch_add(1, Ordering::SeqCst));
        Table::create(&server, &name).await
    })
    .await
}

#[tokio::test]
async fn the_sink_on_clickhouse_18_16_conforms() -> Result<()> {
    conforms(Flavour::V18).await
}

#[tokio::test]
async fn the_sink_on_clickhouse_26_9_conforms() -> Result<()> {
    conforms(Flavour::V26).await
}
