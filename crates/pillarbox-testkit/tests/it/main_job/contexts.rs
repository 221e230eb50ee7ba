//! INV-12: every kind of JSON arrives byte for byte, in the recommended table and in the one of five
//! columns that the problem starts from.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::{Flavour, PgVersion, Postgres};
use tokio_postgres::Client;

use crate::scene::{PATIENCE, SINK, Scene, TABLE, version_for};
use crate::traffic::Event;

const NOON_US: i64 = 1_795_176_000_000_000;

/// The default limit of a context.
const BYTES_MAX: usize = 1024 * 1024;

/// The table of the problem, exactly.
const FIVE_COLUMNS: &str = "event_type String, event_date_time DateTime, environment String, \
                            event_context String, metadata_version UInt64";

fn contexts() -> Vec<String> {
    let mut contexts: Vec<String> = [
        "1",
        "{}",
        "[]",
        "null",
        "true",
        "\"\"",
        "-0.0",
        "1E400",
        "18446744073709551616",
        "-9223372036854775809",
        "123456789012345678901234567890.123456789012345678901234567890",
        "{\"a\":1,\"a\":2, \"a\" :3}",
        "{\"z\":1,\"y\":{\"x\":[1,[2,[3,{\"w\":null}]]]}}",
        " \t\r\n{ \"a\" :\r\n\t1 ,\n\"b\": [ ] }\n\n ",
        r#"{"escape":"\" \\ \/ \b \f \n \r \t","nul":"\u0000","lone":"\ud800","pair":"\ud83d\ude00"}"#,
        "{\"ключ\":\"значение\",\"日本\":\"語\",\"emoji\":\"📮🧾\",\"rtl\":\"שלום\",\"combining\":\"e\u{301}\"}",
        "\"\u{7f}\u{80}\u{a0}\u{2028}\u{2029}\u{feff}\u{fffd}\u{10ffff}\"",
        "\"it's 'quoted', \\\\N, tab\\t and ${}; drop table events --\"",
    ]
    .map(str::to_owned)
    .to_vec();
    for depth in [10, 500] {
        contexts.push(format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
    }
    // Around what a length prefix, a TOAST chunk and the limit change at.
    for bytes in [
        127,
        128,
        2_000,
        16_383,
        16_384,
        65_536,
        BYTES_MAX - 1,
        BYTES_MAX,
    ] {
        contexts.push(format!("\"{}\"", "é".repeat(bytes / 2)));
        let text = contexts.last_mut().map(|text| {
            while text.len() > bytes {
                text.remove(1);
            }
            while text.len() < bytes {
                text.insert(1, 'x');
            }
            text.len()
        });
        assert_eq!(text, Some(bytes));
    }
    contexts
}

/// Publishes the contexts: text keeps every byte on the way to the server.
async fn publish(client: &Client, events: &[Event]) -> Result<()> {
    let sql = "insert into pillarbox.event (event_id, event_type, event_date_time, event_context) \
               values ($1, $2, $3, $4::text::json)";
    for event in events {
        client
            .execute(
                sql,
                &[
                    &event.event_id,
                    &event.event_type,
                    &event.at,
                    &event.context,
                ],
            )
            .await
            .with_context(|| event.context.chars().take(80).collect::<String>())?;
    }
    Ok(())
}

fn events() -> Vec<Event> {
    contexts()
        .into_iter()
        .map(|context| Event::at(NOON_US, "context", context))
        .collect()
}

async fn the_recommended_table(version: PgVersion, flavour: Flavour) -> Result<()> {
    let postgres = Postgres::start(version).await?;
    let scene = Scene::on(postgres, flavour).await?;
    let (oracle, events) = (Oracle::new(), events());
    let client = scene.postgres.connect().await?;
    publish(&client, &events).await?;
    for event in &events {
        oracle.committed(event.published()?);
    }
    let over = format!("\"{}\"", "x".repeat(BYTES_MAX - 1));
    let over = Event::at(NOON_US, "context", over);
    let refused = publish(&client, std::slice::from_ref(&over)).await;
    let text = format!("{:#}", refused.err().context("it was taken")?);
    ensure!(text.contains("db error"), "{text}");
    let verdict = scene.holds_when_drained(&oracle).await?;
    assert_eq!(verdict.delivered, events.len() as u64);
    Ok(())
}

/// Its rows have no identity: the contexts themselves are compared, as often as they were published.
async fn same_contexts(scene: &Scene, events: &[Event]) -> Result<()> {
    let sql = format!("select hex(event_context) from {TABLE}");
    let held = scene.clickhouse.query(&sql).await?;
    let mut balance: BTreeMap<String, i64> = BTreeMap::new();
    for event in events {
        let hex: String = event
            .context
            .bytes()
            .map(|byte| format!("{byte:02X}"))
            .collect();
        *balance.entry(hex).or_default() += 1;
    }
    for line in held.lines() {
        *balance.entry(line.to_owned()).or_default() -= 1;
    }
    let wrong: Vec<&String> = balance
        .iter()
        .filter_map(|(hex, count)| (*count != 0).then_some(hex))
        .collect();
    ensure!(
        wrong.is_empty(),
        "{} contexts differ: {wrong:.200?}",
        wrong.len()
    );
    Ok(())
}

async fn five_columns(flavour: Flavour) -> Result<()> {
    let postgres = Postgres::start(version_for(flavour)).await?;
    let scene = Scene::without_table(postgres, flavour).await?;
    let window = match flavour {
        Flavour::V18 => "",
        Flavour::V26 => "settings non_replicated_deduplication_window = 1000",
    };
    let create = format!(
        "create table {TABLE} ({FIVE_COLUMNS}) engine = MergeTree order by event_date_time {window}"
    );
    scene.clickhouse.query(&create).await?;
    scene.register(SINK).await?;
    let events = events();
    publish(&scene.postgres.connect().await?, &events).await?;
    if flavour == Flavour::V18 {
        // No tokens there: without the column batch nobody could tell what a lost answer wrote.
        let drain = tokio::time::timeout(PATIENCE, scene.relay("drain", "")?.output());
        let output = drain.await??;
        let log = String::from_utf8_lossy(&output.stderr);
        let remedy = "ALTER TABLE `default`.`events` ADD COLUMN batch UInt64";
        ensure!(!output.status.success() && log.contains(remedy), "{log}");
        scene.clickhouse.query(remedy).await?;
    }
    scene.drain().await?;
    same_contexts(&scene, &events).await
}

#[tokio::test]
async fn inv_12_contexts_in_the_recommended_table_of_clickhouse_18() -> Result<()> {
    the_recommended_table(PgVersion::V15, Flavour::V18).await
}

#[tokio::test]
async fn inv_12_contexts_in_the_recommended_table_of_clickhouse_26() -> Result<()> {
    the_recommended_table(PgVersion::V15, Flavour::V26).await
}

#[tokio::test]
async fn inv_12_contexts_from_postgresql_18() -> Result<()> {
    the_recommended_table(PgVersion::V18, Flavour::V26).await
}

#[tokio::test]
async fn inv_12_contexts_in_the_five_columns_of_clickhouse_18() -> Result<()> {
    five_columns(Flavour::V18).await
}

#[tokio::test]
async fn inv_12_contexts_in_the_five_columns_of_clickhouse_26() -> Result<()> {
    five_columns(Flavour::V26).await
}
