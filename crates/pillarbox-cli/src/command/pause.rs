//! `pillarbox pause` and `pillarbox resume`: holds the delivery to a sink back, and lets it go on.

use clap::Args;
use pillarbox_relay::schema;
use serde_json::json;
use tokio_postgres::Client;

use crate::exit::{Exit, Failure, Outcome};
use crate::{Place, output, registered};

/// Hold back delivery to a sink; publishing goes on
#[derive(Debug, Args)]
#[command(after_help = "\
Takes effect within a second: the insert that is under way is finished, nothing is sealed or sent after
it. Events stay in the outbox until `pillarbox resume`, so it grows meanwhile. Safe to repeat.

Examples:
  pillarbox pause                        before work on the ClickHouse table
  pillarbox pause audit --json")]
pub(crate) struct Pause {
    /// Registered sink [default: the only one]
    sink: Option<String>,
}

/// Go on with delivery to a paused sink
#[derive(Debug, Args)]
#[command(after_help = "\
What was published meanwhile is delivered, oldest first. Safe to repeat.

Examples:
  pillarbox resume
  pillarbox resume audit")]
pub(crate) struct Resume {
    /// Registered sink [default: the only one]
    sink: Option<String>,
}

impl Pause {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        let session = place.session().await?;
        let (sink, changed) = switch(session.client(), self.sink, true).await?;
        if place.json {
            return show_json(&sink, true, changed);
        }
        output::line(match changed {
            true => format!("paused the sink {sink}; its events are kept in the outbox"),
            false => format!("the sink {sink} is paused already"),
        })?;
        output::next(&format!("go on with: pillarbox resume {sink}"));
        Ok(Exit::Done)
    }
}

impl Resume {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        let session = place.session().await?;
        let (sink, changed) = switch(session.client(), self.sink, false).await?;
        if place.json {
            return show_json(&sink, false, changed);
        }
        output::line(match changed {
            true => format!("resumed the sink {sink}; its relay delivers what was kept"),
            false => format!("the sink {sink} is not paused"),
        })?;
        output::next("see it catch up: pillarbox status --watch");
        Ok(Exit::Done)
    }
}

/// Pauses or resumes. Gives the sink's name, and whether it was otherwise before.
async fn switch(
    client: &Client,
    name: Option<String>,
    paused: bool,
) -> Result<(String, bool), Failure> {
    const SWITCH: &str = include_str!("sql/pause.sql");
    schema::check_version(client).await?;
    let name = registered::find(client, name.as_deref()).await?.name;
    let changed = client.query_opt(SWITCH, &[&name, &paused]).await?;
    Ok((name, changed.is_some()))
}

fn show_json(sink: &str, paused: bool, changed: bool) -> Outcome {
    output::json(&json!({ "sink": sink, "paused": paused, "changed": changed }))?;
    Ok(Exit::Done)
}
