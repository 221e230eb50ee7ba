//! The answers of `/healthz` and `/readyz`. Pure.

use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use pillarbox_relay::pulse::Vitals;
use pillarbox_relay::sink::Guarantee;
use serde::Serialize;

#[derive(Serialize)]
pub(crate) struct Alive {
    alive: bool,
    sinks: Vec<Sink>,
}

#[derive(Serialize)]
pub(crate) struct Ready {
    ready: bool,
    sinks: Vec<Sink>,
}

/// One sink. Names and units are those of `pillarbox status --json`.
#[derive(Serialize)]
struct Sink {
    sink: String,
    role: &'static str,
    role_age_ms: u64,
    alive: bool,
    ready: bool,
    reason: Option<String>,
    guarantee: Option<&'static str>,
    lag_ms: u64,
    progress_age_ms: u64,
    batches: u64,
    rows: u64,
    delivery_age_ms: Option<u64>,
}

impl From<&Vitals> for Sink {
    fn from(vitals: &Vitals) -> Self {
        Self {
            sink: vitals.sink.clone(),
            role: vitals.role.as_str(),
            role_age_ms: ms(vitals.role_age),
            alive: vitals.is_alive,
            ready: vitals.is_ready,
            reason: vitals.reason.clone(),
            guarantee: vitals.guarantee.map(Guarantee::as_str),
            lag_ms: ms(vitals.lag),
            progress_age_ms: ms(vitals.progress_age),
            batches: vitals.batches,
            rows: vitals.rows,
            delivery_age_ms: vitals.delivery_age.map(ms),
        }
    }
}

/// 200 while every spine makes progress or waits where waiting is right: else restart the process.
pub(crate) fn alive(vitals: &[Vitals]) -> (StatusCode, Json<Alive>) {
    let alive = vitals.iter().all(|vitals| vitals.is_alive);
    let sinks = vitals.iter().map(Sink::from).collect();
    (status(alive), Json(Alive { alive, sinks }))
}

/// 200 while every sink is delivered to, or could be by taking over: else a person has to look.
pub(crate) fn ready(vitals: &[Vitals]) -> (StatusCode, Json<Ready>) {
    let ready = vitals.iter().all(|vitals| vitals.is_ready);
    let sinks = vitals.iter().map(Sink::from).collect();
    (status(ready), Json(Ready { ready, sinks }))
}

fn status(good: bool) -> StatusCode {
    match good {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn ms(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}
