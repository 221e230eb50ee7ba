//! Columns that come, change and go on either side while events flow.

use std::time::Duration;

use anyhow::{Result, ensure};
use pillarbox_relay::schema::column::{self, NewColumn};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::proof;
use pillarbox_testkit::servers::{Flavour, PgVersion, Postgres};
use uuid::Uuid;

use crate::scene::{PATIENCE, SINK, Scene, TABLE};
use crate::traffic::{Event, Traffic};

fn column(name: &str, of: &str) -> NewColumn {
    NewColumn {
        name: name.to_owned(),
        of: of.to_owned(),
        default: None,
        not_null: false,
    }
}

async fn add_to_outbox(scene: &Scene, name: &str, of: &str) -> Result<()> {
    let mut client = scene.postgres.connect().await?;
    Ok(column::add(&mut client, &column(name, of), PATIENCE, |_| {}).await?)
}

async fn alter_sink(scene: &Scene, what: &str) -> Result<()> {
    let alter = format!("alter table {TABLE} {what}");
    scene.clickhouse.query(&alter).await?;
    Ok(())
}

/// Events with a value in an added column, published as applications do, one transaction each.
async fn publish(scene: &Scene, oracle: &Oracle, name: &str, count: usize) -> Result<Vec<Uuid>> {
    let client = scene.postgres.connect().await?;
    let insert = format!(
        "insert into pillarbox.event
             (event_type, event_context, event_date_time, event_id, {name})
         values ($1, $2::text::json, $3, $4, $5)"
    );
    let mut ids = Vec::new();
    for nth in 0..count {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let us = i64::try_from(now.as_micros())?;
        let event = Event::at(us, "marked", format!("{{\"n\":{nth}}}"));
        let value = event.event_id.to_string();
        client
            .execute(
                &insert,
                &[
                    &event.event_type,
                    &event.context,
                    &event.at,
                    &event.event_id,
                    &value,
                ],
            )
            .await?;
        oracle.committed(event.published()?);
        ids.push(event.event_id);
    }
    Ok(ids)
}

/// Every one of the events has its value in the column.
async fn have_values(scene: &Scene, name: &str, ids: &[Uuid]) -> Result<()> {
    let query = format!(
        "select count() from {TABLE} where event_type = 'marked' and {name} = toString(event_id)"
    );
    let found: usize = scene.clickhouse.query(&query).await?.trim().parse()?;
    ensure!(found == ids.len(), "{found} of {} have {name}", ids.len());
    Ok(())
}

/// Whether the sink gets a column first.
#[derive(Clone, Copy, Debug)]
enum First {
    Sink,
    Outbox,
}

async fn columns_grow(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let relay = scene.running()?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    let mut marked = Vec::new();
    for (first, name) in [(First::Sink, "note_a"), (First::Outbox, "note_b")] {
        let of = format!("add column {name} Nullable(String)");
        traffic.more(30).await?;
        match first {
            First::Sink => alter_sink(&scene, &of).await?,
            First::Outbox => add_to_outbox(&scene, name, "text").await?,
        }
        traffic.more(30).await?;
        match first {
            First::Sink => add_to_outbox(&scene, name, "text").await?,
            First::Outbox => alter_sink(&scene, &of).await?,
        }
        // Both are there: from here on no value is left behind, whatever batch it is in.
        marked.push((name, publish(&scene, &traffic.oracle, name, 40).await?));
    }
    // A type becomes wider on either side, then a column goes, from the sink first and from the outbox first.
    traffic.more(30).await?;
    alter_sink(&scene, "modify column metadata_version Int64").await?;
    traffic.more(30).await?;
    let alter = "alter table pillarbox.event alter column note_b type varchar(100)";
    scene.postgres.execute(alter).await?;
    marked.push((
        "note_b",
        publish(&scene, &traffic.oracle, "note_b", 20).await?,
    ));
    traffic.more(30).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    have_values(&scene, "note_a", &marked[0].1).await?;
    let notes_b: Vec<Uuid> = [&marked[1].1[..], &marked[2].1[..]].concat();
    have_values(&scene, "note_b", &notes_b).await?;

    let relay = scene.running()?;
    let traffic = Traffic::resume(&scene.postgres, 3, false, oracle).await?;
    traffic.more(30).await?;
    alter_sink(&scene, "drop column note_a").await?;
    traffic.more(30).await?;
    scene
        .postgres
        .execute("alter table pillarbox.event drop column note_b")
        .await?;
    traffic.more(30).await?;
    alter_sink(&scene, "drop column note_b").await?;
    scene
        .postgres
        .execute("alter table pillarbox.event drop column note_a")
        .await?;
    traffic.more(30).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    let log = relay.log();
    ensure!(!log.contains("the sink stands still"), "{log}");
    scene.holds(&oracle, relay).await?;
    Ok(())
}

