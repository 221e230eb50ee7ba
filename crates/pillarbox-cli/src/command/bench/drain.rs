//! A backlog, and how fast the relay delivers it: the code of `pillarbox relay --once`.

use std::time::Duration;

use pillarbox_relay::config;
use pillarbox_relay::relay::Drained;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::site::Site;
use super::{go_on, step};
use crate::command::relay::Start;
use crate::exit::Failure;
use crate::output::{self, plural};

/// Events of one INSERT, and their bytes: it takes about a second.
const CHUNK_EVENTS_MAX: u64 = 10_000;
const CHUNK_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Between two looks at the relay, for the bar.
const LOOK: Duration = Duration::from_millis(100);

/// Events to deliver.
pub(super) struct Backlog {
    pub(super) events: u64,
    pub(super) bytes: u32,
}

/// How they were delivered.
#[derive(Debug, Serialize)]
pub(super) struct Drain {
    pub(super) events: u64,
    pub(super) bytes: u32,
    /// From connecting to the end, with all that a start takes.
    pub(super) seconds: f64,
    pub(super) events_per_s: f64,
    /// Of contexts.
    pub(super) context_bytes_per_s: f64,
    pub(super) batches: u64,
    pub(super) relay_cpu_s: f64,
}

impl Backlog {
    /// Writes the events into the outbox.
    pub(super) async fn fill(
        &self,
        client: &Client,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        const FILL: &str = include_str!("sql/fill.sql");
        step(&format!(
            "drain: writing {} of {} bytes into the outbox",
            plural(self.events, "event"),
            self.bytes
        ));
        let bar = output::bar(Some(self.events), "{bar:40} {pos}/{len} events, {eta} left");
        let chunk = (CHUNK_BYTES_MAX / u64::from(self.bytes)).clamp(1, CHUNK_EVENTS_MAX);
        let mut written = 0;
        while written < self.events {
            go_on(stop)?;
            let last = (written + chunk).min(self.events);
            let given: &[&(dyn tokio_postgres::types::ToSql + Sync)] = &[
                &(written + 1).cast_signed(),
                &last.cast_signed(),
                &self.bytes.cast_signed(),
            ];
            client.execute(FILL, given).await?;
            written = last;
            bar.set_position(written);
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Delivers them with the settings of the relay.
    pub(super) async fn drain(
        &self,
        site: &Site,
        relay: &config::Relay,
        stop: &CancellationToken,
    ) -> Result<Drain, Failure> {
        step("drain: delivering them");
        let start = Start::new(
            site.destination.with_table(&site.name)?,
            relay,
            &site.target,
        );
        let pulse = start.pulse();
        let work = start.work(true, stop.clone())?;
        let bar = output::bar(
            Some(self.events),
            "{bar:40} {pos}/{len} events, {per_sec}, {eta} left",
        );
        let (began, cpu_before) = (Instant::now(), cpu_time());
        let mut spine = tokio::task::spawn_blocking(work);
        let ended = loop {
            tokio::select! { biased;
                ended = &mut spine => break ended,
                () = tokio::time::sleep(LOOK) => {
                    bar.set_position(pulse.vitals(Instant::now()).rows);
                }
            }
        };
        let (took, cpu) = (began.elapsed(), cpu_time().saturating_sub(cpu_before));
        bar.finish_and_clear();
        let Drained { batches, rows } = ended.map_err(Failure::failed)?.outcome()?;
        go_on(stop)?;
        let events_per_s = rows as f64 / took.as_secs_f64();
        Ok(Drain {
            events: rows,
            bytes: self.bytes,
            seconds: took.as_secs_f64(),
            events_per_s,
            context_bytes_per_s: events_per_s * f64::from(self.bytes),
            batches,
            relay_cpu_s: cpu.as_secs_f64(),
        })
    }
}

/// CPU time of this process, in which nothing but the relay is at work.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(now).unwrap_or_default()
}
