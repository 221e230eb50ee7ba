//! Creates a user and its event in one transaction, and a batch of events, with sqlx.
//!
//! `DATABASE_URL=postgresql://… cargo run -p pillarbox --example publish_sqlx`
//! in a database where `pillarbox migrate` has run.

use anyhow::Context;
use pillarbox::{Event, RawEvent};
use serde::Serialize;

#[derive(Serialize)]
struct UserCreated<'a> {
    email: &'a str,
    first_name: &'a str,
    last_name: &'a str,
}

impl Event for UserCreated<'_> {
    const TYPE: &'static str = "user_created";
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::var("DATABASE_URL").context("set DATABASE_URL")?;
    run(&url).await
}

pub(crate) async fn run(url: &str) -> anyhow::Result<()> {
    let pool = sqlx::PgPool::connect(url).await?;

    let mut tx = pool.begin().await?;
    sqlx::query("create temporary table if not exists users (email text primary key)")
        .execute(&mut *tx)
        .await?;
    let user = UserCreated {
        email: "ada@example.org",
        first_name: "Ada",
        last_name: "Lovelace",
    };
    sqlx::query("insert into users (email) values ($1)")
        .bind(user.email)
        .execute(&mut *tx)
        .await?;
    let event_id = pillarbox::publish(&mut tx, &user).await?;

    let mail = RawEvent::new("mail_queued", r#"{"template": "welcome"}"#)?;
    let audit = RawEvent::new("audit", r#"{"action": "user.create"}"#)?.with_metadata_version(2);
    let event_ids = pillarbox::publish_all(&mut tx, &[mail, audit]).await?;
    tx.commit().await?;
    println!("published {event_id} and {event_ids:?}");
    Ok(())
}