#[tokio::test]
async fn inv_2_columns_grow_in_any_order_before_clickhouse_18() -> Result<()> {
    columns_grow(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_columns_grow_in_any_order_before_clickhouse_26() -> Result<()> {
    columns_grow(Flavour::V26).await
}

/// A proven column gets another type while nobody knows whether its batch was sent: it is the same batch, and
/// can be proven.
#[tokio::test]
async fn inv_2_and_3_a_type_is_changed_before_the_resend() -> Result<()> {
    for step in ["before-send", "block-answered"] {
        let scene = Scene::start(Flavour::V26).await?;
        alter_sink(&scene, "add column published_at DateTime('UTC')").await?;
        let oracle = Oracle::new();
        scene
            .postgres
            .execute("alter table pillarbox.event add column note text")
            .await?;
        publish(&scene, &oracle, "note", 30).await?;
        let mut killed = scene.spawn(&mut scene.relay("run", &format!("{step}=return"))?)?;
        killed.ended().await?;
        ensure!(scene.in_flight().await? == 1, "{step}");
        alter_sink(&scene, "modify column published_at DateTime64(6, 'UTC')").await?;
        publish(&scene, &oracle, "note", 10).await?;
        scene.holds_when_drained(&oracle).await?;
        let client = scene.postgres.connect().await?;
        let proof = proof::prove(&client, &scene.sink(TABLE)?, SINK).await?;
        ensure!(proof.findings.is_empty(), "{step}: {:?}", proof.findings);
        ensure!(proof.rows == 40, "{step}: {}", proof.rows);
    }
    Ok(())
}

/// A publisher keeps the outbox for as long as it likes: others go on publishing while a column is waited for,
/// and it comes when the publisher has ended.
#[tokio::test]
async fn inv_4_publishers_go_on_while_a_column_is_added() -> Result<()> {
    let scene = Scene::on(Postgres::start(PgVersion::V15).await?, Flavour::V18).await?;
    let mut keeper = scene.postgres.connect().await?;
    let open = keeper.transaction().await?;
    open.execute("select pillarbox.publish('open', '{}')", &[])
        .await?;
    let traffic = Traffic::start(&scene.postgres, 4, false).await?;
    let mut client = scene.postgres.connect().await?;
    let short = Duration::from_millis(600);
    let refused = column::add(&mut client, &column("note", "text"), short, |_| {}).await;
    let refused = refused
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    ensure!(refused.contains("pg_terminate_backend"), "{refused}");

    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let adding = tokio::spawn(async move {
        let told = move |keepers: &str| {
            let _ = tell.send(keepers.to_owned());
        };
        column::add(&mut client, &column("note", "text"), PATIENCE, told).await
    });
    for _ in 0..3 {
        let who = told.recv().await.unwrap_or_default();
        ensure!(who.contains("idle in transaction"), "{who}");
        traffic.more(20).await?;
    }
    open.rollback().await?;
    adding.await??;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds_when_drained(&oracle).await?;
    Ok(())
}

#[tokio::test]
async fn a_column_that_would_harm_is_refused() -> Result<()> {
    let scene = Scene::on(Postgres::start(PgVersion::V15).await?, Flavour::V18).await?;
    let mut client = scene.postgres.connect().await?;
    let strict = NewColumn {
        not_null: true,
        ..column("note", "text")
    };
    for (column, says) in [
        (column("note", "nothing"), "no type of postgresql"),
        (
            column("note", "text; drop table pillarbox.event"),
            "no type of postgresql",
        ),
        (column("event_context", "text"), "already"),
        (strict, "give it a default"),
    ] {
        let refused = column::add(&mut client, &column, PATIENCE, |_| {}).await;
        let refused = refused
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        ensure!(refused.contains(says), "{refused}");
    }
    let filled = NewColumn {
        default: Some("it's".to_owned()),
        not_null: true,
        ..column("note \"x\"", "varchar(10)")
    };
    column::add(&mut client, &filled, PATIENCE, |_| {}).await?;
    let insert = "set role pillarbox_publisher;
                  insert into pillarbox.event (event_type, event_context, \"note \"\"x\"\"\")
                  values ('trial', '{}', 'x'); reset role";
    scene.postgres.execute(insert).await
}
