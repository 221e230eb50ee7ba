//! Every line of docs/TYPES.md, from a real PostgreSQL through a relay into both engines.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::Flavour;
use uuid::Uuid;

use crate::scene::{Scene, TABLE};

const TYPES: &str = include_str!("../../../../../docs/TYPES.md");

const NULL: &str = "it is null and the sink's column is not nullable";

/// A value as PostgreSQL reads it, and what stands behind it.
type Pair<'a> = (&'a str, &'a str);

/// A line of the table.
#[derive(Debug)]
struct Line<'a> {
    sink: String,
    outbox: &'a str,
    is_old: bool,
    /// Values that fit, with how ClickHouse shows them.
    fits: [Pair<'a>; 2],
    /// Values that do not, with the reason.
    refused: Vec<Pair<'a>>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let cells: Vec<&str> = line.strip_prefix("| `")?.split(" | ").collect();
        let [sink, outbox, old, lowest, highest, refused] = cells.as_slice() else {
            return None;
        };
        let shown = |cell: &'a str| match cell.split_once(" → ") {
            Some((given, shown)) => (code(given), code(shown)),
            None => (code(cell), code(cell)),
        };
        let refused = refused.trim_end_matches('|').trim();
        let refused = refused.split("; ").filter_map(|one| one.split_once(": "));
        Some(Self {
            sink: sink.trim_end_matches('`').to_owned(),
            outbox: code(outbox),
            is_old: *old == "yes",
            fits: [shown(lowest), shown(highest)],
            refused: refused.map(|(value, why)| (code(value), why)).collect(),
        })
    }

    /// An array cannot be `Nullable`.
    fn can_be_null(&self) -> bool {
        !self.sink.starts_with("Array")
    }

    fn nullable(&self) -> String {
        match self.sink.strip_prefix("LowCardinality(") {
            Some(inner) => format!("LowCardinality(Nullable({inner})"),
            None => format!("Nullable({})", self.sink),
        }
    }
}

/// What stands between backticks; a bar is written with a backslash in a table.
fn code(cell: &str) -> &str {
    cell.strip_prefix('`')
        .and_then(|cell| cell.strip_suffix('`'))
        .unwrap_or(cell)
}

fn literal(value: &str) -> String {
    format!("'{}'", value.replace("\\|", "|").replace('\'', "''"))
}

/// What one event must become.
#[derive(Debug)]
enum Expected {
    /// The column shows this text, and so does its nullable twin.
    Shown(String),
    /// The nullable twin is null.
    Null,
    /// It is set aside for this reason.
    Refused(String),
}

struct Trial<'a> {
    scene: Scene,
    lines: Vec<Line<'a>>,
    expected: BTreeMap<Uuid, (usize, Expected)>,
}

