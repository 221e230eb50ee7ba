//! The server: reached, limits, horizon, disk, clock.

use anyhow::{Context as _, Result};
use pillarbox_testkit::servers::{PgBouncer, PgVersion, PoolMode, Postgres, eventually};

use super::{Clinic, problem, psql, warning};
use crate::program::{DEADLINE, Program, connect};

#[tokio::test]
async fn a_durable_server_without_a_sink_has_no_problem() -> Result<()> {
    for version in [PgVersion::V15, PgVersion::V18] {
        let clinic = Clinic::open(
            Postgres::builder()
                .version(version)
                .durable()
                .start()
                .await?,
        );
        let clinic = clinic.await?;
        let (code, findings) = clinic.look(&[]).await?;
        assert_eq!(code, 0, "{findings:#?}");
        let warned: Vec<_> = findings
            .iter()
            .filter(|finding| finding["level"] == "warning" && finding["area"] != "disk")
            .collect();
        assert_eq!(warned.len(), 1, "no sink is registered: {warned:#?}");
        let areas = [
            "postgresql",
            "limits",
            "clock",
            "horizon",
            "rights",
            "outbox",
            "ring",
            "disk",
        ];
        for area in areas {
            let looked_at = findings
                .iter()
                .any(|f| f["area"] == area && f["level"] == "ok");
            assert!(looked_at, "{area} is not ok: {findings:#?}");
        }
        let shown = clinic.program.run(&["doctor"]).await?;
        assert_eq!(shown.code, 0);
        assert!(
            shown.out.contains("ok       outbox      no trigger"),
            "{shown:?}"
        );
        assert!(
            shown
                .out
                .contains("\n         shell       pillarbox sink create"),
            "{shown:?}"
        );
        assert!(shown.out.contains("\n0 problems, "), "{shown:?}");
    }
    Ok(())
}

#[tokio::test]
async fn settings_that_hurt_are_named_and_mended() -> Result<()> {
    let clinic = Clinic::open(Postgres::builder().durable().start().await?).await?;
    for case in [
        warning(
            "limits",
            "durability",
            "fsync is off",
            "alter system set fsync = off; select pg_reload_conf();",
        ),
        warning(
            "limits",
            "durability",
            "full_page_writes is off",
            "alter system set full_page_writes = off; select pg_reload_conf();",
        ),
        problem(
            "limits",
            "standby",
            "every commit waits",
            "alter system set synchronous_standby_names = 'nobody'; select pg_reload_conf();",
        ),
        problem(
            "limits",
            "connections",
            "the database postgres may have 3 sessions",
            "alter database postgres connection limit 3;",
        ),
    ] {
        clinic.names_and_mends(case).await?;
    }
    let limits = "alter database postgres set statement_timeout = '5s';
                  alter database postgres set idle_session_timeout = '5s';";
    psql(&clinic.url, limits).await?;
    let (code, findings) = clinic.look(&[]).await?;
    assert_eq!(code, 0);
    let told = findings
        .iter()
        .find(|finding| finding["check"] == "sessions");
    let message = told.context("sessions")?["message"]
        .as_str()
        .unwrap_or_default();
    assert!(message.contains("statement_timeout = 5000"), "{message}");
    assert!(message.contains("idle_session_timeout = 5000"), "{message}");
    Ok(())
}

