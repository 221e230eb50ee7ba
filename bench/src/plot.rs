//! The plots of the document, in SVG.

use std::path::Path;

use anyhow::{Context as _, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::{Report, Series, figure};

const SIZE: (u32, u32) = (820, 400);
const FONT: &str = "sans-serif";
const OURS: RGBColor = RGBColor(0x1f, 0x6f, 0xb2);
const THEIRS: RGBColor = RGBColor(0xc8, 0x5c, 0x2c);
const LIMIT: RGBColor = RGBColor(0x9a, 0x9a, 0x9a);

/// A plot that the document shows.
pub(crate) struct Plot {
    pub(crate) file: &'static str,
    pub(crate) part: &'static str,
    title: &'static str,
}

const DRAINS: [(Plot, &str); 3] = [
    (
        plot("drain-small.svg", "drain", "events of 314 bytes per second"),
        "small/",
    ),
    (
        plot("drain-100KB.svg", "drain", "events of 100 KB per second"),
        "100KB/",
    ),
    (
        plot("drain-5MB.svg", "drain", "events of 5 MB per second"),
        "5MB/",
    ),
];
const GROWTH: Plot = plot(
    "growth.svg",
    "growth",
    "events per second by events of backlog",
);
const LATENCY: Plot = plot(
    "latency.svg",
    "latency",
    "milliseconds from commit to visible, by max_age and events/s",
);
const HELD: Plot = plot(
    "held.svg",
    "held",
    "milliseconds of a batch by million events under a held snapshot",
);

const fn plot(file: &'static str, part: &'static str, title: &'static str) -> Plot {
    Plot { file, part, title }
}

/// A bar with its spread: least, median, most.
struct Bar {
    label: String,
    colour: RGBColor,
    values: [f64; 3],
}

impl Bar {
    fn new(label: &str, colour: RGBColor, series: &Series, scale: f64) -> Option<Self> {
        let values = [series.least()?, series.median()?, series.most()?];
        Some(Self {
            label: label.to_owned(),
            colour,
            values: values.map(|value| value * scale),
        })
    }
}

/// A line: its label, its colour, its points.
type Line = (&'static str, RGBColor, Vec<(f64, f64)>);

/// Draws every plot of which something was measured, and gives those.
pub(crate) fn draw(report: &Report, directory: &Path) -> Result<Vec<Plot>> {
    let mut bars = Vec::new();
    for (plot, begin) in DRAINS {
        bars.push((plot, drains(report, begin)));
    }
    bars.push((GROWTH, growth(report)));
    bars.push((LATENCY, latency(report)));
    let mut drawn = Vec::new();
    for (plot, bars) in bars {
        if !bars.is_empty() {
            draw_bars(&directory.join(plot.file), plot.title, &bars)
                .with_context(|| format!("drawing {}", plot.file))?;
            drawn.push(plot);
        }
    }
    let lines = held(report);
    if lines.iter().any(|(_, _, points)| points.len() > 1) {
        draw_lines(&directory.join(HELD.file), HELD.title, &lines)
            .with_context(|| format!("drawing {}", HELD.file))?;
        drawn.push(HELD);
    }
    Ok(drawn)
}

/// The rates of one backlog: ours, theirs, what limits both.
fn drains(report: &Report, begin: &str) -> Vec<Bar> {
    let rates = report.series.iter().filter_map(|series| {
        let name = series.name.strip_prefix(begin)?;
        let colour = match name {
            "pillarbox" => OURS,
            "copy" | "native" => LIMIT,
            _ => THEIRS,
        };
        let is_rate = series.part == "drain" && series.unit == "events/s";
        is_rate
            .then(|| Bar::new(name, colour, series, 1.0))
            .flatten()
    });
    rates.collect()
}

fn growth(report: &Report) -> Vec<Bar> {
    let rates = report.series.iter().filter_map(|series| {
        let is_rate = series.part == "growth" && series.unit == "events/s";
        is_rate
            .then(|| Bar::new(&series.name, OURS, series, 1.0))
            .flatten()
    });
    rates.collect()
}

fn latency(report: &Report) -> Vec<Bar> {
    let times = report.series.iter().filter_map(|series| {
        let is_shown = series.name.ends_with(" p50") || series.name.ends_with(" p99");
        let is_time = series.part == "latency" && is_shown;
        is_time
            .then(|| Bar::new(&series.name, OURS, series, 1e3))
            .flatten()
    });
    times.collect()
}

/// Medians by million events that were published under the snapshot.
fn held(report: &Report) -> Vec<Line> {
    let points = |begin: &str| {
        let points = report.series.iter().filter_map(|series| {
            let at = series.name.strip_prefix(begin)?.trim_end_matches('M');
            let is_time = series.part == "held" && series.unit == "ms";
            is_time.then_some((at.parse().ok()?, series.median()?))
        });
        points.collect::<Vec<(f64, f64)>>()
    };
    vec![
        ("pillarbox", OURS, points("ring ")),
        ("queue table with DELETE", THEIRS, points("queue ")),
    ]
}

fn draw_bars(path: &Path, title: &str, bars: &[Bar]) -> Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let top = bars.iter().map(|bar| bar.values[2]).fold(0.0, f64::max);
    let count = bars.len() as f64;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, (FONT, 18))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..count, 0.0..top * 1.12)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .max_light_lines(0)
        .y_label_formatter(&|value| figure(*value))
        .label_style((FONT, 13))
        .draw()?;
    for (nth, bar) in bars.iter().enumerate() {
        let left = nth as f64;
        let [least, median, most] = bar.values;
        let rectangle = [(left + 0.2, 0.0), (left + 0.8, median)];
        chart.draw_series([Rectangle::new(rectangle, bar.colour.filled())])?;
        let spread = vec![(left + 0.5, least), (left + 0.5, most)];
        chart.draw_series([PathElement::new(spread, BLACK.stroke_width(2))])?;
        let centred = |v| {
            (FONT, 13)
                .into_text_style(&area)
                .pos(Pos::new(HPos::Center, v))
        };
        let value = Text::new(
            figure(median),
            (left + 0.5, most + top * 0.015),
            centred(VPos::Bottom),
        );
        let label = Text::new(
            bar.label.clone(),
            (left + 0.5, -top * 0.02),
            centred(VPos::Top),
        );
        chart.draw_series([value, label])?;
    }
    Ok(area.present()?)
}

