//! From `publish` to `events`: the whole path by the command line.

use anyhow::{Context as _, Result};
use pillarbox_testkit::servers::{ClickHouse, Flavour, PgVersion, eventually};
use rustix::process::Signal;

use crate::program::{DEADLINE, Program, connect, database, finish, says, signal, unique};

const VERSIONS: [(PgVersion, Flavour, &str); 2] = [
    (PgVersion::V15, Flavour::V18, "lookup"),
    (PgVersion::V18, Flavour::V26, "token"),
];

#[tokio::test]
async fn an_event_goes_from_publish_to_events() -> Result<()> {
    for (version, flavour, guarantee) in VERSIONS {
        let (_postgres, program, _url) = database(version).await?;
        let clickhouse = ClickHouse::start(flavour).await?;
        let program = program.with_clickhouse(&clickhouse)?;
        program.done(&["migrate"]).await?;
        let id = program
            .done(&["publish", "user_created", "{\"name\": \"Ada\"}"])
            .await?;
        program
            .done(&["publish", "login", "{}", "--environment", "staging"])
            .await?;

        let created = program.json(&["sink", "create"]).await?;
        assert_eq!(created["table_created"], true, "{created}");
        assert_eq!(created["registered"], true);
        assert_eq!(created["report"]["guarantee"], guarantee);
        let again = program.done(&["sink", "create"]).await?;
        assert!(
            again.contains("is there") && again.contains("registered already"),
            "{again}"
        );
        let report = program.done(&["sink", "check"]).await?;
        assert!(
            report.contains(guarantee) && report.contains("event_context"),
            "{report}"
        );

        let before = program.json(&["status"]).await?;
        let sink = &before["sinks"][0];
        assert_eq!(sink["waiting_events"], 2, "{before}");
        assert_eq!(sink["state"], "no relay");
        assert_eq!(sink["guarantee"], guarantee);
        assert!(sink["lag_ms"].as_i64() > Some(0), "{before}");
        assert!(sink["last_delivery"].is_null());
        assert_eq!(before["ring"].as_array().map(Vec::len), Some(4));

        let drained = program.json(&["relay", "--once"]).await?;
        assert_eq!(drained["rows"], 2, "{drained}");
        let out = program.done(&["relay", "--once"]).await?;
        assert!(out.contains("delivered 0 events"), "{out}");
        let after = program.json(&["status"]).await?;
        let sink = &after["sinks"][0];
        assert_eq!(
            (&sink["waiting_events"], &sink["lag_ms"]),
            (&0.into(), &0.into()),
            "{after}"
        );
        assert_eq!(sink["last_delivery"]["rows"], 2);
        let shown = program.done(&["status"]).await?;
        assert!(
            shown.contains("clickhouse") && shown.contains("current"),
            "{shown}"
        );

        events_are_found(&program, id.trim()).await?;
        program
            .done(&["sink", "retire", "clickhouse", "--yes"])
            .await?;
        let text = program.refusal(3, &["sink", "create"]).await?;
        assert!(text.contains("was retired"), "{text}");
        program.refusal(3, &["relay", "--once"]).await?;
    }
    Ok(())
}

async fn events_are_found(program: &Program, id: &str) -> Result<()> {
    let found = async |options: &[&str]| -> Result<Vec<String>> {
        let events = program.json(&[&["events"], options].concat()).await?;
        let events = events.as_array().context("no list")?.clone();
        let type_of = |event: &serde_json::Value| event["event_type"].as_str().map(str::to_owned);
        Ok(events.iter().filter_map(type_of).collect())
    };
    assert_eq!(found(&["--since", "1h"]).await?, ["login", "user_created"]);
    assert_eq!(found(&["--until", "1h"]).await?, [""; 0]);
    assert_eq!(found(&["--since", "2d", "--limit", "1"]).await?, ["login"]);
    assert_eq!(found(&["--type", "login"]).await?, ["login"]);
    assert_eq!(
        found(&["--environment", "production"]).await?,
        ["user_created"]
    );
    assert_eq!(found(&["--id", id]).await?, ["user_created"]);
    assert_eq!(found(&["--contains", "Ada"]).await?, ["user_created"]);
    assert_eq!(found(&["--contains", "' or 1=1 --"]).await?, [""; 0]);
    let table = program.done(&["events"]).await?;
    assert!(
        table.contains("{\"name\": \"Ada\"}") && table.contains(id),
        "{table}"
    );
    for wrong in [
        ["--since", "soon"],
        ["--since", "-1h"],
        ["--limit", "0"],
        ["--id", "x"],
    ] {
        let ran = program
            .run(&[&["events"], wrong.as_slice()].concat())
            .await?;
        assert_eq!(ran.code, 2, "{wrong:?}: {ran:?}");
    }
    Ok(())
}

