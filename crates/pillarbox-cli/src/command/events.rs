//! `pillarbox events`: reads what arrived in the sink.

use clap::Args;
use jiff::Timestamp;
use pillarbox_relay::sink::clickhouse::{EVENTS_MAX, EventFilter, EventRow};
use uuid::Uuid;

use crate::destination::Destination;
use crate::exit::{Exit, Failure, Outcome};
use crate::when::instant;
use crate::{Place, output};

/// A context is cut to this many characters in a table; --json shows it whole.
const CONTEXT_SHOWN_MAX: usize = 72;

/// Show events that arrived in the sink, newest first
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pillarbox events --since 1h
  pillarbox events --type user_created --contains ada@example.org
  pillarbox events --id 01939a2e-7c11-7d4e-9a7e-2f4f7c0b8e51 --json
  pillarbox events --since 2026-11-20T10:00:00Z --until 2026-11-20T11:00:00Z --limit 1000")]
pub(crate) struct Events {
    /// Sink as in the configuration [default: the only one, or clickhouse]
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,

    /// Not before: a duration back from now (90s, 1h, 2d) or a time (2026-11-20T10:00:00Z)
    #[arg(long, value_name = "WHEN", value_parser = instant)]
    since: Option<Timestamp>,

    /// Before: a duration back from now or a time
    #[arg(long, value_name = "WHEN", value_parser = instant)]
    until: Option<Timestamp>,

    /// With this type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,

    /// Of this environment
    #[arg(long)]
    environment: Option<String>,

    /// With this event_id
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,

    /// Whose context contains this text
    #[arg(long, value_name = "TEXT")]
    contains: Option<String>,

    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(EVENTS_MAX)))]
    limit: u32,
}

impl Events {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        let destination = Destination::find(&place.config()?, self.sink.as_deref())?;
        let filter = EventFilter {
            since: self.since.map(|time| time.to_string()),
            until: self.until.map(|time| time.to_string()),
            event_type: self.event_type,
            environment: self.environment,
            event_id: self.id.map(|id| id.to_string()),
            contains: self.contains,
            limit: self.limit,
        };
        let events = destination.sink.read_events(&filter).await;
        let events = events.map_err(|trouble| destination.blame(trouble))?;
        if place.json {
            output::json(&events)?;
            return Ok(Exit::Done);
        }
        if events.is_empty() {
            output::line(format!("no such events in {}", destination.table()))?;
            output::next("see what is on its way: pillarbox status");
            return Ok(Exit::Done);
        }
        show(&events)?;
        if events.len() == self.limit as usize {
            output::next("these are the newest; see more with --limit, or narrow with --since");
        }
        Ok(Exit::Done)
    }
}

fn show(events: &[EventRow]) -> Result<(), Failure> {
    let head = [
        "event_date_time",
        "event_type",
        "environment",
        "event_id",
        "event_context",
    ];
    let mut table = output::table(&head);
    for event in events {
        table.add_row([
            event.event_date_time.as_str(),
            &event.event_type,
            &event.environment,
            event.event_id.as_deref().unwrap_or("-"),
            &shortened(&event.event_context),
        ]);
    }
    output::show(&table)
}

/// The start of a context on one line.
fn shortened(context: &str) -> String {
    let mut text: String = context
        .chars()
        .take(CONTEXT_SHOWN_MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.len() < context.len() {
        text.push('…');
    }
    text
}
