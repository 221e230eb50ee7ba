//! The other side: the server, the table, what comes near a limit.

use anyhow::{Context as _, Result, bail};
use pillarbox_testkit::servers::{ClickHouse, Flavour, Postgres, eventually};
use serde_json::Value;

use super::Clinic;
use crate::program::{DEADLINE, Program};

async fn clinic(flavour: Flavour) -> Result<Clinic> {
    let mut clinic = Clinic::open(Postgres::builder().durable().start().await?).await?;
    let clickhouse = ClickHouse::start(flavour).await?;
    clinic.program = clinic.program.with_clickhouse(&clickhouse)?;
    clinic.clickhouse = Some(clickhouse);
    Ok(clinic)
}

async fn one_wrong(clinic: &Clinic, check: &str) -> Result<Value> {
    let mut told = clinic.wrong("clickhouse", check, &[]).await?;
    match (told.pop(), told.is_empty()) {
        (Some(finding), true) => Ok(finding),
        (last, _) => bail!("{check}: {told:?} {last:?}"),
    }
}

#[tokio::test]
async fn a_table_that_is_missing_or_forgets_or_is_full_of_parts() -> Result<()> {
    for flavour in Flavour::ALL {
        let clinic = clinic(flavour).await?;
        let table = clinic.program.table.clone();
        let clickhouse = clinic.clickhouse.as_ref().context("clickhouse")?;
        let missing = one_wrong(&clinic, "preflight").await?;
        assert_eq!(
            missing["remedy"]["what"],
            "pillarbox sink create clickhouse"
        );
        clinic.heal(&missing).await?;
        assert!(
            clinic
                .wrong("clickhouse", "preflight", &[])
                .await?
                .is_empty()
        );
        let (_, findings) = clinic.look(&[]).await?;
        for check in ["server", "skew", "preflight", "parts"] {
            let seen = findings
                .iter()
                .any(|f| f["area"] == "clickhouse" && f["check"] == check && f["level"] == "ok");
            assert!(seen, "{flavour:?} {check}: {findings:#?}");
        }

        if flavour == Flavour::V26 {
            let forget = "modify setting non_replicated_deduplication_window = 0";
            clickhouse
                .query(&format!("alter table {table} {forget}"))
                .await?;
            clickhouse
                .query(&format!("alter table {table} drop column batch"))
                .await?;
            let forgets = one_wrong(&clinic, "preflight").await?;
            assert_eq!(forgets["level"], "problem");
            assert_eq!(forgets["remedy"]["by"], "clickhouse", "{forgets}");
            clinic.heal(&forgets).await?;
            // Now it works, but without the column a lost answer may stop it.
            let alone = one_wrong(&clinic, "preflight").await?;
            assert_eq!(alone["level"], "warning", "{alone}");
            clinic.heal(&alone).await?;
            let told = clinic.wrong("clickhouse", "preflight", &[]).await?;
            assert!(told.is_empty(), "{told:?}");

            let low = "modify setting parts_to_delay_insert = 3, parts_to_throw_insert = 4";
            clickhouse
                .query(&format!("alter table {table} {low}"))
                .await?;
            clickhouse
                .query(&format!("system stop merges {table}"))
                .await?;
            let insert = format!(
                "insert into {table} (event_id, event_date_time) values (generateUUIDv4(), 0)"
            );
            for _ in 0..4 {
                clickhouse.query(&insert).await?;
            }
            let full = one_wrong(&clinic, "parts").await?;
            assert_eq!(full["level"], "problem", "{full}");
            clickhouse
                .query(&format!("system start merges {table}"))
                .await?;
            // One merge may not be enough: the remedy is repeated while the finding stays.
            eventually("the parts to be merged", DEADLINE, || async {
                clinic.heal(&full).await?;
                let told = clinic.wrong("clickhouse", "parts", &[]).await?;
                Ok(told.is_empty().then_some(()))
            })
            .await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_away_or_refuses_and_a_statement_with_little_memory() -> Result<()> {
    let mut clinic = clinic(Flavour::V18).await?;
    clinic.program.done(&["sink", "create"]).await?;
    let url = clinic.url.clone();
    let clickhouse = clinic.clickhouse.as_ref().context("clickhouse")?;
    let wrong = clickhouse
        .url()
        .replace("http://", "http://default:hunter2@");
    let program = Program::on(&url)?.with("CLICKHOUSE_URL", &wrong);
    let ran = program.run(&["doctor"]).await?;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.out.to_lowercase().contains("password") && !ran.out.contains("hunter2"),
        "{ran:?}"
    );

    let many = clinic.program.with("PILLARBOX_RELAY__MAX_BYTES", "256MiB");
    clinic.program = many;
    let low = "<default><max_memory_usage>500000000</max_memory_usage></default></profiles>";
    clickhouse.change_users(|users| users.replace("<default></default></profiles>", low))?;
    clickhouse.restart().await?;
    let little = one_wrong(&clinic, "memory").await?;
    let message = little["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("may use 476.8 MiB") && message.contains("1.0 GiB"),
        "{little}"
    );
    clickhouse.kill()?;
    let ran = clinic.program.run(&["doctor"]).await?;
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(
        ran.out
            .contains("problem  clickhouse  sink clickhouse at http://127.0.0.1"),
        "{ran:?}"
    );
    Ok(())
}
