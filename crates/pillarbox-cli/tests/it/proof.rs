//! `verify`, `dead-letters` and `replay` on real servers.

use anyhow::{Context as _, Result};
use pillarbox_testkit::servers::{ClickHouse, Flavour, PgVersion};
use serde_json::Value;

use crate::program::{Program, connect, database};

const BOTH: [(PgVersion, Flavour); 2] = [
    (PgVersion::V15, Flavour::V18),
    (PgVersion::V18, Flavour::V26),
];

/// Publishes and delivers `count` events as one batch.
async fn deliver(program: &Program, url: &str, count: i32, kind: &str) -> Result<Value> {
    let client = connect(url).await?;
    let sql = "select pillarbox.publish($1, '{\"n\": 1}', event_date_time => '2026-11-20 10:00Z'::timestamptz \
               + n * interval '1 second') from generate_series(1, $2) n";
    client.execute(sql, &[&kind, &count]).await?;
    program.json(&["relay", "--once"]).await
}

/// Batch, difference, rows that should be there, rows that are.
type Difference = (i64, String, i64, i64);

async fn differences(program: &Program) -> Result<Vec<Difference>> {
    let ran = program.run(&["verify", "--json"]).await?;
    let found: Value = serde_json::from_str(&ran.out)?;
    let findings = found["findings"].as_array().context("findings")?;
    assert_eq!(found["holds"], findings.is_empty());
    assert_eq!(
        ran.code,
        if findings.is_empty() { 0 } else { 3 },
        "{}",
        ran.err
    );
    let of = |finding: &Value| {
        let number = finding["batch"].as_i64().unwrap_or(-1);
        let word = finding["difference"].as_str().unwrap_or_default();
        let rows = |side: &str| finding[side].as_i64().unwrap_or(-1);
        let (expected, held) = (rows("expected_rows"), rows("held_rows"));
        (number, word.to_owned(), expected, held)
    };
    Ok(findings.iter().map(of).collect())
}

/// Rewrites the table without the rows of a batch, as 18.16 has no synchronous DELETE.
async fn lose(clickhouse: &ClickHouse, table: &str, keep: &str) -> Result<()> {
    for sql in [
        format!("CREATE TABLE kept_{table} AS {table}"),
        format!("INSERT INTO kept_{table} SELECT * FROM {table} WHERE {keep}"),
        format!("TRUNCATE TABLE {table}"),
        format!("INSERT INTO {table} SELECT * FROM kept_{table}"),
        format!("DROP TABLE kept_{table}"),
    ] {
        clickhouse.query(&sql).await?;
    }
    Ok(())
}

