//! Spans of a batch and of its steps, for those who collect traces.
//!
//! They are of the level debug and of a target of their own, so that logs do not show them. A batch holds
//! events of many publishers: its span continues the trace of one of the first.

use tracing::Span;
use tracing::field::Empty;

use crate::batch::Batch;

/// The target of the spans, by which a subscriber chooses them.
pub const TARGET: &str = "pillarbox_relay::trace";

/// The span of a batch that does not have a number yet.
pub(crate) fn batch(sink: &str, trace_parent: Option<&str>) -> Span {
    // A publisher may have written anything there.
    let continued = trace_parent.and_then(sentry_trace);
    let trace_parent = trace_parent.filter(|_| continued.is_some());
    tracing::debug_span!(
        target: TARGET,
        "batch",
        sentry.op = "queue.process",
        sentry.trace = continued,
        tags.sink = sink,
        trace_parent,
        batch = Empty,
        kind = Empty,
        rows = Empty,
        bytes = Empty,
    )
}

/// Says of a span which batch it is of.
pub(crate) fn is_of(span: &Span, batch: &Batch) {
    span.record("batch", batch.number)
        .record("kind", batch.kind.as_str())
        .record("rows", batch.rows)
        .record("bytes", batch.bytes);
}

/// The span of a step of the batch whose span is entered.
macro_rules! step_span {
    ($name:literal $(, $field:ident = $value:expr)*) => {
        tracing::debug_span!(target: $crate::trace::TARGET, $name, sentry.op = concat!("pillarbox.", $name) $(, $field = $value)*)
    };
}
pub(crate) use step_span;

/// A W3C `traceparent` in the form of Sentry's header.
///
/// Sources: "Trace Context", W3C; "sentry-trace", Sentry's developer documentation.
fn sentry_trace(trace_parent: &str) -> Option<String> {
    let mut parts = trace_parent.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_id =
        |id: &str, length| id.len() == length && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if parts.next().is_some() || version.len() != 2 || flags.len() != 2 {
        return None;
    }
    let flags = u8::from_str_radix(flags, 16).ok()?;
    (is_id(trace, 32) && is_id(span, 16)).then(|| format!("{trace}-{span}-{}", flags & 1))
}

#[cfg(test)]
mod tests {
    use super::sentry_trace;

    #[test]
    fn a_traceparent_is_told_to_sentry() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
        for (flags, sampled) in [("00", "0"), ("01", "1"), ("03", "1")] {
            let told = sentry_trace(&format!("00-{trace}-{flags}"));
            assert_eq!(told, Some(format!("{trace}-{sampled}")));
        }
        for wrong in [
            "",
            "00-1-2-01",
            &format!("00-{trace}"),
            &format!("00-{trace}-zz"),
        ] {
            assert_eq!(sentry_trace(wrong), None, "{wrong}");
        }
    }
}
