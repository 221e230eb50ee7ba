//! `pillarbox status`: where every sink and the ring stand.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use pillarbox_relay::config::{Config, ConfigError};
use pillarbox_relay::schema::{self, LOCK_CLASS};
use serde::Serialize;
use tokio_postgres::{Client, Row};

use crate::destination::Destination;
use crate::exit::{Exit, Failure, Outcome};
use crate::intakes::{self, Standing};
use crate::output::plural;
use crate::{Place, output};

/// Between two looks of --watch.
const REFRESH: Duration = Duration::from_secs(1);

/// A status does not wait longer than this for a sink: it is asked for when something is wrong.
const SINK_PATIENCE: Duration = Duration::from_secs(3);

/// Waiting events are counted up to here: counting a backlog of days would take minutes.
const WAITING_COUNTED_MAX: i64 = 100_000;

/// Clears a terminal.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Show where every sink and the outbox stand
#[derive(Debug, Args)]
#[command(after_help = "\
LAG is the age of the oldest event that has not arrived. Exits with 0 also when sinks are behind.

Examples:
  pillarbox status
  pillarbox status --watch               every second until Ctrl-C
  pillarbox status --json | jq '.sinks[].lag_ms'")]
pub(crate) struct Status {
    /// Refresh every second until Ctrl-C
    #[arg(long)]
    watch: bool,
}

#[derive(Serialize)]
struct Report {
    sinks: Vec<SinkStatus>,
    intakes: Vec<Standing>,
    ring: Vec<Leaf>,
    outbox_bytes: i64,
}

#[derive(Serialize)]
struct SinkStatus {
    sink: String,
    state: &'static str,
    /// `token`, `lookup` or `at-least-once`; `unknown` when the sink cannot be asked.
    guarantee: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sink_trouble: Option<String>,
    relay_active: bool,
    paused: bool,
    stopped_reason: Option<String>,
    stopped_ms: Option<i64>,
    lag_ms: i64,
    waiting_events: i64,
    /// Whether there are more waiting events than were counted.
    waiting_more: bool,
    sealed_number: i64,
    open_batches: i64,
    open_rows: i64,
    last_delivery: Option<LastDelivery>,
    #[serde(skip)]
    number: i32,
    #[serde(skip)]
    safe_number: i64,
}

#[derive(Serialize)]
struct LastDelivery {
    number: i64,
    rows: i64,
    server: String,
    age_ms: i64,
}

#[derive(Serialize)]
struct Leaf {
    leaf: i32,
    current: bool,
    bytes: i64,
    oldest_ms: Option<i64>,
}

/// What a sink promises, or why it could not be asked.
type Promises = BTreeMap<String, Result<String, String>>;

impl Status {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        let session = place.session().await?;
        let client = session.client();
        schema::check_version(client).await?;
        let promises = promises(place.config(), client).await;
        if !self.watch {
            let mut report = Report::read(client, &promises, &[]).await?;
            report.intakes = intakes_of(place, client).await?;
            match place.json {
                true => output::json(&report)?,
                false => report.show()?,
            }
            return Ok(Exit::Done);
        }
        tokio::select! { biased;
            ended = tokio::signal::ctrl_c() => {
                ended?;
                Ok(Exit::Done)
            }
            shown = watch(place, client, &promises) => shown,
        }
    }
}

/// Shows the report again and again.
async fn watch(place: &Place, client: &Client, promises: &Promises) -> Outcome {
    let is_terminal = std::io::stdout().is_terminal();
    let mut known: Vec<(i32, i64)> = Vec::new();
    let mut every = tokio::time::interval(REFRESH);
    loop {
        every.tick().await;
        let mut report = Report::read(client, promises, &known).await?;
        report.intakes = intakes_of(place, client).await?;
        known = report
            .sinks
            .iter()
            .map(|sink| (sink.number, sink.safe_number))
            .collect();
        if place.json {
            output::line(serde_json::to_string(&report)?)?;
            continue;
        }
        if is_terminal {
            output::line(CLEAR)?;
        }
        report.show()?;
    }
}

/// The intakes, as far as they can be seen.
async fn intakes_of(place: &Place, client: &Client) -> Result<Vec<Standing>, Failure> {
    let config = place.config().ok();
    let answers = match &config {
        Some(config) => intakes::ask(config).await,
        None => intakes::Answers::new(),
    };
    intakes::standing(client, config.as_ref(), &answers).await
}

