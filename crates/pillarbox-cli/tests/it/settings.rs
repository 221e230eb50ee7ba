//! `settings`.

use anyhow::Result;
use pillarbox_testkit::servers::PgVersion;

use crate::program::{connect, database};

#[tokio::test]
async fn settings_are_shown_and_changed_together() -> Result<()> {
    for version in [PgVersion::V15, PgVersion::V18] {
        let (_postgres, program, _url) = database(version).await?;
        program.done(&["migrate"]).await?;
        let before = program.json(&["settings"]).await?;
        assert_eq!(before["retention"], "01:00:00");
        assert_eq!(before["event_bytes_max"], 1_048_576);
        let change = [
            "settings",
            "--retention",
            "6 hours",
            "--event-bytes-max",
            "4KiB",
            "--environment",
            "it's \\ staging",
            "--leaf-bytes-max",
            "64MiB",
            "--leaf-age-max",
            "5 minutes",
            "--ledger-retention",
            "90 days",
        ];
        let after = program.json(&change).await?;
        assert_eq!(after["retention"], "06:00:00");
        assert_eq!(after["event_bytes_max"], 4096);
        assert_eq!(after["environment"], "it's \\ staging");
        assert_eq!(after["leaf_bytes_max"], 67_108_864);
        assert_eq!(after["leaf_age_max"], "00:05:00");
        assert_eq!(after["ledger_retention"], "90 days");
        let shown = program.done(&["settings"]).await?;
        assert!(
            shown.contains("4KiB") || shown.contains("4.0 KiB"),
            "{shown}"
        );

        let refused = [
            (vec!["--retention", "soon"], "soon"),
            (vec!["--retention=-1 hour"], "retention is not negative"),
            (vec!["--leaf-age-max", "0"], "leaf age max is positive"),
            (vec!["--event-bytes-max", "257MiB"], "257MiB"),
            (vec!["--event-bytes-max", "0"], "0B"),
            (vec!["--environment", ""], "environment must not be empty"),
            (
                vec!["--retention", "2 hours", "--environment", ""],
                "environment",
            ),
        ];
        for (options, wanted) in refused {
            let command = [&["settings"], options.as_slice()].concat();
            let text = program.refusal(2, &command).await?;
            assert!(text.contains(wanted), "{options:?}: {text}");
        }
        assert_eq!(
            program.json(&["settings"]).await?,
            after,
            "a refused change left a trace"
        );
        let text = program
            .run(&["settings", "--event-bytes-max", "big"])
            .await?;
        assert_eq!(text.code, 2, "{text:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_change_does_not_wait_for_an_open_publisher_nor_the_reverse() -> Result<()> {
    let (_postgres, program, url) = database(PgVersion::V15).await?;
    program.done(&["migrate"]).await?;
    let publisher = connect(&url).await?;
    publisher
        .batch_execute("begin; select pillarbox.publish('held', '{}')")
        .await?;
    let change = [
        "settings",
        "--environment",
        "staging",
        "--event-bytes-max",
        "64",
        "--retention",
        "1 day",
    ];
    let started = std::time::Instant::now();
    program.done(&change).await?;
    assert!(
        started.elapsed() < std::time::Duration::from_secs(10),
        "it waited"
    );
    let environment =
        "select environment from pillarbox.event where event_id = pillarbox.publish('n', '{}')";
    publisher.query(environment, &[]).await?;
    publisher.batch_execute("commit").await?;
    let counted =
        "select count(*), count(*) filter (where environment = 'staging') from pillarbox.event";
    let row = publisher.query_one(counted, &[]).await?;
    assert_eq!(
        (row.get::<_, i64>(0), row.get::<_, i64>(1)),
        (2, 1),
        "the next event has the new value"
    );
    let large = format!("\"{}\"", "x".repeat(80));
    let text = program.refusal(2, &["publish", "large", &large]).await?;
    assert!(
        text.contains("event_context has 82 bytes, the limit is 64"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn only_a_member_of_the_owner_changes_settings() -> Result<()> {
    let (postgres, program, url) = database(PgVersion::V15).await?;
    program.done(&["migrate"]).await?;
    let user = crate::program::unique("reader");
    postgres
        .execute(&format!("create role {user} login"))
        .await?;
    program.done(&["grant", &user, "--as", "reader"]).await?;
    let name = url.rsplit('/').next().unwrap_or_default();
    let reader = crate::program::Program::on(&postgres.url_for(name, &user, None)?)?;
    reader.done(&["settings"]).await?;
    let text = reader
        .refusal(3, &["settings", "--retention", "1 day"])
        .await?;
    assert!(text.contains("permission denied"), "{text}");
    Ok(())
}
