//! `pillarbox intake`: takes events over from Redis into the outbox.

use clap::Args;
use futures_util::future::OptionFuture;
use pillarbox_relay::config::Config;
use pillarbox_relay::intake::{Intake as Source, IntakeError, Summary};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::relay::{console, signals};
use crate::exit::{Exit, Failure, Outcome, chain};
use crate::output::plural;
use crate::{Place, logging, output};

/// Take events over from Redis into the outbox, each exactly once
#[derive(Debug, Args)]
#[command(after_help = "\
For events that belong to no transaction of PostgreSQL. Producers XADD to a stream, with the fields event_type and
event_context, and if they like event_id, event_date_time, environment, metadata_version and trace_parent; or they
LPUSH a JSON object of these to a list. [intake.NAME] in pillarbox.toml says which. What is no event becomes a dead
letter. One process per intake is active; further ones stand by.

Examples:
  redis-cli XADD events '*' event_type login event_context '{\"user\": 7}'
  redis-cli LPUSH events '{\"event_type\": \"login\", \"event_context\": {\"user\": 7}}'
  pillarbox intake                       every configured intake, until it is told to stop
  pillarbox intake logins --once         takes over what is there and exits
  pillarbox dead-letters list            what is no event")]
pub(crate) struct Intake {
    /// Configured intakes [default: all]
    names: Vec<String>,

    /// Take over what is there now, then exit
    #[arg(long)]
    once: bool,
}

impl Intake {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        let config = place.config()?;
        let _collected = logging::relay(&config, self.once)?;
        let stop = CancellationToken::new();
        let second = signals(stop.clone())?;
        let console = match self.once {
            true => None,
            false => console(&config.console).await?,
        };
        // After the console: it records the metrics of intakes that are made from now on.
        let sources = self.sources(&config)?;
        let shown: OptionFuture<_> = console.map(|console| console.serve(Vec::new())).into();
        tokio::select! { biased;
            outcome = self.work(place, sources, &stop) => outcome,
            Some(never) = shown => match never {},
            () = second => Err(Failure::failed(anyhow::anyhow!(
                "stopped at once by a second signal; the next intake settles what was in flight"
            ))),
        }
    }

    fn sources(&self, config: &Config) -> Result<Vec<(String, Source)>, Failure> {
        let known = || {
            config
                .intake
                .keys()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ")
        };
        if config.intake.is_empty() {
            return Err(Failure::usage(
                "no intake is configured; add [intake.NAME] with kind, url and key to pillarbox.toml",
            ));
        }
        if let Some(unknown) = self
            .names
            .iter()
            .find(|name| !config.intake.contains_key(*name))
        {
            return Err(Failure::usage(format!(
                "the intake {unknown} is not configured (configured: {}); add [intake.{unknown}] to \
                 pillarbox.toml",
                known()
            )));
        }
        let chosen = config
            .intake
            .iter()
            .filter(|(name, _)| self.names.is_empty() || self.names.contains(name));
        let target = config.postgres()?;
        let source = |(name, intake): (&String, _)| {
            Ok((name.clone(), Source::new(name, intake, target.clone())?))
        };
        chosen.map(source).collect()
    }

    async fn work(
        &self,
        place: &Place,
        sources: Vec<(String, Source)>,
        stop: &CancellationToken,
    ) -> Outcome {
        let mut running = JoinSet::new();
        for (name, source) in sources {
            let span = tracing::info_span!("intake", intake = %name);
            let (stop, once) = (stop.clone(), self.once);
            let work = async move {
                let result = match once {
                    true => source.drain(&stop).await,
                    false => source.run(&stop).await,
                };
                (name, result)
            };
            running.spawn(work.instrument(span));
        }
        let mut worst: Option<Failure> = None;
        while let Some(ended) = running.join_next().await {
            match ended.map_err(Failure::failed)? {
                (name, Ok(summary)) if self.once => report(place, &name, summary)?,
                (intake, Ok(_)) => tracing::info!(intake, "intake stopped"),
                (intake, Err(error)) => {
                    // The others go on.
                    if !running.is_empty() {
                        tracing::error!(intake, error = chain(&error), "intake stopped");
                    }
                    worst = Some(Failure::from(error).of(format!("intake {intake}")));
                }
            }
        }
        worst.map_or(Ok(Exit::Done), Err)
    }
}

fn report(place: &Place, name: &str, summary: Summary) -> Result<(), Failure> {
    let Summary {
        taken,
        dead,
        restored,
    } = summary;
    if place.json {
        return output::line(json!({
            "intake": name, "taken": taken, "dead": dead, "restored": restored,
        }));
    }
    output::line(format!("took {} over from {name}", plural(taken, "event")))?;
    if restored > 0 {
        output::line(format!(
            "{restored} that redis showed again had been taken before, and were not taken again"
        ))?;
    }
    if dead > 0 {
        output::next(&format!(
            "{dead} are no events; see: pillarbox dead-letters list"
        ));
    }
    Ok(())
}

impl From<IntakeError> for Failure {
    fn from(error: IntakeError) -> Self {
        let exit = match &error {
            IntakeError::Away { .. } => Exit::Unreachable,
            IntakeError::Refused(_) | IntakeError::NotActive(_) | IntakeError::Malformed { .. } => {
                Exit::Refused
            }
            IntakeError::Stopped | IntakeError::Unreadable { .. } => Exit::Failed,
        };
        Self::new(exit, error)
    }
}
