//! `pillarbox grant`: lets a user publish, relay or read.

use clap::{Args, ValueEnum};
use pillarbox_relay::schema;
use serde_json::json;

use crate::exit::{Exit, Failure, Outcome};
use crate::identifier::quoted;
use crate::{Place, output};

/// Let a PostgreSQL user publish events, run the relay, or read the status
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pillarbox grant app --as publisher     INSERT and pillarbox.publish(), nothing else
  pillarbox grant mover --as relay       for the user of `pillarbox relay`
  pillarbox grant ops --as reader        `pillarbox status`, without the events' contexts")]
pub(crate) struct Grant {
    /// The user (role) to grant to; it must exist
    #[arg(value_name = "ROLE")]
    user: String,

    /// What it may do
    #[arg(long = "as", value_name = "WHAT")]
    part: Part,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Part {
    /// Publish events
    Publisher,
    /// Run the relay
    Relay,
    /// Read where everything stands, but no payload
    Reader,
}

impl Part {
    fn role(self) -> &'static str {
        match self {
            Self::Publisher => "pillarbox_publisher",
            Self::Relay => "pillarbox_relay",
            Self::Reader => "pillarbox_reader",
        }
    }
}

impl Grant {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        const EXISTS: &str = include_str!("sql/user_exists.sql");
        let session = place.session().await?;
        let client = session.client();
        schema::check_version(client).await?;
        let user = &self.user;
        if !client.query_one(EXISTS, &[user]).await?.get::<_, bool>(0) {
            return Err(Failure::refused(format!(
                "postgresql has no user {user}; create it first: create role {} login password '…'",
                quoted(user)
            )));
        }
        let role = self.part.role();
        let statement = format!("grant {} to {}", quoted(role), quoted(user));
        client.batch_execute(&statement).await?;
        if place.json {
            output::json(&json!({ "user": user, "role": role }))?;
            return Ok(Exit::Done);
        }
        output::line(format!("{user} is a member of {role} now"))?;
        match self.part {
            Part::Publisher => output::next(
                "publish as that user: select pillarbox.publish('user_created', '{}'), \
                 in the transaction of your business step",
            ),
            Part::Relay => output::next("run as that user: pillarbox relay"),
            Part::Reader => output::next("look as that user: pillarbox status"),
        }
        Ok(Exit::Done)
    }
}
