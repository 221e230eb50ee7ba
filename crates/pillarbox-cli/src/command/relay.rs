//! `pillarbox relay`: delivers the events of the outbox to every configured sink.

use std::sync::Arc;

use clap::Args;
use futures_util::future::OptionFuture;
use pillarbox_console::{Console, ConsoleError};
use pillarbox_relay::backoff::Backoff;
use pillarbox_relay::batch::Limits;
use pillarbox_relay::clock::SystemClock;
use pillarbox_relay::config::{self, Listen, listen};
use pillarbox_relay::pulse::Pulse;
use pillarbox_relay::relay::{self, Drained, Halt, Options, Poison};
use pillarbox_relay::schema::{self, registry};
use pillarbox_relay::sink::clickhouse::ClickHouse;
use pillarbox_relay::source::SourceError;
use pillarbox_relay::source::postgres::PostgresSource;
use serde_json::json;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::sink::check_fingerprint;
use crate::destination::Destination;
use crate::exit::{Exit, Failure, Outcome, chain};
use crate::output::plural;
use crate::{Place, logging, output};

/// Deliver events to every configured sink
#[derive(Debug, Args)]
#[command(after_help = "\
One relay per sink is active; further ones stand by and take over when it falls silent, or, with
--once, end with 3 when it is still active after two seconds. It needs a direct connection to
PostgreSQL, not one through a pool. SIGTERM or Ctrl-C stops it cleanly, a second one at once, which
is as safe.

Examples:
  pillarbox relay                        runs until it is told to stop
  pillarbox relay --once                 delivers what is committed and exits (cron, tests)
  PILLARBOX_LOG_FORMAT=json pillarbox relay
  curl http://127.0.0.1:9187/readyz      health of a running relay; also /healthz and /metrics")]
pub(crate) struct Relay {
    /// Deliver what has been committed up to now, then exit
    #[arg(long)]
    once: bool,
}

type Spine = relay::Relay<PostgresSource, ClickHouse, SystemClock>;

/// The spine of one sink, not started yet.
pub(super) struct Start {
    sink: String,
    /// What the registry must hold for it.
    fingerprint: String,
    /// The sink's addresses, without user and password.
    address: String,
    spine: Spine,
}

/// How the spine of one sink ended.
pub(super) struct Ended {
    sink: String,
    /// Where it is, for whoever has to look.
    address: String,
    result: Result<Drained, Halt>,
}

