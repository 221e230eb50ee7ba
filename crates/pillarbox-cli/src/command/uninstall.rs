//! `pillarbox uninstall`: drops the schema.

use clap::Args;
use pillarbox_relay::schema;
use serde_json::json;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::backlog::{self, counted};
use crate::exit::{Exit, Failure, Outcome};
use crate::{Place, output};

/// Drop the schema pillarbox from PostgreSQL
#[derive(Debug, Args)]
#[command(after_help = "\
Refuses while a registered sink has not received every event. What was delivered stays in the sink;
the roles stay, because other databases of the cluster may use them.

Examples:
  pillarbox relay --once && pillarbox uninstall --yes")]
pub(crate) struct Uninstall {
    /// Do it
    #[arg(long)]
    yes: bool,

    /// Also when events are lost with it
    #[arg(long)]
    discard_events: bool,
}

impl Uninstall {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        const LOCK: &str = include_str!("sql/lock_outbox.sql");
        const DROP: &str = include_str!("sql/uninstall.sql");
        let mut session = place.session().await?;
        schema::check_version(session.client()).await?;
        if !self.yes {
            let events = counted(backlog::of_outbox(session.client()).await?);
            return Err(Failure::usage(format!(
                "this drops the schema pillarbox with its ledger and the outbox ({events}); \
                 to do it, add --yes"
            )));
        }
        let transaction = session.client_mut().transaction().await?;
        // Nobody publishes between the count and the drop.
        transaction.batch_execute(LOCK).await.map_err(busy)?;
        if !self.discard_events {
            check_delivered(transaction.client()).await?;
        }
        transaction.batch_execute(DROP).await.map_err(busy)?;
        transaction.commit().await?;
        if place.json {
            output::json(&json!({ "result": "dropped", "schema": "pillarbox" }))?;
            return Ok(Exit::Done);
        }
        output::line("dropped the schema pillarbox")?;
        output::line(
            "the roles stay, because other databases of the cluster may use them: \
             pillarbox_owner, pillarbox_publisher, pillarbox_relay, pillarbox_reader",
        )?;
        Ok(Exit::Done)
    }
}

async fn check_delivered(client: &Client) -> Result<(), Failure> {
    let sinks = backlog::of_sinks(client).await?;
    let remedy = "deliver them with: pillarbox relay --once; \
                  or lose them with: pillarbox uninstall --yes --discard-events";
    if sinks.is_empty() {
        let events = backlog::of_outbox(client).await?;
        if events > 0 {
            return Err(Failure::refused(format!(
                "the outbox holds {} and no sink is registered that could receive them; \
                 register one with: pillarbox sink create; \
                 or lose them with: pillarbox uninstall --yes --discard-events",
                counted(events)
            )));
        }
    }
    let behind: Vec<String> = sinks
        .iter()
        .filter(|sink| sink.events > 0)
        .map(|sink| format!("{} of sink {}", counted(sink.events), sink.sink))
        .collect();
    if behind.is_empty() {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "events are not delivered yet: {}; {remedy}",
        behind.join(", ")
    )))
}

fn busy(error: tokio_postgres::Error) -> Failure {
    if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) {
        return Failure::refused(
            "the outbox is in use by an open transaction; stop publishers and relays, then try again",
        );
    }
    error.into()
}
