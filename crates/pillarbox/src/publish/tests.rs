use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::value::RawValue;

use super::*;
use crate::{Event, Recorder};

#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct UserCreated {
    email: String,
    first_name: String,
    last_name: String,
}

impl Event for UserCreated {
    const TYPE: &str = "user_created";
}

fn ada() -> UserCreated {
    UserCreated {
        email: "ada@example.org".to_owned(),
        first_name: "Ada".to_owned(),
        last_name: "Lovelace".to_owned(),
    }
}

/// A context of exactly so many bytes.
fn context_of(bytes: usize) -> RawEvent {
    RawEvent::new("sized", format!("\"{}\"", "x".repeat(bytes - 2))).unwrap()
}

#[tokio::test]
async fn a_typed_event_is_compact_json_in_the_order_of_its_fields() {
    let mut recorder = Recorder::new();
    let event_id = publish(&mut recorder, &ada()).await.unwrap();
    let [event] = recorder.events() else {
        panic!("{recorder:?}")
    };
    assert_eq!(event.event_type(), "user_created");
    assert_eq!(
        event.event_context(),
        r#"{"email":"ada@example.org","first_name":"Ada","last_name":"Lovelace"}"#
    );
    assert_eq!(event.metadata_version(), 1);
    assert_eq!(event.event_date_time(), None);
    assert_eq!(event.environment(), None);
    assert_eq!(event.event_id(), event_id);
    assert_eq!(event_id.get_version_num(), 7);
}

#[tokio::test]
async fn an_event_brings_its_own_time_identity_and_version() {
    const ID: Uuid = Uuid::from_u128(42);
    const TIME: SystemTime = SystemTime::UNIX_EPOCH;

    #[derive(serde::Serialize)]
    struct Moved;
    impl Event for Moved {
        const TYPE: &str = "moved";
        const METADATA_VERSION: u64 = 3;
        fn event_date_time(&self) -> Option<SystemTime> {
            Some(TIME)
        }
        fn event_id(&self) -> Option<Uuid> {
            Some(ID)
        }
    }

    let mut recorder = Recorder::new();
    assert_eq!(publish(&mut recorder, &Moved).await.unwrap(), ID);
    let event = &recorder.events()[0];
    assert_eq!(event.metadata_version(), 3);
    assert_eq!(event.event_date_time(), Some(TIME));
}

#[tokio::test]
async fn a_raw_context_keeps_its_bytes() {
    let text = "  {\"b\" : 1.50,\n \"a\": 1e2, \"a\": \"\\u00e9é\"}\t";
    let raw = r#"{"z": [1,  2]}"#;
    let events = [
        RawEvent::new("text", text).unwrap(),
        RawEvent::from_raw_value("raw", RawValue::from_string(raw.to_owned()).unwrap()),
    ];
    let mut recorder = Recorder::new();
    publish_all(&mut recorder, &events).await.unwrap();
    let contexts: Vec<_> = recorder
        .events()
        .iter()
        .map(RawEvent::event_context)
        .collect();
    assert_eq!(contexts, [text, raw]);
}

#[tokio::test]
async fn events_of_different_types_go_together_in_order() {
    let mut events = vec![RawEvent::from_event(&ada()).unwrap()];
    events.push(RawEvent::new("logged_in", "{}").unwrap());
    let mut recorder = Recorder::new();
    let event_ids = publish_all(&mut recorder, &events).await.unwrap();
    let recorded: Vec<_> = recorder.events().iter().map(RawEvent::event_id).collect();
    assert_eq!(event_ids, recorded);
    assert_eq!(recorder.of::<UserCreated>(), [ada()]);
    recorder.assert_published(&ada());
}

#[tokio::test]
async fn the_publisher_sets_the_environment_of_events_that_bring_none() {
    let publisher = Publisher::new().environment("staging");
    let mut recorder = Recorder::new();
    publisher.publish(&mut recorder, &ada()).await.unwrap();
    let own = RawEvent::new("a", "1").unwrap().with_environment("test");
    publisher.publish(&mut recorder, &own).await.unwrap();
    let environments: Vec<_> = recorder
        .events()
        .iter()
        .map(RawEvent::environment)
        .collect();
    assert_eq!(environments, [Some("staging"), Some("test")]);
}

#[tokio::test]
async fn a_context_above_the_limit_is_refused_with_size_limit_and_remedy() {
    let mut recorder = Recorder::new();
    publish(&mut recorder, &context_of(EVENT_BYTES_MAX_DEFAULT))
        .await
        .unwrap();
    let error = publish(&mut recorder, &context_of(EVENT_BYTES_MAX_DEFAULT + 1))
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        Error::TooLarge {
            size: 1_048_577,
            limit: 1_048_576,
            ..
        }
    ));
    assert_eq!(
        error.to_string(),
        "event_context of event type \"sized\" has 1048577 bytes, more than the limit of 1048576; \
         publish a reference instead of the content, or raise the limit with `pillarbox settings` \
         and Publisher::event_bytes_max"
    );
    assert_eq!(recorder.take().len(), 1);

    let publisher = Publisher::new().event_bytes_max(10);
    publisher
        .publish(&mut recorder, &context_of(10))
        .await
        .unwrap();
    let error = publisher
        .publish(&mut recorder, &context_of(11))
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        Error::TooLarge {
            size: 11,
            limit: 10,
            ..
        }
    ));
}