#[tokio::test]
async fn print_is_the_table_that_create_makes() -> Result<()> {
    for (version, flavour, _) in VERSIONS {
        let (_postgres, program, _url) = database(version).await?;
        let clickhouse = ClickHouse::start(flavour).await?;
        let program = program.with_clickhouse(&clickhouse)?;
        program.done(&["migrate"]).await?;
        let printed = program.done(&["sink", "create", "--print"]).await?;
        for statement in printed.split_inclusive(";\n") {
            clickhouse
                .query(statement.trim_end().trim_end_matches(';'))
                .await?;
        }
        let by_hand = clickhouse
            .query(&format!("show create table {}", program.table))
            .await?;
        let seen = program.json(&["sink", "create"]).await?;
        assert_eq!(seen["table_created"], false, "{seen}");
        clickhouse
            .query(&format!("drop table {}", program.table))
            .await?;
        let made = program.json(&["sink", "create"]).await?;
        assert_eq!(made["table_created"], true, "{made}");
        assert_eq!(
            clickhouse
                .query(&format!("show create table {}", program.table))
                .await?,
            by_hand
        );
        let cluster = program
            .done(&["sink", "create", "--print", "--cluster", "main"])
            .await?;
        assert!(
            cluster.contains("ON CLUSTER `main`") && cluster.contains("Replicated"),
            "{cluster}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_sink_from_now_on_and_a_second_sink() -> Result<()> {
    let (_postgres, program, _url) = database(PgVersion::V15).await?;
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    let url = clickhouse.url_with_credentials()?;
    let (everything, fresh) = (unique("everything"), unique("fresh"));
    let program = program.file(&format!(
        "[sinks.all]\nurl = '{url}'\ntable = '{everything}'\n[sinks.new]\nurl = '{url}'\ntable = '{fresh}'\n"
    ))?;
    program.done(&["migrate"]).await?;
    program.done(&["publish", "early", "{}"]).await?;
    let text = program.refusal(2, &["sink", "create"]).await?;
    assert!(text.contains("say which, all or new"), "{text}");
    program.done(&["sink", "create", "all"]).await?;
    program
        .done(&["sink", "create", "new", "--from-now"])
        .await?;
    program.done(&["publish", "late", "{}"]).await?;
    let out = program.done(&["relay", "--once"]).await?;
    assert!(
        out.contains("delivered 2 events in")
            && out.contains("delivered 1 event in 1 batch to new"),
        "{out}"
    );
    let fresh = program.json(&["events", "--sink", "new"]).await?;
    assert_eq!(fresh[0]["event_type"], "late");
    assert_eq!(fresh.as_array().map(Vec::len), Some(1));

    let moved =
        Program::on(&_url)?.file(&format!("[sinks.all]\nurl = '{url}'\ntable = 'other'\n"))?;
    let text = moved.refusal(3, &["relay", "--once"]).await?;
    assert!(
        text.contains(&format!("registered for clickhouse:default.{everything}")),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn the_relay_delivers_until_it_is_told_to_stop() -> Result<()> {
    for (version, flavour, guarantee) in VERSIONS {
        let (_postgres, program, url) = database(version).await?;
        let clickhouse = ClickHouse::start(flavour).await?;
        let program = program
            .with_clickhouse(&clickhouse)?
            .with("PILLARBOX_RELAY__MAX_AGE", "50ms")
            .with("PILLARBOX_LOG_FORMAT", "json");
        program.done(&["migrate"]).await?;
        program.done(&["sink", "create"]).await?;
        let relay = program.start(&["relay"])?;
        for _ in 0..2 {
            program.done(&["publish", "live", "{}"]).await?;
        }
        let arrived = eventually("two events", DEADLINE, || async {
            let status = program.json(&["status"]).await?;
            let sink = &status["sinks"][0];
            let done = sink["last_delivery"].is_object() && sink["waiting_events"] == 0;
            Ok(done.then(|| sink.clone()))
        });
        let sink = arrived.await?;
        assert_eq!(
            (&sink["state"], &sink["guarantee"]),
            (&"running".into(), &guarantee.into())
        );
        let text = program.refusal(3, &["relay", "--once"]).await?;
        assert!(text.contains("another relay is active"), "{text}");
        signal(&relay, Signal::TERM)?;
        let ended = finish(relay).await?;
        assert_eq!(ended.code, 0, "{ended:?}");
        for line in ended.err.lines() {
            let parsed: serde_json::Value = serde_json::from_str(line).context(line.to_owned())?;
            assert!(
                parsed["message"].is_string() && parsed["level"].is_string(),
                "{line}"
            );
        }
        let count = clickhouse
            .query(&format!("select count() from {}", program.table))
            .await?;
        assert_eq!(count.trim(), "2");
        let held = "select count(*) from pg_locks where locktype = 'advisory'";
        let client = connect(&url).await?;
        eventually("the relay's locks to go", DEADLINE, || async {
            Ok((client.query_one(held, &[]).await?.get::<_, i64>(0) == 0).then_some(()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_second_signal_ends_a_relay_that_cannot_finish() -> Result<()> {
    let (_postgres, program, _url) = database(PgVersion::V15).await?;
    let clickhouse = ClickHouse::start(Flavour::V18).await?;
    let program = program
        .with_clickhouse(&clickhouse)?
        .with("PILLARBOX_RELAY__MAX_AGE", "50ms");
    program.done(&["migrate"]).await?;
    program.done(&["sink", "create"]).await?;
    let mut relay = program.start(&["relay"])?;
    program.done(&["publish", "first", "{}"]).await?;
    eventually("the relay to be delivering", DEADLINE, || async {
        let status = program.json(&["status"]).await?;
        Ok(status["sinks"][0]["last_delivery"]
            .is_object()
            .then_some(()))
    })
    .await?;
    clickhouse.pause()?;
    program.done(&["publish", "stuck", "{}"]).await?;
    eventually("a batch in flight", DEADLINE, || async {
        let status = program.json(&["status"]).await?;
        Ok((status["sinks"][0]["open_batches"] == 1).then_some(()))
    })
    .await?;
    signal(&relay, Signal::TERM)?;
    let log = relay.stderr.as_mut().context("its log")?;
    says(log, "a second signal stops at once").await?;
    signal(&relay, Signal::TERM)?;
    let ended = finish(relay).await?;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(
        ended
            .err
            .contains("error: stopped at once by a second signal"),
        "{ended:?}"
    );
    clickhouse.resume()?;
    program.done(&["relay", "--once"]).await?;
    let count = clickhouse
        .query(&format!("select count() from {}", program.table))
        .await?;
    assert_eq!(count.trim(), "2");
    Ok(())
}

#[tokio::test]
async fn a_member_of_pillarbox_relay_may_relay_and_no_more() -> Result<()> {
    for (version, flavour, _) in VERSIONS {
        let (postgres, program, url) = database(version).await?;
        let clickhouse = ClickHouse::start(flavour).await?;
        let program = program.with_clickhouse(&clickhouse)?;
        program.done(&["migrate"]).await?;
        program.done(&["sink", "create"]).await?;
        program.done(&["publish", "x", "{}"]).await?;
        let user = unique("mover");
        postgres
            .execute(&format!("create role {user} login"))
            .await?;
        program.done(&["grant", &user, "--as", "relay"]).await?;
        let name = url.rsplit('/').next().unwrap_or_default();
        let mover = Program::on(&postgres.url_for(name, &user, None)?)?
            .with("CLICKHOUSE_URL", &clickhouse.url_with_credentials()?)
            .with("PILLARBOX_SINKS__CLICKHOUSE__TABLE", &program.table);
        assert_eq!(mover.json(&["relay", "--once"]).await?["rows"], 1);
        mover.json(&["status"]).await?;
        mover.refusal(3, &["uninstall", "--yes"]).await?;
        mover.refusal(3, &["publish", "x", "{}"]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn watch_refreshes_until_it_is_interrupted() -> Result<()> {
    let (_postgres, program, _url) = database(PgVersion::V15).await?;
    program.done(&["migrate"]).await?;
    let mut watch = program.start(&["status", "--watch", "--json"])?;
    let shown = watch.stdout.as_mut().context("what it shows")?;
    let first = says(shown, "\n").await?;
    let second = says(shown, "\n").await?;
    signal(&watch, Signal::INT)?;
    let ended = finish(watch).await?;
    assert_eq!(ended.code, 0, "{ended:?}");
    let lines = [first.as_str(), second.as_str()].into_iter();
    let lines = lines.chain(ended.out.lines());
    for line in lines {
        serde_json::from_str::<serde_json::Value>(line)?;
    }
    Ok(())
}

#[tokio::test]
async fn registration_waits_while_a_leaf_is_being_truncated() -> Result<()> {
    let (_postgres, program, url) = database(PgVersion::V15).await?;
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    let program = program.with_clickhouse(&clickhouse)?;
    program.done(&["migrate"]).await?;
    let ring = connect(&url).await?;
    // The lock under which a relay turns and truncates; the sink must not be registered beside it.
    let lock = "select pg_advisory_lock($1, 0)";
    ring.execute(lock, &[&pillarbox_relay::schema::LOCK_CLASS])
        .await?;
    let registration = program.start(&["sink", "create"])?;
    let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
    eventually("the registration to wait", DEADLINE, || async {
        Ok((ring.query_one(waiting, &[]).await?.get::<_, i64>(0) == 1).then_some(()))
    })
    .await?;
    let unlock = "select pg_advisory_unlock($1, 0)";
    ring.execute(unlock, &[&pillarbox_relay::schema::LOCK_CLASS])
        .await?;
    let ended = finish(registration).await?;
    assert_eq!(ended.code, 0, "{ended:?}");
    Ok(())
}
