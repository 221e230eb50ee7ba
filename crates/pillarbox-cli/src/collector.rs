//! Errors and traces for Sentry, where the variable `SENTRY_DSN` says so.
//!
//! An error is an event with the batch that it is about, and the warnings before it; a batch is a
//! transaction with a span for each step, in the trace of its publisher. Nothing that is logged holds a
//! payload or a secret; the secrets of the configuration are taken out all the same.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pillarbox_relay::config::{Config, Sentry};
use pillarbox_relay::trace;
use secrecy::ExposeSecret as _;
use sentry::integrations::tracing::{BreadcrumbLayer, ErrorLayer, SpanLayer};
use sentry::protocol::Event;
use sentry::{ClientInitGuard, ClientOptions};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::registry::LookupSpan;
use url::Url;

use crate::exit::Failure;

/// A sink that stands still says so every half minute; it is one error.
const REPEATED_WITHIN: Duration = Duration::from_secs(600);

/// Different errors that are remembered as sent.
const REMEMBERED_MAX: usize = 1_000;

/// What stands in the place of a secret.
const REDACTED: &str = "[redacted]";

/// Begins to send; ends with what it returns, when what is left is sent within two seconds.
pub(crate) fn start(config: &Config) -> Result<Option<ClientInitGuard>, Failure> {
    let Some(dsn) = variable("SENTRY_DSN") else {
        return Ok(None);
    };
    let dsn: sentry::types::Dsn = dsn.parse().map_err(|_| {
        Failure::usage("SENTRY_DSN cannot be read; write https://KEY@HOST/PROJECT, or unset it")
    })?;
    let Sentry {
        environment,
        traces_sample_rate,
    } = &config.sentry;
    let environment = environment
        .clone()
        .or_else(|| variable("SENTRY_ENVIRONMENT"));
    let (secrets, sent) = (secrets(config), Sent::default());
    // Shares are small numbers, which lose nothing that counts.
    #[allow(clippy::cast_possible_truncation)]
    let share = *traces_sample_rate as f32;
    let options = ClientOptions::new()
        .dsn(&dsn.to_string())
        .release(concat!("pillarbox@", env!("CARGO_PKG_VERSION")))
        .environment(environment.unwrap_or_else(|| "production".to_owned()))
        .traces_sample_rate(share)
        .send_default_pii(false)
        .before_send(move |event| sent.is_new(&event).then(|| without(event, &secrets))?);
    Ok(Some(sentry::init(options)))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The layers of the subscriber that send.
pub(crate) fn layers<S>() -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let of_batch = filter_fn(|metadata| metadata.is_span() && metadata.target() == trace::TARGET);
    let errors = LevelFilter::ERROR.or(of_batch.clone());
    let before = filter_fn(|metadata| metadata.is_event()).and(LevelFilter::INFO);
    SpanLayer::new()
        .with_filter(of_batch)
        .and_then(BreadcrumbLayer::new().with_filter(before))
        .and_then(
            ErrorLayer::new()
                .enable_span_attributes()
                .with_filter(errors),
        )
}

/// Errors that were sent lately.
#[derive(Default)]
struct Sent(Mutex<HashMap<String, Instant>>);

impl Sent {
    fn is_new(&self, event: &Event<'_>) -> bool {
        let values = event.exception.values.iter();
        let said = values.filter_map(|exception| exception.value.as_deref());
        let message = event.message.as_deref().into_iter();
        let key = message.chain(said).collect::<Vec<_>>().join("\n");
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if sent.len() >= REMEMBERED_MAX {
            sent.retain(|_, at| now - *at < REPEATED_WITHIN);
        }
        match sent.get(&key) {
            Some(at) if now - *at < REPEATED_WITHIN => false,
            _ => {
                sent.insert(key, now);
                true
            }
        }
    }
}

/// The passwords of the configuration.
fn secrets(config: &Config) -> Vec<String> {
    let postgres = config.postgres().ok();
    let postgres = postgres.and_then(|target| {
        let password = target.get_password()?;
        String::from_utf8(password.to_vec()).ok()
    });
    let sinks = config.sinks.iter().flat_map(|(name, sink)| {
        let addresses = sink.url.addresses(name).unwrap_or_default();
        let in_urls = addresses.into_iter().filter_map(|address| address.password);
        in_urls.chain(sink.password.clone())
    });
    let sinks = sinks.map(|password| password.expose_secret().to_owned());
    let intakes = config.intake.values().filter_map(|intake| {
        let url = Url::parse(intake.url.as_ref()?.expose_secret()).ok()?;
        url.password().map(str::to_owned)
    });
    // What is shorter would take words apart, and protects nothing.
    let secrets = postgres.into_iter().chain(sinks).chain(intakes);
    let secrets = secrets.filter(|secret| secret.len() >= 4);
    secrets.flat_map(|secret| forms(&secret)).collect()
}

/// A secret as it may stand in a text of JSON: as it is, escaped, and as a part of an address.
fn forms(secret: &str) -> Vec<String> {
    let quoted = serde_json::Value::from(secret).to_string();
    let escaped = quoted.trim_matches('"').to_owned();
    let mut address = Url::parse("http://u@h").ok();
    let encoded = address.as_mut().and_then(|address| {
        address.set_password(Some(secret)).ok()?;
        address.password().map(str::to_owned)
    });
    let mut forms: Vec<String> = [escaped].into_iter().chain(encoded).collect();
    forms.dedup();
    forms
}

/// The event without secrets; `None` when they cannot be taken out.
fn without(event: Event<'static>, secrets: &[String]) -> Option<Event<'static>> {
    let mut text = serde_json::to_string(&event).ok()?;
    if !secrets.iter().any(|secret| text.contains(secret)) {
        return Some(event);
    }
    for secret in secrets {
        text = text.replace(secret, REDACTED);
    }
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(message: &str) -> Event<'static> {
        Event {
            message: Some(message.to_owned()),
            ..Event::default()
        }
    }

    #[test]
    fn an_error_that_repeats_is_sent_once() {
        let sent = Sent::default();
        assert!(sent.is_new(&event("a")) && sent.is_new(&event("b")));
        assert!(!sent.is_new(&event("a")));
    }

    #[test]
    fn a_secret_is_taken_out_wherever_it_is() {
        let secrets: Vec<String> = ["hunter22", "a\"b@c"].into_iter().flat_map(forms).collect();
        for secret in ["hunter22", "a\"b@c", "a%22b%40c"] {
            let sent = without(event(&format!("password {secret} is wrong")), &secrets);
            let message = sent.and_then(|event| event.message);
            assert_eq!(message.as_deref(), Some("password [redacted] is wrong"));
        }
    }
}