impl Trial<'_> {
    async fn start(flavour: Flavour) -> Result<Self> {
        let lines = TYPES.lines().filter_map(Line::parse);
        let lines: Vec<Line<'_>> = lines
            .filter(|line| flavour == Flavour::V26 || line.is_old)
            .collect();
        ensure!(lines.len() >= 20, "the table was not read");
        let scene = Scene::start(flavour).await?;
        for (nth, line) in lines.iter().enumerate() {
            let lowest = literal(line.fits[0].0);
            let add = format!(
                "alter table pillarbox.event add column c{nth} {of} default {lowest}, add column n{nth} {of}",
                of = line.outbox
            );
            scene.postgres.execute(&add).await.context(add)?;
            let mut types = vec![(format!("c{nth}"), line.sink.clone())];
            if line.can_be_null() {
                types.push((format!("n{nth}"), line.nullable()));
            }
            for (name, of) in types {
                let add = format!("alter table {TABLE} add column {name} {of}");
                scene.clickhouse.query(&add).await.context(add)?;
            }
        }
        Ok(Self {
            scene,
            lines,
            expected: BTreeMap::new(),
        })
    }

    async fn publish(&mut self) -> Result<()> {
        let mut events = Vec::new();
        for (nth, line) in self.lines.iter().enumerate() {
            for (value, shown) in line.fits {
                let shown = Expected::Shown(shown.replace("\\|", "|"));
                events.push((nth, literal(value), literal(value), shown));
            }
            for (value, why) in &line.refused {
                let why = Expected::Refused((*why).to_owned());
                events.push((nth, literal(value), "null".to_owned(), why));
            }
            let (lowest, null) = (literal(line.fits[0].0), "null".to_owned());
            events.push((nth, lowest, null.clone(), Expected::Null));
            let why = Expected::Refused(NULL.to_owned());
            events.push((nth, null.clone(), null, why));
        }
        for (nth, value, twin, expected) in events {
            let event_id = Uuid::now_v7();
            let insert = format!(
                "insert into pillarbox.event (event_id, event_type, event_context, c{nth}, n{nth})
                 values ('{event_id}', 'trial', '{{}}', {value}, {twin})"
            );
            self.scene.postgres.execute(&insert).await.context(insert)?;
            self.expected.insert(event_id, (nth, expected));
        }
        Ok(())
    }

    /// What ClickHouse shows of a column, by event.
    async fn shown(&self, column: &str) -> Result<BTreeMap<Uuid, String>> {
        let query = format!(
            "select toString(event_id), coalesce(toString({column}), '(null)') from {TABLE} \
             format TabSeparatedRaw"
        );
        let answer = self.scene.clickhouse.query(&query).await?;
        let lines = answer.lines().map(|line| {
            let (id, shown) = line.split_once('\t').context("a line")?;
            // 18.16 shows the first day in this way.
            Ok((id.parse()?, shown.replace("0000-00-00", "1970-01-01")))
        });
        lines.collect()
    }

    async fn compare(&self) -> Result<()> {
        const DEAD: &str = "select event_id, column_name, reason from pillarbox.dead_letter";
        let rows = self.scene.postgres.query(DEAD, &[]).await?;
        let mut dead: BTreeMap<Uuid, (Option<String>, String)> = rows
            .iter()
            .map(|row| (row.get(0), (row.get(1), row.get(2))))
            .collect();
        for (nth, line) in self.lines.iter().enumerate() {
            let values = self.shown(&format!("c{nth}")).await?;
            let twins = match line.can_be_null() {
                true => self.shown(&format!("n{nth}")).await?,
                false => values.clone(),
            };
            let mine = self.expected.iter().filter(|(_, (of, _))| *of == nth);
            for (event_id, (_, expected)) in mine {
                let arrived = (values.get(event_id), twins.get(event_id));
                let context = format!("{line:?}: {expected:?}, {arrived:?}");
                match expected {
                    Expected::Shown(shown) => {
                        ensure!(arrived == (Some(shown), Some(shown)), "{context}");
                    }
                    Expected::Null if line.can_be_null() => {
                        ensure!(
                            arrived.1.is_some_and(|shown| shown == "(null)"),
                            "{context}"
                        );
                    }
                    Expected::Null => ensure!(arrived.0.is_some(), "{context}"),
                    Expected::Refused(why) => {
                        ensure!(arrived == (None, None), "{context}");
                        let why = (Some(format!("c{nth}")), why.clone());
                        let found = dead.remove(event_id);
                        ensure!(found.as_ref() == Some(&why), "{context}, {found:?}");
                    }
                }
            }
        }
        ensure!(dead.is_empty(), "{dead:?}");
        Ok(())
    }
}

async fn every_type(flavour: Flavour) -> Result<()> {
    let mut trial = Trial::start(flavour).await?;
    trial.publish().await?;
    let rows = [("POISON_ROWS", "10000")];
    trial.scene.drain_with(&rows).await?;
    trial.compare().await
}

#[tokio::test]
async fn every_type_at_its_limits_in_clickhouse_18() -> Result<()> {
    every_type(Flavour::V18).await
}

#[tokio::test]
async fn every_type_at_its_limits_in_clickhouse_26() -> Result<()> {
    every_type(Flavour::V26).await
}
