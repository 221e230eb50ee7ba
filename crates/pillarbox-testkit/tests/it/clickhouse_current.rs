//! What only the current engine does: tokens, strict settings, and a front that never confirms
//! an insert which did not happen.

use std::time::Duration;

use anyhow::{Context, Result};
use clickhouse::Compression;
use pillarbox_testkit::servers::{ClickHouse, Flavour, eventually};

use crate::clickhouse_servers::{DEADLINE, client, code_of, count, create, insert, native_block};

const TOKEN: &str = "insert_deduplication_token";

/// What the relay sends with every insert to a current server (FACTS, "Settings to send").
const INSERT_SETTINGS: [(&str, &str); 17] = [
    ("async_insert", "0"),
    ("insert_deduplicate", "1"),
    ("deduplicate_insert", "enable"),
    ("deduplicate_blocks_in_dependent_materialized_views", "1"),
    ("input_format_native_allow_types_conversion", "0"),
    ("input_format_null_as_default", "0"),
    ("input_format_skip_unknown_fields", "0"),
    ("materialized_views_ignore_errors", "0"),
    ("throw_on_max_partitions_per_insert_block", "1"),
    ("min_insert_block_size_rows", "2000000"),
    ("min_insert_block_size_bytes", "1000000000"),
    ("max_insert_threads", "1"),
    ("distributed_foreground_insert", "1"),
    ("wait_end_of_query", "1"),
    ("send_progress_in_http_headers", "0"),
    ("log_comment", "pillarbox"),
    ("query_id", "batch-0-1"),
];

#[tokio::test]
async fn the_current_engine_takes_every_insert_setting() -> Result<()> {
    let server = ClickHouse::start(Flavour::V26).await?;
    let plain = client(&server, Compression::Lz4);
    create(
        &plain,
        "t",
        "partition by n settings non_replicated_deduplication_window = 9",
    )
    .await?;
    let strict = INSERT_SETTINGS
        .iter()
        .fold(plain.clone(), |c, (k, v)| c.with_setting(*k, *v));
    insert(
        &strict.clone().with_setting(TOKEN, "b/0"),
        "t",
        &[(1, "a"), (2, "b")],
    )
    .await?;
    insert(
        &strict.with_setting(TOKEN, "b/0"),
        "t",
        &[(1, "a"), (3, "c")],
    )
    .await?;
    // A token holds per partition: 1 is known, 3 is new.
    assert_eq!(count(&plain, "t").await?, 3);
    Ok(())
}

#[tokio::test]
async fn an_insert_that_fails_while_writing_is_an_error() -> Result<()> {
    let server = ClickHouse::start(Flavour::V26).await?;
    let plain = client(&server, Compression::Lz4);
    create(&plain, "t", "partition by n").await?;
    let code = |result: Result<()>| result.err().and_then(|error| code_of(&error));
    let rows = [(1, "a"), (2, "bad")];

    let narrow = plain
        .clone()
        .with_setting("max_partitions_per_insert_block", "1");
    assert_eq!(code(insert(&narrow, "t", &rows).await), Some(252));
    server
        .query("alter table t add constraint good check s != 'bad'")
        .await?;
    assert_eq!(code(insert(&plain, "t", &rows).await), Some(469));
    assert_eq!(count(&plain, "t").await?, 0);

    create(&plain, "source", "").await?;
    create(&plain, "target", "").await?;
    let view = "create materialized view v to target as
                select n + throwIf(n = 2) as n, s from source";
    server.query(view).await?;
    let failed = insert(&plain, "source", &rows)
        .await
        .err()
        .context("the view did not fail")?;
    assert!(
        format!("{failed:#}").contains("while pushing to view"),
        "{failed:#}"
    );
    Ok(())
}

#[tokio::test]
async fn a_running_insert_is_found_and_killed_by_its_id() -> Result<()> {
    let server = ClickHouse::start(Flavour::V26).await?;
    let watcher = client(&server, Compression::Lz4);
    create(&watcher, "t", "").await?;
    create(&watcher, "copy", "").await?;
    let view = "create materialized view v to copy as
                select n + sleepEachRow(0.5) as n, s from t settings max_block_size = 1";
    watcher.query(view).execute().await?;
    let slow = watcher
        .clone()
        .with_setting("query_id", "it-2")
        .with_setting("function_sleep_max_microseconds_per_block", "100000000");
    let rows: Vec<(u64, &str)> = (0..100).map(|n| (n, "a")).collect();
    let sql = "insert into t (n, s) format Native";
    let block = native_block(&rows);
    let running = tokio::spawn(async move {
        let mut insert = slow.insert_formatted_with(sql);
        insert.send(block).await?;
        insert.end().await
    });
    let find = "select count() from system.processes where query_id = 'it-2'";
    eventually("the insert to run", DEADLINE, || async {
        let found: u64 = watcher.query(find).fetch_one().await?;
        Ok((found == 1).then_some(()))
    })
    .await?;
    let second = watcher.clone().with_setting("query_id", "it-2");
    let error = count(&second, "t")
        .await
        .err()
        .context("the id was given twice")?;
    assert_eq!(code_of(&error), Some(216));
    server
        .query("kill query where query_id = 'it-2' async")
        .await?;
    let killed = tokio::time::timeout(Duration::from_secs(100), running).await??;
    let error = anyhow::Error::from(killed.err().context("it was not killed")?);
    assert_eq!(code_of(&error), Some(394), "{error:#}");
    Ok(())
}

