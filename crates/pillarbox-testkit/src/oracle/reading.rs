//! Reads every row of a ClickHouse table, a page at a time, and every dead letter.

use anyhow::{Context, Result, bail, ensure};
use uuid::Uuid;

use super::{Content, Found, Precision};
use crate::servers::{ClickHouse, Postgres};

/// Bytes of a page, about: what is held in memory at once.
const PAGE_BYTES: u64 = 64 << 20;

/// What a row takes beside its context, about.
const ROW_BYTES: u64 = 128;

/// Reads all rows of `table`, doubled ones too, with the columns that `pillarbox sink create` makes.
///
/// Holds one page of about 64 MiB and 48 bytes for each row. The table must be at rest: pages are
/// separate queries. Dropping the future is safe.
pub async fn read_clickhouse(
    server: &ClickHouse,
    table: &str,
    precision: Precision,
) -> Result<Vec<Found>> {
    let size = server
        .query(&format!(
            "select count(), sum(length(event_context)) from {table}"
        ))
        .await?;
    let (rows, bytes) = size
        .trim()
        .split_once('\t')
        .with_context(|| format!("counting {table} gave {size:?}"))?;
    let (rows, bytes): (u64, u64) = (rows.parse()?, bytes.parse()?);
    let pages = 1 + (bytes + rows * ROW_BYTES) / PAGE_BYTES;
    // A connection kept while a page is taken apart may be closed by the server meanwhile.
    let http = reqwest::Client::builder()
        .pool_max_idle_per_host(0)
        .build()?;
    let mut found = Vec::new();
    for page in 0..pages {
        // A cut answer ends inside of a row, or the count differs.
        let answer = http
            .post(server.url())
            .header("X-ClickHouse-User", server.user())
            .header("X-ClickHouse-Key", server.password())
            .body(statement(table, precision, page, pages))
            .send()
            .await
            .with_context(|| format!("reading {table}"))?;
        let (status, body) = (answer.status(), answer.bytes().await?);
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body);
            bail!("reading {table}: http {status}: {}", text.trim_end());
        }
        let mut rest = &body[..];
        while !rest.is_empty() {
            found.push(row(&mut rest, precision).with_context(|| format!("a row of {table}"))?);
        }
    }
    ensure!(
        found.len() as u64 == rows,
        "{table} had {rows} rows, {} were read; is something still writing?",
        found.len()
    );
    Ok(found)
}

/// Reads every event that is set aside, as the outbox had it; those that a retry has delivered since
/// are none.
///
/// Holds all of them at once. Dropping the future is safe.
pub async fn read_dead_letters(server: &Postgres) -> Result<Vec<Found>> {
    const LETTERS: &str = "
        select event_id, event_type, (extract(epoch from event_date_time) * 1000000)::bigint,
            environment, event_context::text, metadata_version
        from pillarbox.dead_letter
        where state <> 'delivered'";
    let rows = server.query(LETTERS, &[]).await?;
    let letter = |row: &tokio_postgres::Row| {
        let content = Content {
            event_type: row.get(1),
            environment: row.get(3),
            event_context: row.get::<_, &str>(4).as_bytes(),
            metadata_version: row.get::<_, i64>(5).cast_unsigned(),
        };
        Found::new(row.get(0), &content, row.get(2), Precision::Micros)
    };
    Ok(rows.iter().map(letter).collect())
}

fn statement(table: &str, precision: Precision, page: u64, pages: u64) -> String {
    let time = match precision {
        Precision::Seconds => "toInt64(toUInt32(event_date_time)) * 1000000",
        Precision::Micros => "toUnixTimestamp64Micro(event_date_time)",
    };
    format!(
        "select toString(event_id), toString(event_type), toInt64({time}), toString(environment), \
         event_context, toUInt64(metadata_version) from {table} \
         where cityHash64(toString(event_id)) % {pages} = {page} format RowBinary"
    )
}

fn row(rest: &mut &[u8], precision: Precision) -> Result<Found> {
    let event_id: Uuid = text(rest)?.parse()?;
    let event_type = text(rest)?;
    let time_us = i64::from_le_bytes(fixed(rest)?);
    let environment = text(rest)?;
    let event_context = bytes(rest)?;
    let content = Content {
        event_type,
        environment,
        event_context,
        metadata_version: u64::from_le_bytes(fixed(rest)?),
    };
    Ok(Found::new(event_id, &content, time_us, precision))
}

fn text<'a>(rest: &mut &'a [u8]) -> Result<&'a str> {
    Ok(std::str::from_utf8(bytes(rest)?)?)
}

fn bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8]> {
    let mut length = 0_u64;
    for shift in (0..64).step_by(7) {
        let [byte] = fixed(rest)?;
        length |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    take(rest, usize::try_from(length)?)
}

fn fixed<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N]> {
    Ok(take(rest, N)?.try_into()?)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (taken, left) = rest
        .split_at_checked(length)
        .context("the answer ends inside of it")?;
    *rest = left;
    Ok(taken)
}
