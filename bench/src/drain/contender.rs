//! Who drains: ours, and the commands that people use today, into tables that are alike.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use pillarbox_testkit::servers::client_python;
use tokio::process::Command;

use crate::child;
use crate::stage::Outbox;

/// The five columns as every reference selects them. The JSON stays text; 18.16 reads no time zone.
pub(crate) const COLUMNS: &str = "event_type, event_date_time at time zone 'UTC', environment, \
                                  event_context, metadata_version";
/// The table of the poller.
pub(crate) const QUEUE: &str = "bench_queue";
/// What a block of the large backlogs needs in the programs of ClickHouse.
const MEMORY: &str = "16000000000";

/// Who drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    /// `pillarbox relay --once`.
    Pillarbox,
    /// `psql | clickhouse-client`.
    Client,
    /// `psql | curl`; with blocks of so many rows, where the server's own may not fit into its memory.
    Curl(Option<u64>),
    /// A periodic task in Python with batches of so many rows.
    Poller(u32),
}

/// What a drain took, in seconds and bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    pub(crate) wall_s: f64,
    /// CPU time of the contender's own processes, until they had ended.
    pub(crate) own_s: f64,
    /// CPU time of the servers until then.
    pub(crate) servers_s: f64,
    /// CPU time of each server, with the merges that followed.
    pub(crate) postgres_s: f64,
    pub(crate) clickhouse_s: f64,
    /// The most memory of the contender's first process.
    pub(crate) peak_bytes: u64,
}

impl Contender {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Pillarbox => "pillarbox".to_owned(),
            Self::Client => "client".to_owned(),
            Self::Curl(_) => "curl".to_owned(),
            Self::Poller(rows) => format!("poller/{rows}"),
        }
    }

    /// Makes a table for one drain, and what else is needed before it.
    async fn prepare(
        self,
        outbox: &Outbox<'_>,
        table: &str,
        five: &str,
    ) -> Result<Option<PathBuf>> {
        if self == Self::Pillarbox {
            return Ok(Some(outbox.create_sink(table).await?));
        }
        let create = format!("create table {table} {five}");
        outbox.stage.statement(&create, &[], "").await?;
        Ok(None)
    }

    fn command(self, outbox: &Outbox<'_>, table: &str, config: Option<&Path>) -> Result<Command> {
        let copy = format!(
            "psql -Xq -d '{}' -c \"copy (select {COLUMNS} from pillarbox.event) to stdout\"",
            outbox.url
        );
        let clickhouse = &outbox.stage.clickhouse;
        let insert = format!("insert into {table} format TSV");
        let script = match self {
            Self::Pillarbox => return Ok(outbox.command(&["relay", "--once"], config)),
            Self::Client => format!(
                "{copy} | clickhouse-client --host 127.0.0.1 --port {} --password {} \
                 --max_memory_usage {MEMORY} --query '{insert}'",
                clickhouse.native_port()?,
                clickhouse.password(),
            ),
            // Not `--data-binary @-`, which reads all of it before it sends the first byte.
            Self::Curl(block_rows) => format!(
                "{copy} | curl -sS --fail-with-body -X POST -T - -H 'Expect:' \
                 '{}/?max_memory_usage={MEMORY}{}&query={}' >&2",
                clickhouse.url_with_credentials()?,
                block_rows
                    .map_or_else(String::new, |rows| format!("&max_insert_block_size={rows}")),
                insert.replace(' ', "%20"),
            ),
            Self::Poller(rows) => return poller(outbox, table, rows),
        };
        let mut command = Command::new("bash");
        command.args(["-o", "pipefail", "-c", &script]);
        Ok(command)
    }

    /// One drain of the whole backlog into a new table.
    pub(crate) async fn drain(self, outbox: &Outbox<'_>, table: &str, five: &str) -> Result<Took> {
        let stage = outbox.stage;
        let config = self.prepare(outbox, table, five).await?;
        let command = self.command(outbox, table, config.as_deref())?;
        let log = stage.dir.path().join(format!("{table}.log"));
        stage.wait_for_silence().await?;
        let before = stage.times()?;
        let ended = child::run(command, &log).await?;
        let at_end = stage.times()?;
        let ran = ended.ran();
        ended
            .check(&log)
            .await
            .with_context(|| format!("the drain into {table}"))?;
        stage.wait_for_silence().await?;
        let after = stage.times()?;
        let postgres = at_end.postgres.saturating_sub(before.postgres);
        let clickhouse = at_end.clickhouse.saturating_sub(before.clickhouse);
        Ok(Took {
            wall_s: ran.wall.as_secs_f64(),
            own_s: ran.cpu.as_secs_f64(),
            servers_s: (postgres + clickhouse).as_secs_f64(),
            postgres_s: after.postgres.saturating_sub(before.postgres).as_secs_f64(),
            clickhouse_s: after
                .clickhouse
                .saturating_sub(before.clickhouse)
                .as_secs_f64(),
            peak_bytes: ran.peak_bytes,
        })
    }
}

fn poller(outbox: &Outbox<'_>, table: &str, rows: u32) -> Result<Command> {
    let mut command = Command::new(client_python()?);
    command
        .args(["-c", include_str!("../../poller.py")])
        .args([&outbox.url, QUEUE])
        .arg(outbox.stage.clickhouse.url_with_credentials()?)
        .args([table, &rows.to_string()]);
    Ok(command)
}
