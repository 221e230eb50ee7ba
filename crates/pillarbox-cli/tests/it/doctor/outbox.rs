//! Outbox, ring, rights.

use anyhow::{Context as _, Result};
use pillarbox_testkit::servers::{PgVersion, Postgres, eventually};

use super::{Clinic, problem, psql, warning};
use crate::program::{DEADLINE, Program, connect};

const VERSIONS: [PgVersion; 2] = [PgVersion::V15, PgVersion::V18];

#[tokio::test]
async fn what_was_done_to_the_outbox_is_named_and_undone() -> Result<()> {
    let cases = [
        warning(
            "outbox",
            "trigger",
            "the trigger \"Noisy\" on pillarbox.event ",
            "create trigger \"Noisy\" before update on pillarbox.event for each row \
             execute function suppress_redundant_updates_trigger();",
        ),
        problem(
            "outbox",
            "rule",
            "the rule other on pillarbox.event_1 ",
            "create rule other as on insert to pillarbox.event_1 do also notify other;",
        ),
        problem(
            "outbox",
            "row-security",
            "on for pillarbox.event_3",
            "alter table pillarbox.event_3 enable row level security;",
        ),
        problem(
            "outbox",
            "row-security",
            "on for pillarbox.event:",
            "alter table pillarbox.event force row level security;",
        ),
        warning(
            "outbox",
            "index",
            "pillarbox.event_event_type_idx on pillarbox.event ",
            "create index on pillarbox.event (event_type);",
        ),
        problem(
            "outbox",
            "key",
            "pillarbox.event_2 has no",
            "drop index pillarbox.event_2_tx_id;",
        ),
        warning(
            "outbox",
            "autovacuum",
            "visits pillarbox.event_1",
            "alter table pillarbox.event_1 reset (autovacuum_enabled);",
        ),
        warning(
            "outbox",
            "autovacuum",
            "visits pillarbox.event_0",
            "alter table pillarbox.event_0 set (toast.autovacuum_enabled = on);",
        ),
        warning(
            "outbox",
            "publication",
            "the publication \"All of it\" ",
            "create publication \"All of it\" for table pillarbox.event;",
        ),
        warning(
            "outbox",
            "publication",
            "the publication schemas ",
            "create publication schemas for tables in schema pillarbox;",
        ),
        problem(
            "outbox",
            "leaves",
            "pillarbox.event_3 is not a leaf",
            "alter table pillarbox.event detach partition pillarbox.event_3;",
        ),
        problem(
            "outbox",
            "leaves",
            "pillarbox.event_2 is unlogged",
            "alter table pillarbox.event_2 set unlogged;",
        ),
        problem(
            "outbox",
            "forgery",
            "can forge",
            "alter table pillarbox.event drop constraint tx_is_of_this_transaction;",
        ),
        warning(
            "outbox",
            "checks",
            "lacks the one check",
            "alter table pillarbox.event drop constraint event_is_checked;",
        ),
        problem(
            "ring",
            "position",
            "stands on no leaf",
            "alter sequence pillarbox.ring_position restart with 0;",
        ),
        problem(
            "ring",
            "position",
            "moved by nextval",
            "alter sequence pillarbox.ring_position increment by 1;",
        ),
    ];
    for version in VERSIONS {
        let clinic = Clinic::open(
            Postgres::builder()
                .version(version)
                .durable()
                .start()
                .await?,
        );
        let clinic = clinic.await?;
        for case in cases {
            clinic.names_and_mends(case).await?;
        }
        psql(&clinic.url, "create publication everything for all tables;").await?;
        let told = clinic.wrong("outbox", "publication", &[]).await?;
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0]["remedy"]["by"], "person");
    }
    Ok(())
}

