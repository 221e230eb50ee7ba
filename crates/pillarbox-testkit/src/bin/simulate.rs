//! `make simulate`: many worlds, one seed each, on every core.
//!
//! `SIM_RUNS` worlds from seed `SIM_SEED` on. Each failing one is shown with its seed, which gives the
//! same run again: `make simulate SIM_SEED=… SIM_RUNS=1`. `SIM_WITHOUT='cut rule'` takes a protection
//! out, to see what it is for.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use pillarbox_testkit::simulate::{Protection, Run, run_and_judge};

/// Runs unless `SIM_RUNS` says otherwise.
const RUNS: u64 = 10_000;

/// The first seed unless `SIM_SEED` says otherwise.
const SEED: u64 = 1;

/// So many failing runs are shown in full.
const SHOWN_MAX: usize = 3;

/// What all runs together showed.
#[derive(Default)]
struct Sum {
    runs: u64,
    steps: u64,
    published: u64,
    lost: usize,
    duplicated: usize,
    phantom: usize,
    altered: usize,
    counts: BTreeMap<&'static str, u64>,
    failed: Vec<Run>,
}

impl Sum {
    fn add(&mut self, run: Run) {
        self.runs += 1;
        self.steps += run.steps;
        self.published += run.published;
        self.lost += run.verdict.lost.len();
        self.duplicated += run.verdict.duplicated.len();
        self.phantom += run.verdict.phantom.len();
        self.altered += run.verdict.altered.len();
        for (kind, count) in &run.counts {
            *self.counts.entry(kind).or_default() += count;
        }
        if !run.is_clean() {
            self.failed.push(run);
        }
    }
}

fn given(name: &str, usual: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().with_context(|| format!("{name}={text}")),
        _ => Ok(usual),
    }
}

/// The protection to be taken out.
fn without() -> Result<Option<Protection>> {
    let Some(name) = std::env::var("SIM_WITHOUT")
        .ok()
        .filter(|name| !name.is_empty())
    else {
        return Ok(None);
    };
    let mut all = Protection::ALL.into_iter();
    let found = all.find(|protection| protection.as_str() == name);
    let names = Protection::ALL.map(Protection::as_str).join(", ");
    found
        .map(Some)
        .with_context(|| format!("SIM_WITHOUT={name} is none of: {names}"))
}

fn simulate(runs: u64, seed: u64, without: Option<Protection>) -> Result<Sum> {
    let sum = Mutex::new(Sum::default());
    let next = AtomicU64::new(0);
    let bar = ProgressBar::new(runs).with_style(ProgressStyle::with_template(
        "{bar:40} {pos}/{len} runs, {per_sec}, {eta} left {msg}",
    )?);
    let work = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= runs {
                return Ok(());
            }
            let run = run_and_judge(seed.wrapping_add(number), without)?;
            let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
            if runs == 1 || (!run.is_clean() && sum.failed.len() < SHOWN_MAX) {
                bar.suspend(|| eprintln!("{run}\n"));
            }
            sum.add(run);
            if !sum.failed.is_empty() {
                bar.set_message(format!("{} failed", sum.failed.len()));
            }
            bar.inc(1);
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok(ended) => ended?,
                Err(_) => anyhow::bail!("a run panicked"),
            }
        }
        anyhow::Ok(())
    })?;
    bar.finish_and_clear();
    Ok(sum.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn main() -> Result<ExitCode> {
    let (runs, seed) = (given("SIM_RUNS", RUNS)?, given("SIM_SEED", SEED)?);
    let mut sum = simulate(runs, seed, without()?)?;
    let counts = sum.counts.iter();
    let counts: Vec<_> = counts
        .map(|(kind, count)| format!("{kind}: {count}"))
        .collect();
    println!("{} events; {}", sum.published, counts.join(", "));
    sum.failed.sort_by_key(|run| run.seed);
    for failed in &sum.failed {
        let verdict = failed.verdict.to_string();
        let last = verdict.lines().last().unwrap_or_default();
        println!("failed: SIM_SEED={} {last}", failed.seed);
    }
    println!(
        "simulate: runs={} steps={} lost={} duplicated={} phantom={} altered={}",
        sum.runs, sum.steps, sum.lost, sum.duplicated, sum.phantom, sum.altered
    );
    Ok(match sum.failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
