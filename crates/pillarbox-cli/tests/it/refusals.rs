//! Servers that cannot be used: one clear error, and an exit code that scripts can use.

use anyhow::Result;
use pillarbox_testkit::servers::{ClickHouse, Flavour, PgVersion, Postgres};

use crate::program::{Program, database, unique};

#[tokio::test]
async fn a_postgresql_that_is_away_or_refuses() -> Result<()> {
    let postgres = Postgres::builder()
        .password_method("scram-sha-256")
        .start()
        .await?;
    postgres
        .execute("create role app login password 'open-sesame'")
        .await?;
    let wrong = Program::on(&postgres.url_for("postgres", "app", Some("wrong"))?)?;
    let text = wrong.refusal(2, &["migrate"]).await?;
    assert!(
        text.contains("password authentication failed for user \"app\""),
        "{text}"
    );
    let missing = Program::on(&postgres.url_for("missing", "postgres", None)?)?;
    let text = missing.refusal(2, &["migrate"]).await?;
    assert!(
        text.contains("database \"missing\" does not exist"),
        "{text}"
    );

    let url = postgres.url_for("postgres", "app", Some("open-sesame"))?;
    postgres.stop().await?;
    for command in [vec!["migrate"], vec!["status"], vec!["publish", "x", "{}"]] {
        let text = Program::on(&url)?.refusal(4, &command).await?;
        assert!(text.contains("does not answer; is it running"), "{text}");
        assert!(text.contains("refused"), "the cause is missing: {text}");
        assert!(!text.contains("sesame"), "the password is shown: {text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_standby_and_a_foreign_encoding_are_refused() -> Result<()> {
    let primary = Postgres::start(PgVersion::V15).await?;
    let standby = Postgres::standby_of(&primary).await?;
    let text = Program::on(standby.url())?.refusal(3, &["migrate"]).await?;
    assert!(
        text.contains("standby") && text.contains("connect to the primary"),
        "{text}"
    );
    let latin = Postgres::builder().encoding("LATIN1").start().await?;
    let text = Program::on(latin.url())?.refusal(3, &["migrate"]).await?;
    assert!(text.contains("encoding is LATIN1"), "{text}");
    Ok(())
}

#[tokio::test]
async fn every_command_names_the_schema_that_is_missing() -> Result<()> {
    let (_postgres, program, _url) = database(PgVersion::V15).await?;
    let program = program.with("CLICKHOUSE_URL", "http://127.0.0.1:1");
    let commands = [
        vec!["status"],
        vec!["settings"],
        vec!["grant", "postgres", "--as", "reader"],
        vec!["publish", "x", "{}"],
        vec!["uninstall", "--yes"],
        vec!["relay"],
        vec!["relay", "--once"],
        vec!["sink", "create"],
        vec!["sink", "check"],
        vec!["sink", "retire", "clickhouse", "--yes"],
    ];
    for command in commands {
        let text = program.refusal(3, &command).await?;
        assert!(
            text.contains("run: pillarbox migrate"),
            "{command:?}: {text}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_clickhouse_that_is_away_or_refuses() -> Result<()> {
    let (_postgres, program, url) = database(PgVersion::V15).await?;
    program.done(&["migrate"]).await?;
    for flavour in Flavour::ALL {
        let clickhouse = ClickHouse::start(flavour).await?;
        let wrong = clickhouse
            .url()
            .replace("http://", "http://default:hunter2@");
        let program = Program::on(&url)?.with("CLICKHOUSE_URL", &wrong);
        let text = program.refusal(2, &["sink", "create"]).await?;
        assert!(
            text.to_lowercase().contains("password"),
            "{flavour:?}: {text}"
        );
        assert!(!text.contains("hunter2"), "{text}");

        let program = Program::on(&url)?.with_clickhouse(&clickhouse)?;
        for command in [vec!["sink", "check"], vec!["events"]] {
            let text = program.refusal(3, &command).await?;
            let wanted = format!("table default.{} does not exist", program.table);
            assert!(text.contains(&wanted), "{text}");
        }
        clickhouse.kill()?;
        for command in [
            vec!["sink", "check"],
            vec!["sink", "create"],
            vec!["events"],
        ] {
            let text = program.refusal(4, &command).await?;
            assert!(text.contains("127.0.0.1"), "{text}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_table_that_forgets_tokens_is_refused_with_the_remedy() -> Result<()> {
    let (_postgres, program, _url) = database(PgVersion::V15).await?;
    program.done(&["migrate"]).await?;
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    let table = unique("forgetful");
    let ddl = format!(
        "create table {table} (event_type String, event_date_time DateTime64(6, 'UTC'), \
         environment String, event_context String, metadata_version UInt64) \
         engine = MergeTree order by event_type"
    );
    clickhouse.query(&ddl).await?;
    let program = program
        .with("CLICKHOUSE_URL", &clickhouse.url_with_credentials()?)
        .with("PILLARBOX_SINKS__CLICKHOUSE__TABLE", &table);
    for command in [vec!["sink", "check"], vec!["sink", "create"]] {
        let text = program.refusal(3, &command).await?;
        let remedy = "non_replicated_deduplication_window";
        assert!(
            text.contains("ALTER TABLE") && text.contains(remedy),
            "{text}"
        );
    }
    let relaxed = program.with("PILLARBOX_SINKS__CLICKHOUSE__GUARANTEE", "at-least-once");
    let report = relaxed.json(&["sink", "check"]).await?;
    assert_eq!(report["report"]["guarantee"], "at-least-once");
    let alter =
        format!("alter table {table} modify setting non_replicated_deduplication_window = 1000");
    clickhouse.query(&alter).await?;
    let report = relaxed.json(&["sink", "create"]).await?;
    assert_eq!(report["report"]["guarantee"], "token");
    assert_eq!(report["table_created"], false);
    Ok(())
}

#[tokio::test]
async fn the_relay_needs_a_sink_that_is_configured_and_registered() -> Result<()> {
    let (_postgres, program, _url) = database(PgVersion::V15).await?;
    program.done(&["migrate"]).await?;
    let text = program.refusal(2, &["relay"]).await?;
    assert!(
        text.contains("no sink is configured; set CLICKHOUSE_URL"),
        "{text}"
    );
    let text = program.refusal(2, &["sink", "create"]).await?;
    assert!(
        text.contains("the sink clickhouse is not configured"),
        "{text}"
    );
    let program = program.with("CLICKHOUSE_URL", "http://127.0.0.1:1");
    let text = program.refusal(3, &["relay"]).await?;
    assert!(
        text.contains("no sink named clickhouse is registered; run: pillarbox sink create"),
        "{text}"
    );
    let program = program.file("[sinks.one]\nurl = 'http://127.0.0.1:1'\n[sinks.two]\n")?;
    let text = program.refusal(2, &["sink", "check", "three"]).await?;
    assert!(text.contains("configured: clickhouse, one, two"), "{text}");
    let text = program.refusal(2, &["sink", "check", "two"]).await?;
    assert!(text.contains("the sink two has no url"), "{text}");
    Ok(())
}
