//! Users created over HTTP, and what became of each.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use pillarbox_testkit::oracle::{Content, Published};
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;
use uuid::Uuid;

use super::Stop;
use crate::record::{Answer, Record, Request, now_us};

/// Between two requests of a session.
const PAUSE: Duration = Duration::from_millis(15);

/// The application gives up after 10 s itself.
const REQUEST_DEADLINE: Duration = Duration::from_secs(15);

/// Share of requests for an email that is taken.
const TAKEN: f64 = 0.1;

const NAMES: [(&str, &str); 4] = [
    ("Ada", "Lovelace"),
    ("Zoë", "D'Arcy \"Z\""),
    ("Łucja", "Nowak\\Kowalska"),
    ("光", "田中"),
];

/// The request, and also the context of the event that the application publishes.
#[derive(Serialize)]
struct NewUser<'a> {
    email: &'a str,
    first_name: &'a str,
    last_name: &'a str,
}

#[derive(Deserialize)]
struct User {
    id: i64,
}

/// Creates users until told to stop.
pub(super) async fn create(session: usize, url: &str, record: &Record, stop: &Stop) -> Result<()> {
    let http = reqwest::Client::builder()
        .timeout(REQUEST_DEADLINE)
        .build()?;
    let mut taken: Vec<String> = Vec::new();
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let again = !taken.is_empty() && rand::rng().random_bool(TAKEN);
        let email = match again {
            true => taken[rand::rng().random_range(0..taken.len())].clone(),
            false => format!("user-{session}-{number}@example.org"),
        };
        let (first_name, last_name) = NAMES[rand::rng().random_range(0..NAMES.len())];
        let new = NewUser {
            email: &email,
            first_name,
            last_name,
        };
        let context = serde_json::to_string(&new)?;
        let sent_us = now_us();
        let sent = http.post(url).json(&new).send().await;
        let answered_us = now_us();
        let answer = match sent {
            Ok(answer) if answer.status() == reqwest::StatusCode::CREATED => {
                match answer.json::<User>().await {
                    Ok(user) => Some(Answer::Created(user.id)),
                    Err(_) => Some(Answer::Unclear),
                }
            }
            // Nothing was published.
            Ok(answer) if answer.status().is_client_error() => {
                anyhow::ensure!(again, "{url} refused {email}: {}", answer.status());
                None
            }
            Ok(_) | Err(_) => Some(Answer::Unclear),
        };
        if let Some(answer) = answer {
            if matches!(answer, Answer::Created(_)) {
                anyhow::ensure!(!again, "{url} created {email} twice");
                taken.push(email.clone());
            }
            record.request(Request {
                email,
                context,
                sent_us,
                answered_us,
                answer,
            });
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Tells the oracle what became of every request: those that were not answered with 201 are looked
/// up in the business table. The application does not return the id of the event but logs it, next
/// to the user's, when COMMIT has returned.
pub(crate) async fn settle(record: &Record, admin: &Client, log: &str) -> Result<()> {
    const KEPT: &str = "select id, email from public.users";
    let event_ids = logged(log);
    let kept = admin.query(KEPT, &[]).await?;
    let kept: HashMap<String, i64> = kept.iter().map(|row| (row.get(1), row.get(0))).collect();
    let mut known: HashSet<i64> = HashSet::new();
    for request in record.requests() {
        let user = match request.answer {
            Answer::Created(user) => Some(user),
            Answer::Unclear => kept.get(&request.email).copied(),
        };
        let Some(user) = user else { continue };
        anyhow::ensure!(
            known.insert(user),
            "the user {user} was created by two requests"
        );
        let event_id = event_ids
            .get(&user)
            .with_context(|| format!("the log of users does not name the event of user {user}"))?;
        let content = Content {
            event_type: "user_created",
            environment: "production",
            event_context: request.context.as_bytes(),
            metadata_version: 1,
        };
        let event = Published::between(*event_id, &content, request.sent_us, request.answered_us);
        record.committed_at(event, request.answered_us);
    }
    Ok(())
}

/// The event of each user, from the application's JSON log.
fn logged(log: &str) -> HashMap<i64, Uuid> {
    #[derive(Deserialize)]
    struct Line {
        user_id: i64,
        event_id: Uuid,
    }
    log.lines()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .map(|line| (line.user_id, line.event_id))
        .collect()
}
