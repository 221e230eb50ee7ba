//! What both adapters hold to; each test runs once for each of them.

use std::time::{Duration, SystemTime};

use opentelemetry::Context;
use opentelemetry::trace::{
    FutureExt, SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use pillarbox::{
    BATCH_ROWS_MAX, EVENT_BYTES_MAX_DEFAULT, Error, Event, Publisher, RawEvent, Uuid, publish,
    publish_all,
};

use crate::server::Server;
use crate::session::{Session, Sqlx, TokioPostgres};

macro_rules! for_both_adapters {
    ($($name:ident),* $(,)?) => {
        mod tokio_postgres {
            $(#[tokio::test] async fn $name() { super::$name::<super::TokioPostgres>().await })*
        }
        mod sqlx {
            $(#[tokio::test] async fn $name() { super::$name::<super::Sqlx>().await })*
        }
    };
}

for_both_adapters! {
    a_commit_leaves_exactly_the_event,
    a_rollback_leaves_nothing,
    a_dropped_transaction_leaves_nothing,
    a_savepoint_rolled_back_leaves_what_was_outside,
    a_call_dropped_midway_leaves_nothing_after_a_rollback,
    a_context_keeps_its_bytes,
    many_events_keep_their_order_and_ids,
    what_is_set_arrives_and_what_is_not_takes_the_default,
    a_time_arrives_to_the_microsecond,
    the_current_span_arrives,
    an_event_refused_by_the_client_leaves_the_transaction_usable,
    an_event_refused_by_the_database_says_so,
    a_publisher_can_publish_and_read_no_payload,
    a_missing_outbox_is_an_error_with_a_remedy,
    every_isolation_level_will_do,
}

#[derive(serde::Serialize)]
struct UserCreated<'a> {
    email: &'a str,
    first_name: &'a str,
    last_name: &'a str,
}

impl Event for UserCreated<'_> {
    const TYPE: &'static str = "user_created";
}

const ADA: UserCreated<'_> = UserCreated {
    email: "ada@example.org",
    first_name: "Ada",
    last_name: "Lovelace",
};
const ADA_CONTEXT: &str =
    r#"{"email":"ada@example.org","first_name":"Ada","last_name":"Lovelace"}"#;

fn raw(event_context: impl Into<String>) -> RawEvent {
    RawEvent::new("raw", event_context).unwrap()
}

fn sized(bytes: usize) -> RawEvent {
    raw(format!("\"{}\"", "x".repeat(bytes - 2)))
}

async fn contexts(server: &Server) -> Vec<String> {
    server
        .events()
        .await
        .into_iter()
        .map(|event| event.event_context)
        .collect()
}

// INV-1
async fn a_commit_leaves_exactly_the_event<S: Session>() {
    let server = Server::start().await;
    let mut session = S::connect(&server.url()).await;
    let mut tx = session.begin().await;
    let event_id = publish(&mut tx, &ADA).await.unwrap();
    assert_eq!(server.events().await, []);
    S::commit(tx).await;
    let [event] = &server.events().await[..] else {
        panic!("not one event")
    };
    assert_eq!(event.event_id, event_id);
    assert_eq!(event.event_id.get_version_num(), 7);
    assert_eq!(event.event_type, "user_created");
    assert_eq!(event.event_context, ADA_CONTEXT);
}

// INV-1
async fn a_rollback_leaves_nothing<S: Session>() {
    let server = Server::start().await;
    let mut session = S::connect(&server.url()).await;
    let mut tx = session.begin().await;
    publish(&mut tx, &ADA).await.unwrap();
    publish_all(&mut tx, &[raw("1"), raw("2")]).await.unwrap();
    S::rollback(tx).await;
    assert_eq!(server.events().await, []);
}

// INV-1
async fn a_dropped_transaction_leaves_nothing<S: Session>() {
    let server = Server::start().await;
    let mut session = S::connect(&server.url()).await;
    let mut tx = session.begin().await;
    publish(&mut tx, &ADA).await.unwrap();
    drop(tx);
    let mut tx = session.begin().await;
    publish(&mut tx, &raw("2")).await.unwrap();
    S::commit(tx).await;
    assert_eq!(contexts(&server).await, ["2"]);
}

