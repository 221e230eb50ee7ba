//! Events from Redis and from files, as users of the program meet them.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use pillarbox_relay::schema::INTAKE_LOCK_CLASS;
use pillarbox_testkit::servers::{Persistence, PgVersion, Redis, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::program::{DEADLINE, Program, connect, database, finish, says, signal, unique};

const CONFIGURATION: &str = "
[intake.logins]
kind = 'redis-list'
key = 'logins'
max_age = '10ms'

[intake.visits]
kind = 'redis-stream'
key = 'visits'
";

fn line(nth: u32) -> String {
    format!(r#"{{"event_type":"login","event_context":{{"n":{nth}}}}}"#)
}

async fn rows(url: &str) -> Result<i64> {
    let client = connect(url).await?;
    let row = client
        .query_one("select count(*) from pillarbox.event", &[])
        .await?;
    Ok(row.get(0))
}

#[tokio::test]
async fn intakes_are_run_seen_and_their_dead_letters_handled() -> Result<()> {
    let (_postgres, program, url) = database(PgVersion::V18).await?;
    let redis = Redis::start(Persistence::None).await?;
    let program = program
        .with("REDIS_URL", &redis.url())
        .file(CONFIGURATION)?;
    program.done(&["migrate"]).await?;
    for nth in 0..3 {
        // Without a space, so that Redis' inline commands take it.
        redis
            .command(&format!("lpush logins '{}'", line(nth)))
            .await?;
    }
    redis.command("lpush logins no-event").await?;
    redis
        .command("xadd visits * event_type visit event_context 7 colour blue")
        .await?;
    let status = program.json(&["status"]).await?;
    assert_eq!(status["intakes"][0]["waiting_entries"], 4, "{status}");
    assert_eq!(status["intakes"][1]["waiting_entries"], 1, "{status}");
    ensure!(status["intakes"][1]["lag_ms"].is_u64(), "{status}");

    let out = program.done(&["intake", "--once", "--json"]).await?;
    let mut done: Vec<Value> = out
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    done.sort_by_key(|done| done["intake"].to_string());
    assert_eq!(
        done[0],
        json!({ "intake": "logins", "taken": 3, "dead": 1, "restored": 0 })
    );
    assert_eq!(
        done[1],
        json!({ "intake": "visits", "taken": 0, "dead": 1, "restored": 0 })
    );
    assert_eq!(rows(&url).await?, 3);

    let letters = program.json(&["dead-letters", "list"]).await?;
    assert_eq!(letters.as_array().map(Vec::len), Some(2), "{letters}");
    let visits = program
        .json(&["dead-letters", "list", "--intake", "visits"])
        .await?;
    let number = visits[0]["number"].to_string();
    ensure!(
        visits[0]["reason"]
            .as_str()
            .is_some_and(|r| r.contains("a field that no event has"))
    );
    let shown = program.json(&["dead-letters", "show", &number]).await?;
    ensure!(
        shown["entry"]
            .as_str()
            .is_some_and(|entry| entry.contains("$4\r\nblue")),
        "{shown}"
    );
    // It is still none.
    let tried = program.run(&["dead-letters", "retry", &number]).await?;
    ensure!(
        tried.code == 3 && tried.out.contains("published 0 events"),
        "{tried:?}"
    );
    let dropped = ["dead-letters", "drop", &number, "--reason", "a trial"];
    ensure!(
        program
            .done(&dropped)
            .await?
            .contains("dropped 1 dead letter of intakes")
    );
    program.refusal(3, &dropped).await?;
    let text = program.done(&["dead-letters", "list"]).await?;
    ensure!(
        text.contains("it is not a json object") && !text.contains("visits"),
        "{text}"
    );

    let doctor = program.run(&["doctor", "--json"]).await?;
    let found: Value = serde_json::from_str(&doctor.out)?;
    let of_intakes = |check: &str| {
        let all = found["findings"].as_array().cloned().unwrap_or_default();
        let is_it = |f: &&Value| f["area"] == "intakes" && f["check"] == check;
        all.iter().filter(is_it).count()
    };
    assert_eq!(
        (of_intakes("redis"), of_intakes("dead_letters")),
        (2, 1),
        "{found}"
    );
    // A relay alone may not publish; what the doctor says mends it.
    let admin = connect(&url).await?;
    let role = unique("relay");
    let create = format!("create role {role} login; grant pillarbox_relay to {role}");
    admin.batch_execute(&create).await?;
    let as_relay = Program::on(&url.replace("postgres@", &format!("{role}@")))?
        .with("REDIS_URL", &redis.url())
        .file(CONFIGURATION)?;
    let remedy = format!("grant pillarbox_publisher, pillarbox_relay to {role};");
    let doctor = as_relay.run(&["doctor"]).await?;
    ensure!(
        doctor.code == 3 && doctor.out.contains(&remedy),
        "{doctor:?}"
    );
    admin.batch_execute(&remedy).await?;
    let doctor = as_relay.run(&["doctor"]).await?;
    ensure!(!doctor.out.contains("may not publish"), "{doctor:?}");
    Ok(())
}

#[tokio::test]
async fn a_retry_publishes_an_entry_once_when_it_has_become_an_event() -> Result<()> {
    let (_postgres, program, url) = database(PgVersion::V15).await?;
    let redis = Redis::start(Persistence::None).await?;
    let program = program
        .with("REDIS_URL", &redis.url())
        .file(CONFIGURATION)?;
    program.done(&["migrate"]).await?;
    program
        .done(&["settings", "--event-bytes-max", "2000"])
        .await?;
    let large = format!(
        r#"{{"event_type":"t","event_context":"{}"}}"#,
        "x".repeat(3_000)
    );
    redis.command(&format!("lpush logins '{large}'")).await?;
    program.done(&["intake", "logins", "--once"]).await?;
    assert_eq!(rows(&url).await?, 0);
    program
        .done(&["settings", "--event-bytes-max", "5000"])
        .await?;
    let all = ["dead-letters", "retry", "--all", "--intake", "logins"];
    let tried = program.json(&all).await?;
    assert_eq!(tried, json!({ "published": 1, "still_dead": 0 }));
    assert_eq!(
        program.json(&all).await?,
        json!({ "published": 0, "still_dead": 0 })
    );
    assert_eq!(rows(&url).await?, 1);
    let list = program
        .json(&["dead-letters", "list", "--intake", "logins", "--all"])
        .await?;
    assert_eq!(list[0]["state"], "published");
    let sql = "select event_id::text from pillarbox.event";
    let id: String = connect(&url).await?.query_one(sql, &[]).await?.get(0);
    assert_eq!(list[0]["event_id"], id);
    Ok(())
}

#[tokio::test]
async fn a_running_intake_shows_its_metrics_and_stops_on_sigterm() -> Result<()> {
    let (_postgres, program, url) = database(PgVersion::V15).await?;
    let redis = Redis::start(Persistence::None).await?;
    let program = program
        .with("REDIS_URL", &redis.url())
        .with("PILLARBOX_CONSOLE__LISTEN", "127.0.0.1:0")
        .with("PILLARBOX_LOG_FORMAT", "json")
        .file(CONFIGURATION)?;
    program.done(&["migrate"]).await?;
    let mut child = program.start(&["intake", "logins"])?;
    let mut stderr = child.stderr.take().context("standard error")?;
    let said = says(&mut stderr, "intake active").await?;
    let console = said
        .lines()
        .find(|line| line.contains("the console listens"));
    let console: Value = serde_json::from_str(console.context("no console")?)?;
    let address = console["address"].as_str().context("no address")?;
    redis
        .command(&format!("lpush logins '{}'", line(1)))
        .await?;
    redis.command("lpush logins secret-word").await?;
    eventually("metrics", DEADLINE, || async {
        let text = reqwest::get(format!("http://{address}/metrics"))
            .await?
            .text()
            .await?;
        let has = |line: &str| text.lines().any(|found| found == line);
        let is_there = has(r#"pillarbox_intake_taken_total{intake="logins"} 1"#)
            && has(r#"pillarbox_intake_dead_letters_total{intake="logins"} 1"#)
            && has(r#"pillarbox_intake_active{intake="logins"} 1"#)
            && has(r#"pillarbox_intake_waiting_entries{intake="logins"} 0"#);
        Ok(is_there.then_some(()))
    })
    .await?;
    let status = program.json(&["status"]).await?;
    assert_eq!(status["intakes"][0]["active"], true, "{status}");
    signal(&child, Signal::TERM)?;
    let rest = says(&mut stderr, "intake stopped").await?;
    ensure!(!rest.contains("secret-word"), "{rest}");
    assert_eq!(finish(child).await?.code, 0);
    assert_eq!(rows(&url).await?, 1);
    Ok(())
}

#[tokio::test]
async fn what_is_not_configured_or_away_is_said_with_the_remedy() -> Result<()> {
    let (_postgres, program, _) = database(PgVersion::V15).await?;
    let text = program.refusal(2, &["intake"]).await?;
    ensure!(
        text.contains("add [intake.NAME] with kind, url and key"),
        "{text}"
    );
    let program = program.file(CONFIGURATION)?;
    program.done(&["migrate"]).await?;
    let text = program.refusal(2, &["intake", "login"]).await?;
    ensure!(
        text.contains("not configured (configured: logins, visits)"),
        "{text}"
    );
    let text = program.refusal(2, &["intake", "--once"]).await?;
    ensure!(text.contains("set REDIS_URL"), "{text}");
    let away = Redis::start(Persistence::None).await?;
    let program = program.with("REDIS_URL", &away.url());
    away.stop().await?;
    let ran = program.run(&["intake", "logins", "--once"]).await?;
    ensure!(
        ran.code == 4 && ran.err.contains("redis does not answer"),
        "{ran:?}"
    );
    let status = program.json(&["status"]).await?;
    ensure!(status["intakes"][0]["trouble"].is_string(), "{status}");
    Ok(())
}

fn write(program: &Program, name: &str, text: &str) -> Result<String> {
    let path = program.dir.path().join(name);
    std::fs::write(&path, text)?;
    Ok(Path::new(&path).display().to_string())
}

#[tokio::test]
async fn an_import_waits_for_the_session_of_one_that_has_just_ended() -> Result<()> {
    let (_postgres, program, url) = database(PgVersion::V18).await?;
    program.done(&["migrate"]).await?;
    let file = write(&program, "events.ndjson", &(line(1) + "\n"))?;
    let import = ["import", &file, "--name", "history"];
    program.json(&import).await?;

    let last = connect(&url).await?;
    let lock = "select pg_advisory_lock($1, intake) from pillarbox.intake where name = 'history'";
    last.query_one(lock, &[&INTAKE_LOCK_CLASS]).await?;
    let refused = program.refusal(3, &import).await?;
    ensure!(refused.contains("another process is active"), "{refused}");
    let again = program.start(&["import", &file, "--name", "history", "--json"])?;
    eventually("the import to meet the lock", DEADLINE, || async {
        const ASKED: &str = "
            select count(*) from pg_stat_activity
            where application_name = 'pillarbox/intake/history' and state = 'idle'
                and query like '%pg_try_advisory_lock%'";
        let asked: i64 = last.query_one(ASKED, &[]).await?.get(0);
        Ok((asked > 0).then_some(()))
    })
    .await?;
    drop(last);
    let again = finish(again).await?;
    ensure!(again.code == 0, "{again:?}");
    let done: Value = serde_json::from_str(&again.out)?;
    assert_eq!(done["lines_before"], 1, "{done}");
    Ok(())
}

#[tokio::test]
async fn files_and_standard_input_are_imported_once() -> Result<()> {
    let (_postgres, program, url) = database(PgVersion::V18).await?;
    program.done(&["migrate"]).await?;
    let text: String = (0..20).map(|nth| line(nth) + "\n").collect();
    let file = write(&program, "events.ndjson", &format!("{text}no event\n"))?;

    let trial = program.run(&["import", &file, "--dry-run"]).await?;
    ensure!(
        trial.code == 3 && trial.out.contains("would take 20 events"),
        "{trial:?}"
    );
    ensure!(
        trial
            .out
            .contains("the first in line 21: it is not a json object"),
        "{trial:?}"
    );
    assert_eq!(rows(&url).await?, 0);

    let done = program.json(&["import", &file]).await?;
    ensure!(
        done["taken"] == 20 && done["dead"] == 1 && done["first_dead"]["line"] == 21,
        "{done}"
    );
    let name = done["name"].as_str().context("a name")?;
    let again = program.json(&["import", &file]).await?;
    ensure!(
        again["taken"] == 0 && again["lines_before"] == 21,
        "{again}"
    );
    let letters = program
        .json(&["dead-letters", "list", "--intake", name])
        .await?;
    assert_eq!(letters[0]["place"], "line 21");

    let quiet = program
        .run(&["import", &file, "--name", "other", "--strict"])
        .await?;
    ensure!(quiet.code == 3 && quiet.out.is_empty(), "{quiet:?}");
    assert_eq!(rows(&url).await?, 20);

    for (name, expected) in [("history", 20), ("history", 0), ("more", 20)] {
        let ran = program
            .run_with_input(&["import", "-", "--name", name, "--json"], &text)
            .await?;
        ensure!(ran.code == 0 && ran.err.is_empty(), "{ran:?}");
        let done: Value = serde_json::from_str(&ran.out)?;
        assert_eq!(done["taken"], expected, "{done}");
    }
    assert_eq!(rows(&url).await?, 60);
    let changed = text.replace("\"n\":3}", "\"n\":4}");
    let ran = program
        .run_with_input(&["import", "-", "--name", "more"], &changed)
        .await?;
    ensure!(
        ran.code == 3 && ran.err.contains("under another --name"),
        "{ran:?}"
    );
    let missing = program.refusal(2, &["import", "nowhere.ndjson"]).await?;
    ensure!(
        missing.contains("nowhere.ndjson cannot be read"),
        "{missing}"
    );
    let empty = write(&program, "empty", "")?;
    ensure!(
        program
            .done(&["import", &empty])
            .await?
            .contains("took 0 events")
    );
    program
        .refusal(2, &["import", &file, "--name", "Not A Word"])
        .await?;
    Ok(())
}
