//! The examples do what they say.

#[allow(dead_code, reason = "its main")]
#[path = "../../examples/publish_sqlx.rs"]
mod publish_sqlx;
#[allow(dead_code, reason = "its main")]
#[path = "../../examples/publish_tokio_postgres.rs"]
mod publish_tokio_postgres;

use crate::server::Server;

const ADA: &str = r#"{"email":"ada@example.org","first_name":"Ada","last_name":"Lovelace"}"#;

#[tokio::test]
async fn the_example_for_tokio_postgres_publishes_a_user() {
    let server = Server::start().await;
    publish_tokio_postgres::run(&server.url()).await.unwrap();
    let [event] = &server.events().await[..] else {
        panic!("not one event")
    };
    assert_eq!(
        (event.event_context.as_str(), event.environment.as_str()),
        (ADA, "example")
    );
}

#[tokio::test]
async fn the_example_for_sqlx_publishes_a_user_and_a_batch() {
    let server = Server::start().await;
    publish_sqlx::run(&server.url()).await.unwrap();
    let events = server.events().await;
    let types: Vec<_> = events
        .iter()
        .map(|event| event.event_type.as_str())
        .collect();
    assert_eq!(types, ["user_created", "mail_queued", "audit"]);
    assert_eq!(events[0].event_context, ADA);
}