#[tokio::test]
async fn inv_13_verify_names_what_is_missing_too_many_or_altered_and_repairs() -> Result<()> {
    for (version, flavour) in BOTH {
        let (_postgres, program, url) = database(version).await?;
        let clickhouse = ClickHouse::start(flavour).await?;
        let program = program.with_clickhouse(&clickhouse)?;
        program.done(&["migrate"]).await?;
        program.done(&["sink", "create"]).await?;
        for number in 1..=4 {
            deliver(&program, &url, 10, &format!("trial{number}")).await?;
        }
        let text = program.done(&["verify"]).await?;
        assert!(text.contains("40 events of 4 batches as sealed"), "{text}");
        assert!(
            text.contains("published 40 = pending 0 + in flight 0 + delivered 40"),
            "{text}"
        );

        let table = &program.table;
        lose(
            &clickhouse,
            table,
            "event_type != 'trial1' AND NOT (event_type = 'trial2' AND toSecond(event_date_time) = 3)",
        )
        .await?;
        let doubled =
            format!("INSERT INTO {table} SELECT * FROM {table} WHERE event_type = 'trial3'");
        // Another statement than the relay's: no token of its own holds it back.
        clickhouse.query(&doubled).await?;
        let found = differences(&program).await?;
        let expected = [(1, "missing", 0), (2, "fewer", 9), (3, "surplus", 20)];
        let expected = expected.map(|(number, word, held)| (number, word.to_owned(), 10, held));
        assert_eq!(found, expected, "{version:?}");
        let only = ["verify", "--batch", "4"];
        program.done(&only).await?;
        let tampered = "update pillarbox.delivery set rows = rows + $1 where number = 4";
        let client = connect(&url).await?;
        client.execute(tampered, &[&-3_i64]).await?;
        let ran = program.run(&only).await?;
        assert_eq!(ran.code, 3, "{}", ran.err);
        assert!(
            ran.out
                .contains("of 40 events published, 37 are accounted for"),
            "{}",
            ran.out
        );
        client.execute(tampered, &[&3_i64]).await?;

        let repair = program.run(&["verify", "--repair"]).await?;
        assert_eq!(repair.code, 3);
        assert!(
            repair.err.contains("1 block will be delivered again"),
            "{}",
            repair.err
        );
        let again = program.run(&["verify", "--repair"]).await?;
        assert!(!again.err.contains("delivered again"), "{}", again.err);
        program.done(&["relay", "--once"]).await?;
        let found = differences(&program).await?;
        assert_eq!(found, expected[1..], "{version:?}");
        // What arrived while somebody looked is not asked for again.
        let asked = async |began: &str| {
            let sql = include_str!("../../src/command/sql/request_repair.sql");
            let partition = "202611";
            let sql = sql.replace("$4", began);
            client.execute(&sql, &[&1_i32, &1_i64, &partition]).await
        };
        assert_eq!(asked("'2026-01-01'").await?, 0);
        assert_eq!(asked("'2100-01-01'").await?, 1);
        assert_eq!(asked("'2100-01-01'").await?, 0);
        client
            .execute(
                "delete from pillarbox.replay where answered_at is null",
                &[],
            )
            .await?;
        let held = format!("select count() from {table} where event_type = 'trial1'");
        assert_eq!(clickhouse.query(&held).await?.trim(), "10");
    }
    Ok(())
}

