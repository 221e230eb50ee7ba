//! The stage: two servers, the schema, the sink, roles, the sample application and the relay.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pillarbox_testkit::servers::{ClickHouse, Postgres, eventually};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::ChildStdout;

use crate::child::{self, Child};
use crate::config::Config;

/// The role of the application and of the writers, and the role of the relay.
const APP: &str = "demo_app";
const RELAY: &str = "demo_relay";

/// Only so that roles log in as in production; the servers listen on loopback.
const PASSWORD: &str = "demo";

/// Share of the application's requests that roll back after publishing.
const FAIL_RATE: &str = "0.05";

/// How long the application may take to listen: it connects once and creates a table.
const LISTEN_DEADLINE: Duration = Duration::from_secs(30);

/// The table of the writers' business steps: one row for each transaction.
const BUSINESS: &str = "
    create role demo_app login password 'demo';
    create role demo_relay login password 'demo';
    grant create on schema public to demo_app;
    create table public.receipts (receipt uuid primary key, writer text not null);
    grant insert on public.receipts to demo_app";

pub(crate) struct Stage {
    // Declared in the order of their end.
    pub(crate) relay: Child,
    pub(crate) users: Child,
    pub(crate) clickhouse: Arc<ClickHouse>,
    pub(crate) postgres: Postgres,
    pub(crate) cli: Cli,
    /// Where the application serves.
    pub(crate) users_url: String,
    /// For the application and the writers.
    pub(crate) app_url: String,
    relay_start: RelayStart,
    _dir: TempDir,
}

/// The program `pillarbox`, for an administrator.
pub(crate) struct Cli {
    pub(crate) program: PathBuf,
    pub(crate) database_url: String,
    pub(crate) clickhouse_url: String,
}

/// What starts the relay, again and again.
struct RelayStart {
    program: PathBuf,
    database_url: String,
    clickhouse_url: String,
    log: PathBuf,
}

impl Stage {
    /// Starts everything. Dropping the future ends what was started.
    pub(crate) async fn start(config: &Config) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("pillarbox-demo-")
            .tempdir()?;
        let pillarbox = built("pillarbox")?;
        let users = built("users")?;
        let postgres = Postgres::builder()
            .password_method("scram-sha-256")
            .durable();
        let (postgres, clickhouse) =
            tokio::try_join!(postgres.start(), ClickHouse::start(config.flavour))?;
        let admin_url = postgres.create_database("demo").await?;
        let clickhouse_url = format!(
            "{}/{}",
            clickhouse.url_with_credentials()?,
            clickhouse.database()
        );
        let cli = Cli {
            program: pillarbox.clone(),
            database_url: admin_url,
            clickhouse_url: clickhouse_url.clone(),
        };
        let admin = postgres.connect_as("demo", "postgres", None).await?;
        admin
            .batch_execute(BUSINESS)
            .await
            .context("creating the demo's roles and table")?;
        cli.run(&["migrate"]).await?;
        cli.run(&["sink", "create"]).await?;
        cli.run(&["grant", APP, "--as", "publisher"]).await?;
        cli.run(&["grant", RELAY, "--as", "relay"]).await?;

        let app_url = postgres.url_for("demo", APP, Some(PASSWORD))?;
        let (users, users_url) = start_users(&users, &app_url, dir.path()).await?;
        let relay_start = RelayStart {
            program: pillarbox,
            database_url: postgres.url_for("demo", RELAY, Some(PASSWORD))?,
            clickhouse_url,
            log: dir.path().join("relay.log"),
        };
        Ok(Self {
            relay: relay_start.start()?,
            users,
            clickhouse: Arc::new(clickhouse),
            postgres,
            cli,
            users_url,
            app_url,
            relay_start,
            _dir: dir,
        })
    }

    /// Starts the relay again after it was killed.
    pub(crate) fn start_relay(&mut self) -> Result<()> {
        self.relay = self.relay_start.start()?;
        Ok(())
    }

    /// An error, with the end of its log, if a child has ended by itself.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.relay.check()?;
        self.users.check()
    }
}

impl RelayStart {
    fn start(&self) -> Result<Child> {
        let environment = [
            ("DATABASE_URL", self.database_url.as_str()),
            ("CLICKHOUSE_URL", &self.clickhouse_url),
        ];
        Child::start(
            "pillarbox relay",
            &self.program,
            &["relay"],
            &environment,
            &self.log,
        )
    }
}

/// What `pillarbox status --json` says of the one sink, as far as the demo cares.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SinkStatus {
    pub(crate) state: String,
    pub(crate) stopped_reason: Option<String>,
    pub(crate) lag_ms: i64,
    waiting_events: i64,
    open_batches: i64,
}

/// The lines of `pillarbox status --watch --json`.
pub(crate) struct Statuses {
    lines: Lines<BufReader<ChildStdout>>,
    _process: tokio::process::Child,
}

impl Statuses {
    /// The next one. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<SinkStatus> {
        let line = self.lines.next_line().await?;
        SinkStatus::parse(&line.context("pillarbox status ended")?)
    }
}

impl SinkStatus {
    fn parse(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Status {
            sinks: Vec<SinkStatus>,
        }
        let status: Status = serde_json::from_str(text).context("reading pillarbox status")?;
        let sink = status.sinks.into_iter().next();
        sink.context("pillarbox status names no sink")
    }

    /// Whether every committed event has arrived.
    pub(crate) fn is_drained(&self) -> bool {
        self.waiting_events == 0 && self.open_batches == 0
    }
}

impl Cli {
    pub(crate) async fn run(&self, arguments: &[&str]) -> Result<String> {
        child::output(&self.program, arguments, &self.environment()).await
    }

    /// Where the sink stands.
    pub(crate) async fn status(&self) -> Result<SinkStatus> {
        SinkStatus::parse(&self.run(&["status", "--json"]).await?)
    }

    /// Where the sink stands, every second: also while the sink does not answer.
    pub(crate) fn statuses(&self) -> Result<Statuses> {
        let arguments = ["status", "--watch", "--json"];
        let mut process = child::command(&self.program, &arguments, &self.environment())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting pillarbox status")?;
        let output = process
            .stdout
            .take()
            .context("pillarbox status has no output")?;
        Ok(Statuses {
            lines: BufReader::new(output).lines(),
            _process: process,
        })
    }

    fn environment(&self) -> [(&str, &str); 2] {
        [
            ("DATABASE_URL", &self.database_url),
            ("CLICKHOUSE_URL", &self.clickhouse_url),
        ]
    }
}

/// A program that `make demo` has built next to this one.
fn built(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    ensure!(
        program.exists(),
        "{} is not built; run `make demo`",
        program.display()
    );
    Ok(program)
}

/// Starts the sample application on a free port and waits until it says where it listens.
async fn start_users(program: &Path, database_url: &str, dir: &Path) -> Result<(Child, String)> {
    let environment = [
        ("DATABASE_URL", database_url),
        ("LISTEN", "127.0.0.1:0"),
        ("USERS_FAIL_RATE", FAIL_RATE),
        ("LOG_FORMAT", "json"),
        ("RUST_LOG", "info"),
    ];
    let mut users = Child::start("users", program, &[], &environment, &dir.join("users.log"))?;
    let url = eventually("users to listen", LISTEN_DEADLINE, || {
        let found = users.check().and_then(|()| users.log()).map(|log| {
            let (_, rest) = log.split_once("listening on ")?;
            let (url, _) = rest.split_once('"')?;
            Some(url.to_owned())
        });
        std::future::ready(found)
    });
    let url = url.await?;
    Ok((users, url))
}
