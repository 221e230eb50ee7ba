//! The trace context of the publisher, which joins its trace to the delivery.

/// The current span of OpenTelemetry, else that of Sentry, as a
/// [W3C `traceparent`](https://www.w3.org/TR/trace-context/#traceparent-header).
pub(crate) fn current_parent() -> Option<String> {
    of_opentelemetry().or_else(of_sentry)
}

/// `tracing-opentelemetry` makes the OpenTelemetry context of an entered `tracing` span the current
/// one, so that this sees both kinds of span.
#[cfg(feature = "opentelemetry")]
fn of_opentelemetry() -> Option<String> {
    use opentelemetry::Context;
    use opentelemetry::trace::TraceContextExt;

    Context::map_current(|context| {
        let span = context.span();
        let span = span.span_context();
        span.is_valid().then(|| {
            let (trace_id, span_id, flags) = (span.trace_id(), span.span_id(), span.trace_flags());
            format!("00-{trace_id:032x}-{span_id:016x}-{flags:02x}")
        })
    })
}

#[cfg(not(feature = "opentelemetry"))]
fn of_opentelemetry() -> Option<String> {
    None
}

/// `sentry-tracing` makes the span of an entered `tracing` span the current one.
#[cfg(feature = "sentry")]
fn of_sentry() -> Option<String> {
    let span = sentry_core::configure_scope(|scope| scope.get_span())?;
    // "trace-span-sampled", without the last where that is not decided.
    let (_, header) = span
        .iter_headers()
        .find(|(name, _)| *name == "sentry-trace")?;
    let mut parts = header.split('-');
    let (trace_id, span_id) = (parts.next()?, parts.next()?);
    let sampled = u8::from(parts.next() == Some("1"));
    Some(format!("00-{trace_id}-{span_id}-{sampled:02x}"))
}

#[cfg(not(feature = "sentry"))]
fn of_sentry() -> Option<String> {
    None
}

#[cfg(all(test, feature = "sentry"))]
mod sentry_tests {
    use super::current_parent;

    #[test]
    fn the_span_of_sentry_is_the_trace_parent() {
        let header = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1";
        let options = sentry_core::ClientOptions::new().traces_sample_rate(1.0);
        let mut parent = None;
        sentry_core::test::with_captured_envelopes_options(
            || {
                let context = sentry_core::TransactionContext::continue_from_headers(
                    "create_user",
                    "http.server",
                    [("sentry-trace", header)],
                );
                let transaction = sentry_core::start_transaction(context);
                sentry_core::configure_scope(|scope| scope.set_span(Some(transaction.into())));
                parent = current_parent();
            },
            options,
        );
        let parent = parent.unwrap_or_default();
        assert_eq!(parent.len(), 55, "{parent}");
        assert!(
            parent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"),
            "{parent}"
        );
        // The span of this service, not that of the caller.
        assert!(
            !parent.contains("00f067aa0ba902b7") && parent.ends_with("-01"),
            "{parent}"
        );
    }
}

#[cfg(all(test, feature = "opentelemetry"))]
mod tests {
    use opentelemetry::Context;
    use opentelemetry::trace::{
        SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
    };
    use tracing_subscriber::layer::SubscriberExt;

    use super::current_parent;

    fn remote(flags: TraceFlags) -> Context {
        let trace_id = TraceId::from(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        let span_id = SpanId::from(0x00f0_67aa_0ba9_02b7);
        let span = SpanContext::new(trace_id, span_id, flags, true, TraceState::NONE);
        Context::new().with_remote_span_context(span)
    }

    #[test]
    fn without_a_span_there_is_no_trace_parent() {
        assert_eq!(current_parent(), None);
    }

    #[test]
    fn the_current_span_is_written_as_the_example_of_the_w3c() {
        let _attached = remote(TraceFlags::SAMPLED).attach();
        let wanted = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(current_parent().as_deref(), Some(wanted));
    }

    #[test]
    fn a_span_that_is_not_sampled_says_so() {
        let _attached = remote(TraceFlags::NOT_SAMPLED).attach();
        assert!(current_parent().is_some_and(|parent| parent.ends_with("-00")));
    }

    #[test]
    fn a_tracing_span_is_the_current_span() {
        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let parent = tracing::info_span!("create_user")
                .in_scope(current_parent)
                .unwrap();
            assert_eq!(
                (parent.len(), &parent[..3], &parent[52..]),
                (55, "00-", "-01")
            );
        });
    }
}
