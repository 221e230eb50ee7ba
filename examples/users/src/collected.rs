//! Errors and requests for Sentry. The trace of a request goes on in the delivery of its events: `pillarbox`
//! publishes the current span along with them.

use anyhow::Context;
use sentry::integrations::tracing::{ErrorLayer, SpanLayer};
use sentry::types::Dsn;
use sentry::{ClientInitGuard, ClientOptions};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets, filter_fn};
use tracing_subscriber::registry::LookupSpan;

/// Begins to send to where `SENTRY_DSN` says, until what it returns is dropped; `None` without.
///
/// # Errors
/// When a variable cannot be read.
pub fn collect() -> anyhow::Result<Option<ClientInitGuard>> {
    let Some(dsn) = std::env::var("SENTRY_DSN")
        .ok()
        .filter(|dsn| !dsn.is_empty())
    else {
        return Ok(None);
    };
    let dsn: Dsn = dsn
        .parse()
        .ok()
        .context("SENTRY_DSN cannot be read; write https://KEY@HOST/PROJECT")?;
    let share = match std::env::var("SENTRY_TRACES_SAMPLE_RATE") {
        Ok(share) => share
            .parse()
            .context("SENTRY_TRACES_SAMPLE_RATE is no number from 0 to 1")?,
        Err(_) => 1.0,
    };
    let options = ClientOptions::new()
        .dsn(&dsn.to_string())
        .release(concat!("users@", env!("CARGO_PKG_VERSION")))
        .traces_sample_rate(share)
        .send_default_pii(false);
    Ok(Some(sentry::init(options)))
}

/// The layers of the subscriber that send: requests as transactions, errors as events. Neither holds what a
/// request carries.
pub fn collected<S>() -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let of_request = filter_fn(|metadata| {
        metadata.is_span() && metadata.target().starts_with("tower_http::trace")
    });
    // What the application says itself, which is why a request failed.
    let errors = Targets::new().with_target("users", LevelFilter::ERROR);
    SpanLayer::new()
        .with_filter(of_request)
        .and_then(ErrorLayer::new().with_filter(errors))
}