/// Asks every configured sink at once what it can promise.
async fn promises(config: Result<Config, ConfigError>, outbox: &Client) -> Promises {
    let mut promises = Promises::new();
    let Ok(config) = config else { return promises };
    for name in config.sinks.keys() {
        let asked = async {
            let destination = Destination::find(&config, Some(name))?;
            let plan = destination.prepare(outbox).await?;
            Ok::<_, Failure>(plan.report().guarantee.to_owned())
        };
        let answer = match tokio::time::timeout(SINK_PATIENCE, asked).await {
            Ok(Ok(guarantee)) => Ok(guarantee),
            Ok(Err(failure)) => Err(failure.text()),
            Err(_) => Err(format!("the sink did not answer within {SINK_PATIENCE:?}")),
        };
        promises.insert(name.clone(), answer);
    }
    promises
}

impl Report {
    async fn read(
        client: &Client,
        promises: &Promises,
        known: &[(i32, i64)],
    ) -> Result<Self, Failure> {
        const SINKS: &str = include_str!("sql/status_sinks.sql");
        const RING: &str = include_str!("sql/status_ring.sql");
        let (sinks, numbers): (Vec<i32>, Vec<i64>) = known.iter().copied().unzip();
        let limit = WAITING_COUNTED_MAX + 1;
        let rows = client
            .query(SINKS, &[&sinks, &numbers, &limit, &LOCK_CLASS])
            .await?;
        let sinks = rows
            .iter()
            .map(|row| SinkStatus::new(row, promises))
            .collect();
        let ring: Vec<Leaf> = client
            .query(RING, &[])
            .await?
            .iter()
            .map(Leaf::new)
            .collect();
        Ok(Self {
            sinks,
            intakes: Vec::new(),
            outbox_bytes: ring.iter().map(|leaf| leaf.bytes).sum(),
            ring,
        })
    }

    fn show(&self) -> Result<(), Failure> {
        if self.sinks.is_empty() {
            output::line("no sink is registered: events are kept in the outbox")?;
        } else {
            let head = [
                "sink",
                "state",
                "guarantee",
                "lag",
                "waiting events",
                "open batches",
                "last delivery",
            ];
            let mut table = output::table(&head);
            for sink in &self.sinks {
                table.add_row(sink.cells());
            }
            output::show(&table)?;
            for sink in &self.sinks {
                for trouble in [&sink.stopped_reason, &sink.sink_trouble]
                    .into_iter()
                    .flatten()
                {
                    output::line(format!("{}: {trouble}", sink.sink))?;
                }
            }
        }
        if !self.intakes.is_empty() {
            output::line("")?;
            show_intakes(&self.intakes)?;
        }
        output::line("")?;
        let mut table = output::table(&["leaf", "size", "oldest event", ""]);
        for leaf in &self.ring {
            let age = leaf.oldest_ms.map_or_else(|| "-".to_owned(), age);
            let mark = if leaf.current { "current" } else { "" };
            table.add_row([
                leaf.leaf.to_string(),
                output::size(leaf.bytes),
                age,
                mark.to_owned(),
            ]);
        }
        output::show(&table)?;
        if let Some(step) = self.next_step() {
            output::next(&step);
        }
        Ok(())
    }

    fn next_step(&self) -> Option<String> {
        if self.sinks.is_empty() {
            return Some("pillarbox sink create".to_owned());
        }
        let find = |state| self.sinks.iter().find(|sink| sink.state == state);
        if let Some(sink) = find("stopped") {
            return Some(format!(
                "mend what stopped it, then see: pillarbox sink check {}",
                sink.sink
            ));
        }
        if find("no relay").is_some() {
            return Some("start one: pillarbox relay".to_owned());
        }
        let waits = |intake: &&Standing| !intake.active && intake.waiting_entries > Some(0);
        if let Some(intake) = self.intakes.iter().find(waits) {
            return Some(format!(
                "take over what waits: pillarbox intake {}",
                intake.intake
            ));
        }
        find("paused").map(|sink| format!("go on with: pillarbox resume {}", sink.sink))
    }
}