fn draw_lines(path: &Path, title: &str, lines: &[Line]) -> Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let points = || lines.iter().flat_map(|(_, _, points)| points);
    let right = points().map(|point| point.0).fold(0.0, f64::max);
    let top = points().map(|point| point.1).fold(0.0, f64::max);
    let least = points().map(|point| point.1).fold(top, f64::min);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, (FONT, 18))
        .margin(12)
        .margin_right(30)
        .x_label_area_size(35)
        .y_label_area_size(80)
        // One grows a hundredfold while the other stays.
        .build_cartesian_2d(0.0..right, (least / 2.0..top * 2.0).log_scale())?;
    chart
        .configure_mesh()
        .max_light_lines(0)
        .y_label_formatter(&|value| figure(*value))
        .label_style((FONT, 13))
        .draw()?;
    for (label, colour, points) in lines {
        let colour = *colour;
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
            .label(*label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        let dots = points
            .iter()
            .map(|point| Circle::new(*point, 4, colour.filled()));
        chart.draw_series(dots)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font((FONT, 13))
        .border_style(LIMIT)
        .draw()?;
    Ok(area.present()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_are_drawn_of_what_was_measured() -> Result<()> {
        let mut report = Report::default();
        for (part, name, unit, value) in [
            ("drain", "small/pillarbox", "events/s", 800_000.0),
            ("drain", "small/pillarbox", "events/s", 820_000.0),
            ("drain", "small/client", "events/s", 390_000.0),
            ("drain", "small/pillarbox wall", "s", 2.5),
            ("held", "ring 0", "ms", 2.0),
            ("held", "ring 5M", "ms", 2.2),
            ("held", "ring 5M size", "MiB", 1.0),
            ("held", "queue 0", "ms", 2.0),
            ("held", "queue 5M", "ms", 630.0),
        ] {
            report.add(part, name, unit, value);
        }
        let directory = tempfile::tempdir()?;
        let drawn = draw(&report, directory.path())?;
        let files: Vec<&str> = drawn.iter().map(|plot| plot.file).collect();
        assert_eq!(files, ["drain-small.svg", "held.svg"]);
        let text = std::fs::read_to_string(directory.path().join("drain-small.svg"))?;
        assert!(
            text.contains("810,000") && text.contains("client"),
            "{text}"
        );
        Ok(())
    }
}
