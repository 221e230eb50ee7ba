//! What publishing costs a business transaction: through the outbox, and in the ways of today.
//!
//! In each round every contender has its turn by pgbench, in an order that rotates. Between the turns,
//! outside of the time taken, what grew is truncated and a checkpoint is made.

use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tokio::process::Command;
use tokio_postgres::Client;

use crate::bench::Bench;
use crate::line::Line;
use crate::report::Report;
use crate::stage::{Outbox, Stage};

const PART: &str = "publish";
const TABLES: &str = include_str!("publish/tables.sql");
const CLEAN: &str = "
    truncate public.app_user, public.heap_event, public.notify_event, public.queue_event";

/// Name, and script of pgbench.
type Contender = (&'static str, &'static str);

const CONTENDERS: [Contender; 6] = [
    ("business", include_str!("publish/business.sql")),
    ("heap", include_str!("publish/heap.sql")),
    ("insert", include_str!("publish/insert.sql")),
    ("function", include_str!("publish/function.sql")),
    ("queue", include_str!("publish/queue.sql")),
    ("notify", include_str!("publish/notify.sql")),
];
/// Those that write into the outbox, and are compared with `heap`.
const OURS: [&str; 2] = ["insert", "function"];

/// Name, and bytes of `event_context`.
type Size = (&'static str, usize);

const SMALL: Size = ("300B", 300);
const LARGE: Size = ("100KB", 100_000);

/// How much is measured.
struct Scope {
    clients: &'static [u32],
    sizes: &'static [Size],
    rounds: u64,
    turn: Duration,
}

/// Many short turns: a disk of many tenants is fast for seconds and slow for seconds, and each contender
/// shall meet both.
const USUAL: Scope = Scope {
    clients: &[4],
    sizes: &[SMALL],
    rounds: 12,
    turn: Duration::from_secs(2),
};
const FULL: Scope = Scope {
    clients: &[1, 2, 4, 8, 16],
    sizes: &[SMALL, LARGE],
    rounds: 3,
    turn: Duration::from_secs(2),
};
const WARM_UP: Duration = Duration::from_secs(1);

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let scope = if bench.full { FULL } else { USUAL };
    let stage = Stage::start(report).await?;
    // Without a relay nobody needs it.
    stage.clickhouse.stop().await?;
    let outbox = stage.plain_outbox(bench, "publish").await?;
    let mut arena = Arena::new(&outbox, None).await?;
    arena.run(bench, &scope, report).await?;
    if bench.full {
        stage.clickhouse.restart().await?;
        let line = Line::start(&stage, bench, &[]).await?;
        let settings = ["settings", "--retention", "0 seconds"];
        line.outbox.pillarbox(&settings, None).await?;
        let mut arena = Arena::new(&line.outbox, Some(&line)).await?;
        arena.run(bench, &scope, report).await?;
    }
    Ok(())
}

/// One turn of a contender.
struct Turn {
    contender: Contender,
    clients: u32,
    size: Size,
    time: Duration,
}

/// A database with the tables of every contender.
struct Arena<'a> {
    outbox: &'a Outbox<'a>,
    /// Where a relay delivers meanwhile.
    line: Option<&'a Line<'a>>,
    client: Client,
    scripts: TempDir,
    /// Events for the relay, in all turns.
    published: u64,
}

impl<'a> Arena<'a> {
    async fn new(outbox: &'a Outbox<'a>, line: Option<&'a Line<'a>>) -> Result<Self> {
        let client = outbox.connect().await?;
        client.batch_execute(TABLES).await?;
        let scripts = TempDir::new()?;
        for (name, script) in CONTENDERS {
            std::fs::write(script_path(&scripts, name), script)?;
        }
        Ok(Self {
            outbox,
            line,
            client,
            scripts,
            published: 0,
        })
    }

    async fn run(&mut self, bench: &Bench, scope: &Scope, report: &mut Report) -> Result<()> {
        // Whoever notifies has somebody who listens.
        self.client.batch_execute("listen events").await?;
        for contender in CONTENDERS {
            let turn = Turn {
                contender,
                clients: 4,
                size: SMALL,
                time: WARM_UP,
            };
            self.take(&turn).await?;
        }
        for round in 0..bench.count(scope.rounds) as usize {
            for size in scope.sizes {
                for clients in scope.clients {
                    let mut contenders = CONTENDERS;
                    contenders.rotate_left(round % CONTENDERS.len());
                    let case = self.case(*clients, *size);
                    let mut rates = Vec::new();
                    for contender in contenders {
                        let turn = Turn {
                            contender,
                            clients: *clients,
                            size: *size,
                            time: scope.turn.mul_f64(bench.share).max(WARM_UP),
                        };
                        let rate = self.take(&turn).await?;
                        report.add(PART, &format!("{}/{case}", contender.0), "tps", rate);
                        rates.push((contender.0, rate));
                    }
                    compare(&rates, &case, report)?;
                }
            }
        }
        Ok(())
    }

