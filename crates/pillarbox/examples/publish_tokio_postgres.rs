//! Creates a user and its event in one transaction, with tokio-postgres.
//!
//! `DATABASE_URL=postgresql://… cargo run -p pillarbox --example publish_tokio_postgres`
//! in a database where `pillarbox migrate` has run.

use anyhow::Context;
use pillarbox::{Event, Publisher};
use serde::Serialize;
use tokio_postgres::NoTls;

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
    let (mut client, connection) = tokio_postgres::connect(url, NoTls).await?;
    let connection = tokio::spawn(connection);
    let publisher = Publisher::new().environment("example");

    let mut tx = client.transaction().await?;
    tx.batch_execute("create temporary table if not exists users (email text primary key)")
        .await?;
    let user = UserCreated {
        email: "ada@example.org",
        first_name: "Ada",
        last_name: "Lovelace",
    };
    tx.execute("insert into users (email) values ($1)", &[&user.email])
        .await?;
    let event_id = publisher.publish(&mut tx, &user).await?;
    tx.commit().await?;
    println!("published {event_id}");

    drop(client);
    connection.await??;
    Ok(())
}
