//! `pillarbox doctor`: looks at every precondition on both sides, and says what mends what.
//!
//! One file per area. A check asks and judges; what is asked is in `sql`.

use std::time::Duration;

use clap::Args;
use pillarbox_relay::config::{Config, Period};
use serde_json::json;
use tokio_postgres::Client;

use self::finding::{Finding, Findings, Level};
use crate::exit::{Exit, Failure, Outcome};
use crate::output::plural;
use crate::{Place, output};

mod clickhouse;
mod clock;
mod disk;
mod finding;
mod horizon;
mod intakes;
mod limits;
mod outbox;
mod rights;
mod ring;
mod server;
mod sinks;

/// Check every precondition on both sides, with the remedy for what is wrong
#[derive(Debug, Args)]
#[command(after_help = "\
Changes nothing. Run it with the configuration and the PostgreSQL user of the relay. Exits with 0 when there is no
problem (warnings do not count), with 3 when something has to be mended, and with 4 when all that is wrong is a server
that does not answer.

Examples:
  pillarbox doctor
  pillarbox doctor --json | jq '.findings[] | select(.level == \"problem\")'
  pillarbox doctor --older-than 1m       also name sessions and batches that are open for a minute")]
pub(crate) struct Doctor {
    /// From which age on an open transaction, an open batch or a late event is named
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    older_than: Period,
}

/// What is looked at.
struct Subject<'a> {
    client: &'a Client,
    config: &'a Config,
    target: &'a tokio_postgres::Config,
    older_than: Duration,
}

impl Doctor {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        let config = place.config()?;
        let target = config.postgres()?;
        let mut found = Vec::new();
        let met = server::meet(&target).await;
        found.extend(met.findings);
        let client = met.session.as_ref().map(|session| session.client());
        if let Some(client) = client {
            let subject = Subject {
                client,
                config: &config,
                target: &target,
                older_than: self.older_than.0,
            };
            found.extend(examine(&subject, met.has_schema).await);
        }
        let outbox = client.filter(|_| met.has_schema);
        found.extend(clickhouse::examine(&config, outbox).await);
        show(place, &found)?;
        Ok(exit(&found))
    }
}

/// Everything about PostgreSQL beyond reaching it.
async fn examine(subject: &Subject<'_>, has_schema: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |area, examined: Result<Findings, Failure>| match examined {
        Ok(findings) => found.extend(findings.list),
        Err(failure) => {
            let mut findings = Findings::of(area);
            match failure.exit() {
                Exit::Unreachable => findings.failed(area, &failure, None),
                _ => findings.skipped(area, format!("cannot be seen: {}", failure.text())),
            }
            found.extend(findings.list);
        }
    };
    add("limits", limits::examine(subject).await);
    add("clock", clock::examine(subject).await);
    add("horizon", horizon::examine(subject).await);
    if has_schema {
        add("rights", rights::examine(subject).await);
        add("outbox", outbox::examine(subject).await);
        add("ring", ring::examine(subject).await);
        add("disk", disk::examine(subject).await);
        add("sinks", sinks::examine(subject).await);
        add("intakes", intakes::examine(subject).await);
    }
    found
}

fn exit(found: &[Finding]) -> Exit {
    let mut problems = found
        .iter()
        .filter(|finding| finding.level == Level::Problem)
        .peekable();
    if problems.peek().is_none() {
        return Exit::Done;
    }
    match problems.all(|problem| problem.is_unreachable) {
        true => Exit::Unreachable,
        false => Exit::Refused,
    }
}

fn show(place: &Place, found: &[Finding]) -> Result<(), Failure> {
    let count = |level| {
        found
            .iter()
            .filter(|finding| finding.level == level)
            .count()
    };
    let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
    if place.json {
        return output::json(&json!({
            "problems": problems,
            "warnings": warnings,
            "findings": found,
        }));
    }
    for finding in found {
        let Finding { area, message, .. } = finding;
        output::line(format!(
            "{:<8} {area:<11} {message}",
            finding.level.as_str()
        ))?;
        if let Some(remedy) = &finding.remedy {
            let (by, what) = remedy.parts();
            output::line(format!("{:<8} {by:<11} {what}", ""))?;
        }
    }
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    output::line("")?;
    output::line(format!(
        "{}, {}",
        plural(number(problems), "problem"),
        plural(number(warnings), "warning")
    ))?;
    if problems + warnings > 0 {
        output::next("mend what is named above, then look again: pillarbox doctor");
    }
    Ok(())
}

/// An age for people.
fn age(seconds: f64) -> String {
    output::duration(seconds.max(0.0))
}
