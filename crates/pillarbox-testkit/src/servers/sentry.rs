//! Takes what an application sends to Sentry, and decodes the envelopes.
//!
//! Format: "Envelopes", Sentry's developer documentation.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// An item of an envelope.
#[derive(Clone, Debug)]
pub struct Item {
    /// `event`, `transaction` and others.
    pub kind: String,
    /// What it says.
    pub payload: Value,
}

type Items = Arc<Mutex<Vec<Item>>>;

/// A project of Sentry on a loopback port.
#[derive(Debug)]
pub struct Sentry {
    port: u16,
    items: Items,
    server: JoinHandle<()>,
}

impl Sentry {
    /// Listens on a free port.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let items = Items::default();
        let routes = Router::new()
            .route("/api/{project}/envelope/", post(take))
            .with_state(Arc::clone(&items));
        let server = tokio::spawn(async move {
            // It ends with the task.
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Self {
            port,
            items,
            server,
        })
    }

    /// What an application is given as `SENTRY_DSN`.
    pub fn dsn(&self) -> String {
        format!("http://0123456789abcdef@127.0.0.1:{}/42", self.port)
    }

    /// What has arrived of a kind.
    pub fn items(&self, kind: &str) -> Vec<Value> {
        let items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let of_kind = items.iter().filter(|item| item.kind == kind);
        of_kind.map(|item| item.payload.clone()).collect()
    }
}

impl Drop for Sentry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn take(State(items): State<Items>, body: Bytes) -> (StatusCode, String) {
    match decode(&body) {
        Ok(found) => {
            let mut items = items.lock().unwrap_or_else(PoisonError::into_inner);
            items.extend(found);
            (StatusCode::OK, "{}".to_owned())
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}")),
    }
}

/// A line of headers, then for each item a line of headers and its payload, of the length that they tell
/// or up to the end of the line.
fn decode(body: &[u8]) -> Result<Vec<Item>> {
    let line = |rest: &[u8]| {
        rest.iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(rest.len())
    };
    let mut rest = &body[(line(body) + 1).min(body.len())..];
    let mut items = Vec::new();
    while !rest.is_empty() {
        let end = line(rest);
        let head: Value = serde_json::from_slice(&rest[..end]).context("the head of an item")?;
        rest = &rest[(end + 1).min(rest.len())..];
        let told = head["length"]
            .as_u64()
            .and_then(|length| usize::try_from(length).ok());
        let length = told.unwrap_or_else(|| line(rest));
        let payload = rest.get(..length).context("an item is cut")?;
        rest = &rest[(length + 1).min(rest.len())..];
        items.push(Item {
            kind: head["type"].as_str().unwrap_or_default().to_owned(),
            payload: serde_json::from_slice(payload).context("the payload of an item")?,
        });
    }
    Ok(items)
}
