//! What is drained: events of a size, published into an outbox.

use std::time::Instant;

use anyhow::{Context as _, Result};
use bytes::{Bytes, BytesMut};
use futures_util::SinkExt as _;
use pillarbox_testkit::publish::TYPES;
use tokio_postgres::Client;

use crate::stage::Outbox;

/// Rows of a transaction of small events.
const TRANSACTION: u64 = 50_000;
/// Bytes of a transaction of large ones.
const TRANSACTION_BYTES: u64 = 64 << 20;
/// 2026-11-20, 12:00 UTC. Ten million events stay within the month, which is one partition.
const FIRST_S: u64 = 1_795_176_000;
/// Bytes of a small event's context.
const SMALL_BYTES: u64 = 314;

/// Publishes the small events with the numbers of `range`, by two sessions.
pub(crate) async fn fill_small(outbox: &Outbox<'_>, first: u64, last: u64) -> Result<()> {
    let started = Instant::now();
    let chunks: Vec<u64> = (first..=last).step_by(TRANSACTION as usize).collect();
    let publish = |skip: usize| {
        let chunks = &chunks;
        async move {
            let client = outbox.connect().await?;
            for first in chunks.iter().skip(skip).step_by(2) {
                let last = last.min(first + TRANSACTION - 1);
                client.batch_execute(&small(*first, last)).await?;
            }
            anyhow::Ok(())
        }
    };
    tokio::try_join!(publish(0), publish(1))?;
    settle(outbox, last + 1 - first, started).await
}

/// Inserts small events: contexts of 314 bytes, of which half is hexadecimal digits of MD5.
fn small(first: u64, last: u64) -> String {
    let types = TYPES.map(|of| format!("'{of}'")).join(", ");
    let digests: Vec<String> = "abcdefg"
        .chars()
        .map(|c| format!("md5('{c}' || n)"))
        .collect();
    format!(
        "insert into pillarbox.event (event_type, event_date_time, environment, event_context)
         select
             (array[{types}])[1 + n % {}], to_timestamp({FIRST_S} + n / 100), 'production',
             (left('{{\"user_id\": ' || n || ', \"path\": \"/api/v1/orders/' || n || '\", \"trace\": \"'
                 || md5(n::text) || {}, {}) || '\"}}')::json
         from generate_series({first}, {last}) n",
        TYPES.len(),
        digests.join(" || "),
        SMALL_BYTES - 2
    )
}

/// Publishes `count` events with contexts of `bytes` bytes, by two sessions.
pub(crate) async fn fill_large(outbox: &Outbox<'_>, count: u64, bytes: u64) -> Result<()> {
    let started = Instant::now();
    let chunk = (TRANSACTION_BYTES / bytes).max(1);
    let publish = |session: u64| async move {
        let client = outbox.connect().await?;
        let mut random = Random(0x5EED + session);
        for first in (1..=count)
            .step_by(chunk as usize)
            .skip(session as usize)
            .step_by(2)
        {
            let last = count.min(first + chunk - 1);
            copy_large(&client, first..=last, bytes, &mut random).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(publish(0), publish(1))?;
    settle(outbox, count, started).await
}

async fn copy_large(
    client: &Client,
    numbers: std::ops::RangeInclusive<u64>,
    bytes: u64,
    random: &mut Random,
) -> Result<()> {
    let copy =
        "copy pillarbox.event (event_type, event_date_time, environment, event_context) from stdin";
    let sink = client.copy_in::<_, Bytes>(copy).await?;
    let mut sink = std::pin::pin!(sink);
    for n in numbers {
        let of = TYPES[(n % TYPES.len() as u64) as usize];
        let at = jiff::Timestamp::from_second((FIRST_S + n / 100).cast_signed())?;
        let mut line = BytesMut::with_capacity(bytes as usize + 100);
        line.extend_from_slice(format!("{of}\t{at}\tproduction\t").as_bytes());
        large(n, bytes, random, &mut line);
        line.extend_from_slice(b"\n");
        sink.feed(line.freeze()).await?;
    }
    sink.finish().await?;
    Ok(())
}

/// Appends a context of exactly so many bytes to a line of COPY: hexadecimal digits at random, which no LZ
/// shrinks by much, and a quoted quote, which every text format has to escape.
fn large(n: u64, bytes: u64, random: &mut Random, line: &mut BytesMut) {
    let head = format!(r#"{{"n": {n}, "title": "an \"exact\" copy", "document": ""#);
    let digits = (bytes as usize).saturating_sub(head.len() + 2);
    line.extend_from_slice(head.replace('\\', r"\\").as_bytes());
    for _ in 0..digits / 16 {
        line.extend_from_slice(&random.digits());
    }
    line.extend_from_slice(&random.digits()[..digits % 16]);
    line.extend_from_slice(b"\"}");
}

/// Hexadecimal digits, the same in every run.
struct Random(u64);

impl Random {
    fn digits(&mut self) -> [u8; 16] {
        // Knuth's MMIX; its low bits are weak, so they are mixed with the high ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let bits = self.0 ^ (self.0 >> 33);
        std::array::from_fn(|place| b"0123456789abcdef"[(bits >> (4 * place)) as usize & 15])
    }
}

/// What a fill leaves to others: statistics, and pages that have to be written.
async fn settle(outbox: &Outbox<'_>, count: u64, started: Instant) -> Result<()> {
    let client = outbox.connect().await?;
    client
        .batch_execute("checkpoint")
        .await
        .context("checkpoint")?;
    let took = started.elapsed().as_secs_f64();
    eprintln!("bench: published {count} events in {took:.1} s");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_context_has_its_size_and_is_json() -> Result<()> {
        for bytes in [100_u64, 1_000, 1_013] {
            let mut line = BytesMut::new();
            large(7, bytes, &mut Random(1), &mut line);
            let context = String::from_utf8(line.to_vec())?.replace(r"\\", r"\");
            assert_eq!(context.len() as u64, bytes);
            let value: serde_json::Value = serde_json::from_str(&context)?;
            assert_eq!(value["title"], r#"an "exact" copy"#);
        }
        Ok(())
    }
}
