//! The registry against the configuration, and what keeps a sink from being delivered to.

use anyhow::{Context as _, Result};
use pillarbox_testkit::servers::{ClickHouse, Flavour, Postgres, eventually};
use rustix::process::Signal;

use super::{Clinic, psql, warning};
use crate::program::{DEADLINE, Program, finish, signal};

#[tokio::test]
async fn a_sink_that_is_not_delivered_to_is_named() -> Result<()> {
    let mut clinic = Clinic::open(Postgres::builder().durable().start().await?).await?;
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    clinic.program = clinic
        .program
        .with("PILLARBOX_RELAY__MAX_AGE", "50ms")
        .with_clickhouse(&clickhouse)?;
    let told = clinic.wrong("sinks", "registered", &[]).await?;
    assert_eq!(
        told[0]["remedy"]["what"],
        "pillarbox sink create clickhouse"
    );
    clinic.heal(&told[0]).await?;
    let told = clinic.wrong("sinks", "delivery", &[]).await?;
    assert_eq!(told[0]["remedy"]["what"], "pillarbox relay", "{told:?}");

    let relay = clinic.program.start(&["relay"])?;
    eventually("the relay to be active", DEADLINE, || async {
        let told = clinic.wrong("sinks", "delivery", &[]).await?;
        Ok(told.is_empty().then_some(()))
    })
    .await?;
    let (code, findings) = clinic.look(&[]).await?;
    assert_eq!(code, 0, "{findings:#?}");
    let amiss = findings
        .iter()
        .filter(|f| f["level"] != "ok" && f["area"] != "disk");
    let amiss: Vec<_> = amiss.filter(|f| f["check"] != "free").collect();
    assert!(amiss.is_empty(), "nothing is wrong: {amiss:#?}");

    clinic
        .names_and_mends(warning(
            "sinks",
            "delivery",
            "the sink clickhouse is paused",
            "update pillarbox.sink set paused = true;",
        ))
        .await?;
    clinic
        .names_and_mends(warning(
            "sinks",
            "configured",
            "the sink old (test) is registered, but not configured here",
            "select pillarbox.register_sink('old', 'test', 5);",
        ))
        .await?;
    psql(
        &clinic.url,
        "update pillarbox.sink set stopped_reason = 'for a test' where sink = 1;",
    )
    .await?;
    let told = clinic.wrong("sinks", "delivery", &[]).await?;
    let message = told[0]["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("stands still") && message.contains("for a test"),
        "{told:?}"
    );
    psql(
        &clinic.url,
        "update pillarbox.sink set stopped_reason = null;",
    )
    .await?;

    clickhouse.kill()?;
    clinic.program.done(&["publish", "waits", "{}"]).await?;
    let now = ["--older-than", "0s"];
    eventually("a batch without an outcome", DEADLINE, || async {
        let told = clinic.wrong("sinks", "delivery", &now).await?;
        let message = told.first().and_then(|finding| finding["message"].as_str());
        let says = message.is_some_and(|m| m.contains("1 batch of the sink clickhouse without"));
        Ok(says.then_some(()))
    })
    .await?;
    let (code, findings) = clinic.look(&[]).await?;
    assert_eq!(
        code, 4,
        "all that is wrong is a server that is away: {findings:#?}"
    );
    signal(&relay, Signal::KILL)?;
    finish(relay).await?;
    Ok(())
}

#[tokio::test]
async fn a_ledger_of_another_database_or_table_is_named() -> Result<()> {
    let clinic = Clinic::open(Postgres::builder().durable().start().await?).await?;
    let register = "select pillarbox.register_sink('clickhouse', 'clickhouse:default.old', 5);";
    psql(&clinic.url, register).await?;
    let moved = "update pillarbox.sink set system_identifier = system_identifier + 1;";
    let told = {
        psql(&clinic.url, moved).await?;
        clinic.wrong("sinks", "origin", &[]).await?
    };
    let message = told[0]["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("the ledger of the sink clickhouse does not tell"),
        "{told:?}"
    );
    psql(
        &clinic.url,
        "update pillarbox.sink set system_identifier = system_identifier - 1;",
    )
    .await?;
    assert!(clinic.wrong("sinks", "origin", &[]).await?.is_empty());

    let program = Program::on(&clinic.url)?.with("CLICKHOUSE_URL", "http://127.0.0.1:1");
    let moved = Clinic { program, ..clinic };
    let told = moved.wrong("sinks", "configured", &[]).await?;
    let message = told.first().context("named")?["message"]
        .as_str()
        .unwrap_or_default();
    assert!(
        message.contains("registered for clickhouse:default.old, but"),
        "{told:?}"
    );
    Ok(())
}
