//! `pillarbox migrate`: installs or upgrades the schema.

use clap::Args;
use pillarbox_relay::schema::{self, Migrated};
use serde_json::json;

use crate::exit::{Exit, Outcome};
use crate::{Place, output};

/// Install or upgrade the schema pillarbox in PostgreSQL
#[derive(Debug, Args)]
#[command(after_help = "\
Safe to run at every deployment and by many at once: it does nothing where the schema is up to date.
An upgrade stops nobody; start the new relay after it. A change for which publishers would have to
wait is left out while their transactions are open, and made when it is run again.
Needs CREATE on the database and, once per cluster, CREATEROLE.

Examples:
  pillarbox migrate
  pillarbox migrate --print | psql           for a database administrator
  pillarbox migrate --print --from 1 | psql  the same, where version 1 is installed")]
pub(crate) struct Migrate {
    /// Print the statements instead of running them
    #[arg(long)]
    print: bool,

    /// With --print: the version that is installed, to print the upgrade only
    #[arg(long, value_name = "VERSION", requires = "print", default_value_t = 0)]
    from: i32,
}

impl Migrate {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        if self.print {
            output::line(schema::print(self.from).trim_end())?;
            return Ok(Exit::Done);
        }
        let mut session = place.session().await?;
        let migrated = schema::migrate(session.client_mut()).await?;
        let in_the_way = schema::check::unite(session.client_mut()).await?;
        let version = schema::VERSION;
        let (word, text) = match migrated {
            Migrated::Installed => ("installed", "installed the schema pillarbox"),
            Migrated::Upgraded { .. } => ("upgraded", "upgraded the schema pillarbox"),
            Migrated::UpToDate => ("up-to-date", "the schema pillarbox is up to date"),
        };
        if place.json {
            output::json(&json!({
                "result": word,
                "version": version,
                "one_check": in_the_way.is_none(),
            }))?;
            return Ok(Exit::Done);
        }
        output::line(format!("{text} (version {version})"))?;
        if let Some(reason) = in_the_way {
            output::next(&format!(
                "publishing gets faster with one check of events in the place of five, for which nobody may \
                 be using the outbox for a moment: {reason}; then run: pillarbox migrate"
            ));
        }
        if migrated == Migrated::Installed {
            output::next(
                "let your application publish: pillarbox grant USER --as publisher; \
                 then register where events go: pillarbox sink create",
            );
        }
        Ok(Exit::Done)
    }
}
