//! `pillarbox bench`: measures the user's own servers, in a database and a table of its own.
//!
//! What is measured comes from the code that users run: `migrate`, the DDL of `sink create`, the spine of
//! `relay`, `verify`.

use std::time::Duration;

use clap::Args;
use pillarbox_relay::config::{Config, SinkKind};
use pillarbox_relay::schema::registry;
use tokio_util::sync::CancellationToken;

use super::relay::signals;
use crate::destination::Destination;
use crate::exit::{Exit, Failure, Outcome};
use crate::{Place, output};

mod clean;
mod drain;
mod latency;
mod name;
mod publish;
mod report;
mod rights;
mod site;

use drain::Backlog;
use report::{Figures, Servers};
use site::Site;

/// How long the step at hand may take to end after it was told to stop; then its sessions are ended.
const GRACE: Duration = Duration::from_secs(5);

/// More would leave a table that ClickHouse, as it is installed, refuses to drop.
const BACKLOG_BYTES_MAX: u64 = 32 * 1024 * 1024 * 1024;

/// Measure publishing, delivery and latency on your own servers
#[derive(Debug, Args)]
#[command(after_help = "\
Makes a database pillarbox_bench_… on the configured PostgreSQL and a table of that name in the
sink's ClickHouse database, and drops both at the end, after errors and signals too. Your outbox
and your table are not touched: the schema need not even be installed. One after the other:

  publish  transactions per second of --clients connections that take turns of a second, --seconds
           for each way: a plain INSERT into an ordinary table of the same columns (heap), one into
           the outbox (insert), and pillarbox.publish (function)
  drain    --events events of --bytes bytes, delivered by the relay with your settings
  latency  100 events a second for --seconds, from COMMIT until the sink has confirmed; mostly
           decided by max_age
  verify   that each event arrived once and unchanged; otherwise it ends with 1

Takes four times --seconds, and the time to write and to deliver the events. It loads both servers
while it runs, and needs about three times --events × --bytes on PostgreSQL's disk for as long. The
user of PostgreSQL needs CREATEDB and the role pillarbox_owner (or CREATEROLE, where nobody has run
`pillarbox migrate` yet), that of ClickHouse CREATE TABLE and DROP TABLE. Disk and network decide
most of the figures: run it where the relay will run. Replication and computed columns are not
measured.

A benchmark that was killed leaves its database and table; --clean drops what nobody uses.

Examples:
  pillarbox bench
  pillarbox bench --events 2000000 --bytes 2000 --clients 16 --seconds 20
  pillarbox bench --json > bench.json
  pillarbox bench --clean")]
pub(crate) struct Bench {
    /// Sink as in the configuration [default: the only one, or clickhouse]
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,

    /// Events to drain
    #[arg(long, value_name = "N", default_value_t = 200_000,
          value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    events: u64,

    /// Bytes of each event's context
    #[arg(long, value_name = "N", default_value_t = 300,
          value_parser = clap::value_parser!(u32).range(128..=1_048_576))]
    bytes: u32,

    /// Connections that publish
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u32).range(1..=256))]
    clients: u32,

    /// Seconds of each way to publish, and of the latency
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,

    /// Drop what killed benchmarks left on both servers, and measure nothing
    #[arg(long, conflicts_with_all = ["events", "bytes", "clients", "seconds"])]
    clean: bool,
}

impl Bench {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        let config = place.config()?;
        let destination = Destination::find(&config, self.sink.as_deref())?;
        match config.sink(&destination.name)?.kind {
            // Another kind has to say how its table is made and dropped, or why it cannot be measured.
            SinkKind::ClickHouse => {}
        }
        if self.clean {
            return clean::run(place, &config.postgres()?, &destination).await;
        }
        if self.events * u64::from(self.bytes) > BACKLOG_BYTES_MAX {
            return Err(Failure::usage(
                "--events times --bytes is more than 32 GiB; take fewer or smaller events",
            ));
        }
        let stop = CancellationToken::new();
        let second = signals(stop.clone())?;
        tokio::select! { biased;
            outcome = self.work(place, &config, &destination, &stop) => outcome,
            () = second => Err(Failure::failed(anyhow::anyhow!(
                "stopped at once by a second signal; drop what is left with: pillarbox bench --clean"
            ))),
        }
    }

    async fn work(
        &self,
        place: &Place,
        config: &Config,
        destination: &Destination,
        stop: &CancellationToken,
    ) -> Outcome {
        let mut site = Site::new(config.postgres()?, destination).await?;
        announce(&site);
        let measured = match site.make(stop).await {
            Ok(servers) => tokio::select! { biased;
                measured = self.measure(&site, config, servers, stop) => measured,
                () = overdue(stop) => Err(stopped()),
            },
            Err(failure) => Err(failure),
        };
        let left = site.clear().await;
        for remains in &left {
            output::next(remains);
        }
        let figures = match measured {
            Err(_) if stop.is_cancelled() && left.is_empty() => {
                return Err(stopped().of("nothing is left of the benchmark".to_owned()));
            }
            measured => measured?,
        };
        figures.show(place)?;
        Ok(match figures.verify.is_exact() && left.is_empty() {
            true => Exit::Done,
            false => Exit::Failed,
        })
    }

    /// All steps. A stop request ends the step at hand early, and with it all of them.
    async fn measure(
        &self,
        site: &Site,
        config: &Config,
        servers: Servers,
        stop: &CancellationToken,
    ) -> Result<Figures, Failure> {
        let publish = publish::measure(site, self.clients, self.seconds, self.bytes, stop).await?;
        let session = site.session().await?;
        let client = session.client();
        let (name, fingerprint) = (&site.destination.name, site.destination.fingerprint());
        let sink = registry::register(client, name, &fingerprint, registry::Start::Outbox).await?;
        let backlog = Backlog {
            events: self.events,
            bytes: self.bytes,
        };
        backlog.fill(client, stop).await?;
        let drain = backlog.drain(site, &config.relay, stop).await?;
        let latency = latency::measure(site, &config.relay, self.seconds, self.bytes, stop).await?;
        step("verify: every batch, by count and digest");
        let published = self.events + latency.events;
        let verify = report::Verified::find(client, &site.destination, sink, published).await?;
        Ok(Figures {
            servers,
            publish,
            drain,
            latency,
            verify,
        })
    }
}

fn announce(site: &Site) {
    let name = &site.name;
    step(&format!(
        "bench: postgresql at {}, and the sink {} at {}",
        site.address(),
        site.destination.name,
        site.destination.config.urls.join(", ")
    ));
    step(&format!(
        "bench: works in a database {name} and a table {}, and drops both; it leaves nothing and touches \
         nothing else",
        site.destination.table()
    ));
}

/// Says what comes now, on standard error so that output stays data.
fn step(text: &str) {
    eprintln!("{text}");
}

/// An error when told to stop.
fn go_on(stop: &CancellationToken) -> Result<(), Failure> {
    match stop.is_cancelled() {
        true => Err(stopped()),
        false => Ok(()),
    }
}

fn stopped() -> Failure {
    Failure::failed(anyhow::anyhow!("stopped before the end"))
}

async fn overdue(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(GRACE).await;
}
