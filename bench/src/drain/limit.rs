//! How fast each end could go alone: what PostgreSQL gives, and what ClickHouse takes.

use std::time::Instant;

use anyhow::{Result, ensure};
use bytes::Bytes;
use tokio::process::Command;

use crate::child;
use crate::drain::contender::COLUMNS;
use crate::stage::{Outbox, Stage};

/// Blocks of half a million rows each of the two million.
const BLOCKS: usize = 4;
/// One insert is one block of one part, whatever its size here.
const WHOLE: [(&str, &str); 3] = [
    ("max_insert_block_size", "2000000"),
    ("min_insert_block_size_rows", "2000000"),
    ("min_insert_block_size_bytes", "1000000000"),
];

/// Seconds of a binary COPY of the five columns that nobody reads.
pub(crate) async fn copy(outbox: &Outbox<'_>) -> Result<f64> {
    let log = outbox.stage.dir.path().join("copy.log");
    let sql = format!("copy (select {COLUMNS} from pillarbox.event) to stdout (format binary)");
    let mut command = Command::new("psql");
    command.args(["-Xq", "-d", &outbox.url, "-c", &sql]);
    outbox.stage.wait_for_silence().await?;
    let ended = child::run(command, &log).await?;
    let wall = ended.ran().wall.as_secs_f64();
    ended.check(&log).await?;
    Ok(wall)
}

/// Blocks in ClickHouse's own format, each in the order of the table: what an encoder could at best send.
pub(crate) async fn blocks(stage: &Stage, table: &str) -> Result<Vec<Bytes>> {
    let settings = [
        ("max_block_size", "2000000"),
        ("preferred_block_size_bytes", "0"),
    ];
    let mut blocks = Vec::new();
    for nth in 0..BLOCKS {
        let sql = format!(
            "select event_type, event_date_time, environment, event_context, metadata_version from {table}
             where cityHash64(event_context) % {BLOCKS} = {nth}
             order by event_type, toStartOfHour(event_date_time), environment, event_date_time
             format Native"
        );
        blocks.push(stage.bytes(&sql, &settings, "").await?);
    }
    Ok(blocks)
}

/// Seconds of inserting them into an empty table, two at a time.
pub(crate) async fn insert(stage: &Stage, blocks: &[Bytes], five: &str) -> Result<f64> {
    const TABLE: &str = "native";
    stage
        .statement(&format!("create table {TABLE} {five}"), &[], "")
        .await?;
    stage.wait_for_silence().await?;
    let started = Instant::now();
    let send = |skip: usize| async move {
        for block in blocks.iter().skip(skip).step_by(2) {
            let sql = format!("insert into {TABLE} format Native");
            stage.bytes(&sql, &WHOLE, block.clone()).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(send(0), send(1))?;
    let wall = started.elapsed().as_secs_f64();
    let parts = format!("select count() from system.parts where table = '{TABLE}' and level = 0");
    let parts = stage.statement(&parts, &[], "").await?;
    ensure!(
        parts.trim() == blocks.len().to_string(),
        "{} prepared blocks became {} parts",
        blocks.len(),
        parts.trim()
    );
    stage.wait_for_silence().await?;
    stage
        .statement(&format!("drop table {TABLE}"), &[], "")
        .await?;
    Ok(wall)
}
