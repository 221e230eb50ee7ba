//! `pillarbox publish`: publishes one event, for trials and scripts.

use std::io::Read as _;

use clap::Args;
use pillarbox_relay::schema::SchemaError;
use serde_json::json;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::exit::{Exit, Failure, Outcome};
use crate::{Place, output};

/// Publish one event and print its event_id
#[derive(Debug, Args)]
#[command(after_help = "\
For trials and scripts: an application publishes in the transaction of its business step, with
`select pillarbox.publish(…)` or the library of its language.

Examples:
  pillarbox publish user_created '{\"name\": \"Ada\"}'
  pillarbox publish report_done - < report.json
  pillarbox publish login '{}' --environment staging --metadata-version 3")]
pub(crate) struct Publish {
    /// Type of the event, 1 to 255 characters
    #[arg(value_name = "TYPE")]
    event_type: String,

    /// Context of the event as JSON, or - to read it from standard input
    #[arg(value_name = "CONTEXT")]
    context: String,

    /// Environment [default: the one of `pillarbox settings`]
    #[arg(long)]
    environment: Option<String>,

    /// Version of the context's shape [default: 1]
    #[arg(long, value_name = "N")]
    metadata_version: Option<i64>,
}

impl Publish {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        const PUBLISH: &str = include_str!("sql/publish.sql");
        let context = match self.context.as_str() {
            "-" => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text)?;
                text
            }
            text => text.to_owned(),
        };
        let session = place.session().await?;
        let answer = session
            .client()
            .query_one(
                PUBLISH,
                &[
                    &self.event_type,
                    &context,
                    &self.environment,
                    &self.metadata_version,
                ],
            )
            .await;
        let event_id: Uuid = match answer {
            Ok(row) => row.get(0),
            Err(error) => return Err(refusal(error, &context)),
        };
        if place.json {
            output::json(&json!({ "event_id": event_id }))?;
            return Ok(Exit::Done);
        }
        output::line(event_id)?;
        output::next("see it pass: pillarbox status; or deliver it now: pillarbox relay --once");
        Ok(Exit::Done)
    }
}

/// What the server says about an event, without quoting the event.
fn refusal(error: tokio_postgres::Error, context: &str) -> Failure {
    let Some(answer) = error.as_db_error() else {
        return error.into();
    };
    let code = answer.code();
    if *code == SqlState::INVALID_TEXT_REPRESENTATION {
        let place = serde_json::from_str::<serde::de::IgnoredAny>(context);
        let reason = place
            .err()
            .map_or_else(|| answer.message().to_owned(), |error| error.to_string());
        return Failure::usage(format!("the context is not json: {reason}"));
    }
    if *code == SqlState::CHECK_VIOLATION {
        return Failure::usage(answer.message());
    }
    if *code == SqlState::UNDEFINED_FUNCTION {
        return SchemaError::Missing.into();
    }
    error.into()
}
