//! The part *growth*: whether a large backlog is drained as fast as a small one.
//!
//! A small one is over before a process has started, so the time of a drain of nothing is taken off.

use anyhow::{Context as _, Result};

use crate::bench::Bench;
use crate::child;
use crate::drain::backlog;
use crate::drain::contender::Contender;
use crate::drain::field::Field;
use crate::report::Report;
use crate::stage::{Outbox, Stage};

const PART: &str = "growth";
const ROUNDS: usize = 3;
/// Drains of nothing in each round.
const EMPTY: usize = 5;

/// Name, events, drains in each round, and whether the target needs it.
type Size = (&'static str, u64, usize, bool);
const SIZES: [Size; 4] = [
    ("10k", 10_000, 7, false),
    ("100k", 100_000, 4, true),
    ("1M", 1_000_000, 2, false),
    ("10M", 10_000_000, 1, true),
];

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let stage = Stage::start(report).await?;
    let sizes: Vec<Size> = SIZES
        .into_iter()
        .filter(|size| bench.full || size.3)
        .collect();
    let mut outboxes = Vec::new();
    for (name, rows, ..) in &sizes {
        let outbox = stage
            .outbox(bench, &format!("growth_{}", name.to_lowercase()))
            .await?;
        backlog::fill_small(&outbox, 1, bench.count(*rows)).await?;
        outboxes.push(outbox);
    }
    let nothing = stage.outbox(bench, "growth_nothing").await?;
    nothing.create_sink("nothing").await?;
    let mut fields = Vec::new();
    for (outbox, size) in outboxes.iter().zip(&sizes) {
        fields.push(Field::new(outbox, size.0, report).await?);
    }
    for round in 0..ROUNDS {
        eprintln!("bench: {PART}: round {} of {ROUNDS}", round + 1);
        for _ in 0..EMPTY {
            let wall = drain_nothing(&nothing).await?;
            report.add(PART, "nothing wall", "s", wall);
        }
        for nth in 0..sizes.len() {
            let nth = (round + nth) % sizes.len();
            let (name, _, drains, _) = sizes[nth];
            for _ in 0..drains {
                let took = fields[nth].drain(Contender::Pillarbox, report).await?;
                report.add(PART, &format!("{name} wall"), "s", took.wall_s);
            }
        }
    }
    let nothing = report
        .median(PART, "nothing wall")
        .context("no drain of nothing")?;
    for (name, rows, ..) in sizes {
        let walls = report
            .get(PART, &format!("{name} wall"))
            .context("no drain")?;
        let rows = bench.count(rows) as f64;
        for rate in rates(&walls.values.clone(), nothing, rows) {
            report.add(PART, name, "events/s", rate);
        }
    }
    Ok(())
}

/// What each drain made in the time that it took beyond a drain of nothing.
fn rates(walls: &[f64], nothing: f64, rows: f64) -> Vec<f64> {
    walls.iter().map(|wall| rows / (wall - nothing)).collect()
}

/// Seconds of a relay that finds nothing to deliver.
async fn drain_nothing(outbox: &Outbox<'_>) -> Result<f64> {
    let log = outbox.stage.dir.path().join("nothing.log");
    let command = outbox.command(&["relay", "--once"], Some(&outbox.config("nothing")));
    outbox.stage.wait_for_silence().await?;
    let ended = child::run(command, &log).await?;
    let wall = ended.ran().wall.as_secs_f64();
    ended.check(&log).await?;
    Ok(wall)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_rate_leaves_the_start_out() {
        assert_eq!(super::rates(&[0.75, 1.0], 0.5, 100.0), [400.0, 200.0]);
    }
}
