//! An outbox, the recommended table in ClickHouse, and a relay that delivers from the one into the other all
//! the time.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::{Program, eventually};

use crate::bench::Bench;
use crate::stage::{Outbox, PATIENCE, Stage};

/// The sink and its table.
const SINK: &str = "events";

/// An outbox, its destination and the relay between them. Dropping it ends the relay.
pub(crate) struct Line<'a> {
    relay: Program,
    pub(crate) outbox: Outbox<'a>,
}

impl<'a> Line<'a> {
    /// Starts everything. The relay has its default configuration but for `options`, such as `MAX_AGE`.
    pub(crate) async fn start(
        stage: &'a Stage,
        bench: &'a Bench,
        options: &[(&str, &str)],
    ) -> Result<Self> {
        let outbox = stage.plain_outbox(bench, "line").await?;
        let config = outbox.create_sink(SINK).await?;
        let mut args = vec![
            "-i".to_owned(),
            format!("DATABASE_URL={}", outbox.url),
            format!("PILLARBOX_CONFIG={}", config.display()),
            // The port of the default may belong to somebody else's relay.
            "PILLARBOX_CONSOLE__LISTEN=127.0.0.1:0".to_owned(),
        ];
        let options = options.iter();
        args.extend(options.map(|(name, value)| format!("PILLARBOX_RELAY__{name}={value}")));
        args.extend([outbox.program().display().to_string(), "relay".to_owned()]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let log: PathBuf = stage.dir.path().join("relay.log");
        // Of the caller's environment it shall know nothing.
        let relay = Program::with_args(
            "the relay",
            Path::new("/usr/bin/env"),
            &args,
            Vec::new(),
            &log,
        );
        relay.start()?;
        Ok(Self { relay, outbox })
    }

    /// The relay's process.
    pub(crate) fn relay_pid(&self) -> Result<u32> {
        self.relay.check_alive()?;
        self.relay.pid().context("the relay has ended")
    }

    /// The end of the relay's log.
    pub(crate) fn relay_log(&self) -> String {
        self.relay.log_tail()
    }

    /// Waits until the ledger says that so many events were delivered, ever.
    pub(crate) async fn wait_for_delivery(&self, events: u64) -> Result<()> {
        const DELIVERED: &str = "select coalesce(sum(d.rows), 0)::bigint from pillarbox.delivery d";
        let client = self.outbox.connect().await?;
        let what = format!("the delivery of {events} events");
        let delivered = eventually(&what, PATIENCE, || async {
            self.relay.check_alive()?;
            let delivered: i64 = client.query_one(DELIVERED, &[]).await?.get(0);
            Ok((delivered.cast_unsigned() >= events).then_some(()))
        });
        delivered.await.with_context(|| self.relay_log())
    }

    /// Waits until no part is merged: that belongs to what was delivered before.
    pub(crate) async fn wait_for_merges(&self) -> Result<()> {
        const MERGES: &str = "select count() from system.merges";
        eventually("the end of merges", PATIENCE, || async {
            let merges = self.outbox.stage.clickhouse.query(MERGES).await?;
            Ok((merges.trim() == "0").then_some(()))
        })
        .await
    }

    /// An error unless so many events are in the table, each once.
    pub(crate) async fn check_exactly_once(&self, events: u64) -> Result<()> {
        const COUNTS: &str = "select count(), uniqExact(event_id) from events";
        let found = self.outbox.stage.clickhouse.query(COUNTS).await?;
        ensure!(
            found.trim() == format!("{events}\t{events}"),
            "{events} events were published; rows and distinct events in the table: {}{}",
            found.trim(),
            self.relay_log()
        );
        Ok(())
    }
}
