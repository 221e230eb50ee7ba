//! How long an event takes from its COMMIT until the sink has confirmed it, at a small steady rate.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use pillarbox_relay::config;
use pillarbox_relay::pulse::Pulse;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_postgres::types::Json;
use tokio_util::sync::CancellationToken;

use super::publish::events;
use super::site::Site;
use super::{go_on, step};
use crate::command::relay::Start;
use crate::exit::Failure;
use crate::output;

/// Events per second.
const RATE: u32 = 100;

/// Between two looks at what the relay has delivered.
const LOOK: Duration = Duration::from_millis(2);

/// How long the relay may take to begin, and to deliver the last event beside `max_age`.
const PATIENCE: Duration = Duration::from_secs(60);

/// Latencies of events.
#[derive(Debug, Serialize)]
pub(super) struct Latency {
    pub(super) events_per_s: u32,
    pub(super) events: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

pub(super) async fn measure(
    site: &Site,
    relay: &config::Relay,
    seconds: u32,
    bytes: u32,
    stop: &CancellationToken,
) -> Result<Latency, Failure> {
    step(&format!(
        "latency: {RATE} events a second for {seconds} s, with a relay running"
    ));
    let destination = site.destination.with_table(&site.name)?;
    let start = Start::new(destination, relay, &site.target);
    let pulse = start.pulse();
    let stop_spine = stop.child_token();
    let _told_to_stop = stop_spine.clone().drop_guard();
    let mut spine = tokio::task::spawn_blocking(start.work(false, stop_spine.clone())?);
    let line = Line {
        pulse: &pulse,
        patience: PATIENCE + relay.max_age.0,
        committed: Mutex::default(),
        stop,
    };
    let measured = tokio::select! { biased;
        ended = &mut spine => {
            ended.map_err(Failure::failed)?.outcome()?;
            go_on(stop)?;
            return Err(Failure::failed(anyhow::anyhow!("the relay ended by itself")));
        }
        measured = line.measure(site, seconds, bytes) => measured,
    };
    stop_spine.cancel();
    spine.await.map_err(Failure::failed)?.outcome()?;
    measured
}

/// A publisher and a relay.
struct Line<'a> {
    pulse: &'a Pulse,
    patience: Duration,
    /// When each event was committed.
    committed: Mutex<Vec<Instant>>,
    stop: &'a CancellationToken,
}

impl Line<'_> {
    async fn measure(&self, site: &Site, seconds: u32, bytes: u32) -> Result<Latency, Failure> {
        self.wait_for_relay().await?;
        let total = u64::from(RATE * seconds);
        let bar = output::bar(Some(total), "{bar:40} {pos}/{len} events, {eta} left");
        let publishing = self.publish(site, total, bytes);
        let (published, seen) = tokio::join!(publishing, self.watch(total, &bar));
        bar.finish_and_clear();
        published?;
        let mut latencies = seen?;
        latencies.sort();
        let ms = |share: usize| {
            let place = (latencies.len() * share).div_ceil(100).saturating_sub(1);
            latencies[place].as_secs_f64() * 1000.0
        };
        Ok(Latency {
            events_per_s: RATE,
            events: total,
            p50_ms: ms(50),
            p99_ms: ms(99),
        })
    }

    async fn wait_for_relay(&self) -> Result<(), Failure> {
        let until = Instant::now() + PATIENCE;
        while self.pulse.vitals(Instant::now()).guarantee.is_none() {
            go_on(self.stop)?;
            if Instant::now() > until {
                return Err(Failure::failed(anyhow::anyhow!("the relay does not begin")));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Publishes at the rate, late rather than not at all.
    async fn publish(&self, site: &Site, total: u64, bytes: u32) -> Result<(), Failure> {
        let session = site.session().await?;
        let events = events(&session, bytes).await?;
        let client = session.client();
        client.batch_execute("reset all").await?;
        let statement = client
            .prepare(include_str!("sql/publish_function.sql"))
            .await?;
        let mut due = Instant::now();
        for ((event_type, context), _) in events.iter().cycle().zip(0..total) {
            go_on(self.stop)?;
            sleep_until(due).await;
            due += Duration::from_secs(1) / RATE;
            client
                .execute(&statement, &[event_type, &Json(context)])
                .await?;
            let mut committed = self
                .committed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            committed.push(Instant::now());
        }
        Ok(())
    }

    /// How long each event took. The relay delivers them in the order of their commits.
    async fn watch(
        &self,
        total: u64,
        bar: &indicatif::ProgressBar,
    ) -> Result<Vec<Duration>, Failure> {
        let mut latencies = Vec::new();
        let mut moved_at = Instant::now();
        while (latencies.len() as u64) < total {
            go_on(self.stop)?;
            sleep(LOOK).await;
            let now = Instant::now();
            let delivered = self.pulse.vitals(now).rows;
            let committed = self
                .committed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            // One that was delivered before we have heard of its commit is seen at the next look.
            let seen = committed.iter().take(delivered as usize);
            let before = latencies.len();
            latencies.extend(seen.skip(before).map(|at| now - *at));
            if latencies.len() > before {
                moved_at = now;
                bar.set_position(latencies.len() as u64);
            } else if now - moved_at > self.patience {
                return Err(Failure::failed(anyhow::anyhow!(
                    "the relay delivers nothing for {} s",
                    self.patience.as_secs()
                )));
            }
        }
        Ok(latencies)
    }
}
