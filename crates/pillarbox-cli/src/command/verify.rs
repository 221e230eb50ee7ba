//! `pillarbox verify`: proves that a sink holds what the ledger says.

use std::time::SystemTime;

use clap::Args;
use jiff::Timestamp;
use pillarbox_relay::schema;
use pillarbox_relay::verify::{self, Difference, Finding, Proof, ProofError, Scope};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::destination::Destination;
use crate::exit::{Exit, Failure, Outcome};
use crate::output::plural;
use crate::when::instant;
use crate::{Place, output, registered};

/// Findings shown in a table; --json shows all.
const SHOWN_MAX: usize = 50;

/// Prove that a sink holds what was published: count and digest of every batch
#[derive(Debug, Args)]
#[command(after_help = "\
Compares each delivered batch of the ledger with what the sink holds of it, by number, count and digest,
with one grouped query for a thousand batches. Needs the column `batch` in the table. Exits with 0 when
everything is there, with 3 when something is missing, too many or altered.

Examples:
  pillarbox verify                       everything that the ledger remembers
  pillarbox verify --since 1h --json
  pillarbox verify --batch 4711
  pillarbox verify --repair              and let the relay deliver again what is missing")]
pub(crate) struct Verify {
    /// Registered sink [default: the only one]
    sink: Option<String>,

    /// Batches sealed since then: a duration back from now (90s, 1h, 2d) or a time
    #[arg(long, value_name = "WHEN", value_parser = instant)]
    since: Option<Timestamp>,

    /// This batch only
    #[arg(long, value_name = "NUMBER")]
    batch: Option<i64>,

    /// Have missing blocks delivered again, as new batches, while the outbox still has their events
    #[arg(long)]
    repair: bool,
}

/// Where the events of a sink are.
pub(super) struct Account {
    published: i64,
    pending: i64,
    in_flight: i64,
    delivered: i64,
    dead: i64,
    dropped: i64,
}

impl Verify {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        let config = place.config()?;
        let session = place.session().await?;
        let client = session.client();
        schema::check_version(client).await?;
        let sink = registered::find(client, self.sink.as_deref()).await?;
        let destination = Destination::find(&config, Some(&sink.name))?;
        let scope = Scope {
            sink: sink.sink,
            since: self.since.map(SystemTime::from),
            batch: self.batch,
        };
        const NOW: &str = "select pg_catalog.clock_timestamp()";
        let began: SystemTime = client.query_one(NOW, &[]).await?.get(0);
        let proof = prove(client, &destination, &scope).await?;
        let requested = match self.repair {
            true => request_repairs(client, scope.sink, &proof, began).await?,
            false => 0,
        };
        let account = Account::read(client, &sink.name).await?;
        if place.json {
            output::json(&as_json(&sink.name, &proof, &account, requested))?;
        } else {
            show(&sink.name, &proof, &account)?;
            self.say_next(&sink.name, &proof, requested);
        }
        Ok(match proof.findings.is_empty() && account.is_balanced() {
            true => Exit::Done,
            false => Exit::Refused,
        })
    }

    fn say_next(&self, sink: &str, proof: &Proof, requested: u64) {
        let is_missing = |finding: &&_| missing(finding);
        let count = proof.findings.iter().filter(is_missing).count();
        if requested > 0 {
            output::next(&format!(
                "{} will be delivered again by the relay; then: pillarbox verify {sink}",
                plural(requested, "block")
            ));
        } else if count > 0 && !self.repair {
            output::next(&format!(
                "deliver again what is missing: pillarbox verify {sink} --repair"
            ));
        } else if !proof.findings.is_empty() {
            output::next("compare in the sink: the column batch is origin * 2^40 + number");
        }
    }
}

fn missing(finding: &Finding) -> bool {
    finding.difference == Difference::Missing
}

/// Compares every delivered batch of the scope with what the sink holds.
pub(super) async fn prove(
    client: &Client,
    destination: &Destination,
    scope: &Scope,
) -> Result<Proof, Failure> {
    let plan = destination.prepare(client).await?;
    let blame = |error: ProofError| match error {
        ProofError::Sink(trouble) => destination.blame(trouble),
        ProofError::Ledger(error) => error.into(),
        error @ ProofError::Blocks(_) => Failure::failed(error),
    };
    let total = verify::total(client, scope).await.map_err(blame)?;
    let bar = output::bar(Some(total), "{bar:40} {pos}/{len} batches, {eta} left");
    let proving = verify::prove(client, &destination.sink, &plan, scope, |more| {
        bar.inc(more)
    });
    let proof = proving.await.map_err(blame)?;
    bar.finish_and_clear();
    Ok(proof)
}