// INV-1
async fn a_savepoint_rolled_back_leaves_what_was_outside<S: Session>() {
    let server = Server::start().await;
    let mut session = S::connect(&server.url()).await;
    let mut tx = session.begin().await;
    publish(&mut tx, &raw("1")).await.unwrap();
    let mut savepoint = S::savepoint(&mut tx).await;
    publish(&mut savepoint, &raw("2")).await.unwrap();
    S::rollback(savepoint).await;
    let mut savepoint = S::savepoint(&mut tx).await;
    publish(&mut savepoint, &raw("3")).await.unwrap();
    S::commit(savepoint).await;
    publish(&mut tx, &raw("4")).await.unwrap();
    S::commit(tx).await;
    assert_eq!(contexts(&server).await, ["1", "3", "4"]);
}

async fn a_call_dropped_midway_leaves_nothing_after_a_rollback<S: Session>() {
    let server = Server::start().await;
    let mut session = S::connect(&server.url()).await;
    let mut tx = session.begin().await;
    let event = raw("1");
    let never = std::future::ready(());
    // Behind this lock no answer comes before the call is dropped.
    let busy = server.connect_as("postgres").await;
    let lock = "begin; lock table pillarbox.event in exclusive mode";
    busy.batch_execute(lock).await.unwrap();
    // The call is polled once, which sends, and then dropped.
    tokio::select! {
        biased;
        _ = publish(&mut tx, &event) => panic!("answered at once"),
        () = never => {}
    }
    busy.batch_execute("rollback").await.unwrap();
    S::rollback(tx).await;
    let mut tx = session.begin().await;
    publish(&mut tx, &raw("2")).await.unwrap();
    S::commit(tx).await;
    assert_eq!(contexts(&server).await, ["2"]);
}

// INV-12
async fn a_context_keeps_its_bytes<S: Session>() {
    let server = Server::start().await;
    let mut session = S::connect(&server.url()).await;
    let texts = [
        " {\"b\" : 1.50,\n\t\"a\": 1E+2, \"a\": \"\\u00e9é\\u0000\\ud83d\\ude00😀\"} ".to_owned(),
        "12345678901234567890.123456789012345678901234567890".to_owned(),
        "null".to_owned(),
        format!("\"{}\"", "é".repeat(EVENT_BYTES_MAX_DEFAULT / 2 - 1)),
    ];
    let mut tx = session.begin().await;
    for text in &texts {
        publish(&mut tx, &raw(text)).await.unwrap();
    }
    let events = texts.clone().map(raw);
    publish_all(&mut tx, &events).await.unwrap();
    S::commit(tx).await;
    assert!(
        contexts(&server).await == [texts.clone(), texts].concat(),
        "bytes differ"
    );
}

async fn many_events_keep_their_order_and_ids<S: Session>() {
    let server = Server::start().await;
    let mut session = S::connect(&server.url()).await;
    let events: Vec<_> = (0..2 * BATCH_ROWS_MAX + 3)
        .map(|n| raw(n.to_string()))
        .collect();
    let mut tx = session.begin().await;
    let event_ids = publish_all(&mut tx, &events).await.unwrap();
    S::commit(tx).await;
    let stored = server.events().await;
    let stored: Vec<_> = stored
        .iter()
        .map(|row| (row.event_id, row.event_context.as_str()))
        .collect();
    let published: Vec<_> = events
        .iter()
        .map(|event| (event.event_id(), event.event_context()))
        .collect();
    assert!(stored == published, "order or content differs");
    assert!(
        event_ids
            .iter()
            .eq(stored.iter().map(|(event_id, _)| event_id))
    );
}

