//! What `make bench` runs: the exactly-once path beside what people do today, on servers of its own.
//!
//! Side by side in one run, interleaved, in several rounds. A figure is the median of its rounds, and a
//! target is a ratio of two medians, because machines differ and the same machine differs by the hour.

mod bench;
mod child;
mod document;
mod drain;
mod growth;
mod held;
mod history;
mod latency;
mod line;
mod machine;
mod plot;
mod publish;
mod report;
mod stage;
mod targets;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};

use bench::Bench;
use history::History;
use machine::Machine;
use report::Report;

/// 128 + SIGINT, as a shell reports it.
const INTERRUPTED: u8 = 130;
const RUNS: &str = "bench/results/runs.json";
const PARTS: [&str; 5] = ["drain", "growth", "publish", "latency", "held"];

/// Where figures go: those of `make bench` do not overwrite those of `make bench-full`, which has more of them.
struct Outlet {
    results: &'static str,
    document: &'static str,
    /// Beside the document.
    plots: &'static str,
}

const USUAL: Outlet = Outlet {
    results: "bench/results/latest.json",
    document: "docs/BENCHMARKS.md",
    plots: "benchmarks",
};
const FULL: Outlet = Outlet {
    results: "bench/results/full.json",
    document: "docs/BENCHMARKS-FULL.md",
    plots: "benchmarks/full",
};

/// Benchmarks of Pillarbox beside what people do today
#[derive(Debug, Parser)]
#[command(after_help = "\
The variable BENCH_SHARE, such as 0.1, shortens a run for development. A run that is shortened or has
not all parts changes bench/results and docs only with --write.")]
struct Arguments {
    /// Everything, not only what the targets need
    #[arg(long)]
    full: bool,

    /// Only these parts: drain, growth, publish, latency, held
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,

    /// Write results, plots and document of a run that is shortened or has not all parts
    #[arg(long)]
    write: bool,

    /// Measure nothing: make plots and documents again from bench/results
    #[arg(long)]
    render: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run_or_signal(&Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// When it returns, every server and child has ended.
async fn run_or_signal(arguments: &Arguments) -> Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        done = run(arguments) => done,
        _ = terminate.recv() => Ok(ExitCode::from(INTERRUPTED)),
        _ = interrupt.recv() => Ok(ExitCode::from(INTERRUPTED)),
    }
}

async fn run(arguments: &Arguments) -> Result<ExitCode> {
    for part in &arguments.only {
        ensure!(
            PARTS.contains(&part.as_str()),
            "there is no part {part}; use {}",
            PARTS.join(", ")
        );
    }
    if arguments.render {
        render(&read(RUNS)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let bench = Bench::new(arguments.full)?;
    let started = Instant::now();
    let mut report = Report {
        machine: Machine::read(bench.full, bench.share)?,
        ..Report::default()
    };
    for part in PARTS {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|only| only == part) {
            continue;
        }
        eprintln!("bench: {part} begins at {} s", started.elapsed().as_secs());
        // The other parts are worth their time all the same.
        if let Err(error) = run_part(part, &bench, &mut report).await {
            report.fail(format!("{part}: {error:#}"));
        }
    }
    if !bench.is_shortened() {
        for slow in targets::slow_references(&report) {
            report.fail(slow);
        }
    }
    report.targets = targets::judge(&report);
    if arguments.write || (arguments.only.is_empty() && !bench.is_shortened()) {
        let mut runs: History = read(RUNS)?;
        runs.add(&report);
        let outlet = if bench.full { FULL } else { USUAL };
        let results = serde_json::to_string_pretty(&report)? + "\n";
        write(outlet.results, results)?;
        write(RUNS, serde_json::to_string_pretty(&runs)? + "\n")?;
        render(&runs)?;
    }
    for verdict in &report.targets {
        println!("{}", verdict.line());
    }
    eprintln!("bench: ended at {} s", started.elapsed().as_secs());
    for failure in &report.failures {
        eprintln!("bench: failed: {failure}");
    }
    Ok(match report.failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn run_part(part: &str, bench: &Bench, report: &mut Report) -> Result<()> {
    match part {
        "drain" => drain::run(bench, report).await,
        "growth" => growth::run(bench, report).await,
        "publish" => publish::run(bench, report).await,
        "latency" => latency::run(bench, report).await,
        "held" => held::run(bench, report).await,
        _ => Ok(()),
    }
}

/// Draws the plots and puts the tables into the documents.
fn render(runs: &History) -> Result<()> {
    for outlet in [USUAL, FULL] {
        let report: Report = read(outlet.results)?;
        let plots = root().join("docs").join(outlet.plots);
        fs::create_dir_all(&plots)?;
        let plots = plot::draw(&report, &plots)?;
        let document = fs::read_to_string(root().join(outlet.document))?;
        let document = document::update(&document, &report, runs, outlet.plots, &plots);
        write(outlet.document, document.context(outlet.document)?)?;
    }
    Ok(())
}

/// Reads a JSON file of the repository.
fn read<T: DeserializeOwned>(path: &str) -> Result<T> {
    let file = root().join(path);
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))
}

/// Writes a file of the repository.
fn write(path: &str, text: String) -> Result<()> {
    let file = root().join(path);
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
