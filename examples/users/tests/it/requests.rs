//! What a request leaves behind.

use std::time::Duration;

use pillarbox_testkit::servers::eventually;
use serde_json::json;
use users::{Config, Server};

use crate::app::{App, Database, user};

const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_new_user_is_created_with_its_event() {
    let database = Database::start().await;
    let app = App::start(&database.config()).await;
    let (status, body) = app.http.create("ada@example.org").await;
    assert_eq!(status, 201, "{body}");
    assert!(
        body["id"].is_i64() && body["created_at"].as_str().unwrap().ends_with('Z'),
        "{body}"
    );
    for (field, value) in [
        ("email", "ada@example.org"),
        ("first_name", "Ada"),
        ("last_name", "Lovelace"),
    ] {
        assert_eq!(body[field], value);
    }
    let context = r#"{"email":"ada@example.org","first_name":"Ada","last_name":"Lovelace"}"#;
    assert_eq!(
        database.events().await,
        [("user_created".to_owned(), context.to_owned())]
    );
    app.stop().await;
}

#[tokio::test]
async fn a_known_email_is_a_conflict_without_an_event() {
    let database = Database::start().await;
    let app = App::start(&database.config()).await;
    assert_eq!(app.http.create("ada@example.org").await.0, 201);
    for email in ["ada@example.org", " ada@example.org "] {
        let (status, body) = app.http.create(email).await;
        assert_eq!(status, 409);
        assert_eq!(
            body,
            json!({ "error": "User with this email already exists" })
        );
    }
    assert_eq!(
        (database.users().await, database.events().await.len()),
        (1, 1)
    );
}

#[tokio::test]
async fn concurrent_requests_for_one_email_create_one_user_and_one_event() {
    let database = Database::start().await;
    let app = App::start(&database.config()).await;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let http = app.http.clone();
        requests.spawn(async move { http.create("ada@example.org").await.0 });
    }
    let mut statuses = requests.join_all().await;
    statuses.sort_unstable();
    assert_eq!((statuses[0], &statuses[1..]), (201, &[409; 31][..]));
    assert_eq!(
        (database.users().await, database.events().await.len()),
        (1, 1)
    );
}

#[tokio::test]
async fn a_concurrent_user_that_is_rolled_back_does_not_count() {
    let database = Database::start().await;
    let app = App::start(&database.config()).await;
    let mut other = database.connect().await;
    let tx = other.transaction().await.unwrap();
    let sql = "insert into users (email, first_name, last_name) values ('ada@example.org', '', '')";
    tx.execute(sql, &[]).await.unwrap();
    let http = app.http.clone();
    let request = tokio::spawn(async move { http.create("ada@example.org").await });
    eventually("the request to wait", DEADLINE, || async {
        Ok(database.somebody_waits().await.then_some(()))
    })
    .await
    .unwrap();
    tx.rollback().await.unwrap();
    assert_eq!(request.await.unwrap().0, 201);
    assert_eq!(
        (database.users().await, database.events().await.len()),
        (1, 1)
    );
}

// INV-1
#[tokio::test]
async fn a_request_rolled_back_after_publishing_leaves_neither_user_nor_event() {
    let database = Database::start().await;
    let failing = App::start(&Config {
        fail_rate: 1.0,
        ..database.config()
    })
    .await;
    for _ in 0..3 {
        let (status, body) = failing.http.create("ada@example.org").await;
        assert_eq!(status, 500);
        assert_eq!(
            body,
            json!({ "error": "the user was not created; try again" })
        );
    }
    assert_eq!(
        (database.users().await, database.events().await.len()),
        (0, 0)
    );

    let app = App::start(&database.config()).await;
    assert_eq!(app.http.create("ada@example.org").await.0, 201);
    assert_eq!(
        (database.users().await, database.events().await.len()),
        (1, 1)
    );
}

// INV-1
#[tokio::test]
async fn an_event_that_cannot_be_published_takes_the_user_with_it() {
    let database = Database::start().await;
    let app = App::start(&database.config()).await;
    database
        .admin
        .batch_execute("alter table pillarbox.event rename to elsewhere")
        .await
        .unwrap();
    assert_eq!(app.http.create("ada@example.org").await.0, 500);
    assert_eq!(database.users().await, 0);
}

