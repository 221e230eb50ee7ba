//! The registered sinks: configured as they were registered, delivered to, nothing left lying.

use std::collections::BTreeSet;

use pillarbox_relay::identity::{Identity, identify};
use tokio_postgres::Row;

use super::finding::{Findings, Remedy};
use super::{Subject, age};
use crate::destination::Destination;
use crate::exit::Failure;
use crate::output::plural;

pub(super) async fn examine(subject: &Subject<'_>) -> Result<Findings, Failure> {
    const SINKS: &str = include_str!("sql/sinks.sql");
    let mut findings = Findings::of("sinks");
    let class = &pillarbox_relay::schema::LOCK_CLASS;
    let rows = subject.client.query(SINKS, &[class]).await?;
    let registered: BTreeSet<String> = rows.iter().map(|row| row.get("name")).collect();
    for row in &rows {
        let sink = Sink::new(row);
        let identity = identify(subject.client, row.get("sink")).await?;
        sink.place(identity, &mut findings);
        sink.fingerprint(subject, &mut findings);
        sink.delivery(&mut findings, subject.older_than.as_secs_f64());
    }
    for name in subject.config.sinks.keys() {
        if !registered.contains(name) {
            findings.problem(
                "registered",
                format!("the sink {name} is configured, but not registered"),
                Remedy::shell(format!("pillarbox sink create {name}")),
            );
        }
    }
    if registered.is_empty() && subject.config.sinks.is_empty() {
        findings.warning(
            "registered",
            "no sink is registered: events are kept in the outbox until one is",
            Remedy::shell("pillarbox sink create"),
        );
    }
    dead_letters(subject, &mut findings).await?;
    Ok(findings)
}

struct Sink {
    name: String,
    fingerprint: String,
    is_paused: bool,
    stopped: Option<(String, f64)>,
    is_active: bool,
    has_new_timeline: bool,
    open_batches: i64,
    oldest_batch_s: f64,
    lag_s: f64,
}

impl Sink {
    fn new(row: &Row) -> Self {
        let seconds = |name| row.get::<_, Option<f64>>(name).unwrap_or(0.0);
        let reason: Option<String> = row.get("stopped_reason");
        Self {
            name: row.get("name"),
            fingerprint: row.get("fingerprint"),
            is_paused: row.get("paused"),
            stopped: reason.map(|reason| (reason, seconds("stopped_s"))),
            is_active: row.get("is_active"),
            has_new_timeline: row.get("has_new_timeline"),
            open_batches: row.get("open_batches"),
            oldest_batch_s: seconds("oldest_batch_s"),
            lag_s: seconds("lag_s"),
        }
    }

    /// Whether its ledger is about this database.
    fn place(&self, identity: Identity, findings: &mut Findings) {
        let name = &self.name;
        if matches!(identity, Identity::Restored | Identity::Copied) {
            findings.problem(
                "origin",
                format!(
                    "{}: the ledger of the sink {name} does not tell what the sink holds",
                    identity.describe()
                ),
                Remedy::person(
                    "deliver from the original; or, if this database takes its place, stop every \
                     relay and run: pillarbox recover --dry-run, then pillarbox recover --yes",
                ),
            );
        } else if self.has_new_timeline {
            findings.warning(
                "origin",
                format!(
                    "postgresql was promoted since the last batch of the sink {name}: its relay \
                     looks into the sink before it goes on"
                ),
                Remedy::shell("pillarbox relay"),
            );
        }
    }

    /// Whether the configuration means what was registered.
    fn fingerprint(&self, subject: &Subject<'_>, findings: &mut Findings) {
        let (name, registered) = (&self.name, &self.fingerprint);
        if !subject.config.sinks.contains_key(name) {
            findings.warning(
                "configured",
                format!(
                    "the sink {name} ({registered}) is registered, but not configured here: unless \
                     another relay delivers to it, events are kept for it for ever"
                ),
                Remedy::shell(format!("pillarbox sink retire {name} --yes")),
            );
            return;
        }
        match Destination::find(subject.config, Some(name)) {
            Err(failure) => findings.failed("configured", &failure, None),
            Ok(destination) if destination.fingerprint() != *registered => findings.problem(
                "configured",
                format!(
                    "the sink {name} is registered for {registered}, but the configuration says {}",
                    destination.fingerprint()
                ),
                Remedy::person(
                    "change the configuration back, or configure the new table under another name",
                ),
            ),
            Ok(_) => findings.ok("configured", format!("{name} is {registered}")),
        }
    }

    /// Whether events get there.
    fn delivery(&self, findings: &mut Findings, patience: f64) {
        let name = &self.name;
        let lag = match self.lag_s >= patience {
            true => format!("; its oldest event has waited for {}", age(self.lag_s)),
            false => String::new(),
        };
        if self.is_paused {
            findings.warning(
                "delivery",
                format!("the sink {name} is paused{lag}"),
                Remedy::shell(format!("pillarbox resume {name}")),
            );
        } else if let Some((reason, since)) = &self.stopped {
            findings.problem(
                "delivery",
                format!("the sink {name} stands still for {}: {reason}", age(*since)),
                Remedy::person("mend what the reason names; the relay looks again by itself"),
            );
        } else if !self.is_active {
            findings.warning(
                "delivery",
                format!("no relay is active for the sink {name}{lag}"),
                Remedy::shell("pillarbox relay"),
            );
        } else if self.open_batches > 0 && self.oldest_batch_s >= patience {
            findings.warning(
                "delivery",
                format!(
                    "{} of the sink {name} without an outcome, the oldest for {}{lag}",
                    plural(self.open_batches.unsigned_abs(), "batch"),
                    age(self.oldest_batch_s)
                ),
                Remedy::shell(format!("pillarbox sink check {name}")),
            );
        } else if !lag.is_empty() {
            findings.warning(
                "delivery",
                format!("the sink {name} is behind{lag}"),
                Remedy::shell("pillarbox status"),
            );
        } else {
            findings.ok("delivery", format!("a relay delivers to {name}"));
        }
    }
}

/// Rows that were set aside, once the schema has a place for them.
async fn dead_letters(subject: &Subject<'_>, findings: &mut Findings) -> Result<(), Failure> {
    const THERE: &str = "select pg_catalog.to_regclass('pillarbox.dead_letter') is not null";
    const DEAD: &str = include_str!("sql/dead_letters.sql");
    if !subject
        .client
        .query_one(THERE, &[])
        .await?
        .get::<_, bool>(0)
    {
        return Ok(());
    }
    for row in subject.client.query(DEAD, &[]).await? {
        let (name, dead): (String, i64) = (row.get(0), row.get(1));
        findings.warning(
            "dead-letters",
            format!(
                "{} of the sink {name} set aside",
                plural(dead.unsigned_abs(), "event")
            ),
            Remedy::shell("pillarbox dead-letters list"),
        );
    }
    findings.fine_unless_found("dead-letters", "no event is set aside");
    Ok(())
}