async fn what_is_set_arrives_and_what_is_not_takes_the_default<S: Session>() {
    let server = Server::start().await;
    let mut session = S::connect(&server.url()).await;
    let bare = || raw("{}");
    let full = || {
        raw("{}")
            .with_event_id(Uuid::from_u128(7))
            .with_event_date_time(SystemTime::UNIX_EPOCH)
            .with_environment("staging")
            .with_metadata_version(i64::MAX as u64)
            .with_trace_parent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    };
    let publisher = Publisher::new().environment("test");
    let mut tx = session.begin().await;
    publish(&mut tx, &bare()).await.unwrap();
    publish(&mut tx, &full()).await.unwrap();
    publish_all(&mut tx, &[bare(), full()]).await.unwrap();
    publish_all(&mut tx, &[bare(), bare()]).await.unwrap();
    publisher.publish(&mut tx, &bare()).await.unwrap();
    publisher
        .publish_all(&mut tx, &[bare(), full()])
        .await
        .unwrap();
    S::commit(tx).await;

    let events = server.events().await;
    let environments: Vec<_> = events
        .iter()
        .map(|event| event.environment.as_str())
        .collect();
    let (default, own, set) = ("production", "staging", "test");
    assert_eq!(
        environments,
        [default, own, default, own, default, default, set, set, own]
    );
    for (index, event) in events.iter().enumerate() {
        if [1, 3, 8].contains(&index) {
            assert_eq!(event.event_id, Uuid::from_u128(7));
            assert_eq!(event.event_date_time_us, 0);
            assert_eq!(event.metadata_version, i64::MAX);
            let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            assert_eq!(event.trace_parent.as_deref(), Some(parent));
        } else {
            assert!((0..1_000_000).contains(&event.shift_us), "{event:?}");
            assert_eq!(
                (event.metadata_version, event.trace_parent.as_deref()),
                (1, None)
            );
        }
    }
}

async fn a_time_arrives_to_the_microsecond<S: Session>() {
    let server = Server::start().await;
    let mut session = S::connect(&server.url()).await;
    let epoch = SystemTime::UNIX_EPOCH;
    let times = [
        epoch + Duration::from_nanos(1_763_712_000_123_456_789),
        epoch - Duration::from_nanos(1),
        epoch + Duration::from_micros(946_684_800_000_000),
    ];
    let events = times.map(|time| raw("{}").with_event_date_time(time));
    let mut tx = session.begin().await;
    for event in &events {
        publish(&mut tx, event).await.unwrap();
    }
    publish_all(&mut tx, &events).await.unwrap();
    S::commit(tx).await;
    let stored = server.events().await;
    let stored: Vec<_> = stored
        .iter()
        .map(|event| event.event_date_time_us)
        .collect();
    let wanted = [1_763_712_000_123_456, -1, 946_684_800_000_000];
    assert_eq!(stored, [wanted, wanted].concat());
}

async fn the_current_span_arrives<S: Session>() {
    let server = Server::start().await;
    let mut session = S::connect(&server.url()).await;
    let span = SpanContext::new(
        TraceId::from(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736),
        SpanId::from(0x00f0_67aa_0ba9_02b7),
        TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    let context = Context::new().with_remote_span_context(span);
    let mut tx = session.begin().await;
    publish(&mut tx, &ADA)
        .with_context(context.clone())
        .await
        .unwrap();
    publish_all(&mut tx, &[ADA, ADA])
        .with_context(context)
        .await
        .unwrap();
    publish(&mut tx, &ADA).await.unwrap();
    S::commit(tx).await;
    let parents = server
        .events()
        .await
        .into_iter()
        .map(|event| event.trace_parent);
    let wanted = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
    assert_eq!(
        parents.collect::<Vec<_>>(),
        [wanted.clone(), wanted.clone(), wanted, None]
    );
}

async fn an_event_refused_by_the_client_leaves_the_transaction_usable<S: Session>() {
    let server = Server::start().await;
    let mut session = S::connect(&server.url()).await;
    let mut tx = session.begin().await;
    let large = sized(EVENT_BYTES_MAX_DEFAULT + 1);
    let error = publish(&mut tx, &large).await.unwrap_err();
    assert!(matches!(
        error,
        Error::TooLarge {
            size: 1_048_577,
            limit: 1_048_576,
            ..
        }
    ));
    let error = publish_all(&mut tx, &[raw("1"), large]).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }));
    let error = publish(&mut tx, &RawEvent::new("", "{}").unwrap())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::InvalidType { .. }));
    publish(&mut tx, &raw("2")).await.unwrap();
    S::commit(tx).await;
    assert_eq!(contexts(&server).await, ["2"]);
}