/// The table gets a column that digests cover from then on, and loses it again.
#[tokio::test]
async fn inv_13_a_column_more_is_no_difference() -> Result<()> {
    for (version, flavour) in BOTH {
        let (_postgres, program, url) = database(version).await?;
        let clickhouse = ClickHouse::start(flavour).await?;
        let program = program.with_clickhouse(&clickhouse)?;
        program.done(&["migrate"]).await?;
        program.done(&["sink", "create"]).await?;
        let table = &program.table;
        deliver(&program, &url, 10, "before").await?;
        let add = format!("ALTER TABLE {table} ADD COLUMN trace_parent Nullable(String)");
        clickhouse.query(&add).await?;
        deliver(&program, &url, 10, "after").await?;
        assert_eq!(differences(&program).await?, [], "{version:?}");
        let text = program.done(&["verify"]).await?;
        assert!(text.contains("20 events of 2 batches as sealed"), "{text}");
        let drop = format!("ALTER TABLE {table} DROP COLUMN trace_parent");
        clickhouse.query(&drop).await?;
        assert_eq!(differences(&program).await?, [], "{version:?}");
        let text = program.done(&["verify"]).await?;
        assert!(text.contains("10 events of 2 batches as sealed"), "{text}");
        assert!(text.contains("1 block"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn dead_letters_are_listed_retried_and_dropped() -> Result<()> {
    for (version, flavour) in BOTH {
        let (_postgres, program, url) = database(version).await?;
        let clickhouse = ClickHouse::start(flavour).await?;
        let program = program.with_clickhouse(&clickhouse)?;
        program.done(&["migrate"]).await?;
        program.done(&["sink", "create"]).await?;
        let none = program.done(&["dead-letters", "list"]).await?;
        assert!(none.contains("has no dead letters"), "{none}");
        let table = &program.table;
        let refuse = format!(
            "ALTER TABLE {table} ADD COLUMN refused UInt8 MATERIALIZED throwIf(event_type = 'bad')"
        );
        clickhouse.query(&refuse).await?;
        deliver(&program, &url, 20, "good").await?;
        deliver(&program, &url, 3, "bad").await?;
        let listed = program.json(&["dead-letters", "list"]).await?;
        let letters = listed.as_array().context("a list")?;
        assert_eq!(letters.len(), 3, "{listed}");
        assert_eq!(letters[0]["code"], 395, "{listed}");
        let numbers: Vec<String> = letters
            .iter()
            .map(|one| one["number"].to_string())
            .collect();
        let shown = program.done(&["dead-letters", "show", &numbers[0]]).await?;
        assert!(
            shown.contains("{\"n\": 1}") && shown.contains("bad"),
            "{shown}"
        );

        let unreasoned = program.run(&["dead-letters", "drop", &numbers[0]]).await?;
        assert_eq!(unreasoned.code, 2, "{}", unreasoned.err);
        program
            .done(&["dead-letters", "drop", &numbers[0], "--reason", "a trial"])
            .await?;
        program
            .refusal(3, &["dead-letters", "retry", &numbers[0]])
            .await?;
        program
            .refusal(3, &["dead-letters", "show", "4711"])
            .await?;
        clickhouse
            .query(&format!("ALTER TABLE {table} DROP COLUMN refused"))
            .await?;
        program.done(&["dead-letters", "retry", "--all"]).await?;
        program.done(&["relay", "--once"]).await?;
        let all = program.json(&["dead-letters", "list", "--all"]).await?;
        let states = all
            .as_array()
            .into_iter()
            .flatten()
            .map(|one| one["state"].clone());
        let states: Vec<Value> = states.collect();
        assert_eq!(states, ["dropped", "delivered", "delivered"], "{all}");
        let held = format!("select count() from {table} where event_type = 'bad'");
        let held = clickhouse.query(&held).await?;
        assert_eq!(held.trim(), "2");
        let account = program.json(&["verify"]).await?["account"].clone();
        assert_eq!(
            (
                &account["published"],
                &account["delivered"],
                &account["dropped"]
            ),
            (&23.into(), &22.into(), &1.into()),
            "{account}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_replay_delivers_again_what_the_outbox_still_has() -> Result<()> {
    for (version, flavour) in BOTH {
        let (_postgres, program, url) = database(version).await?;
        let clickhouse = ClickHouse::start(flavour).await?;
        let program = program.with_clickhouse(&clickhouse)?;
        program.done(&["migrate"]).await?;
        program.done(&["sink", "create"]).await?;
        for number in 1..=2 {
            deliver(&program, &url, 10, &format!("trial{number}")).await?;
        }
        program.refusal(2, &["replay", "--batch", "1"]).await?;
        program
            .refusal(3, &["replay", "--batch", "99", "--yes"])
            .await?;
        program.done(&["replay", "--batch", "1", "--yes"]).await?;
        program.done(&["relay", "--once"]).await?;
        let table = &program.table;
        let count = |kind: &str| format!("select count() from {table} where event_type = '{kind}'");
        assert_eq!(clickhouse.query(&count("trial1")).await?.trim(), "20");
        assert_eq!(clickhouse.query(&count("trial2")).await?.trim(), "10");
        // Three seconds of both batches.
        let (since, until) = ("2026-11-20T10:00:02Z", "2026-11-20T10:00:05Z");
        program
            .done(&["replay", "--since", since, "--until", until, "--yes"])
            .await?;
        program.done(&["relay", "--once"]).await?;
        assert_eq!(clickhouse.query(&count("trial1")).await?.trim(), "23");
        assert_eq!(clickhouse.query(&count("trial2")).await?.trim(), "13");
        let listed = program.json(&["replay", "--list"]).await?;
        let states = listed.as_array().into_iter().flatten();
        assert!(
            states.clone().all(|one| one["state"] == "delivered"),
            "{listed}"
        );
        assert_eq!(states.count(), 3);
        let text = program.done(&["verify"]).await?;
        assert!(text.contains("36 events of 5 batches as sealed"), "{text}");
    }
    Ok(())
}