#[tokio::test]
async fn the_current_engine_deduplicates_by_token() -> Result<()> {
    let server = ClickHouse::start(Flavour::V26).await?;
    let plain = client(&server, Compression::Lz4);
    let token = |token: &str| plain.clone().with_setting(TOKEN, token);
    create(
        &plain,
        "t",
        "settings non_replicated_deduplication_window = 100",
    )
    .await?;
    insert(&token("it's /1"), "t", &[(1, "a")]).await?;
    insert(&token("it's /1"), "t", &[(1, "a")]).await?;
    assert_eq!(count(&plain, "t").await?, 1, "the same token");
    server.kill()?;
    server.restart().await?;
    insert(&token("it's /1"), "t", &[(1, "a")]).await?;
    assert_eq!(
        count(&plain, "t").await?,
        1,
        "the same token after a restart"
    );
    insert(&token("it's /2"), "t", &[(1, "a")]).await?;
    assert_eq!(
        count(&plain, "t").await?,
        2,
        "the same rows under another token"
    );

    // Without a token the engine compares content, as a server does.
    insert(&plain, "t", &[(7, "same")]).await?;
    insert(&plain, "t", &[(7, "same")]).await?;
    assert_eq!(
        count(&plain, "t").await?,
        3,
        "identical rows without a token"
    );
    insert(&plain, "t", &[(8, "other")]).await?;
    assert_eq!(count(&plain, "t").await?, 4, "other rows without a token");

    create(&plain, "no_window", "").await?;
    for _ in 0..2 {
        insert(&token("x"), "no_window", &[(1, "a")]).await?;
    }
    assert_eq!(
        count(&plain, "no_window").await?,
        2,
        "a table without a window ignores tokens"
    );
    Ok(())
}

#[tokio::test]
async fn an_insert_cut_off_in_the_middle_writes_nothing() -> Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = ClickHouse::start(Flavour::V26).await?;
    let client = client(&server, Compression::None);
    create(&client, "t", "").await?;
    let block = native_block(&[(1, "a")]);
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", server.port()?)).await?;
    // A whole block, and yet not the whole body.
    let head = format!(
        "POST /?query=insert+into+t+format+Native HTTP/1.1\r\nHost: x\r\n\
         X-ClickHouse-User: {}\r\nX-ClickHouse-Key: {}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n",
        server.user(),
        server.password(),
        block.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&block).await?;
    stream.write_all(b"\r\n").await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    assert!(
        answer.is_empty(),
        "it answered {}",
        String::from_utf8_lossy(&answer)
    );
    assert_eq!(count(&client, "t").await?, 0);
    Ok(())
}

#[tokio::test]
async fn damaged_frames_are_refused() -> Result<()> {
    let server = ClickHouse::start(Flavour::V26).await?;
    create(&client(&server, Compression::None), "t", "").await?;
    let url = format!(
        "{}/?decompress=1&query=insert+into+t+format+Native",
        server.url()
    );
    let mut frame = vec![0; 16];
    frame.extend_from_slice(&[0x02, 10, 0, 0, 0, 1, 0, 0, 0, 9]);
    let request = reqwest::Client::new().post(url).body(frame);
    let request = request.header("X-ClickHouse-User", server.user());
    let answer = request
        .header("X-ClickHouse-Key", server.password())
        .send()
        .await?;
    assert_eq!(answer.headers()["X-ClickHouse-Exception-Code"], "40");
    assert!(
        answer
            .text()
            .await?
            .contains("(CHECKSUM_DOESNT_MATCH) (version 26.9")
    );
    Ok(())
}

#[tokio::test]
async fn many_requests_at_once_keep_their_settings() -> Result<()> {
    let server = ClickHouse::start(Flavour::V26).await?;
    let base = client(&server, Compression::Lz4);
    create(
        &base,
        "t",
        "settings non_replicated_deduplication_window = 1000",
    )
    .await?;
    let mut tasks = Vec::new();
    for n in 0..40_u64 {
        // Each pair shares a token, and so must count once.
        let client = base.clone().with_setting(TOKEN, format!("pair-{}", n / 2));
        tasks.push(tokio::spawn(async move {
            insert(&client, "t", &[(n / 2, "a")]).await
        }));
    }
    for task in tasks {
        task.await??;
    }
    assert_eq!(count(&base, "t").await?, 20);
    Ok(())
}
