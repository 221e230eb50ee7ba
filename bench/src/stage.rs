//! Servers of a part's own, durable as in production, and outboxes in them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::cpu;
use pillarbox_testkit::servers::{ClickHouse, Flavour, Postgres, eventually};
use tokio::process::Command;

use crate::bench::Bench;
use crate::report::Report;

/// PostgreSQL's settings beyond `fsync` and `full_page_writes`, which are on.
const SETTINGS: [(&str, &str); 3] = [
    ("shared_buffers", "2GB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "30min"),
];
/// How long a statement, a drain or silence may take, on a machine that others use.
pub(crate) const PATIENCE: Duration = Duration::from_secs(900);

/// PostgreSQL 15 and ClickHouse 18.16. Dropping it ends both.
#[derive(Debug)]
pub(crate) struct Stage {
    // Declared in the order of their end.
    pub(crate) postgres: Postgres,
    pub(crate) clickhouse: ClickHouse,
    http: reqwest::Client,
    /// For configurations and logs.
    pub(crate) dir: tempfile::TempDir,
}

/// CPU time of both servers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) postgres: Duration,
    pub(crate) clickhouse: Duration,
}

/// An outbox in a database of its own.
#[derive(Debug)]
pub(crate) struct Outbox<'a> {
    pub(crate) stage: &'a Stage,
    bench: &'a Bench,
    /// Of its database.
    pub(crate) url: String,
}

impl Stage {
    /// Starts both servers, and notes them in the report.
    pub(crate) async fn start(report: &mut Report) -> Result<Self> {
        let mut postgres = Postgres::builder().durable();
        for (name, value) in SETTINGS {
            postgres = postgres.setting(name, value);
        }
        let stage = Self::of(postgres.start().await?).await?;
        let version = stage.postgres.query("show server_version", &[]).await?;
        report.machine.postgresql = version.first().context("a version")?.get(0);
        let version = stage.statement("select version()", &[], "").await?;
        report.machine.clickhouse = version.trim().to_owned();
        let settings = [("fsync", "on"), ("full_page_writes", "on")];
        let all = settings.iter().chain(&SETTINGS);
        let owned = all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        report.machine.settings = owned.collect();
        Ok(stage)
    }

    /// With a PostgreSQL that runs already.
    pub(crate) async fn of(postgres: Postgres) -> Result<Self> {
        Ok(Self {
            postgres,
            clickhouse: ClickHouse::start(Flavour::V18).await?,
            // 18.16 closes idle connections after seconds, and a request may meet that.
            http: reqwest::Client::builder()
                .pool_max_idle_per_host(0)
                .timeout(PATIENCE)
                .build()?,
            dir: tempfile::TempDir::new()?,
        })
    }