fn show_intakes(intakes: &[Standing]) -> Result<(), Failure> {
    let head = [
        "intake",
        "state",
        "lag",
        "waiting entries",
        "taken",
        "dead letters",
        "last taken",
    ];
    let mut table = output::table(&head);
    let unknown = || "?".to_owned();
    for intake in intakes {
        let lag = intake.lag_ms.map(|ms| {
            if ms == 0 {
                "0".to_owned()
            } else {
                age(ms.cast_signed())
            }
        });
        let last = intake.taken_age_ms.map(|ms| format!("{} ago", age(ms)));
        table.add_row([
            intake.intake.clone(),
            intake.state().to_owned(),
            lag.unwrap_or_else(unknown),
            intake
                .waiting_entries
                .map_or_else(unknown, |entries| entries.to_string()),
            intake.taken.to_string(),
            intake.dead_letters.to_string(),
            last.unwrap_or_else(|| "none yet".to_owned()),
        ]);
    }
    output::show(&table)?;
    for intake in intakes {
        if let Some(trouble) = &intake.trouble {
            output::line(format!("{}: {trouble}", intake.intake))?;
        }
    }
    Ok(())
}

impl SinkStatus {
    fn new(row: &Row, promises: &Promises) -> Self {
        let name: String = row.get("name");
        let (paused, relay_active) = (row.get("paused"), row.get("relay_active"));
        let stopped_reason: Option<String> = row.get("stopped_reason");
        let state = match (paused, &stopped_reason, relay_active) {
            (true, _, _) => "paused",
            (_, Some(_), _) => "stopped",
            (_, _, true) => "running",
            (_, _, false) => "no relay",
        };
        let (guarantee, sink_trouble) = match promises.get(&name) {
            Some(Ok(guarantee)) => (guarantee.clone(), None),
            Some(Err(trouble)) => ("unknown".to_owned(), Some(trouble.clone())),
            None => ("unknown".to_owned(), None),
        };
        let waiting: i64 = row.get("waiting");
        let last: Option<i64> = row.get("last_number");
        Self {
            state,
            guarantee,
            sink_trouble: sink_trouble.filter(|trouble| stopped_reason.as_ref() != Some(trouble)),
            relay_active,
            paused,
            stopped_ms: ms(row.get("stopped_s")),
            stopped_reason,
            lag_ms: ms(row.get("lag_s")).unwrap_or(0),
            waiting_events: waiting.min(WAITING_COUNTED_MAX),
            waiting_more: waiting > WAITING_COUNTED_MAX,
            sealed_number: row.get::<_, Option<i64>>("sealed_number").unwrap_or(0),
            open_batches: row.get("open_batches"),
            open_rows: row.get("open_rows"),
            last_delivery: last.map(|number| LastDelivery {
                number,
                rows: row.get("last_rows"),
                server: row.get("last_server"),
                age_ms: ms(row.get("last_s")).unwrap_or(0),
            }),
            number: row.get("sink"),
            safe_number: row.get("safe_number"),
            sink: name,
        }
    }

    fn cells(&self) -> [String; 7] {
        let more = if self.waiting_more { "+" } else { "" };
        [
            self.sink.clone(),
            self.state.to_owned(),
            self.guarantee.clone(),
            if self.waiting_events == 0 {
                "0".to_owned()
            } else {
                age(self.lag_ms)
            },
            format!("{}{more}", self.waiting_events),
            self.open_batches.to_string(),
            self.last_delivery.as_ref().map_or_else(
                || "none yet".to_owned(),
                |last| {
                    format!(
                        "batch {}, {}, {} ago",
                        last.number,
                        plural(last.rows.unsigned_abs(), "event"),
                        age(last.age_ms)
                    )
                },
            ),
        ]
    }
}

impl Leaf {
    fn new(row: &Row) -> Self {
        Self {
            leaf: row.get(0),
            current: row.get(1),
            bytes: row.get(2),
            oldest_ms: ms(row.get(3)),
        }
    }
}

fn age(ms: i64) -> String {
    output::duration(ms as f64 / 1000.0)
}

fn ms(seconds: Option<f64>) -> Option<i64> {
    seconds.map(|seconds| (seconds * 1000.0).max(0.0) as i64)
}
