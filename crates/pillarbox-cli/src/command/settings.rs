//! `pillarbox settings`: shows and changes what publishers and relays must agree on.

use clap::Args;
use pillarbox_relay::config::ByteSize;
use pillarbox_relay::schema::settings::{self, Change, EVENT_BYTES_CEILING};
use pillarbox_relay::schema::{self, SchemaError};
use tokio_postgres::error::SqlState;

use crate::exit::{Exit, Failure, Outcome};
use crate::{Place, output};

/// Show or change the settings that live in the database
#[derive(Debug, Args)]
#[command(after_help = "\
Without options it shows the settings. Changes are made together or not at all, take effect for
the next event, and never wait for publishers.

Examples:
  pillarbox settings
  pillarbox settings --event-bytes-max 4MiB --retention '6 hours'
  pillarbox settings --environment staging")]
pub(crate) struct Settings {
    /// How long a delivered event stays in the outbox, such as '6 hours'
    #[arg(long, value_name = "INTERVAL")]
    retention: Option<String>,

    /// Largest event_context, such as 4MiB (up to 256MiB)
    #[arg(long, value_name = "SIZE")]
    event_bytes_max: Option<ByteSize>,

    /// Environment of events that name none
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,

    /// Size at which the ring turns away from a leaf, such as 256MiB
    #[arg(long, value_name = "SIZE")]
    leaf_bytes_max: Option<ByteSize>,

    /// Age at which the ring turns away from a leaf, such as '10 minutes'
    #[arg(long, value_name = "INTERVAL")]
    leaf_age_max: Option<String>,

    /// How long the ledger of batches is kept, such as '30 days'
    #[arg(long, value_name = "INTERVAL")]
    ledger_retention: Option<String>,
}

impl Settings {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        let change = self.change()?;
        let mut session = place.session().await?;
        schema::check_version(session.client()).await?;
        let shown = match &change {
            None => settings::read(session.client()).await?,
            Some(change) => settings::change(session.client_mut(), change)
                .await
                .map_err(refusal)?,
        };
        if place.json {
            output::json(&shown)?;
            return Ok(Exit::Done);
        }
        let mut table = output::table(&["setting", "value", "meaning"]);
        let event_bytes = output::size(shown.event_bytes_max.into());
        let leaf_bytes = output::size(shown.leaf_bytes_max);
        for row in [
            [
                "environment",
                &shown.environment,
                "of events that name none",
            ],
            ["event-bytes-max", &event_bytes, "largest event_context"],
            [
                "retention",
                &shown.retention,
                "a delivered event stays this long",
            ],
            ["leaf-bytes-max", &leaf_bytes, "the ring turns at this size"],
            [
                "leaf-age-max",
                &shown.leaf_age_max,
                "the ring turns at this age",
            ],
            [
                "ledger-retention",
                &shown.ledger_retention,
                "the ledger is kept this long",
            ],
        ] {
            table.add_row(row);
        }
        output::show(&table)?;
        if change.is_none() {
            output::next("change one, for example: pillarbox settings --retention '6 hours'");
        }
        Ok(Exit::Done)
    }

    /// What to change; `None` when nothing was asked for.
    fn change(self) -> Result<Option<Change>, Failure> {
        let Self {
            retention,
            event_bytes_max,
            environment,
            leaf_bytes_max,
            leaf_age_max,
            ledger_retention,
        } = self;
        let event_bytes_max = event_bytes_max
            .map(|size| {
                let limit = i32::try_from(size.0).ok();
                limit
                    .filter(|limit| (1..=EVENT_BYTES_CEILING).contains(limit))
                    .ok_or_else(|| {
                        let ceiling = ByteSize(EVENT_BYTES_CEILING.unsigned_abs().into());
                        Failure::usage(format!(
                            "--event-bytes-max is {size}; give it 1B to {ceiling}"
                        ))
                    })
            })
            .transpose()?;
        let leaf_bytes_max = leaf_bytes_max
            .map(|size| {
                let limit = i64::try_from(size.0).ok().filter(|limit| *limit > 0);
                limit.ok_or_else(|| {
                    Failure::usage(format!("--leaf-bytes-max is {size}; give it more"))
                })
            })
            .transpose()?;
        let change = Change {
            environment,
            event_bytes_max,
            retention,
            ledger_retention,
            leaf_bytes_max,
            leaf_age_max,
        };
        let none = change.environment.is_none()
            && change.event_bytes_max.is_none()
            && change.retention.is_none()
            && change.ledger_retention.is_none()
            && change.leaf_bytes_max.is_none()
            && change.leaf_age_max.is_none();
        Ok((!none).then_some(change))
    }
}

/// A value that the server does not take is wrong usage.
fn refusal(error: SchemaError) -> Failure {
    let SchemaError::Statement(statement) = &error else {
        return match error {
            SchemaError::Invalid(reason) => Failure::usage(reason),
            error => error.into(),
        };
    };
    let Some(answer) = statement.as_db_error() else {
        return error.into();
    };
    let code = answer.code();
    if *code == SqlState::CHECK_VIOLATION {
        let constraint = answer.constraint().unwrap_or("a constraint");
        return Failure::usage(format!(
            "a setting is out of its bounds: {}",
            constraint.replace('_', " ")
        ));
    }
    // Class 22, data exception: a text that is not an interval, or one too long.
    if code.code().starts_with("22") {
        return Failure::usage(format!(
            "{}; write an interval as postgresql reads it, such as '6 hours'",
            answer.message()
        ));
    }
    error.into()
}