impl Relay {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        let config = place.config()?;
        let _collected = logging::relay(&config, self.once)?;
        let destinations = Destination::all(&config)?;
        if destinations.is_empty() {
            return Err(Failure::usage(
                "no sink is configured; set CLICKHOUSE_URL, or add [sinks.clickhouse] \
                 to pillarbox.toml",
            ));
        }
        let target = config.postgres()?;
        let stop = CancellationToken::new();
        // The threads of the spines outlive this future when it is dropped.
        let _told_to_stop = stop.clone().drop_guard();
        let second = signals(stop.clone())?;
        let console = match self.once {
            true => None,
            false => console(&config.console).await?,
        };
        // After the console: it records the metrics of relays that are made from now on.
        let starts: Vec<Start> = destinations
            .into_iter()
            .map(|destination| Start::new(destination, &config.relay, &target))
            .collect();
        let pulses = starts.iter().map(Start::pulse).collect();
        let shown: OptionFuture<_> = console.map(|console| console.serve(pulses)).into();
        tokio::select! { biased;
            outcome = self.deliver(place, starts, &stop) => outcome,
            Some(never) = shown => match never {},
            () = second => Err(Failure::failed(anyhow::anyhow!(
                "stopped at once by a second signal; the next relay settles what was in flight"
            ))),
        }
    }

    async fn deliver(
        &self,
        place: &Place,
        starts: Vec<Start>,
        stop: &CancellationToken,
    ) -> Outcome {
        if !self.check_registered(place, &starts, stop).await? {
            return Ok(Exit::Done);
        }
        let mut spines = JoinSet::new();
        for start in starts {
            spines.spawn_blocking(start.work(self.once, stop.clone())?);
        }
        let mut worst: Option<Failure> = None;
        while let Some(ended) = spines.join_next().await {
            let Ended {
                sink,
                address,
                result,
            } = ended.map_err(Failure::failed)?;
            match result {
                Ok(drained) if self.once => report(place, &sink, drained)?,
                Ok(_) => tracing::info!(sink, "relay stopped"),
                Err(Halt::Retired) => tracing::warn!(sink, "the sink was retired: relay stopped"),
                Err(halt) => {
                    // The others go on: a stopped sink stops no other.
                    if !spines.is_empty() {
                        tracing::error!(sink, error = chain(&halt), "relay stopped");
                    }
                    worst = Some(failure(&sink, &address, halt));
                }
            }
        }
        worst.map_or(Ok(Exit::Done), Err)
    }

    /// Refuses to start when a sink is not registered, or for another table. `false` when told to
    /// stop meanwhile. A daemon waits for a server that is away.
    async fn check_registered(
        &self,
        place: &Place,
        starts: &[Start],
        stop: &CancellationToken,
    ) -> Result<bool, Failure> {
        let mut failures = 0;
        loop {
            let checked = registered(place, starts, self.once).await;
            let failure = match checked {
                Ok(()) => return Ok(true),
                Err(failure) if self.once || failure.exit() != Exit::Unreachable => {
                    return Err(failure);
                }
                Err(failure) => failure,
            };
            failures += 1;
            tracing::warn!(error = failure.text(), "waiting for postgresql");
            for start in starts {
                start.spine.pulse().set_back(failure.text(), Instant::now());
            }
            let wait = Backoff::USUAL.wait(failures, 1.0);
            tokio::select! { biased;
                () = stop.cancelled() => return Ok(false),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

async fn registered(place: &Place, starts: &[Start], once: bool) -> Result<(), Failure> {
    let session = place.session().await?;
    pillarbox_relay::postgres::check_server(session.client()).await?;
    schema::check_version(session.client()).await?;
    for start in starts {
        let known = registry::find(session.client(), &start.sink).await?;
        check_fingerprint(&start.sink, &start.fingerprint, &known.fingerprint)?;
        if once && known.paused {
            let sink = &start.sink;
            output::next(&format!(
                "the sink {sink} is paused; to deliver to it: pillarbox resume {sink}"
            ));
        }
    }
    Ok(())
}

impl Ended {
    /// What it delivered, or why it ended.
    pub(super) fn outcome(self) -> Result<Drained, Failure> {
        let failed = |halt| failure(&self.sink, &self.address, halt);
        self.result.map_err(failed)
    }
}

impl Start {
    pub(super) fn new(
        destination: Destination,
        relay: &config::Relay,
        target: &tokio_postgres::Config,
    ) -> Self {
        let fingerprint = destination.fingerprint();
        let address = destination.config.urls.join(", ");
        let Destination {
            name,
            sink,
            expressions,
            ..
        } = destination;
        let source = PostgresSource::new(target.clone(), &name, relay.takeover_after.0)
            .computing(expressions);
        let options = options(&name, relay);
        Self {
            sink: name,
            fingerprint,
            address,
            spine: relay::Relay::new(source, sink, SystemClock, options),
        }
    }

    /// What the spine shows of itself.
    pub(super) fn pulse(&self) -> Arc<Pulse> {
        self.spine.pulse()
    }

    /// All the work of the spine, for a thread of its own: what a connection brings is decoded by the
    /// thread that waits for it, and wakes no other one.
    pub(super) fn work(
        self,
        once: bool,
        stop: CancellationToken,
    ) -> Result<impl FnOnce() -> Ended + Send + 'static, Failure> {
        let Self {
            sink,
            address,
            spine,
            ..
        } = self;
        let span = tracing::info_span!("sink", sink = %sink);
        let work = async move {
            tracing::info!(once, "relay starts");
            let result = match once {
                true => spine.drain(&stop).await,
                false => spine.run(&stop).await.map(|()| Drained::default()),
            };
            if let Err(halt) = &result {
                spine.pulse().ended(halt.to_string(), Instant::now());
            }
            Ended {
                sink,
                address,
                result,
            }
        };
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(move || runtime.block_on(work.instrument(span)))
    }
}

/// Listens where the configuration says. The default is nobody's decision: where its port is taken,
/// most often by another relay, this one goes on without.
pub(super) async fn console(config: &config::Console) -> Result<Option<Console>, Failure> {
    let (address, is_default) = match &config.listen {
        Some(Listen::Off) => return Ok(None),
        Some(Listen::On(address)) => (address.as_str(), false),
        None => (listen::CONSOLE, true),
    };
    match Console::bind(address).await {
        Ok(console) => {
            tracing::info!(address = %console.address()?, "the console listens");
            Ok(Some(console))
        }
        Err(error @ ConsoleError::Listen { .. }) if is_default => {
            tracing::warn!(error = chain(&error), "going on without a console");
            Ok(None)
        }
        Err(error @ ConsoleError::Listen { .. }) => Err(Failure::new(Exit::Refused, error)),
        Err(error) => Err(Failure::failed(error)),
    }
}

fn options(sink: &str, relay: &config::Relay) -> Options {
    Options {
        sink: sink.to_owned(),
        limits: Limits {
            rows_max: relay.max_rows,
            bytes_max: relay.max_bytes.0,
        },
        poison: Poison {
            rows_max: relay.poison_max_rows,
            share_max: relay.poison_max_share,
        },
        age_max: relay.max_age.0,
        in_flight_max: usize::try_from(relay.in_flight).unwrap_or(1),
        probe_min: relay.probe_min.0,
        probe_max: relay.probe_max.0,
        ..Options::default()
    }
}

/// What a drain did.
fn report(place: &Place, sink: &str, drained: Drained) -> Result<(), Failure> {
    let Drained { batches, rows } = drained;
    if place.json {
        return output::line(json!({ "sink": sink, "batches": batches, "rows": rows }));
    }
    output::line(format!(
        "delivered {} in {} to {sink}",
        plural(rows, "event"),
        plural(batches, "batch")
    ))
}

/// Cancels `stop` at the first signal; the future ends at the second.
pub(super) fn signals(stop: CancellationToken) -> Result<impl Future<Output = ()>, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        for is_first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if is_first {
                tracing::info!("stopping after the step at hand; a second signal stops at once");
                stop.cancel();
            }
        }
    })
}

fn failure(sink: &str, address: &str, halt: Halt) -> Failure {
    let exit = match &halt {
        Halt::Source(SourceError::Lost(..)) | Halt::GaveUp(_) => Exit::Unreachable,
        Halt::Stopped(_, Some(trouble)) | Halt::Replan(trouble) | Halt::Outdated(trouble) => {
            Exit::from(trouble)
        }
        Halt::Source(_) | Halt::Stopped(_, None) => Exit::Refused,
        Halt::NotActive | Halt::Retired => Exit::Refused,
        Halt::Stuck(_) => Exit::Failed,
    };
    let error = match halt {
        // Its causes say more than that it cannot be reached.
        Halt::GaveUp(trouble) => anyhow::Error::from(trouble)
            .context("the destination does not take the events")
            .context(format!("sink {sink} at {address}")),
        halt => anyhow::Error::from(halt).context(format!("sink {sink}")),
    };
    Failure::new(exit, error)
}
