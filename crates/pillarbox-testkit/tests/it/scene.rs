//! The stage of the end-to-end tests: a PostgreSQL with the schema, a ClickHouse with a registered
//! table, and relays as processes of their own.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pillarbox_relay::schema::registry::{self, Start};
use pillarbox_relay::schema::{self, settings};
use pillarbox_relay::sink::clickhouse::{ClickHouse as Sink, ClickHouseConfig, CreateOptions};
use pillarbox_testkit::oracle::{Oracle, Precision, Verdict, read_clickhouse, read_dead_letters};
use pillarbox_testkit::servers::{ClickHouse, Flavour, PgVersion, Postgres, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use uuid::Uuid;

/// How long a relay may take to come to a step, and a drain to its end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// SIGKILL.
pub(crate) const KILLED: i32 = 9;

/// The sink's name and its table.
pub(crate) const SINK: &str = "clickhouse";
pub(crate) const TABLE: &str = "events";

/// The oldest with the oldest, the newest with the newest: each server is met in both ages.
pub(crate) fn version_for(flavour: Flavour) -> PgVersion {
    match flavour {
        Flavour::V18 => PgVersion::V15,
        Flavour::V26 => PgVersion::V18,
    }
}

/// Servers and a registered sink.
pub(crate) struct Scene {
    pub(crate) postgres: Postgres,
    pub(crate) clickhouse: ClickHouse,
    logs: TempDir,
    relays: AtomicU32,
}

impl Scene {
    /// The recommended table on the PostgreSQL that goes with it.
    pub(crate) async fn start(flavour: Flavour) -> Result<Self> {
        Self::on(Postgres::start(version_for(flavour)).await?, flavour).await
    }

    /// The recommended table.
    pub(crate) async fn on(postgres: Postgres, flavour: Flavour) -> Result<Self> {
        Self::of_version(postgres, flavour, schema::VERSION).await
    }

    /// The recommended table, and a schema of this version in PostgreSQL.
    pub(crate) async fn of_version(
        postgres: Postgres,
        flavour: Flavour,
        version: i32,
    ) -> Result<Self> {
        let clickhouse = ClickHouse::start(flavour).await?;
        let scene = Self::installed(postgres, clickhouse, version).await?;
        let sink = scene.sink(TABLE)?;
        sink.create(&CreateOptions::default()).await?;
        scene.register(SINK).await?;
        Ok(scene)
    }

    /// No table and no sink yet. The ring turns at every look and empties what it can.
    pub(crate) async fn without_table(postgres: Postgres, flavour: Flavour) -> Result<Self> {
        let clickhouse = ClickHouse::start(flavour).await?;
        Self::beside(postgres, clickhouse).await
    }

    /// The same with a server that runs already.
    pub(crate) async fn beside(postgres: Postgres, clickhouse: ClickHouse) -> Result<Self> {
        Self::installed(postgres, clickhouse, schema::VERSION).await
    }

    async fn installed(postgres: Postgres, clickhouse: ClickHouse, version: i32) -> Result<Self> {
        let mut client = postgres.connect().await?;
        schema::migrate_to(&mut client, version).await?;
        let change = settings::Change {
            retention: Some("0".to_owned()),
            leaf_bytes_max: Some(1),
            ..settings::Change::default()
        };
        settings::change(&mut client, &change).await?;
        Ok(Self {
            postgres,
            clickhouse,
            logs: TempDir::new()?,
            relays: AtomicU32::new(0),
        })
    }

    pub(crate) async fn register(&self, sink: &str) -> Result<()> {
        let client = self.postgres.connect().await?;
        registry::register(&client, sink, "test", Start::Outbox).await?;
        Ok(())
    }

    pub(crate) fn sink(&self, table: &str) -> Result<Sink> {
        let url = self.clickhouse.url_with_credentials()?;
        Ok(Sink::new(ClickHouseConfig::new(
            url,
            self.clickhouse.database(),
            table,
        ))?)
    }

    /// A relay of the scene's sink; `mode` is `run` or `drain`.
    pub(crate) fn relay(&self, mode: &str, failpoints: &str) -> Result<Command> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_relay_under_test"));
        command
            .env("DATABASE_URL", self.postgres.url())
            .env("SINK", SINK)
            .env("CLICKHOUSE_URL", self.clickhouse.url_with_credentials()?)
            .env("CLICKHOUSE_DATABASE", self.clickhouse.database())
            .env("CLICKHOUSE_TABLE", TABLE)
            .env("MODE", mode)
            .env("MAX_ROWS", "40")
            .env("MAX_AGE_MS", "20")
            .env("FAILPOINTS", failpoints)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Ok(command)
    }

    /// Starts a relay that runs until it is told to stop.
    pub(crate) fn running(&self) -> Result<Running> {
        self.running_with(&[])
    }

    /// The same with other variables.
    pub(crate) fn running_with(&self, variables: &[(&str, &str)]) -> Result<Running> {
        let mut command = self.relay("run", "")?;
        command.envs(variables.iter().copied());
        self.spawn(&mut command)
    }

    /// Starts a command whose standard error becomes a log.
    pub(crate) fn spawn(&self, command: &mut Command) -> Result<Running> {
        let number = self.relays.fetch_add(1, Ordering::Relaxed);
        let log = self.logs.path().join(format!("relay-{number}.log"));
        command.stderr(File::create(&log)?);
        let child = command.spawn()?;
        let pid = child.id().context("the relay has ended")?;
        let pid = Pid::from_raw(pid.cast_signed()).context("a pid")?;
        Ok(Running { child, pid, log })
    }

    /// The same events go on in another server.
    pub(crate) fn moved_to(self, postgres: Postgres) -> Self {
        Self { postgres, ..self }
    }

    /// The same events go on in another database of the server.
    pub(crate) fn in_database(self, name: &str) -> Self {
        let postgres = self.postgres.in_database(name);
        Self { postgres, ..self }
    }

    /// A drain that the relay refuses; gives its log.
    pub(crate) async fn refusal(&self) -> Result<String> {
        let output = tokio::time::timeout(PATIENCE, self.relay("drain", "")?.output())
            .await
            .context("the drain does not end")??;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "it was not refused:\n{log}");
        Ok(log)
    }

    /// Drains, and gives what the relay said it delivered.
    pub(crate) async fn drain(&self) -> Result<String> {
        self.drain_with(&[]).await
    }

    /// The same with other variables. As one would by cron, again while PostgreSQL has not noticed that the
    /// relay before was killed.
    pub(crate) async fn drain_with(&self, variables: &[(&str, &str)]) -> Result<String> {
        eventually("the drain to be active", PATIENCE, || async {
            let mut command = self.relay("drain", "")?;
            command.envs(variables.iter().copied());
            let output = tokio::time::timeout(PATIENCE, command.output())
                .await
                .context("the drain does not end")??;
            let log = String::from_utf8_lossy(&output.stderr);
            if log.contains("another relay is active for this sink") {
                return Ok(None);
            }
            ensure!(output.status.success(), "the drain failed:\n{log}");
            Ok(Some(String::from_utf8(output.stdout)?.trim().to_owned()))
        })
        .await
    }

    pub(crate) fn precision(&self) -> Precision {
        match self.clickhouse.flavour() {
            Flavour::V18 => Precision::Seconds,
            Flavour::V26 => Precision::Micros,
        }
    }

    /// Compares what the table holds with what was committed.
    pub(crate) async fn verdict(&self, oracle: &Oracle) -> Result<Verdict> {
        self.verdict_of(TABLE, oracle).await
    }

    /// The same of another table, or of a view of the sink's.
    pub(crate) async fn verdict_of(&self, table: &str, oracle: &Oracle) -> Result<Verdict> {
        let found = read_clickhouse(&self.clickhouse, table, self.precision()).await?;
        let dead = read_dead_letters(&self.postgres).await?;
        Ok(oracle.verdict(&found, &dead))
    }

    /// The events that are set aside.
    pub(crate) async fn dead(&self) -> Result<Vec<Uuid>> {
        let dead = "select l.event_id from pillarbox.dead_letter l where l.state <> 'delivered'";
        let rows = self.postgres.query(dead, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Waits until the table and the dead letters hold as many rows as events were committed, then stops the relay;
    /// nothing is left for a drain, and every event is there once (INV-1, INV-2).
    pub(crate) async fn holds(&self, oracle: &Oracle, relay: Running) -> Result<Verdict> {
        let published = oracle.published();
        let arrived = eventually("all events to arrive", PATIENCE, || async {
            let dead = self.dead().await.map_or(0, |dead| dead.len() as u64);
            Ok((self.count().await.unwrap_or(0) + dead >= published).then_some(()))
        });
        arrived
            .await
            .map_err(|error| error.context(relay.log_tail()))?;
        relay.stop().await?;
        let verdict = self.holds_when_drained(oracle).await?;
        ensure!(verdict.delivered + verdict.dead == published, "{verdict}");
        Ok(verdict)
    }

    /// Drains what is left; then every event is there once (INV-1, INV-2).
    pub(crate) async fn holds_when_drained(&self, oracle: &Oracle) -> Result<Verdict> {
        self.drain().await?;
        let verdict = self.verdict(oracle).await?;
        ensure!(verdict.holds(), "{verdict}\n{}", verdict.explain());
        self.balances().await?;
        Ok(verdict)
    }

    /// What was published is accounted for in the ledger of each sink.
    async fn balances(&self) -> Result<()> {
        const UNBALANCED: &str = "select to_json(a)::text from pillarbox.accounting() a where \
            published <> pending + in_flight + delivered + dead + dropped";
        let rows = self.postgres.query(UNBALANCED, &[]).await?;
        let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        ensure!(rows.is_empty(), "the accounts do not balance: {rows:?}");
        Ok(())
    }

    /// Rows in the table.
    pub(crate) async fn count(&self) -> Result<u64> {
        let sql = format!("select count() from {TABLE}");
        Ok(self.clickhouse.query(&sql).await?.trim().parse()?)
    }

    /// One value from PostgreSQL.
    pub(crate) async fn number(&self, sql: &str) -> Result<i64> {
        let rows = self.postgres.query(sql, &[]).await?;
        Ok(rows.first().context("no row")?.get(0))
    }

    /// Batches that are sealed and have no outcome.
    pub(crate) async fn in_flight(&self) -> Result<i64> {
        self.number(
            "select count(*) from pillarbox.batch b where b.kind <> 'genesis' and not exists (
                 select from pillarbox.delivery d where (d.sink, d.number) = (b.sink, b.number))",
        )
        .await
    }

    /// Waits until something was sealed that has no outcome.
    pub(crate) async fn wait_in_flight(&self) -> Result<()> {
        eventually("a batch in flight", PATIENCE, || async {
            Ok((self.in_flight().await? > 0).then_some(()))
        })
        .await
    }
}

