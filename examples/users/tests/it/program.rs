//! The binary: environment, logs, signals.

use std::process::Stdio;
use std::time::Duration;

use pillarbox_testkit::servers::{Sentry, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::app::{Database, Http};

const DEADLINE: Duration = Duration::from_secs(30);

struct Program {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    log: Vec<String>,
    http: Http,
}

impl Program {
    async fn start(database: &Database, environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_users"))
            .env("DATABASE_URL", database.config().database_url)
            .env("LISTEN", "127.0.0.1:0")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut log = Vec::new();
        let base = loop {
            let next = tokio::time::timeout(DEADLINE, stdout.next_line());
            let line = next.await.unwrap().unwrap().unwrap();
            let base = line.split_once("listening on ").map(|(_, rest)| {
                rest.split(|c: char| c == '"' || c.is_whitespace())
                    .next()
                    .unwrap()
                    .to_owned()
            });
            log.push(line);
            if let Some(base) = base {
                break base;
            }
        };
        Self {
            child,
            stdout,
            log,
            http: Http::new(base),
        }
    }

    fn terminate(&self) {
        let pid = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(id as i32))
            .unwrap();
        kill_process(pid, Signal::TERM).unwrap();
    }

    /// Waits for the end and gives the whole log.
    async fn end(mut self) -> Vec<String> {
        let rest = async {
            while let Some(line) = self.stdout.next_line().await.unwrap() {
                self.log.push(line);
            }
            assert!(self.child.wait().await.unwrap().success());
        };
        tokio::time::timeout(DEADLINE, rest).await.unwrap();
        self.log
    }
}

#[tokio::test]
async fn logs_hold_the_use_case_and_no_personal_data() {
    let database = Database::start().await;
    let environment = [("LOG_FORMAT", "json"), ("RUST_LOG", "trace")];
    let program = Program::start(&database, &environment).await;
    assert_eq!(program.http.create("ada@example.org").await.0, 201);
    assert_eq!(program.http.create("ada@example.org").await.0, 409);
    assert_eq!(
        program
            .http
            .post(&serde_json::json!({ "email": "x@" }))
            .await
            .0,
        422
    );
    assert_eq!(program.http.get("/users").await.0, 200);
    database
        .admin
        .batch_execute("drop schema pillarbox cascade")
        .await
        .unwrap();
    assert_eq!(program.http.create("bob@example.org").await.0, 500);
    program.terminate();
    let log = program.end().await;

    for line in &log {
        for personal in ["@example.org", "Lovelace", "Ada"] {
            assert!(!line.contains(personal), "{line}");
        }
    }
    let lines: Vec<Value> = log
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let outcomes: Vec<_> = lines
        .iter()
        .filter(|line| line["use_case"] == "create_user")
        .map(|line| line["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(outcomes, ["created", "already_exists", "rolled_back"]);
    let created = lines
        .iter()
        .find(|line| line["outcome"] == "created")
        .unwrap();
    assert_eq!(created["user_id"], 1);
    let event_id: pillarbox::Uuid = created["event_id"].as_str().unwrap().parse().unwrap();
    assert_eq!(event_id.get_version_num(), 7);
    let failed = lines
        .iter()
        .find(|line| line["outcome"] == "rolled_back")
        .unwrap();
    assert!(
        failed["error"]
            .as_str()
            .unwrap()
            .contains("pillarbox migrate"),
        "{failed}"
    );
}

/// The trace of a request goes on in its event, and so in the delivery; nothing personal is reported.
#[tokio::test]
async fn requests_and_errors_reach_sentry_without_personal_data() {
    let (database, sentry) = (Database::start().await, Sentry::start().await.unwrap());
    let dsn = sentry.dsn();
    let program = Program::start(&database, &[("SENTRY_DSN", &dsn)]).await;
    assert_eq!(program.http.create("ada@example.org").await.0, 201);
    let sql = "select trace_parent from pillarbox.event";
    let event = database.admin.query_one(sql, &[]).await.unwrap();
    let trace_parent: String = event.get(0);
    database
        .admin
        .batch_execute("drop schema pillarbox cascade")
        .await
        .unwrap();
    assert_eq!(program.http.create("bob@example.org").await.0, 500);
    program.terminate();
    program.end().await;

    let transactions = sentry.items("transaction");
    let of_event = transactions.iter().find(|transaction| {
        let trace_id = transaction["contexts"]["trace"]["trace_id"].as_str();
        trace_id.is_some_and(|trace_id| trace_parent[3..35] == *trace_id)
    });
    assert!(of_event.is_some(), "{trace_parent} in {transactions:?}");
    let errors = sentry.items("event");
    let failed = errors
        .iter()
        .find(|event| event.to_string().contains("pillarbox migrate"));
    assert!(failed.is_some(), "{errors:?}");
    for item in transactions.iter().chain(&errors) {
        for personal in ["@example.org", "Lovelace", "Ada"] {
            assert!(!item.to_string().contains(personal), "{item}");
        }
    }
}

#[tokio::test]
async fn sigterm_lets_an_open_request_finish() {
    let database = Database::start().await;
    let program = Program::start(&database, &[("LOG_FORMAT", "")]).await;
    let mut other = database.connect().await;
    let tx = other.transaction().await.unwrap();
    let sql = "insert into users (email, first_name, last_name) values ('ada@example.org', '', '')";
    tx.execute(sql, &[]).await.unwrap();
    let http = program.http.clone();
    let request = tokio::spawn(async move { http.create("ada@example.org").await.0 });
    eventually("the request to wait", DEADLINE, || async {
        Ok(database.somebody_waits().await.then_some(()))
    })
    .await
    .unwrap();
    program.terminate();
    tx.rollback().await.unwrap();
    assert_eq!(request.await.unwrap(), 201);
    program.end().await;
    assert_eq!(
        (database.users().await, database.events().await.len()),
        (1, 1)
    );
}

#[tokio::test]
async fn a_wrong_environment_is_named() {
    for (environment, wanted) in [
        (
            [("DATABASE_URL", ""), ("LISTEN", "")],
            "DATABASE_URL is not set",
        ),
        (
            [("DATABASE_URL", "postgresql://x"), ("LISTEN", "here")],
            "LISTEN is \"here\"",
        ),
        (
            [("DATABASE_URL", "x"), ("USERS_FAIL_RATE", "2")],
            "USERS_FAIL_RATE is \"2\"",
        ),
        (
            [("DATABASE_URL", "x"), ("LOG_FORMAT", "xml")],
            "LOG_FORMAT is \"xml\"",
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_users"))
            .envs(environment)
            .output()
            .await
            .unwrap();
        assert!(!output.status.success());
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(wanted), "{text}");
    }
}