#[tokio::test]
async fn the_limit_counts_bytes_and_the_type_counts_characters() {
    let mut recorder = Recorder::new();
    let publisher = Publisher::new().event_bytes_max(4);
    let event = RawEvent::new("é".repeat(255), "\"é\"").unwrap();
    publisher.publish(&mut recorder, &event).await.unwrap();
    let event = RawEvent::new("t", "\"éé\"").unwrap();
    let error = publisher.publish(&mut recorder, &event).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { size: 6, .. }));
}

#[tokio::test]
async fn a_type_that_cannot_be_stored_is_refused() {
    for (event_type, message) in [
        (String::new(), "event_type is not valid: it is empty"),
        (
            "x".repeat(256),
            "event_type is not valid: it has more than 255 characters",
        ),
        (
            "a\0b".to_owned(),
            "event_type is not valid: it contains NUL",
        ),
    ] {
        let mut recorder = Recorder::new();
        let event = RawEvent::new(event_type, "{}").unwrap();
        let error = publish(&mut recorder, &event).await.unwrap_err();
        assert!(matches!(error, Error::InvalidType { .. }));
        assert!(error.to_string().starts_with(message), "{error}");
        recorder.assert_nothing_published();
    }
}

#[tokio::test]
async fn a_field_that_cannot_be_stored_is_refused_by_name() {
    let event = || RawEvent::new("t", "{}").unwrap();
    let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 60);
    for (event, wanted) in [
        (event().with_metadata_version(1 << 63), "metadata_version"),
        (event().with_event_date_time(far), "event_date_time"),
        (event().with_environment("a\0"), "environment"),
        (event().with_trace_parent("a\0"), "trace_parent"),
        (event().with_trace_parent("a".repeat(256)), "trace_parent"),
    ] {
        let error = publish(&mut Recorder::new(), &event).await.unwrap_err();
        let Error::InvalidField { field, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(field, wanted);
    }
}

#[tokio::test]
async fn one_invalid_event_keeps_all_of_them_back() {
    let events = [
        RawEvent::new("t", "{}").unwrap(),
        RawEvent::new("", "{}").unwrap(),
    ];
    let mut recorder = Recorder::new();
    assert!(publish_all(&mut recorder, &events).await.is_err());
    recorder.assert_nothing_published();
}

#[tokio::test]
async fn publishing_none_is_nothing() {
    let mut recorder = Recorder::new();
    let event_ids = publish_all(&mut recorder, &[] as &[UserCreated])
        .await
        .unwrap();
    assert!(event_ids.is_empty());
    recorder.assert_nothing_published();
}

#[test]
fn what_is_not_json_is_refused() {
    for text in ["", "{", "{}{}", "{'a':1}", "nul", "{\"a\":\u{1}}"] {
        let error = RawEvent::new("t", text).unwrap_err();
        assert!(matches!(error, Error::NotJson { .. }), "{text}: {error}");
    }
}

#[tokio::test]
async fn a_failing_serialize_is_an_error_of_its_own() {
    #[derive(serde::Serialize)]
    struct Keyed(BTreeMap<(u8, u8), u8>);
    impl Event for Keyed {
        const TYPE: &str = "keyed";
    }
    let event = Keyed(BTreeMap::from([((1, 2), 3)]));
    let error = publish(&mut Recorder::new(), &event).await.unwrap_err();
    assert!(matches!(error, Error::Serialize { .. }));
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn debug_output_holds_no_context() {
    let event = RawEvent::new("t", r#"{"secret":1}"#).unwrap();
    let shown = format!("{event:?}");
    assert!(
        shown.contains("event_context_bytes: 12") && !shown.contains("secret"),
        "{shown}"
    );
}

#[test]
fn a_future_of_publishing_can_be_spawned() {
    fn is_send<T: Send>(_: T) {}
    let (mut recorder, event) = (Recorder::new(), ada());
    is_send(publish(&mut recorder, &event));
    is_send(publish_all(&mut recorder, &[event]));
}

#[test]
fn chunks_hold_to_rows_and_bytes_and_lose_nothing() {
    let half = BATCH_BYTES_MAX / 2;
    for (rows, wanted) in [
        (vec![], vec![]),
        (vec![1; BATCH_ROWS_MAX], vec![BATCH_ROWS_MAX]),
        (
            vec![1; 2 * BATCH_ROWS_MAX + 1],
            vec![BATCH_ROWS_MAX, BATCH_ROWS_MAX, 1],
        ),
        (vec![half, half, 1], vec![2, 1]),
        (vec![half, half + 1, half], vec![1, 1, 1]),
        (vec![9 * half, 1, 1, 9 * half], vec![1, 2, 1]),
    ] {
        let cut: Vec<_> = chunks(&rows, |bytes| *bytes).map(<[usize]>::len).collect();
        assert_eq!(cut, wanted);
    }
}
