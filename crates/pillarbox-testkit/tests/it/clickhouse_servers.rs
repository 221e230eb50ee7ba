//! Both ClickHouse flavours, through the official client.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clickhouse::{Client, Compression};
use pillarbox_testkit::servers::{ClickHouse, Flavour, eventually};

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn client(server: &ClickHouse, compression: Compression) -> Client {
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
pub(crate) fn native_block(rows: &[(u64, &str)]) -> Bytes {
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

pub(crate) async fn insert(client: &Client, table: &str, rows: &[(u64, &str)]) -> Result<()> {
    let sql = format!("insert into {table} (n, s) format Native");
    let mut insert = client.insert_formatted_with(sql);
    insert.send(native_block(rows)).await?;
    insert.end().await?;
    Ok(())
}

pub(crate) async fn create(client: &Client, table: &str, settings: &str) -> Result<()> {
    let sql = format!(
        "create table {table} (n UInt64, s String) engine = MergeTree order by n {settings}"
    );
    Ok(client.query(&sql).execute().await?)
}

pub(crate) async fn count(client: &Client, table: &str) -> Result<u64> {
    Ok(client
        .query(&format!("select count() from {table}"))
        .fetch_one()
        .await?)
}

/// The code in a server error, which has no field of its own.
pub(crate) fn code_of(error: &anyhow::Error) -> Option<u32> {
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
