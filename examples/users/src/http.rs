//! The HTTP surface: `POST /users`, `GET /users`, `GET /healthz`. Answers and errors are JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tower_http::trace::TraceLayer;
use tracing::error;

use crate::users::{CreateError, InvalidField, NewUser, Users, chain};

/// Bytes of a request: far above a user with the longest fields, in any escaping.
const BODY_BYTES_MAX: usize = 16 << 10;
/// How long one request may take; after that its transaction is rolled back.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Users on a page unless `limit` says otherwise, and at most.
const PAGE_DEFAULT: i64 = 100;
const PAGE_MAX: i64 = 1_000;

pub(crate) fn router(users: Users) -> Router {
    Router::new()
        .route("/users", get(list).post(create))
        .route("/healthz", get(|| async { StatusCode::NO_CONTENT }))
        .fallback(|| async { failure(StatusCode::NOT_FOUND, "no such page; see /users") })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(TraceLayer::new_for_http())
        .with_state(users)
}

/// The wire form, in which anything may be missing.
#[derive(Deserialize)]
struct CreateRequest {
    email: Option<String>,
    first_name: Option<String>,
    last_name: Option<String>,
}

async fn create(
    State(users): State<Users>,
    request: Result<Json<CreateRequest>, JsonRejection>,
) -> Response {
    let request = match request {
        Ok(Json(request)) => request,
        Err(rejection) => return failure(rejection.status(), &rejection.body_text()),
    };
    let new = match NewUser::new(request.email, request.first_name, request.last_name) {
        Ok(new) => new,
        Err(fields) => return invalid(fields),
    };
    match tokio::time::timeout(REQUEST_DEADLINE, users.create(new)).await {
        Ok(Ok(user)) => (StatusCode::CREATED, Json(user)).into_response(),
        Ok(Err(exists @ CreateError::AlreadyExists)) => {
            failure(StatusCode::CONFLICT, &exists.to_string())
        }
        Ok(Err(_)) => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the user was not created; try again",
        ),
        Err(_) => {
            error!(
                use_case = "create_user",
                outcome = "timed_out",
                "user perhaps not created"
            );
            let message = "creating the user took too long; look whether it exists";
            failure(StatusCode::GATEWAY_TIMEOUT, message)
        }
    }
}

#[derive(Deserialize)]
struct Page {
    after: Option<i64>,
    limit: Option<i64>,
}

#[derive(Serialize)]
struct Listed<T> {
    users: Vec<T>,
}

async fn list(State(users): State<Users>, page: Result<Query<Page>, QueryRejection>) -> Response {
    let page = match page {
        Ok(Query(page)) => page,
        Err(rejection) => return failure(rejection.status(), &rejection.body_text()),
    };
    let limit = page.limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=PAGE_MAX).contains(&limit) {
        let reason = format!("must be from 1 to {PAGE_MAX}");
        return invalid(vec![InvalidField {
            field: "limit",
            reason,
        }]);
    }
    let listed = users.list(page.after.unwrap_or(0), limit);
    match tokio::time::timeout(REQUEST_DEADLINE, listed).await {
        Ok(Ok(users)) => Json(Listed { users }).into_response(),
        Ok(Err(failed)) => {
            error!(use_case = "list_users", outcome = "failed", error = %chain(&failed), "no list");
            failure(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the users cannot be listed; try again",
            )
        }
        Err(_) => {
            error!(use_case = "list_users", outcome = "timed_out", "no list");
            failure(
                StatusCode::GATEWAY_TIMEOUT,
                "listing the users took too long; try again",
            )
        }
    }
}

fn failure(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "error": message }))).into_response()
}

fn invalid(fields: Vec<InvalidField>) -> Response {
    let list: Vec<_> = fields
        .iter()
        .map(|invalid| format!("{} {}", invalid.field, invalid.reason))
        .collect();
    let error = list.join("; ");
    let fields: BTreeMap<_, _> = fields
        .into_iter()
        .map(|invalid| (invalid.field, invalid.reason))
        .collect();
    let body = json!({ "error": error, "fields": fields });
    (StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response()
}