    /// What a series is called beside its contender.
    fn case(&self, clients: u32, size: Size) -> String {
        let relay = if self.line.is_some() { "/relay" } else { "" };
        format!("{clients}/{}{relay}", size.0)
    }

    /// One turn, and what has to be done before the next one.
    async fn take(&mut self, turn: &Turn) -> Result<f64> {
        let done = self.pgbench(turn).await?;
        self.client.batch_execute(CLEAN).await?;
        match self.line {
            Some(line) if OURS.contains(&turn.contender.0) => {
                self.published += done.transactions;
                line.wait_for_delivery(self.published).await?;
                line.check_exactly_once(done.transactions).await?;
                line.wait_for_merges().await?;
                self.outbox
                    .stage
                    .clickhouse
                    .query("truncate table events")
                    .await?;
            }
            Some(_) => {}
            None => {
                let empty = "truncate pillarbox.event";
                self.client.batch_execute(empty).await?;
            }
        }
        self.client.batch_execute("checkpoint").await?;
        Ok(done.tps)
    }

    async fn pgbench(&self, turn: &Turn) -> Result<Done> {
        let cores = available_parallelism()?.get().try_into()?;
        let url = self.outbox.url.replace("//postgres@", "//app@");
        let output = Command::new("pgbench")
            .args(["-n", "-M", "prepared"])
            .args(["-c", &turn.clients.to_string()])
            .args(["-j", &turn.clients.min(cores).to_string()])
            .args(["-T", &turn.time.as_secs().to_string()])
            .args(["-D", &format!("context={}", context(turn.size.1))])
            .arg("-f")
            .arg(script_path(&self.scripts, turn.contender.0))
            .arg(url)
            .kill_on_drop(true)
            .output()
            .await
            .context("running pgbench; `make setup` installs it")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pgbench failed: {errors}");
        Done::read(&String::from_utf8_lossy(&output.stdout))
    }
}

fn script_path(scripts: &TempDir, name: &str) -> PathBuf {
    Path::join(scripts.path(), format!("{name}.sql"))
}

/// Adds to the report what ours reach of a plain insert in this round.
fn compare(rates: &[(&str, f64)], case: &str, report: &mut Report) -> Result<()> {
    let of = |name: &str| {
        let found = rates.iter().find(|(of, _)| *of == name);
        found
            .map(|(_, rate)| *rate)
            .context("a contender is missing")
    };
    let heap = of("heap")?;
    for ours in OURS {
        let name = format!("{ours} of heap/{case}");
        report.add(PART, &name, "ratio", of(ours)? / heap);
    }
    Ok(())
}

/// A JSON object of so many bytes that does not compress to nothing.
fn context(bytes: usize) -> String {
    let mut text = r#"{"user_id": 4711, "path": "/api/v1/users/4711", "trace": ""#.to_owned();
    let mut state = 0x5EED_u64;
    let end = bytes - r#""}"#.len();
    while text.len() < end {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        text.push_str(&format!("{:016x}", state ^ (state >> 33)));
    }
    text.truncate(end);
    text.push_str(r#""}"#);
    text
}

/// What pgbench says at its end.
#[derive(Debug, PartialEq)]
struct Done {
    transactions: u64,
    tps: f64,
}

impl Done {
    fn read(text: &str) -> Result<Self> {
        let after = |label: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(label));
            let word = line.and_then(|rest| rest.split_whitespace().next());
            word.with_context(|| format!("pgbench did not say {label:?}: {text}"))
        };
        let failed = after("number of failed transactions: ")?;
        ensure!(failed == "0", "{failed} transactions of pgbench failed");
        Ok(Self {
            transactions: after("number of transactions actually processed: ")?.parse()?,
            tps: after("tps = ")?.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_pgbench_is_read() {
        let text = "transaction type: heap.sql\nnumber of transactions actually processed: 12\n\
                    number of failed transactions: 0 (0.000%)\nlatency average = 3.1 ms\n\
                    tps = 1234.500000 (without initial connection time)\n";
        let done = Done::read(text).unwrap();
        assert_eq!((done.transactions, done.tps), (12, 1234.5));
        assert!(Done::read(&text.replace(": 0 (", ": 3 (")).is_err());
        assert!(Done::read("").is_err());
    }

    #[test]
    fn a_context_is_json_of_the_size_asked_for() {
        for bytes in [300, 100_000] {
            let context = context(bytes);
            assert_eq!(context.len(), bytes);
            assert!(serde_json::from_str::<serde_json::Value>(&context).is_ok());
        }
    }
}
