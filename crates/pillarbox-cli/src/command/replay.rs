//! `pillarbox replay`: asks for batches to be delivered again.

use std::time::SystemTime;

use clap::Args;
use jiff::Timestamp;
use pillarbox_relay::schema;
use serde_json::json;

use crate::exit::{Exit, Failure, Outcome};
use crate::output::plural;
use crate::when::instant;
use crate::{Place, output, registered};

/// Deliver batches again to one sink, while the outbox still has their events
#[derive(Debug, Args)]
#[command(after_help = "\
The events arrive a second time, as new batches: for a table that was lost or emptied. What is only
missing is better repaired: pillarbox verify --repair. Events are kept for the retention (pillarbox
settings). With --since and --until the events that happened in that time are delivered again, whichever
batch they were in.

Examples:
  pillarbox replay --batch 4711 --batch 4712 --yes
  pillarbox replay --since 30m --until 10m --yes
  pillarbox replay --list                what was asked for, and what became of it")]
pub(crate) struct Replay {
    /// Registered sink [default: the only one]
    sink: Option<String>,

    /// A batch; may be given several times
    #[arg(long = "batch", value_name = "NUMBER", required_unless_present_any = ["since", "list"],
          conflicts_with = "since")]
    batches: Vec<i64>,

    /// Events that happened from then on: a duration back from now (90s, 1h, 2d) or a time
    #[arg(long, value_name = "WHEN", value_parser = instant, requires = "until")]
    since: Option<Timestamp>,

    /// … and before then
    #[arg(long, value_name = "WHEN", value_parser = instant, requires = "since")]
    until: Option<Timestamp>,

    /// Do it: the events arrive twice where they are still there
    #[arg(long)]
    yes: bool,

    /// Show what was asked for
    #[arg(long, conflicts_with_all = ["batches", "since", "yes"])]
    list: bool,
}

impl Replay {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        const REQUEST: &str = include_str!("sql/request_replay.sql");
        let session = place.session().await?;
        let client = session.client();
        schema::check_version(client).await?;
        let sink = registered::find(client, self.sink.as_deref()).await?;
        if self.list {
            return list(place, client, sink.sink).await;
        }
        if !self.yes {
            return Err(Failure::usage(
                "events that are still in the sink will be there twice; to do it, add --yes",
            ));
        }
        let since = self.since.map(SystemTime::from);
        let until = self.until.map(SystemTime::from);
        let given: &[&(dyn tokio_postgres::types::ToSql + Sync)] =
            &[&sink.sink, &self.batches, &since, &until];
        let requested = client.execute(REQUEST, given).await?;
        if requested == 0 {
            return Err(Failure::refused(
                "the ledger has no such batch whose events the outbox may still hold",
            ));
        }
        if place.json {
            output::json(&json!({ "sink": sink.name, "requested": requested }))?;
            return Ok(Exit::Done);
        }
        output::line(format!(
            "{} of sink {} will be delivered again",
            plural(requested, "batch"),
            sink.name
        ))?;
        output::next("the relay does it; see: pillarbox replay --list");
        Ok(Exit::Done)
    }
}

async fn list(place: &Place, client: &tokio_postgres::Client, sink: i32) -> Outcome {
    const LIST: &str = include_str!("sql/replays.sql");
    let rows = client.query(LIST, &[&sink]).await?;
    if place.json {
        let replays: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({
                    "replay": row.get::<_, i64>(0),
                    "kind": row.get::<_, String>(1),
                    "of_batch": row.get::<_, i64>(2),
                    "state": row.get::<_, String>(3),
                    "batch": row.get::<_, Option<i64>>(4),
                    "refused": row.get::<_, Option<String>>(5),
                })
            })
            .collect();
        output::json(&replays)?;
        return Ok(Exit::Done);
    }
    let mut table = output::table(&["replay", "kind", "of batch", "state", "as batch", "refused"]);
    for row in &rows {
        let batch = row.get::<_, Option<i64>>(4);
        table.add_row([
            row.get::<_, i64>(0).to_string(),
            row.get(1),
            row.get::<_, i64>(2).to_string(),
            row.get(3),
            batch.map_or_else(|| "-".to_owned(), |batch| batch.to_string()),
            row.get::<_, Option<String>>(5).unwrap_or_default(),
        ]);
    }
    output::show(&table)?;
    Ok(Exit::Done)
}
