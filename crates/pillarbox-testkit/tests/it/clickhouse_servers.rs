//! Both ClickHouse flavours, through the official client.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clickhouse::{Client, Compression};
use pillarbox_testkit::servers::{ClickHouse, Flavour, eventually};

const DEADLINE: Duration = Duration::from_secs(30);

const TOKEN: &str = "insert_deduplication_token";

fn client(server: &ClickHouse, compression: Compression) -> Client {
    Client::default()
        .with_url(server.url())
        .with_user(server.user())
        .with_password(server.password())
        .with_database(server.database())
        .with_compression(compression)
        // 18.16 does not know the format that validation asks for.
        .with_validation(server.flavour() == Flavour::V26)
}

/// One Native block of `(n UInt64, s String)`.
fn native_block(rows: &[(u64, &str)]) -> Bytes {
    let mut out = vec![2];
    varint(&mut out, rows.len());
    out.extend_from_slice(b"\x01n\x06UInt64");
    for (n, _) in rows {
        out.extend_from_slice(&n.to_le_bytes());
    }
    out.extend_from_slice(b"\x01s\x06String");
    for (_, s) in rows {
        varint(&mut out, s.len());
        out.extend_from_slice(s.as_bytes());
    }
    out.into()
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

async fn insert(client: &Client, table: &str, rows: &[(u64, &str)]) -> Result<()> {
    let sql = format!("insert into {table} (n, s) format Native");
    let mut insert = client.insert_formatted_with(sql);
    insert.send(native_block(rows)).await?;
    insert.end().await?;
    Ok(())
}

async fn create(client: &Client, table: &str, settings: &str) -> Result<()> {
    let sql = format!(
        "create table {table} (n UInt64, s String) engine = MergeTree order by n {settings}"
    );
    Ok(client.query(&sql).execute().await?)
}

async fn count(client: &Client, table: &str) -> Result<u64> {
    Ok(client
        .query(&format!("select count() from {table}"))
        .fetch_one()
        .await?)
}

/// The code in a server error, which has no field of its own.
fn code_of(error: &anyhow::Error) -> Option<u32> {
    let text = format!("{error:#}");
    let at = text.find("Code: ")? + 6;
    text[at..]
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

#[tokio::test]
async fn the_official_client_inserts_native_and_reads_back() -> Result<()> {
    for flavour in Flavour::ALL {
        let started = Instant::now();
        let server = ClickHouse::start(flavour).await?;
        println!("{flavour:?} started in {:?}", started.elapsed());
        for (table, compression) in [("plain", Compression::None), ("lz4", Compression::Lz4)] {
            let client = client(&server, compression);
            create(&client, table, "").await?;
            let long = "x".repeat(3_000_000);
            insert(&client, table, &[(1, "one"), (2, &long)]).await?;
            let sql = format!("select n, s from {table} order by n");
            let rows: Vec<(u64, String)> = client.query(&sql).fetch_all().await?;
            assert_eq!(
                rows,
                [(1, "one".to_owned()), (2, long)],
                "{flavour:?} {table}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn settings_hold_for_one_request_only() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = ClickHouse::start(flavour).await?;
        let limited = client(&server, Compression::None).with_setting("max_result_rows", "1");
        let sql = "select number from system.numbers limit 5";
        let refused = limited.query(sql).fetch_all::<u64>().await;
        let error = anyhow::Error::from(refused.err().context("the limit was ignored")?);
        assert_eq!(code_of(&error), Some(396), "{flavour:?} {error:#}");
        let free = client(&server, Compression::None);
        assert_eq!(free.query(sql).fetch_all::<u64>().await?.len(), 5);
    }
    Ok(())
}

#[tokio::test]
async fn errors_carry_the_codes_of_the_server() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = ClickHouse::start(flavour).await?;
        let good = client(&server, Compression::Lz4);
        let code = |result: Result<u64>| result.err().and_then(|error| code_of(&error));
        assert_eq!(
            code(count(&good, "no_such_table").await),
            Some(60),
            "{flavour:?}"
        );
        let odd = good.clone().with_setting("no_such_setting", "1");
        assert_eq!(
            code(count(&odd, "system.one").await),
            Some(115),
            "{flavour:?}"
        );
        let stranger = good.clone().with_password("wrong");
        let refused = if flavour == Flavour::V18 { 193 } else { 516 };
        assert_eq!(
            code(count(&stranger, "system.one").await),
            Some(refused),
            "{flavour:?}"
        );
        let elsewhere = good.clone().with_database("no_such_database");
        assert_eq!(
            code(count(&elsewhere, "system.one").await),
            Some(81),
            "{flavour:?}"
        );

        create(&good, "t", "").await?;
        let into_nothing = insert(&good, "no_such_table", &[(1, "a")]).await;
        assert_eq!(
            into_nothing.err().and_then(|e| code_of(&e)),
            Some(60),
            "{flavour:?}"
        );
        let mut cut = good.insert_formatted_with("insert into t (n, s) format Native");
        cut.send(native_block(&[(1, "a"), (2, "b")]).slice(..20))
            .await?;
        assert!(cut.end().await.is_err(), "{flavour:?} took half a block");
        assert_eq!(count(&good, "t").await?, 0, "{flavour:?}");
    }
    Ok(())
}

#[tokio::test]
async fn data_survive_kill_and_restart() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = ClickHouse::start(flavour).await?;
        let client = client(&server, Compression::Lz4);
        create(&client, "t", "").await?;
        for n in 0..5 {
            insert(&client, "t", &[(n, "a")]).await?;
        }
        server.kill()?;
        assert!(server.pid().is_none());
        assert!(count(&client, "t").await.is_err());
        server.restart().await?;
        assert_eq!(count(&client, "t").await?, 5, "{flavour:?}");
        server.stop().await?;
        server.restart().await?;
        assert_eq!(count(&client, "t").await?, 5, "{flavour:?}");
    }
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
async fn a_running_query_is_found_and_killed_by_its_id() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = ClickHouse::start(flavour).await?;
        let watcher = client(&server, Compression::None);
        let slow = watcher
            .clone()
            .with_setting("query_id", "it-1")
            .with_setting("max_block_size", "1");
        let sql = "select sum(sleepEachRow(0.2)) from system.numbers limit 1";
        let running = tokio::spawn(async move { slow.query(sql).fetch_one::<u64>().await });
        let find = "select count() from system.processes where query_id = 'it-1'";
        eventually("the query to run", DEADLINE, || async {
            let found: u64 = watcher.query(find).fetch_one().await?;
            Ok((found == 1).then_some(()))
        })
        .await?;
        server
            .query("kill query where query_id = 'it-1' sync")
            .await?;
        let killed = tokio::time::timeout(DEADLINE, running).await??;
        let error = anyhow::Error::from(killed.err().context("it was not killed")?);
        assert_eq!(code_of(&error), Some(394), "{flavour:?} {error:#}");
    }
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

#[tokio::test]
async fn a_paused_clickhouse_answers_only_after_resume() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = ClickHouse::start(flavour).await?;
        let client = client(&server, Compression::None);
        server.pause()?;
        let answer = count(&client, "system.one");
        tokio::pin!(answer);
        let early = tokio::time::timeout(Duration::from_millis(200), &mut answer).await;
        assert!(early.is_err(), "{flavour:?} answered while frozen");
        server.resume()?;
        assert_eq!(tokio::time::timeout(DEADLINE, answer).await??, 1);
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_of_a_dropped_clickhouse() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = ClickHouse::start(flavour).await?;
        let (pid, dir) = (server.pid().context("a pid")?, server.dir()?);
        drop(server);
        let proc = format!("/proc/{pid}");
        ensure!(
            !Path::new(&proc).exists(),
            "{flavour:?}: process {pid} is left"
        );
        ensure!(!dir.exists(), "{flavour:?}: {} is left", dir.display());
    }
    Ok(())
}
