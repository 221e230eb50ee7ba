//! `recover` by its command line: what it asks for, what it says, and how it ends. That it loses and
//! doubles nothing, whatever happened to the database, is held by the tests of the testkit.

use anyhow::{Context as _, Result};
use pillarbox_relay::schema;
use pillarbox_testkit::servers::{ClickHouse, Flavour, PgVersion, Postgres, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::program::{DEADLINE, Program, connect, database, finish, signal, unique};

/// Publishes so many events, each in a transaction of its own.
async fn publish(url: &str, count: usize) -> Result<()> {
    let client = connect(url).await?;
    for _ in 0..count {
        let sql = "select pillarbox.publish('trial', '{}')";
        client.query_one(sql, &[]).await?;
    }
    Ok(())
}

async fn count(clickhouse: &ClickHouse, program: &Program) -> Result<u64> {
    let sql = format!("select count() from {}", program.table);
    Ok(clickhouse.query(&sql).await?.trim().parse()?)
}

/// The program for the same sink, by another way to PostgreSQL.
fn same_sink(program: &Program, url: &str, clickhouse: &ClickHouse) -> Result<Program> {
    let mut other = Program::on(url)?
        .with_clickhouse(clickhouse)?
        .with("PILLARBOX_SINKS__CLICKHOUSE__TABLE", &program.table);
    other.table.clone_from(&program.table);
    Ok(other)
}

/// What a JSON says of the only sink: proven, found, missing, in doubt, open batches.
fn numbers(findings: &Value) -> [u64; 5] {
    let sink = &findings["findings"]["sinks"][0];
    ["proven", "found", "missing", "doubtful", "open_batches"]
        .map(|name| sink[name].as_u64().unwrap_or(u64::MAX))
}

/// A dump of a database with three delivered events and two that its ledger knows nothing of, restored
/// into another cluster, where one more is published.
async fn restored(flavour: Flavour) -> Result<(Postgres, ClickHouse, Program)> {
    let origin = Postgres::builder().own_identifier().start().await?;
    let clickhouse = ClickHouse::start(flavour).await?;
    let program = Program::on(origin.url())?.with_clickhouse(&clickhouse)?;
    program.done(&["migrate"]).await?;
    program.done(&["sink", "create"]).await?;
    for _ in 0..3 {
        publish(origin.url(), 1).await?;
        program.done(&["relay", "--once"]).await?;
    }
    publish(origin.url(), 2).await?;
    let dump = origin.dump(&[]).await?;
    program.done(&["relay", "--once"]).await?;
    origin.kill()?;
    let server = Postgres::builder().own_identifier().start().await?;
    server.restore(&dump).await?;
    publish(server.url(), 1).await?;
    let program = same_sink(&program, server.url(), &clickhouse)?;
    Ok((server, clickhouse, program))
}

#[tokio::test]
async fn a_restored_database_is_looked_at_then_recovered() -> Result<()> {
    for flavour in Flavour::ALL {
        let (_server, clickhouse, program) = restored(flavour).await?;
        let refused = program.run(&["relay", "--once"]).await?;
        assert_eq!(refused.code, 3, "{refused:?}");
        assert!(refused.err.contains("pillarbox recover"), "{refused:?}");

        let looked = program.json(&["recover", "--dry-run"]).await?;
        assert_eq!(looked["done"], false, "{looked}");
        assert_eq!(looked["published_again"], 1, "{looked}");
        let findings = &looked["findings"];
        let database = "the database was restored from a dump";
        assert_eq!(findings["database"], database, "{looked}");
        assert_eq!(findings["events"], 6, "{looked}");
        let [proven, found, missing, doubtful, open] = numbers(&looked);
        assert_eq!(
            (proven + found, missing, doubtful, open),
            (5, 1, 0, 0),
            "{looked}"
        );
        assert!(found >= 2, "{looked}");

        let shown = program.run(&["recover", "--dry-run"]).await?;
        assert_eq!(shown.code, 0, "{shown:?}");
        let lines: Vec<&str> = shown.out.lines().collect();
        assert_eq!(
            lines[..4],
            [
                database,
                "warning: the original must not deliver to these sinks any more",
                "of 6 events in the outbox 1 would be published again, the others would be truncated",
                "",
            ],
            "{flavour:?}"
        );
        let head: Vec<&str> = lines[4].split_whitespace().collect();
        assert_eq!(
            head.join(" "),
            "SINK PROVEN FOUND MISSING IN DOUBT OPEN BATCHES"
        );
        let row: Vec<&str> = lines[5].split_whitespace().collect();
        let wanted = [proven, found, missing, doubtful, open].map(|number| number.to_string());
        assert_eq!(
            (row[0], row[1..].to_vec()),
            ("clickhouse", wanted.iter().map(String::as_str).collect())
        );
        assert_eq!(shown.err, "next: do it: pillarbox recover --yes\n");

        let done = program.run(&["recover", "--yes"]).await?;
        assert_eq!(done.code, 0, "{done:?}");
        let told = "of 6 events in the outbox 1 were published again, the others were truncated";
        assert!(done.out.contains(told), "{done:?}");
        assert_eq!(done.err, "next: deliver them: pillarbox relay\n");
        let drained = program.json(&["relay", "--once"]).await?;
        assert_eq!(drained["rows"], 1, "{drained}");
        assert_eq!(count(&clickhouse, &program).await?, 6);
        program.done(&["verify"]).await?;
    }
    Ok(())
}

/// A copy is named as one; `--json` says what was done.
#[tokio::test]
async fn a_copied_database_is_recovered_and_json_says_so() -> Result<()> {
    let (postgres, program, url) = database(PgVersion::V18).await?;
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    let program = program.with_clickhouse(&clickhouse)?;
    program.done(&["migrate"]).await?;
    program.done(&["sink", "create"]).await?;
    publish(&url, 3).await?;
    program.done(&["relay", "--once"]).await?;
    publish(&url, 2).await?;
    let name = url.rsplit('/').next().context("a database")?;
    let copy = unique("copy");
    eventually("nobody to use the original", DEADLINE, || async {
        let sql = format!("create database {copy} template {name}");
        Ok(postgres.execute(&sql).await.ok())
    })
    .await?;
    let url = postgres.url_for(&copy, "postgres", None)?;
    let program = same_sink(&program, &url, &clickhouse)?;
    let done = program.json(&["recover", "--yes"]).await?;
    assert_eq!(done["done"], true, "{done}");
    assert_eq!(done["published_again"], 2, "{done}");
    let database = done["findings"]["database"].as_str().unwrap_or_default();
    assert!(database.contains("is a copy"), "{done}");
    assert_eq!(numbers(&done), [3, 0, 2, 0, 0], "{done}");
    assert_eq!(program.json(&["relay", "--once"]).await?["rows"], 2);
    assert_eq!(count(&clickhouse, &program).await?, 5);
    Ok(())
}

/// Nothing happened to the database: what waits is delivered afterwards as it would have been.
#[tokio::test]
async fn without_anything_to_recover_nothing_is_lost_or_doubled() -> Result<()> {
    for flavour in Flavour::ALL {
        let (_postgres, program, url) = database(PgVersion::V15).await?;
        let clickhouse = ClickHouse::start(flavour).await?;
        let program = program.with_clickhouse(&clickhouse)?;
        program.done(&["migrate"]).await?;
        program.done(&["sink", "create"]).await?;
        let empty = program.json(&["recover", "--dry-run"]).await?;
        let wanted = json!({
            "done": false,
            "published_again": 0,
            "findings": {
                "database": "the database is the one in which its ledger was written",
                "events": 0,
                "published_again": 0,
                "sinks": [{
                    "sink": "clickhouse", "proven": 0, "found": 0, "missing": 0, "doubtful": 0,
                    "open_batches": 0,
                }],
            },
        });
        assert_eq!(empty, wanted);
        publish(&url, 3).await?;
        program.done(&["relay", "--once"]).await?;
        publish(&url, 1).await?;
        let looked = program.run(&["recover", "--dry-run"]).await?;
        assert_eq!(looked.code, 0, "{looked:?}");
        assert!(!looked.out.contains("the original"), "{looked:?}");
        let told = "of 4 events in the outbox 1 would be published again";
        assert!(looked.out.contains(told), "{looked:?}");
        let done = program.json(&["recover", "--yes"]).await?;
        assert_eq!(numbers(&done), [3, 0, 1, 0, 0], "{done}");
        assert_eq!(program.json(&["relay", "--once"]).await?["rows"], 1);
        assert_eq!(count(&clickhouse, &program).await?, 4);
        program.done(&["verify"]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn it_does_nothing_unless_told_which() -> Result<()> {
    let (_postgres, program, _url) = database(PgVersion::V15).await?;
    // Without servers: what is asked comes first.
    let text = program.refusal(2, &["recover"]).await?;
    assert!(
        text.contains("while publishers wait")
            && text.contains("--dry-run")
            && text.contains("--yes"),
        "{text}"
    );
    program.refusal(2, &["recover", "--json"]).await?;
    let only_doubt = ["recover", "--doubtful", "skip"];
    assert_eq!(program.refusal(2, &only_doubt).await?, text);
    for wrong in [
        ["recover", "--dry-run", "--yes"].as_slice(),
        &["recover", "--yes", "--doubtful", "guess"],
        &["recover", "--yes", "--doubtful"],
    ] {
        let ran = program.run(wrong).await?;
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(
            ran.out.is_empty() && ran.err.starts_with("error: "),
            "{ran:?}"
        );
    }
    let help = program.done(&["recover", "--help"]).await?;
    assert!(
        help.contains("Stop every relay first, stand-bys too"),
        "{help}"
    );
    Ok(())
}

/// A relay that is active, or stands by, would deliver beside it.
#[tokio::test]
async fn an_active_relay_is_refused_and_goes_on() -> Result<()> {
    let (_postgres, program, url) = database(PgVersion::V15).await?;
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    let program = program.with_clickhouse(&clickhouse)?;
    program.done(&["migrate"]).await?;
    program.done(&["sink", "create"]).await?;
    let relay = program.start(&["relay"])?;
    let arrived = async |events: u64| {
        eventually("the events to arrive", DEADLINE, || async {
            Ok((count(&clickhouse, &program).await? == events).then_some(()))
        })
        .await
    };
    publish(&url, 1).await?;
    arrived(1).await?;
    for flag in ["--dry-run", "--yes"] {
        let text = program.refusal(3, &["recover", flag]).await?;
        assert!(
            text.contains("the sink clickhouse is in use by pillarbox/")
                && text.contains("stop its relays, stand-bys too"),
            "{text}"
        );
    }
    publish(&url, 1).await?;
    arrived(2).await?;
    signal(&relay, Signal::TERM)?;
    assert_eq!(finish(relay).await?.code, 0);
    let done = program.json(&["recover", "--yes"]).await?;
    assert_eq!(done["published_again"], 0, "{done}");
    assert_eq!(program.json(&["relay", "--once"]).await?["rows"], 0);
    Ok(())
}

/// A table without `event_id` cannot be searched: a person decides, or the configuration has.
#[tokio::test]
async fn events_in_doubt_are_left_to_a_person() -> Result<()> {
    let (_postgres, program, url) = database(PgVersion::V15).await?;
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    let program = program.with_clickhouse(&clickhouse)?;
    let table = format!(
        "create table {} (event_type String, event_date_time DateTime, environment String, \
         event_context String, metadata_version UInt64, batch UInt64) engine = MergeTree \
         order by event_date_time settings non_replicated_deduplication_window = 1000",
        program.table
    );
    clickhouse.query(&table).await?;
    program.done(&["migrate"]).await?;
    program.done(&["sink", "create"]).await?;
    publish(&url, 3).await?;
    program.done(&["relay", "--once"]).await?;
    publish(&url, 2).await?;
    for flag in ["--dry-run", "--yes"] {
        let text = program.refusal(3, &["recover", flag]).await?;
        for part in [
            "2 events",
            "event_id",
            "--doubtful deliver",
            "--doubtful skip",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    let of = async |flag: &str, choice: &str| {
        program.json(&["recover", flag, "--doubtful", choice]).await
    };
    let skipped = of("--dry-run", "skip").await?;
    assert_eq!(skipped["published_again"], 0, "{skipped}");
    assert_eq!(numbers(&skipped), [3, 0, 0, 2, 0], "{skipped}");
    let delivered = of("--dry-run", "deliver").await?;
    assert_eq!(delivered["published_again"], 2, "{delivered}");
    assert_eq!(numbers(&delivered), [3, 0, 2, 2, 0], "{delivered}");

    assert_eq!(of("--yes", "deliver").await?["published_again"], 2);
    assert_eq!(program.json(&["relay", "--once"]).await?["rows"], 2);
    publish(&url, 1).await?;
    let text = program.refusal(3, &["recover", "--yes"]).await?;
    assert!(
        text.contains("the sink clickhouse holds 1 event:"),
        "{text}"
    );
    assert_eq!(of("--yes", "skip").await?["published_again"], 0);
    assert_eq!(program.json(&["relay", "--once"]).await?["rows"], 0);
    assert_eq!(count(&clickhouse, &program).await?, 5);

    publish(&url, 1).await?;
    let program = program.with("PILLARBOX_SINKS__CLICKHOUSE__GUARANTEE", "at-least-once");
    let done = program.json(&["recover", "--yes"]).await?;
    assert_eq!(done["published_again"], 1, "{done}");
    assert_eq!(program.json(&["relay", "--once"]).await?["rows"], 1);
    Ok(())
}

#[tokio::test]
async fn what_is_missing_first_is_named() -> Result<()> {
    let (postgres, bare, url) = database(PgVersion::V15).await?;
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    let look = ["recover", "--dry-run"];
    let text = bare.refusal(3, &look).await?;
    assert!(text.contains("pillarbox migrate"), "{text}");
    schema::migrate_to(&mut connect(&url).await?, 1).await?;
    let text = bare.refusal(3, &look).await?;
    assert!(
        text.contains("has version 1") && text.contains("run: pillarbox migrate"),
        "{text}"
    );
    bare.done(&["migrate"]).await?;
    let text = bare.refusal(3, &look).await?;
    assert!(text.contains("pillarbox sink create"), "{text}");

    let program = Program::on(&url)?.with_clickhouse(&clickhouse)?;
    let text = program.refusal(3, &look).await?;
    assert!(
        text.contains("sink clickhouse") && text.contains("pillarbox sink create"),
        "{text}"
    );
    program.done(&["sink", "create"]).await?;
    let text = bare.refusal(3, &look).await?;
    assert!(
        text.contains("the sink clickhouse reads the same outbox")
            && text.contains("sinks.clickhouse"),
        "{text}"
    );
    let other = format!("create table other_{0} as {0}", program.table);
    clickhouse.query(&other).await?;
    let elsewhere = same_sink(&program, &url, &clickhouse)?.with(
        "PILLARBOX_SINKS__CLICKHOUSE__TABLE",
        &format!("other_{}", program.table),
    );
    let text = elsewhere.refusal(3, &look).await?;
    assert!(
        text.contains("is registered for clickhouse:") && text.contains("other_"),
        "{text}"
    );
    rights_and_servers(&postgres, &program, &url, &clickhouse).await?;
    let audit = "select pillarbox.register_sink('audit', 'test', 5)";
    connect(&url).await?.query_one(audit, &[]).await?;
    let text = program.refusal(3, &look).await?;
    assert!(
        text.contains("the sink audit reads the same outbox")
            && text.contains("pillarbox sink retire audit"),
        "{text}"
    );
    Ok(())
}

async fn rights_and_servers(
    postgres: &Postgres,
    program: &Program,
    url: &str,
    clickhouse: &ClickHouse,
) -> Result<()> {
    let look = ["recover", "--dry-run"];
    let user = unique("relay");
    postgres
        .execute(&format!("create role {user} login"))
        .await?;
    program.done(&["grant", &user, "--as", "relay"]).await?;
    let name = url.rsplit('/').next().context("a database")?;
    let poor = postgres.url_for(name, &user, None)?;
    let poor = same_sink(program, &poor, clickhouse)?;
    let text = poor.refusal(3, &look).await?;
    assert!(
        text.contains("only a member of pillarbox_owner") && text.contains("grant pillarbox_owner"),
        "{text}"
    );
    // Port 1 answers nobody.
    let nowhere = same_sink(program, url, clickhouse)?
        .with("CLICKHOUSE_URL", "http://default@127.0.0.1:1/default");
    let text = nowhere.refusal(4, &look).await?;
    assert!(
        text.contains("sink clickhouse at http://127.0.0.1:1"),
        "{text}"
    );
    let nowhere = same_sink(program, "postgresql://postgres@127.0.0.1:1/app", clickhouse)?;
    nowhere.refusal(4, &look).await?;
    Ok(())
}