#[tokio::test]
async fn sessions_that_run_out_are_named() -> Result<()> {
    let server = Postgres::builder()
        .durable()
        .setting("max_connections", "12")
        .start();
    let clinic = Clinic::open(server.await?).await?;
    let told = clinic.wrong("limits", "connections", &[]).await?;
    assert!(told.is_empty(), "{told:?}");
    let mut taken = Vec::new();
    for _ in 0..4 {
        taken.push(clinic.postgres.connect().await?);
    }
    let told = clinic.wrong("limits", "connections", &[]).await?;
    let message = told[0]["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("of 9 sessions of the server are taken"),
        "{told:?}"
    );
    let remedy = told[0]["remedy"]["what"].as_str().unwrap_or_default();
    assert!(
        remedy.starts_with("alter system set max_connections = 18;"),
        "{remedy}"
    );
    clinic.heal(&told[0]).await?;
    drop(taken);
    clinic.postgres.restart().await?;
    assert!(clinic.wrong("limits", "connections", &[]).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn who_holds_the_horizon_is_named() -> Result<()> {
    for version in [PgVersion::V15, PgVersion::V18] {
        let server = Postgres::builder().version(version).durable();
        let clinic = Clinic::open(server.setting("wal_level", "logical").start().await?).await?;
        let now = ["--older-than", "0s"];
        assert!(clinic.wrong("horizon", "held", &now).await?.is_empty());
        let writer = connect(&format!("{}?application_name=a_report", clinic.url)).await?;
        let begin = "begin; create temp table secret_query (n int)";
        writer.batch_execute(begin).await?;
        assert!(
            clinic.wrong("horizon", "held", &[]).await?.is_empty(),
            "it is young"
        );
        let prepare =
            "begin; select pillarbox.publish('t', '{}'); prepare transaction 'it''s old';";
        let slot = "select pg_create_logical_replication_slot('left', 'pgoutput');";
        for (breaking, says) in [
            ("select 1;", "postgres as a_report (pid "),
            (
                prepare,
                "the transaction 'it''s old' (database postgres, postgres) has been prepared",
            ),
        ] {
            psql(&clinic.url, breaking).await?;
            let told = clinic.wrong("horizon", "held", &now).await?;
            let found = told.iter().find(|finding| {
                let message = finding["message"].as_str().unwrap_or_default();
                message.contains(says) && !message.contains("secret_query")
            });
            let found = found.with_context(|| format!("{says}: {told:?}"))?;
            clinic.heal(found).await?;
            eventually("the finding to go", DEADLINE, || async {
                let told = clinic.wrong("horizon", "held", &now).await?;
                Ok(told.is_empty().then_some(()))
            })
            .await?;
        }
        clinic
            .names_and_mends(warning(
                "horizon",
                "held",
                "slot 'left' (logical), which nobody reads",
                slot,
            ))
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_reached_or_must_not_be_is_named() -> Result<()> {
    let away = Program::on("postgresql://postgres@127.0.0.1:1/app")?;
    let ran = away.run(&["doctor"]).await?;
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(
        ran.out
            .contains("problem  postgresql  postgresql at 127.0.0.1:1 does not answer"),
        "{ran:?}"
    );
    let ran = Program::bare()?.run(&["doctor"]).await?;
    assert_eq!(ran.code, 2, "{ran:?}");

    let mut clinic = Clinic::open(Postgres::builder().durable().start().await?).await?;
    let standby = Postgres::standby_of(&clinic.postgres).await?;
    let ran = Program::on(standby.url())?.run(&["doctor"]).await?;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.out.contains("this server is a standby"), "{ran:?}");
    drop(standby);

    for connections in [1, 4] {
        let mode = PoolMode::Transaction;
        let bouncer = PgBouncer::start(&clinic.postgres, mode, connections, "postgres").await?;
        let ran = Program::on(&bouncer.url("postgres"))?
            .run(&["doctor"])
            .await?;
        assert_eq!(ran.code, 3, "{ran:?}");
        assert!(
            ran.out
                .contains("a connection pooler gives server connections to others"),
            "{ran:?}"
        );
        assert!(
            ran.out.contains("the address of the server itself"),
            "{ran:?}"
        );
    }

    let bare = clinic.postgres.create_database("bare").await?;
    clinic.program = Program::on(&bare)?;
    clinic.url = bare;
    let told = clinic.wrong("postgresql", "schema", &[]).await?;
    assert_eq!(told[0]["remedy"]["what"], "pillarbox migrate");
    clinic.heal(&told[0]).await?;
    assert!(clinic.wrong("postgresql", "schema", &[]).await?.is_empty());
    psql(
        &clinic.url,
        "insert into pillarbox.schema_version values (99);",
    )
    .await?;
    let told = clinic.wrong("postgresql", "schema", &[]).await?;
    let message = told[0]["message"].as_str().unwrap_or_default();
    assert!(message.contains("install a newer pillarbox"), "{told:?}");
    Ok(())
}
