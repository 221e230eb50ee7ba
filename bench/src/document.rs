//! The tables of a document of figures, between two marks. Pure.

use anyhow::{Context as _, Result};

use crate::history::{self, History, Run};
use crate::machine::Machine;
use crate::plot::Plot;
use crate::report::{Report, Series, figure};

const BEGIN: &str = "<!-- bench:begin -->";
const END: &str = "<!-- bench:end -->";

/// Lines of what failed at most: it may end with the log of a program.
const FAILURE_LINES_MAX: usize = 20;

/// Parts with their headings, in the order of the document.
const PARTS: [(&str, &str); 5] = [
    ("drain", "Drain"),
    ("growth", "Growth of the backlog"),
    ("publish", "Publishing"),
    ("latency", "Latency"),
    ("held", "Held snapshot"),
];

/// The backlogs of the part *drain*, with what they are.
const BACKLOGS: [(&str, &str); 3] = [
    ("small", "events of 314 bytes"),
    ("100KB", "events of 100 KB"),
    ("5MB", "events of 5 MB"),
];

/// What a contender's further series are called, with the heading of their column.
const FURTHER: [(&str, &str); 5] = [
    (" cpu own", "own CPU"),
    (" cpu postgresql", "PostgreSQL CPU"),
    (" cpu clickhouse", "ClickHouse CPU"),
    (" memory", "MiB"),
    (" floor", "floor / wall"),
];

/// The document with new tables; the plots lie in `folder`, beside it.
pub(crate) fn update(
    document: &str,
    report: &Report,
    runs: &History,
    folder: &str,
    plots: &[Plot],
) -> Result<String> {
    let marks = || format!("it has not both marks {BEGIN} and {END}");
    let (before, rest) = document.split_once(BEGIN).with_context(marks)?;
    let (_, after) = rest.split_once(END).with_context(marks)?;
    let tables = tables(report, runs, folder, plots);
    Ok(format!("{before}{BEGIN}\n{tables}\n{END}{after}"))
}

fn tables(report: &Report, runs: &History, folder: &str, plots: &[Plot]) -> String {
    let mut sections = vec![machine(&report.machine)];
    if !report.failures.is_empty() {
        let lines = report.failures.iter().flat_map(|failure| failure.lines());
        let why: Vec<&str> = lines.take(FAILURE_LINES_MAX).collect();
        let why = why.join("\n");
        sections.push(format!("**This run failed:**\n\n```text\n{why}\n```"));
    }
    sections.push(targets(report));
    sections.push("### The last runs".to_owned());
    sections.push(last(runs.shown()));
    for (part, heading) in PARTS {
        let series: Vec<&Series> = report.series.iter().filter(|s| s.part == part).collect();
        if series.is_empty() {
            continue;
        }
        sections.push(format!("### {heading}"));
        match part {
            "drain" => sections.extend(BACKLOGS.iter().filter_map(|of| drain(report, of.0, of.1))),
            _ => sections.push(list(&series)),
        }
        let shown = plots.iter().filter(|plot| plot.part == part);
        sections.extend(shown.map(|plot| format!("![{}]({folder}/{0})", plot.file)));
    }
    sections.join("\n\n")
}

fn machine(of: &Machine) -> String {
    let settings: Vec<String> = of
        .settings
        .iter()
        .map(|(name, value)| format!("`{name} = {value}`"))
        .collect();
    let shortened = match of.share < 1.0 {
        true => format!(
            " Shortened to a share of {}: these figures prove nothing.",
            of.share
        ),
        false => String::new(),
    };
    format!(
        "{}, commit {}, by `{}`: {} × {}, {} GiB, Linux {}, load {} before the run; PostgreSQL {} with {}; \
         ClickHouse {}.{shortened}",
        of.date,
        of.commit,
        history::command(of.is_full),
        of.cores,
        of.cpu,
        of.memory_gib,
        of.kernel,
        of.load,
        of.postgresql,
        settings.join(", "),
        of.clickhouse,
    )
}

fn targets(report: &Report) -> String {
    let rows = report.targets.iter().map(|verdict| {
        let met = if verdict.is_met { "ok" } else { "**short**" };
        [
            format!("`{}`", verdict.name),
            figure(verdict.value),
            verdict.target(),
            met.to_owned(),
        ]
    });
    table(&["target", "value", "asked", ""], rows)
}

/// The targets of several runs, side by side.
fn last(runs: &[Run]) -> String {
    let newest = runs.last().map_or(&[][..], |run| &run.targets);
    let rows = newest.iter().map(|target| {
        let cell = |run: &Run| match run.verdict(&target.name) {
            None => String::new(),
            Some(verdict) if verdict.is_met => figure(verdict.value),
            Some(verdict) => format!("**{}**", figure(verdict.value)),
        };
        let mut row = vec![format!("`{}`", target.name), target.target()];
        row.extend(runs.iter().map(cell));
        row
    });
    let machine = runs.iter().map(|run| match run.failures.is_empty() {
        true => "proves something".to_owned(),
        false => "**proves nothing**".to_owned(),
    });
    let machine = ["the run", ""]
        .map(str::to_owned)
        .into_iter()
        .chain(machine);
    let rows = rows.chain([machine.collect()]);
    let named = |run: &Run| format!("{}, {}, `{}`", run.date, run.commit, run.command());
    let mut head = vec!["target".to_owned(), "asked".to_owned()];
    head.extend(runs.iter().map(named));
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    table(&head, rows)
}

