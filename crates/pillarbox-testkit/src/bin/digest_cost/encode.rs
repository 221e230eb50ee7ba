//! The encoder alone: instructions by callgrind and CPU time of this thread, per row.

use std::hint::black_box;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use pillarbox_relay::fuzzing::{FuzzedEncoder, count_copied};
use pillarbox_testkit::cpu;
use pillarbox_testkit::median::median;
use pillarbox_testkit::sample::{COLUMNS, PARTITION, SORTING_KEY, copy_of, rows};

/// A fifth of a full batch.
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
    /// With the digest, and put in the table's order.
    Sorted,
    /// The same, and gathered as it leaves.
    Gathered,
    /// Rows of a COPY, none of them encoded.
    Decoded,
    /// The COPY of these rows, which is not read.
    Copied,
}

impl Work {
    pub(crate) fn parse(word: &str) -> Result<Self> {
        Ok(match word {
            "nothing" => Self::Nothing,
            "without" => Self::WithoutDigest,
            "with" => Self::WithDigest,
            "sorted" => Self::Sorted,
            "gathered" => Self::Gathered,
            "decoded" => Self::Decoded,
            "copied" => Self::Copied,
            other => bail!("{other} is no work that is counted"),
        })
    }

    fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::WithoutDigest => "without",
            Self::WithDigest => "with",
            Self::Sorted => "sorted",
            Self::Gathered => "gathered",
            Self::Decoded => "decoded",
            Self::Copied => "copied",
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
    let sorted = per_row(instructions(Work::Sorted)?);
    let gathered = per_row(instructions(Work::Gathered)?);
    let decoded = instructions(Work::Decoded)?.saturating_sub(instructions(Work::Copied)?);
    println!(
        "encoder: instructions per row: {} to sort, {} to gather in order, {} to decode a COPY",
        sorted.saturating_sub(with),
        gathered.saturating_sub(sorted),
        decoded / COUNTED_ROWS as u64
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
    let copy = matches!(work, Work::Decoded | Work::Copied).then(|| copy_of(rows));
    if work == Work::Copied {
        black_box(&copy);
        return Ok(());
    }
    while left > 0 {
        let some = left.min(BATCH_ROWS);
        if let Some(copy) = &copy {
            let copied = count_copied(COLUMNS.len(), copy);
            left = left.saturating_sub(copied.context("the format has changed")?);
            continue;
        }
        let key = match work {
            Work::Sorted | Work::Gathered => SORTING_KEY,
            _ => "",
        };
        let encoder = FuzzedEncoder::new(&COLUMNS, PARTITION, key, 1);
        let mut encoder = encoder.context("the columns have changed")?;
        if matches!(work, Work::Nothing | Work::WithoutDigest) {
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
        match work {
            Work::Gathered => drop(black_box(encoder.finish())),
            _ => drop(black_box(encoder)),
        }
        left -= some;
    }
    Ok(())
}