/// Asks for what was missing at `began`. One at a time: two would not see what the other asks for.
async fn request_repairs(
    client: &Client,
    sink: i32,
    proof: &Proof,
    began: SystemTime,
) -> Result<u64, Failure> {
    const BEGIN: &str = "begin; lock table pillarbox.replay in share row exclusive mode";
    const REQUEST: &str = include_str!("sql/request_repair.sql");
    client.batch_execute(BEGIN).await?;
    let mut requested = 0;
    for finding in proof.findings.iter().filter(|finding| missing(finding)) {
        let given: &[&(dyn tokio_postgres::types::ToSql + Sync)] =
            &[&sink, &finding.number, &finding.partition, &began];
        requested += client.execute(REQUEST, given).await?;
    }
    client.batch_execute("commit").await?;
    Ok(requested)
}

impl Account {
    pub(super) async fn read(client: &Client, sink: &str) -> Result<Self, Failure> {
        const ACCOUNT: &str = include_str!("sql/account.sql");
        let row = client.query_one(ACCOUNT, &[&sink]).await?;
        Ok(Self {
            published: row.get(0),
            pending: row.get(1),
            in_flight: row.get(2),
            delivered: row.get(3),
            dead: row.get(4),
            dropped: row.get(5),
        })
    }

    /// What became of the events. What was sealed is counted for itself.
    fn settled(&self) -> i64 {
        self.pending + self.in_flight + self.delivered + self.dead + self.dropped
    }

    pub(super) fn is_balanced(&self) -> bool {
        self.published == self.settled()
    }
}

fn as_json(sink: &str, proof: &Proof, account: &Account, requested: u64) -> Value {
    let findings: Vec<Value> = proof
        .findings
        .iter()
        .map(|finding| {
            json!({
                "batch": finding.number,
                "partition": finding.partition,
                "difference": finding.difference.as_str(),
                "expected_rows": finding.expected_rows,
                "held_rows": finding.held_rows,
            })
        })
        .collect();
    json!({
        "sink": sink,
        "holds": proof.findings.is_empty() && account.is_balanced(),
        "batches": proof.batches,
        "rows": proof.rows,
        "unprovable_blocks": proof.unprovable,
        "findings": findings,
        "repairs_requested": requested,
        "account": {
            "published": account.published,
            "pending": account.pending,
            "in_flight": account.in_flight,
            "delivered": account.delivered,
            "dead": account.dead,
            "dropped": account.dropped,
        },
    })
}

fn show(sink: &str, proof: &Proof, account: &Account) -> Result<(), Failure> {
    output::line(format!(
        "{sink}: {} of {} as sealed",
        plural(proof.rows, "event"),
        plural(proof.batches, "batch")
    ))?;
    if proof.unprovable > 0 {
        output::line(format!(
            "{} cannot be proven: sealed before the table had the column batch, or by columns that it \
             no longer has",
            plural(proof.unprovable, "block")
        ))?;
    }
    if !proof.findings.is_empty() {
        let head = ["batch", "partition", "difference", "expected", "held"];
        let mut table = output::table(&head);
        for finding in proof.findings.iter().take(SHOWN_MAX) {
            table.add_row([
                finding.number.to_string(),
                finding.partition.clone(),
                finding.difference.as_str().to_owned(),
                finding.expected_rows.to_string(),
                finding.held_rows.to_string(),
            ]);
        }
        output::show(&table)?;
        if proof.findings.len() > SHOWN_MAX {
            let more = proof.findings.len() - SHOWN_MAX;
            output::line(format!("… and {more} more; see all with --json"))?;
        }
    }
    if !account.is_balanced() {
        output::line(format!(
            "of {} published, {} are accounted for: somebody changed the ledger",
            plural(account.published.unsigned_abs(), "event"),
            account.settled()
        ))?;
    }
    let sign = if account.is_balanced() { "=" } else { "≠" };
    output::line(format!(
        "published {} {sign} pending {} + in flight {} + delivered {} + dead {} + dropped {}",
        account.published,
        account.pending,
        account.in_flight,
        account.delivered,
        account.dead,
        account.dropped
    ))
}
