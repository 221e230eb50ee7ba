//! `pillarbox recover`: makes an outbox deliverable again after a restore or a failover that lost seals.

use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use pillarbox_relay::identity::Identity;
use pillarbox_relay::recover::{self, Doubtful, Findings, RecoverError, Recovery};
use serde_json::json;

use crate::destination::Destination;
use crate::exit::{Exit, Failure, Outcome};
use crate::output::plural;
use crate::{Place, output};

/// Deliver what is missing after a restore, a copy, or a failover that lost the last seconds
#[derive(Debug, Args)]
#[command(after_help = "\
For a database whose ledger no longer tells what the sinks hold; the relay stops and says so. Every event
that the ledger does not prove delivered is looked for in each sink by its event_id. What is missing is
published again, the rest is truncated, and the sinks start anew: in one transaction, so that a crash
leaves all as it was, or all done. Publishers wait while that transaction runs.

Stop every relay first, stand-bys too, and also those of the server that this one replaces.

Examples:
  pillarbox recover --dry-run            looks, counts, changes nothing
  pillarbox recover --yes
  pillarbox recover --yes --doubtful deliver
                                         for a table without event_id: rather twice than not at all")]
pub(crate) struct Recover {
    /// Look and count; change nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,

    /// Do it
    #[arg(long)]
    yes: bool,

    /// What to do with events of which nobody can tell whether a sink holds them
    #[arg(long, value_name = "CHOICE")]
    doubtful: Option<Choice>,
}

/// What to do with an event in doubt.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Choice {
    /// Deliver it: it may be there twice
    Deliver,
    /// Leave it out: it may be missing
    Skip,
}

impl Recover {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        if !self.yes && !self.dry_run {
            return Err(Failure::usage(
                "this rewrites the outbox while publishers wait; to see what it would do, add \
                 --dry-run; to do it, add --yes",
            ));
        }
        let config = place.config()?;
        let target = config.postgres()?;
        let places = Destination::all(&config)?;
        let session = place.session().await?;
        let mut planned = Vec::new();
        for place in &places {
            let plan = place.prepare(session.client()).await?;
            planned.push((place, plan, place.fingerprint()));
        }
        drop(session);
        let destinations: Vec<recover::Destination<'_>> = planned
            .iter()
            .map(|(place, plan, fingerprint)| recover::Destination {
                name: &place.name,
                fingerprint,
                sink: &place.sink,
                plan,
                doubtful: self.doubtful(place),
            })
            .collect();
        let recovery = Recovery::begin(&target, &destinations).await?;
        let identity = recovery.identity();
        let bar = bar(place);
        let judged = recovery.judge(|done, of| {
            bar.set_length(of);
            bar.set_position(done);
        });
        let findings = judged.await?;
        bar.finish_and_clear();
        if self.dry_run {
            show(place, identity, &findings, None)?;
            output::next("do it: pillarbox recover --yes");
            return Ok(Exit::Done);
        }
        let published = recovery.rewrite(&findings).await?;
        show(place, identity, &findings, Some(published))?;
        output::next("deliver them: pillarbox relay");
        Ok(Exit::Done)
    }

    fn doubtful(&self, place: &Destination) -> Doubtful {
        match self.doubtful {
            Some(Choice::Deliver) => Doubtful::Deliver,
            Some(Choice::Skip) => Doubtful::Skip,
            // That is what the configuration accepts anyway.
            None if place.config.at_least_once_allowed => Doubtful::Deliver,
            None => Doubtful::Refuse,
        }
    }
}

/// Progress for people, on standard error.
fn bar(place: &Place) -> ProgressBar {
    if place.json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) =
        ProgressStyle::with_template("looking {bar:30} {human_pos}/{human_len} {eta}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn show(
    place: &Place,
    identity: Identity,
    findings: &Findings,
    published: Option<u64>,
) -> Result<(), Failure> {
    if place.json {
        return output::json(&json!({
            "done": published.is_some(),
            "published_again": published.unwrap_or(findings.published_again),
            "findings": findings,
        }));
    }
    let (would, again) = match published {
        Some(published) => ("were", published),
        None => ("would be", findings.published_again),
    };
    output::line(findings.database)?;
    if matches!(identity, Identity::Restored | Identity::Copied) {
        output::line("warning: the original must not deliver to these sinks any more")?;
    }
    output::line(format!(
        "of {} in the outbox {again} {would} published again, the others {would} truncated",
        plural(findings.events, "event")
    ))?;
    output::line("")?;
    let head = [
        "sink",
        "proven",
        "found",
        "missing",
        "in doubt",
        "open batches",
    ];
    let mut table = output::table(&head);
    for sink in &findings.sinks {
        table.add_row([
            sink.sink.clone(),
            sink.proven.to_string(),
            sink.found.to_string(),
            sink.missing.to_string(),
            sink.doubtful.to_string(),
            sink.open_batches.to_string(),
        ]);
    }
    output::show(&table)
}

impl From<RecoverError> for Failure {
    fn from(error: RecoverError) -> Self {
        match error {
            RecoverError::Refused(_) => Self::new(Exit::Refused, error),
            RecoverError::Schema(error) => error.into(),
            RecoverError::Sink(name, trouble) => Self::from(trouble).of(format!("sink {name}")),
        }
    }
}
