//! What the relay's process shows over HTTP: `/healthz`, `/readyz` and `/metrics`. Read-only.
//!
//! It looks at the pulse of each spine and never talks to a database: it answers at once when both
//! are away, and no request can slow a delivery down.

mod health;
mod server;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use pillarbox_relay::metric::{self, Kind};
use pillarbox_relay::pulse::{Pulse, Vitals};
use tokio::net::TcpListener;
use tokio::time::Instant;

/// How often the recorder sorts what it took down: its memory grows with every batch in between.
const UPKEEP: Duration = Duration::from_secs(5);

/// Why the console cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The address cannot be had.
    #[error(
        "the console cannot listen on {address}; free it, or set console.listen \
         (PILLARBOX_CONSOLE__LISTEN) to another host:port or to off"
    )]
    Listen {
        /// The address.
        address: String,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// This process has a recorder of metrics already.
    #[error("this process records its metrics elsewhere already; start one console per process")]
    Recorder(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// An HTTP server that listens and does not answer yet.
pub struct Console {
    listener: TcpListener,
    metrics: PrometheusHandle,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

/// What the answers are made of.
#[derive(Clone)]
struct Shown {
    pulses: Arc<[Arc<Pulse>]>,
    metrics: PrometheusHandle,
}

impl Console {
    /// Listens on `address`, and records the metrics of this process from now on: relays made before
    /// are not in them.
    ///
    /// # Errors
    /// When the address cannot be had, or metrics are recorded elsewhere already.
    pub async fn bind(address: &str) -> Result<Self, ConsoleError> {
        let bound = TcpListener::bind(address).await;
        let listener = bound.map_err(|source| ConsoleError::Listen {
            address: address.to_owned(),
            source,
        })?;
        let elsewhere = |error| ConsoleError::Recorder(error);
        let recorder = recorder().map_err(|error| elsewhere(error.into()))?;
        let metrics = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|error| elsewhere(error.into()))?;
        describe(&metrics);
        Ok(Self { listener, metrics })
    }

    /// Where it listens; tells the port where 0 was asked for.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until it is dropped, which ends every connection.
    pub async fn serve(self, pulses: Vec<Arc<Pulse>>) -> Infallible {
        let Self { listener, metrics } = self;
        let shown = Shown {
            pulses: pulses.into(),
            metrics: metrics.clone(),
        };
        let upkeep = async {
            loop {
                tokio::time::sleep(UPKEEP).await;
                metrics.run_upkeep();
            }
        };
        tokio::select! {
            never = server::serve(listener, router(shown)) => never,
            never = upkeep => never,
        }
    }
}

/// Publishes what each metric means; the recorder shows it from its first upkeep on.
fn describe(metrics: &PrometheusHandle) {
    metric::describe();
    metrics.run_upkeep();
}

fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in metric::ALL {
        if let Kind::Histogram(bounds) = metric.kind {
            let name = Matcher::Full(metric.name.to_owned());
            builder = builder.set_buckets_for_metric(name, bounds)?;
        }
    }
    Ok(builder.build_recorder())
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .fallback(|| async {
            let text = "not found; there are /healthz, /readyz and /metrics\n";
            (StatusCode::NOT_FOUND, text)
        })
        .with_state(shown)
}

impl Shown {
    fn vitals(&self) -> Vec<Vitals> {
        let now = Instant::now();
        self.pulses.iter().map(|pulse| pulse.vitals(now)).collect()
    }
}

async fn healthz(State(shown): State<Shown>) -> Response {
    health::alive(&shown.vitals()).into_response()
}

async fn readyz(State(shown): State<Shown>) -> Response {
    health::ready(&shown.vitals()).into_response()
}

async fn metrics_text(State(shown): State<Shown>) -> Response {
    let now = Instant::now();
    for pulse in shown.pulses.iter() {
        pulse.gauge(now);
    }
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], shown.metrics.render()).into_response()
}