#[tokio::test]
async fn what_is_not_valid_is_refused_and_named() {
    let database = Database::start().await;
    let app = App::start(&database.config()).await;
    let ada = user("ada@example.org");
    let with = |field: &str, value| {
        let mut body = ada.clone();
        body[field] = value;
        body
    };
    for (body, field, reason) in [
        (
            json!({ "first_name": "A", "last_name": "L" }),
            "email",
            "is required",
        ),
        (with("email", json!(null)), "email", "is required"),
        (
            with("email", json!("ada")),
            "email",
            "is not an email address",
        ),
        (
            with("first_name", json!(" ")),
            "first_name",
            "must not be empty",
        ),
        (
            with("last_name", json!("x".repeat(151))),
            "last_name",
            "must not have more than 150 characters",
        ),
        (
            with("last_name", json!("a\u{0}b")),
            "last_name",
            "must not contain control characters",
        ),
    ] {
        let (status, answer) = app.http.post(&body).await;
        assert_eq!(status, 422, "{body}");
        assert_eq!(answer["fields"], json!({ field: reason }));
        assert_eq!(answer["error"], format!("{field} {reason}"));
    }
    let (status, answer) = app.http.post(&json!({})).await;
    assert_eq!(
        (status, answer["fields"].as_object().unwrap().len()),
        (422, 3)
    );
    for (body, wanted) in [("{\"email\": 5}", 422), ("{", 400), ("[]", 422)] {
        let (status, answer) = app.http.post_text(body).await;
        assert_eq!(status, wanted, "{body}");
        assert!(answer["error"].is_string());
    }
    let large = json!({ "email": "x".repeat(20_000) });
    assert_eq!(app.http.post(&large).await.0, 413);
    assert_eq!(
        (database.users().await, database.events().await.len()),
        (0, 0)
    );
}

#[tokio::test]
async fn a_list_is_bounded_and_goes_on() {
    let database = Database::start().await;
    let app = App::start(&database.config()).await;
    let sql = "insert into users (email, first_name, last_name) \
               select n || '@example.org', 'Ada', 'Lovelace' from generate_series(1, 250) n";
    database.admin.batch_execute(sql).await.unwrap();
    let (status, first) = app.http.get("/users").await;
    let first = first["users"].as_array().unwrap().clone();
    assert_eq!((status, first.len()), (200, 100));
    assert_eq!(first[0]["email"], "1@example.org");
    let last = first[99]["id"].as_i64().unwrap();
    let (_, rest) = app
        .http
        .get(&format!("/users?after={last}&limit=1000"))
        .await;
    assert_eq!(rest["users"].as_array().unwrap().len(), 150);
    for query in ["limit=0", "limit=1001"] {
        let (status, answer) = app.http.get(&format!("/users?{query}")).await;
        assert_eq!(
            (status, &answer["error"]),
            (422, &json!("limit must be from 1 to 1000"))
        );
    }
    assert_eq!(app.http.get("/users?limit=x").await.0, 400);
    assert_eq!(app.http.get("/elsewhere").await.0, 404);
}

#[tokio::test]
async fn several_may_start_at_once_and_again() {
    let database = Database::start().await;
    let config = database.config();
    let mut starting = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let config = config.clone();
        starting.spawn(async move { Server::start(&config).await });
    }
    while let Some(started) = starting.join_next().await {
        started.unwrap().unwrap();
    }
    Server::start(&config).await.unwrap();
}

#[tokio::test]
async fn without_an_outbox_it_does_not_start_and_says_what_to_run() {
    let database = Database::without_outbox().await;
    let error = Server::start(&database.config()).await.unwrap_err();
    assert!(error.to_string().contains("pillarbox migrate"), "{error}");
    let config = Config {
        fail_rate: 1.5,
        ..database.config()
    };
    assert!(
        Server::start(&config)
            .await
            .unwrap_err()
            .to_string()
            .contains("USERS_FAIL_RATE")
    );
}