/// A relay that was started; killed when dropped.
pub(crate) struct Running {
    child: Child,
    pid: Pid,
    log: PathBuf,
}

impl Running {
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let first = lines.len().saturating_sub(30);
        format!("the relay's log ends with\n{}", lines[first..].join("\n"))
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.pid, signal)?)
    }

    /// Waits until its log holds `text`.
    pub(crate) async fn says(&self, text: &str) -> Result<()> {
        self.says_after(0, text).await
    }

    /// Waits until it is stopped, as its machine would be frozen.
    pub(crate) async fn is_frozen(&self) -> Result<()> {
        let stat = format!("/proc/{}/stat", self.pid());
        let frozen = eventually("the relay to be frozen", PATIENCE, || async {
            // The state stands behind the name, which is in parentheses.
            let stat = std::fs::read_to_string(&stat)?;
            let (_, state) = stat.rsplit_once(") ").context("no state")?;
            Ok(state.starts_with('T').then_some(()))
        });
        frozen.await.map_err(|error| error.context(self.log_tail()))
    }

    /// Lines that its log has.
    pub(crate) fn lines(&self) -> usize {
        self.log().lines().count()
    }

    /// Waits until its log holds `text` after the first `lines` lines.
    pub(crate) async fn says_after(&self, lines: usize, text: &str) -> Result<()> {
        let said = eventually(text, PATIENCE, || async {
            let log = self.log();
            let said = log.lines().skip(lines).any(|line| line.contains(text));
            Ok(said.then_some(()))
        });
        said.await.map_err(|error| error.context(self.log_tail()))
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        Ok(ended.with_context(|| format!("it does not end; {}", self.log_tail()))??)
    }

    /// SIGTERM; it must end cleanly.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.ended().await?;
        ensure!(status.success(), "SIGTERM: {status}; {}", self.log_tail());
        Ok(())
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        let status = self.ended().await?;
        ensure!(
            status.signal() == Some(KILLED),
            "it had ended with {status}; {}",
            self.log_tail()
        );
        Ok(())
    }
}
