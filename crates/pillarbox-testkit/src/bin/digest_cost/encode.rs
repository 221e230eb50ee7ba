//! The encoder alone: instructions by callgrind and CPU time of this thread, per row.

use std::hint::black_box;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use pillarbox_relay::fuzzing::{Column, FuzzedEncoder};
use pillarbox_testkit::cpu;

use super::figures::median;

/// The recommended table on 18.16.
const COLUMNS: [Column<'static>; 6] = [
    ("event_id", 2950, "UUID"),
    ("event_type", 25, "String"),
    ("event_date_time", 1184, "DateTime('UTC')"),
    ("environment", 25, "String"),
    ("event_context", 114, "String"),
    ("metadata_version", 20, "UInt64"),
];
const PARTITION: &str = "toYYYYMM(event_date_time)";
/// Rows that are encoded again and again: they stay in the cache, as what was just received does.
const DISTINCT: usize = 2_000;
/// What a batch of 32 MiB holds.
const BATCH_ROWS: usize = 80_000;
const ROUNDS: usize = 9;
const TIMED_ROWS: usize = 400_000;
/// Under callgrind, which takes fifty times as long.
const COUNTED_ROWS: usize = 40_000;

/// What is done with each row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Work {
    Nothing,
    WithoutDigest,
    WithDigest,
}

impl Work {
    pub(crate) fn parse(word: &str) -> Result<Self> {
        Ok(match word {
            "nothing" => Self::Nothing,
            "without" => Self::WithoutDigest,
            "with" => Self::WithDigest,
            other => bail!("{other} is not one of nothing, without, with"),
        })
    }

    fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::WithoutDigest => "without",
            Self::WithDigest => "with",
        }
    }
}

/// Prints what the digest of a row costs, and gives its CPU time in nanoseconds.
pub(crate) fn report() -> Result<f64> {
    let base = instructions(Work::Nothing)?;
    let per_row = |count: u64| count.saturating_sub(base) / COUNTED_ROWS as u64;
    let without = per_row(instructions(Work::WithoutDigest)?);
    let with = per_row(instructions(Work::WithDigest)?);
    println!(
        "encoder: instructions per row: {without} without, {with} with, digest {}",
        with.saturating_sub(without)
    );
    let rows = rows();
    let (mut off, mut on, mut digest) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let without = timed(&rows, Work::WithoutDigest)?;
        let with = timed(&rows, Work::WithDigest)?;
        off.push(without);
        on.push(with);
        digest.push(with - without);
    }
    println!(
        "encoder: CPU ns per row, medians of {ROUNDS} rounds: {:.0} without, {:.0} with, digest {:.0}",
        median(&off),
        median(&on),
        median(&digest)
    );
    Ok(median(&digest))
}

/// The part of it that runs under callgrind.
pub(crate) fn counted(work: Work) -> Result<()> {
    encode(&rows(), work, COUNTED_ROWS)
}

/// Runs this program under callgrind, and reads its count.
fn instructions(work: Work) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["encode", work.word()])
        .output()
        .context("running valgrind; install it with: apt-get install valgrind")?;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind failed:\n{log}");
    let line = log.lines().find_map(|line| line.split_once("Collected : "));
    let (_, count) = line.with_context(|| format!("callgrind counted nothing:\n{log}"))?;
    Ok(count.trim().parse()?)
}

/// CPU time of encoding a row, in nanoseconds.
fn timed(rows: &[[Vec<u8>; 6]], work: Work) -> Result<f64> {
    let started = cpu::of_this_thread();
    encode(rows, work, TIMED_ROWS)?;
    let time = cpu::of_this_thread() - started;
    Ok(time.as_nanos() as f64 / TIMED_ROWS as f64)
}

/// Encodes so many rows. It asks for no time: rustix cannot under valgrind.
fn encode(rows: &[[Vec<u8>; 6]], work: Work, count: usize) -> Result<()> {
    let mut left = count;
    while left > 0 {
        let some = left.min(BATCH_ROWS);
        let encoder = FuzzedEncoder::new(&COLUMNS, PARTITION, 1);
        let mut encoder = encoder.context("the columns have changed")?;
        if work != Work::WithDigest {
            encoder = encoder.without_digest();
        }
        for row in rows.iter().cycle().take(some) {
            let fields = row.each_ref().map(|field| Some(field.as_slice()));
            if work == Work::Nothing {
                black_box(&fields);
            } else {
                ensure!(encoder.push(&fields) == Some(true), "a row was not taken");
            }
        }
        black_box(&encoder);
        left -= some;
    }
    Ok(())
}

/// Rows in PostgreSQL's binary format, with contexts of 314 bytes.
fn rows() -> Vec<[Vec<u8>; 6]> {
    const FIRST_US: i64 = (1_795_176_000 - 946_684_800) * 1_000_000;
    let mut state = 0x5EED_u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state ^ (state >> 33)
    };
    let row = |nth: usize| {
        let user = random() % 10_000_000;
        let mut context =
            format!(r#"{{"user_id": {user}, "path": "/api/v1/orders/{nth}", "trace": ""#);
        while context.len() < 312 {
            context.push_str(&format!("{:016x}", random()));
        }
        context.truncate(312);
        context.push_str("\"}");
        let at = FIRST_US + nth as i64 * 1_234_567;
        let id = uuid::Uuid::from_u64_pair(random(), random());
        [
            id.as_bytes().to_vec(),
            super::TYPES[nth % super::TYPES.len()].as_bytes().to_vec(),
            at.to_be_bytes().to_vec(),
            b"production".to_vec(),
            context.into_bytes(),
            1_i64.to_be_bytes().to_vec(),
        ]
    };
    (0..DISTINCT).map(row).collect()
}
