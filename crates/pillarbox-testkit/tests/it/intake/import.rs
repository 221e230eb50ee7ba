//! Files: each line becomes an event once, however often the import is killed.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command as Plain, Stdio};

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::{Persistence, eventually};

use super::queue::{Event, Kind, PATIENCE, Queue, numbers};

/// An import of a file, and what it printed; its log when it is refused.
async fn import(queue: &Queue, file: &Path, failpoints: &str) -> Result<Result<[u64; 3], String>> {
    eventually("the import to be active", PATIENCE, || async {
        let mut command = queue.intake("import", failpoints);
        command
            .env("FILE", file)
            .env_remove("NAME")
            .stderr(Stdio::piped());
        let output = tokio::time::timeout(PATIENCE, command.output()).await;
        let output = output.context("the import does not end")??;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        if log.contains("another process is active") {
            return Ok(None);
        }
        Ok(Some(match output.status.success() {
            true => Ok(numbers(&output.stdout)?),
            false => Err(log),
        }))
    })
    .await
}

fn lines(count: u64, oracle: &Oracle) -> String {
    let mut text = String::new();
    for nth in 0..count {
        let event = Event::new(nth);
        oracle.committed(event.published());
        text.push_str(&event.json());
        text.push('\n');
    }
    text
}

#[tokio::test]
async fn inv_14_an_import_is_killed_and_goes_on_where_it_was() -> Result<()> {
    let queue = Queue::start(Kind::List, Persistence::None).await?;
    let dir = tempfile::tempdir()?;
    let oracle = Oracle::new();
    let mut text = lines(42_000, &oracle).into_bytes();
    // A line too large to be held, blank ones, and one that is no event.
    text.extend(std::iter::repeat_n(b'x', 20_000_000));
    text.extend(b"\n\n  \r\nsecret\n");
    text.extend(lines(3_000, &oracle).trim_end().bytes());
    let plain = dir.path().join("events.ndjson");
    std::fs::write(&plain, &text)?;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&text)?;
    let packed = dir.path().join("events.gz");
    std::fs::write(&packed, gzip.finish()?)?;

    for (nth, step) in ["intake-written", "import-committed"]
        .iter()
        .cycle()
        .take(8)
        .enumerate()
    {
        // The lines are the same, packed or not.
        let file = if nth % 2 == 0 { &packed } else { &plain };
        let failpoints = if nth % 3 == 0 {
            format!("{step}=return")
        } else {
            format!("{step}=1*off->return")
        };
        let killed = import(&queue, file, &failpoints).await?;
        ensure!(killed.is_err(), "it was not killed at {step}: {killed:?}");
    }
    let last = import(&queue, &packed, "").await?;
    let [_, _, before] = last.map_err(anyhow::Error::msg)?;
    ensure!(before > 20_000, "it went on behind {before} lines");
    queue.outbox_holds(&oracle).await?;
    let reasons = queue.reasons().await?;
    ensure!(
        reasons.len() == 2 && reasons[1] == "it is not a json object",
        "{reasons:?}"
    );
    let sql = "select length(string_agg(entry, '' order by piece))::bigint from pillarbox.intake_letter_piece
               group by dead_letter order by dead_letter limit 1";
    ensure!(
        queue.number(sql).await? == 20_000_000,
        "a byte of the large line is missing"
    );
    let places = "select string_agg(place, ',' order by dead_letter) from pillarbox.intake_letter";
    let row = queue.postgres.query(places, &[]).await?.remove(0);
    assert_eq!(row.get::<_, &str>(0), "line 42001,line 42004");

    // All of it again does nothing; what has grown goes on; what has changed is refused.
    assert_eq!(import(&queue, &plain, "").await?, Ok([0, 0, 45_004]));
    text.push(b'\n');
    text.extend(lines(5, &oracle).bytes());
    std::fs::write(&plain, &text)?;
    assert_eq!(import(&queue, &plain, "").await?, Ok([5, 0, 45_004]));
    let at = text.len() / 3;
    text[at] ^= 1;
    std::fs::write(&plain, &text)?;
    let refused = import(&queue, &plain, "").await?.unwrap_err();
    ensure!(
        refused.contains("has changed in its first 45009 lines"),
        "{refused}"
    );
    queue.outbox_holds(&oracle).await?;
    Ok(())
}

#[tokio::test]
async fn inv_14_a_strict_import_takes_nothing_of_a_bad_batch() -> Result<()> {
    let queue = Queue::start(Kind::List, Persistence::None).await?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("events.zst");
    let (first, second) = (Oracle::new(), Oracle::new());
    let good = lines(5_000, &first);
    let text = format!("{good}{}secret\n", lines(10, &second));
    let plain = dir.path().join("plain");
    std::fs::write(&plain, text)?;
    let packed = Plain::new("zstd")
        .arg("-q")
        .arg(&plain)
        .arg("-o")
        .arg(&file)
        .status();
    let file = if packed.is_ok_and(|status| status.success()) {
        file
    } else {
        plain
    };
    let mut command = queue.intake("import", "");
    command
        .env("FILE", &file)
        .env("STRICT", "1")
        .stderr(Stdio::piped());
    let output = tokio::time::timeout(PATIENCE, command.output()).await??;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success());
    ensure!(
        log.contains("line 5011 is no event: it is not a json object; nothing of its batch"),
        "{log}"
    );
    ensure!(!log.contains("secret"), "{log}");
    queue.outbox_holds(&first).await?;
    ensure!(queue.reasons().await?.is_empty());
    Ok(())
}
