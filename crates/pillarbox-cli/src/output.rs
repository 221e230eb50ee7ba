//! What commands print: tables for people, JSON for programs, and the next step.

use std::io::{self, Write as _};
use std::time::Duration;

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pillarbox_relay::config::ByteSize;
use serde::Serialize;

use crate::exit::Failure;

/// Writes a line to standard output.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<(), Failure> {
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// Names the next step, on standard error so that output stays data.
pub(crate) fn next(step: &str) {
    eprintln!("next: {step}");
}

/// Writes a value as JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(serde_json::to_string_pretty(value)?)
}

/// A table with this head.
pub(crate) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !head.is_empty() {
        table.set_header(head.iter().map(|title| title.to_uppercase()));
    }
    table
}

/// Writes a table, without the blanks that end its lines.
pub(crate) fn show(table: &Table) -> Result<(), Failure> {
    for row in table.to_string().lines() {
        line(row.strip_prefix(' ').unwrap_or(row).trim_end())?;
    }
    Ok(())
}

/// A bar on standard error, where that is a terminal.
pub(crate) fn bar(total: Option<u64>, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// "1 event", "2 events", "2 batches".
pub(crate) fn plural(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        n if noun.ends_with("ch") => format!("{n} {noun}es"),
        n => format!("{n} {noun}s"),
    }
}

/// A size, to three digits or so.
pub(crate) fn size(bytes: i64) -> String {
    const STEP: f64 = 1024.0;
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes.unsigned_abs() < 1024 {
        return ByteSize(bytes.unsigned_abs()).to_string();
    }
    let mut value = bytes as f64 / STEP;
    let mut unit = 0;
    while value >= STEP && unit + 1 < units.len() {
        value /= STEP;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

/// A duration, to its two largest units.
pub(crate) fn duration(seconds: f64) -> String {
    let span = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let whole = span.as_secs();
    let pair = |unit: u64, name: &str, next: u64, below: &str| {
        format!("{}{name} {}{below}", whole / unit, whole % unit / next)
    };
    match whole {
        0 => format!("{}ms", span.as_millis()),
        1..=59 => format!("{:.1}s", span.as_secs_f64()),
        60..=3_599 => pair(60, "m", 1, "s"),
        3_600..=86_399 => pair(3_600, "h", 60, "m"),
        _ => pair(86_400, "d", 3_600, "h"),
    }
}