    /// Runs a statement of ClickHouse with settings, and what it inserts as the body.
    pub(crate) async fn statement(
        &self,
        sql: &str,
        settings: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Result<String> {
        let bytes = self.bytes(sql, settings, body).await?;
        Ok(String::from_utf8(bytes.to_vec())?)
    }

    /// The same for an answer that is no text.
    pub(crate) async fn bytes(
        &self,
        sql: &str,
        settings: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Result<bytes::Bytes> {
        let mut url = reqwest::Url::parse(self.clickhouse.url())?;
        url.query_pairs_mut()
            .append_pair("query", sql)
            .extend_pairs(settings);
        let body = body.into();
        let mut request = self
            .http
            .post(url)
            .header("X-ClickHouse-User", self.clickhouse.user())
            .header("X-ClickHouse-Key", self.clickhouse.password());
        // 18.16 refuses a request that does not say that nothing follows.
        if body.as_bytes().is_some_and(<[u8]>::is_empty) {
            request = request.header("Content-Length", "0");
        }
        let request = request.body(body);
        let answer = request.send().await.with_context(|| sql.to_owned())?;
        let status = answer.status();
        let bytes = answer.bytes().await.with_context(|| sql.to_owned())?;
        ensure!(
            status.is_success(),
            "{sql}: http {status}: {}",
            String::from_utf8_lossy(&bytes)
        );
        Ok(bytes)
    }

    /// CPU times of the servers since their start.
    pub(crate) fn times(&self) -> Result<Times> {
        let of = |pid: Option<u32>| cpu::of_family(pid.context("a server of our own")?);
        Ok(Times {
            postgres: of(self.postgres.pid())?,
            clickhouse: of(self.clickhouse.pid())?,
        })
    }

    /// Waits for sessions to end, and for merges: they belong to the drain that caused them.
    pub(crate) async fn wait_for_silence(&self) -> Result<()> {
        let others = "select count(*) from pg_stat_activity
                      where backend_type = 'client backend' and pid <> pg_backend_pid()";
        let merges = "select count() from system.merges";
        eventually("silence", PATIENCE, || async {
            let sessions = self.postgres.query(others, &[]).await?;
            let sessions: i64 = sessions.first().context("a count")?.get(0);
            let merges = self.statement(merges, &[], "").await?;
            Ok((sessions == 0 && merges.trim() == "0").then_some(()))
        })
        .await
    }

    /// Installs an outbox in a new database, as a user does.
    pub(crate) async fn plain_outbox<'a>(
        &'a self,
        bench: &'a Bench,
        name: &str,
    ) -> Result<Outbox<'a>> {
        let outbox = Outbox {
            stage: self,
            bench,
            url: self.postgres.create_database(name).await?,
        };
        outbox.pillarbox(&["migrate"], None).await?;
        Ok(outbox)
    }

    /// The same with room for any backlog.
    pub(crate) async fn outbox<'a>(&'a self, bench: &'a Bench, name: &str) -> Result<Outbox<'a>> {
        let outbox = self.plain_outbox(bench, name).await?;
        let settings = [
            "settings",
            "--retention=10 days",
            "--leaf-bytes-max=1024GiB",
            "--leaf-age-max=10 days",
            "--event-bytes-max=8MiB",
        ];
        outbox.pillarbox(&settings, None).await?;
        Ok(outbox)
    }
}

impl Outbox<'_> {
    /// The program under test.
    pub(crate) fn program(&self) -> &Path {
        &self.bench.pillarbox
    }

    /// The program under test on this outbox, and on nothing of the caller's environment.
    pub(crate) fn command(&self, arguments: &[&str], config: Option<&Path>) -> Command {
        let mut command = Command::new(&self.bench.pillarbox);
        command
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL", &self.url)
            .current_dir(self.stage.dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(config) = config {
            command.env("PILLARBOX_CONFIG", config);
        }
        command
    }

    /// Runs it to its end.
    pub(crate) async fn pillarbox(&self, arguments: &[&str], config: Option<&Path>) -> Result<()> {
        let output = self.command(arguments, config).output().await?;
        ensure!(
            output.status.success(),
            "pillarbox {} ended with {}:\n{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Configures a sink into a table of the same name, creates and registers it. Gives the configuration.
    pub(crate) async fn create_sink(&self, name: &str) -> Result<PathBuf> {
        let url = self.stage.clickhouse.url_with_credentials()?;
        let path = self.config(name);
        let text = format!("[sinks.{name}]\nurl = \"{url}\"\ntable = \"{name}\"\n");
        std::fs::write(&path, text)?;
        self.pillarbox(&["sink", "create", name], Some(&path))
            .await?;
        Ok(path)
    }

    /// The configuration of a sink.
    pub(crate) fn config(&self, sink: &str) -> PathBuf {
        self.stage.dir.path().join(format!("{sink}.toml"))
    }

    /// A session as superuser.
    pub(crate) async fn connect(&self) -> Result<tokio_postgres::Client> {
        let (client, connection) =
            tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await?;
        // It ends with the client; its error also reaches the client's next statement.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(client)
    }
}