#[tokio::test]
async fn rights_that_are_too_wide_are_named_and_revoked() -> Result<()> {
    let cases = [
        warning(
            "rights",
            "others",
            "\"My App\" has usage on pillarbox.ring_position",
            "grant usage on sequence pillarbox.ring_position to \"My App\";",
        ),
        warning(
            "rights",
            "others",
            "\"My App\" has insert on pillarbox.event:",
            "grant insert on pillarbox.event to \"My App\";",
        ),
        warning(
            "rights",
            "others",
            "pillarbox_publisher has insert on pillarbox.event:",
            "grant insert on pillarbox.event to pillarbox_publisher;",
        ),
        warning(
            "rights",
            "others",
            "\"My App\" has insert (tx) on pillarbox.event:",
            "grant insert (tx) on pillarbox.event to \"My App\";",
        ),
        warning(
            "rights",
            "others",
            "public has delete on pillarbox.batch:",
            "grant delete on pillarbox.batch to public;",
        ),
        warning(
            "rights",
            "others",
            "public has select on pillarbox.event:",
            "grant select on pillarbox.event to public;",
        ),
    ];
    for version in VERSIONS {
        let clinic = Clinic::open(
            Postgres::builder()
                .version(version)
                .durable()
                .start()
                .await?,
        );
        let clinic = clinic.await?;
        psql(&clinic.url, "create role \"My App\" login;").await?;
        clinic
            .program
            .done(&["grant", "My App", "--as", "publisher"])
            .await?;
        let app = clinic
            .postgres
            .connect_as("postgres", "My App", None)
            .await?;
        for case in cases {
            clinic.names_and_mends(case).await?;
            // The remedy left the publisher what it needs.
            app.execute("select pillarbox.publish('t', '{}')", &[])
                .await
                .context(case.breaking)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_user_that_may_not_relay_is_told_what_to_ask_for() -> Result<()> {
    for version in VERSIONS {
        let mut clinic = Clinic::open(
            Postgres::builder()
                .version(version)
                .durable()
                .start()
                .await?,
        )
        .await?;
        psql(&clinic.url, "create role mover login;").await?;
        let admin = clinic.url.clone();
        let mover = clinic.postgres.url_for("postgres", "mover", None)?;
        clinic.program = Program::on(&mover)?;
        let told = clinic.wrong("rights", "relay", &[]).await?;
        let message = told[0]["message"].as_str().unwrap_or_default();
        assert!(
            message.contains("mover may not relay: missing"),
            "{message}"
        );
        assert_eq!(told[0]["remedy"]["what"], "grant pillarbox_relay to mover;");
        clinic.heal(&told[0]).await?;
        let (code, findings) = clinic.look(&[]).await?;
        assert_eq!(code, 0, "{findings:#?}");
        let unseen: Vec<_> = findings
            .iter()
            .filter(|f| f["level"] == "skipped")
            .collect();
        assert!(unseen.iter().any(|f| f["area"] == "horizon"), "{unseen:?}");
        psql(&admin, "grant pg_monitor to mover;").await?;
        let (_, findings) = clinic.look(&[]).await?;
        assert!(
            !findings
                .iter()
                .any(|f| f["area"] == "horizon" && f["level"] == "skipped")
        );
    }
    Ok(())
}

/// Who pins the ring: a sink without a relay, and a session that reads a leaf.
#[tokio::test]
async fn who_pins_the_ring_is_named() -> Result<()> {
    let clinic = Clinic::open(Postgres::builder().durable().start().await?).await?;
    psql(
        &clinic.url,
        "select pillarbox.register_sink('audit', 'test', 5);
         select pillarbox.publish('t', '{}');",
    )
    .await?;
    let none = clinic.wrong("ring", "pinned", &[]).await?;
    assert!(none.is_empty(), "what is young pins nothing: {none:?}");
    let now = ["--older-than", "0s"];
    let told = clinic.wrong("ring", "pinned", &now).await?;
    let message = told[0]["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("leaf 0 is kept for the sink audit"),
        "{told:?}"
    );
    assert_eq!(told[0]["remedy"]["what"], "pillarbox relay");
    psql(&clinic.url, "update pillarbox.sink set paused = true;").await?;
    let told = clinic.wrong("ring", "pinned", &now).await?;
    assert_eq!(told[0]["remedy"]["what"], "pillarbox resume audit");
    clinic
        .program
        .done(&["sink", "retire", "audit", "--yes"])
        .await?;
    assert!(clinic.wrong("ring", "pinned", &now).await?.is_empty());

    let reader = connect(&format!("{}?application_name=an_analyst", clinic.url)).await?;
    reader
        .batch_execute("begin; select count(*) from pillarbox.event_2")
        .await?;
    let told = clinic.wrong("ring", "pinned", &now).await?;
    let message = told[0]["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("leaf 2 cannot be emptied while postgres as an_analyst"),
        "{told:?}"
    );
    clinic.heal(&told[0]).await?;
    eventually("the reader to be gone", DEADLINE, || async {
        let told = clinic.wrong("ring", "pinned", &now).await?;
        Ok(told.is_empty().then_some(()))
    })
    .await?;
    Ok(())
}