async fn an_event_refused_by_the_database_says_so<S: Session>() {
    let server = Server::start().await;
    let mut session = S::connect(&server.url()).await;
    let publisher = Publisher::new().event_bytes_max(usize::MAX);
    let large = || sized(EVENT_BYTES_MAX_DEFAULT + 1);
    for events in [vec![large()], vec![raw("1"), large()]] {
        let mut tx = session.begin().await;
        let error = publisher.publish_all(&mut tx, &events).await.unwrap_err();
        let Error::Database(source) = &error else {
            panic!("{error}")
        };
        let (code, message) = S::server_error(source.as_ref()).unwrap();
        assert_eq!(code, "23514");
        assert!(
            message.contains("1048577") && message.contains("1048576"),
            "{message}"
        );
        assert_eq!(
            S::execute(&mut tx, "select 1").await,
            Err("25P02".to_owned())
        );
        S::rollback(tx).await;
    }
    assert_eq!(server.events().await, []);
}

async fn a_publisher_can_publish_and_read_no_payload<S: Session>() {
    let server = Server::start().await;
    let role = format!("shop_{}", Uuid::now_v7().simple());
    server
        .execute(&format!(
            "create role {role} login in role pillarbox_publisher"
        ))
        .await;
    let url = server
        .postgres
        .url_for(&server.database, &role, None)
        .unwrap();
    let mut session = S::connect(&url).await;
    let mut tx = session.begin().await;
    publish(&mut tx, &ADA).await.unwrap();
    publish_all(&mut tx, &[ADA, ADA]).await.unwrap();
    S::commit(tx).await;
    assert_eq!(server.events().await.len(), 3);
    for sql in [
        "select event_context from pillarbox.event",
        "select * from pillarbox.event_0",
        "delete from pillarbox.event",
        "truncate pillarbox.event_0",
        "update pillarbox.event set event_type = 'x'",
        "select nextval('pillarbox.ring_position')",
        "insert into pillarbox.event (tx, event_type, event_context) values ('5', 'x', '{}')",
    ] {
        let mut tx = session.begin().await;
        assert_eq!(
            S::execute(&mut tx, sql).await,
            Err("42501".to_owned()),
            "{sql}"
        );
        S::rollback(tx).await;
    }
    server.execute(&format!("drop role {role}")).await;
}

async fn a_missing_outbox_is_an_error_with_a_remedy<S: Session>() {
    let server = Server::without_outbox().await;
    let mut session = S::connect(&server.url()).await;
    let mut tx = session.begin().await;
    let error = publish(&mut tx, &ADA).await.unwrap_err();
    assert!(error.to_string().contains("pillarbox migrate"), "{error}");
    let Error::Database(source) = &error else {
        panic!("{error}")
    };
    assert_eq!(S::server_error(source.as_ref()).unwrap().0, "3F000");
    S::rollback(tx).await;
}

async fn every_isolation_level_will_do<S: Session>() {
    let server = Server::start().await;
    let mut session = S::connect(&server.url()).await;
    for sql in [
        "set transaction isolation level read committed",
        "set transaction isolation level repeatable read",
        "set transaction isolation level serializable",
    ] {
        let mut tx = session.begin().await;
        S::execute(&mut tx, sql).await.unwrap();
        publish(&mut tx, &ADA).await.unwrap();
        S::commit(tx).await;
    }
    assert_eq!(server.events().await.len(), 3);
}
