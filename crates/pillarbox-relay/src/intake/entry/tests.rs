use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn json(text: &str) -> Body {
    Body::Json(text.as_bytes().to_vec())
}

fn fields(pairs: &[(&str, &str)]) -> Body {
    let owned =
        |(name, value): &(&str, &str)| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
    Body::Fields(pairs.iter().map(owned).collect())
}

fn reason(body: &Body) -> String {
    body.event().unwrap_err().to_string()
}

#[test]
fn every_field_is_read_and_the_context_is_kept_byte_for_byte() {
    let context = r#"{ "a" : 1.0,  "a":"\u00e9" }"#;
    let text = format!(
        r#" {{"event_type":"sign\u002dup","event_context":{context},"event_id":
        "018f3b1e-0000-7000-8000-000000000001","event_date_time":"1969-12-31T23:59:59.5-00:00",
        "environment":"staging","metadata_version":9223372036854775807,"trace_parent":null}} "#
    );
    let body = json(&text);
    let event = body.event().unwrap();
    assert_eq!(event.event_type, "sign-up");
    assert_eq!(event.event_context, context);
    assert_eq!(event.environment.as_deref(), Some("staging"));
    assert_eq!(event.metadata_version, Some(i64::MAX));
    assert_eq!(event.trace_parent, None);
    let before = SystemTime::UNIX_EPOCH - Duration::from_millis(500);
    assert_eq!(event.event_date_time, Some(before));
    let pairs = [
        ("event_type", "sign-up"),
        ("event_context", context),
        ("event_id", "018f3b1e-0000-7000-8000-000000000001"),
        ("event_date_time", "1969-12-31T23:59:59.5Z"),
        ("environment", "staging"),
        ("metadata_version", "9223372036854775807"),
        ("trace_parent", ""),
    ];
    assert_eq!(fields(&pairs).event().unwrap(), event);
    assert_eq!(fields(&[("event", &text)]).event().unwrap(), event);
}

#[test]
fn what_is_no_event_says_why_and_quotes_nothing() {
    let with = |more: &str| format!(r#"{{"event_type":"t","event_context":{{}}{more}}}"#);
    let cases = [
        ("", "it is not a json object"),
        ("[1]", "it is not a json object"),
        (
            "{\"event_type\":",
            "it is not json: it ends too early at line 1, column 14",
        ),
        (
            "{secret}",
            "it is not json: it is malformed at line 1, column 2",
        ),
        (r#"{"event_context":1}"#, "event_type is missing"),
        (r#"{"event_type":"t"}"#, "event_context is missing"),
        (
            r#"{"event_type":"","event_context":1}"#,
            "event_type has 0 characters; give it 1 to 255",
        ),
        (
            r#"{"event_type":7,"event_context":1}"#,
            "event_type is not a string",
        ),
        (
            r#"{"event_type":"\u0000","event_context":1}"#,
            "event_type holds a NUL, which postgresql cannot",
        ),
        (
            r#"{"event_type":"\ud800","event_context":1}"#,
            "event_type is not a valid json string",
        ),
        (&with(r#","event_id":"secret""#), "event_id is not a uuid"),
        (
            &with(r#","metadata_version":-1"#),
            "metadata_version is not a number from 0 to 2^63 - 1",
        ),
        (
            &with(r#","metadata_version":1.5"#),
            "metadata_version is not a number from 0 to 2^63 - 1",
        ),
        (
            &with(r#","metadata_version":"1""#),
            "metadata_version is not a number",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(reason(&json(text)), expected, "{text}");
    }
    let starts = [
        (with(r#","event_type":"u""#), "event_type is there twice"),
        (
            with(r#","secret":1"#),
            "it has a field that no event has; known are event_type",
        ),
        (
            with(r#","event_date_time":"2026-01-01 00:00:00""#),
            "event_date_time is not a time with",
        ),
        (with(" secret"), "it is not json: it is malformed"),
    ];
    for (text, expected) in starts {
        let reason = reason(&json(&text));
        assert!(reason.starts_with(expected), "{text}: {reason}");
        assert!(!reason.contains("secret"), "{reason}");
    }
    assert_eq!(
        reason(&Body::Json(b"{\"a\":\"\xff\"}".to_vec())),
        "it is not utf-8, from byte 6"
    );
    let two = [("event_type", "t"), ("event_context", "secret")];
    assert!(reason(&fields(&two)).starts_with("event_context is not json: it is malformed"));
    assert_eq!(
        reason(&fields(&[("event_type", "t")])),
        "event_context is missing"
    );
    assert_eq!(reason(&fields(&[])), "event_context is missing");
}

proptest! {
    #[test]
    fn fields_are_the_same_after_they_were_kept(
        pairs in prop::collection::vec((any::<Vec<u8>>(), any::<Vec<u8>>()), 0..6)
    ) {
        let body = Body::Fields(pairs);
        let kept = body.bytes().into_owned();
        prop_assert_eq!(Body::read(body.format(), kept), Some(body));
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in any::<Vec<u8>>(), pairs in
        prop::collection::vec((any::<Vec<u8>>(), any::<Vec<u8>>()), 0..3)
    ) {
        let _ = Body::read("fields", bytes.clone());
        let _ = Body::Json(bytes).event();
        let _ = Body::Fields(pairs).event();
    }
}