/// Contenders side by side: rate with spread, how ours compares, CPU and memory.
fn drain(report: &Report, backlog: &str, what: &str) -> Option<String> {
    let begin = format!("{backlog}/");
    let is_rate = |series: &&Series| {
        series.part == "drain" && series.unit == "events/s" && series.name.starts_with(&begin)
    };
    let ours = report.median("drain", &format!("{backlog}/pillarbox"))?;
    let rows = report.series.iter().filter(is_rate).map(|series| {
        let median = series.median().unwrap_or(f64::NAN);
        let mut row = vec![
            series.name.trim_start_matches(&begin).to_owned(),
            figure(median),
            spread(series),
            format!("{:.2}", ours / median),
        ];
        row.extend(FURTHER.iter().map(|(end, _)| {
            let found = report.median("drain", &format!("{}{end}", series.name));
            found.map_or_else(String::new, figure)
        }));
        row
    });
    let mut head = vec![what, "events/s", "least – most", "ours is ×"];
    head.extend(FURTHER.iter().map(|(_, heading)| *heading));
    Some(table(&head, rows))
}

fn list(series: &[&Series]) -> String {
    let rows = series.iter().map(|series| {
        let median = series.median().unwrap_or(f64::NAN);
        [
            series.name.clone(),
            figure(median),
            spread(series),
            series.unit.clone(),
            series.values.len().to_string(),
        ]
    });
    table(&["", "median", "least – most", "unit", "values"], rows)
}

fn spread(series: &Series) -> String {
    match (series.least(), series.most()) {
        (Some(least), Some(most)) if series.values.len() > 1 => {
            format!("{} – {}", figure(least), figure(most))
        }
        _ => String::new(),
    }
}

fn table<R: AsRef<[String]>>(head: &[&str], rows: impl Iterator<Item = R>) -> String {
    let mut lines = vec![
        format!("| {} |", head.join(" | ")),
        format!("|{}", "---|".repeat(head.len())),
    ];
    lines.extend(rows.map(|row| format!("| {} |", row.as_ref().join(" | "))));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::judge;

    fn report() -> Report {
        let mut report = Report::default();
        for (name, unit, value) in [
            ("small/pillarbox", "events/s", 800_000.0),
            ("small/pillarbox", "events/s", 820_000.0),
            ("small/pillarbox cpu own", "s/M", 0.44),
            ("small/client", "events/s", 405_000.0),
        ] {
            report.add("drain", name, unit, value);
        }
        report.targets = judge(&report);
        report
    }

    /// A run that met its target, and one on a busy machine that did not.
    fn runs() -> History {
        let mut runs = History::default();
        let mut run = report();
        runs.add(&run);
        run.add("drain", "small/client", "events/s", 600_000.0);
        run.targets = judge(&run);
        run.fail("busy".to_owned());
        runs.add(&run);
        runs
    }

    #[test]
    fn runs_stand_side_by_side() {
        let text = tables(&report(), &runs(), "benchmarks", &[]);
        for line in [
            "| `drain_small_vs_client` | >=2.00 | 2.00 | **1.61** |",
            "| the run |  | proves something | **proves nothing** |",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn tables_stand_between_the_marks_and_nothing_else_changes() -> Result<()> {
        let document = format!("# Title\n\n{BEGIN}\nold\n{END}\n\n## After\n");
        let text = update(&document, &report(), &runs(), "benchmarks", &[])?;
        assert!(
            text.starts_with("# Title\n\n<!-- bench:begin -->\n"),
            "{text}"
        );
        assert!(
            text.ends_with("\n<!-- bench:end -->\n\n## After\n"),
            "{text}"
        );
        assert!(!text.contains("old"));
        assert_eq!(update(&text, &report(), &runs(), "benchmarks", &[])?, text);
        Ok(())
    }

    #[test]
    fn a_drain_is_shown_beside_the_references() {
        let text = tables(&report(), &runs(), "benchmarks", &[]);
        for line in [
            "| `drain_small_vs_client` | 2.00 | >=2.00 | ok |",
            "| pillarbox | 810,000 | 800,000 – 820,000 | 1.00 | 0.440 |  |  |  |  |",
            "| client | 405,000 |  | 2.00 |  |  |  |  |  |",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn a_failure_is_told_and_its_log_is_cut() {
        let mut report = report();
        report.fail(format!("| busy |\n{}", "log\n".repeat(1000)));
        let text = tables(&report, &runs(), "benchmarks", &[]);
        assert!(text.contains("**This run failed:**\n\n```text\n| busy |\nlog\n"));
        assert_eq!(text.matches("log\n").count(), FAILURE_LINES_MAX - 1);
    }

    #[test]
    fn a_document_without_marks_is_refused() {
        let error = update("# Title\n", &report(), &runs(), "benchmarks", &[])
            .map_err(|error| error.to_string());
        assert!(error.is_err_and(|text| text.contains("has not both marks")));
    }
}
