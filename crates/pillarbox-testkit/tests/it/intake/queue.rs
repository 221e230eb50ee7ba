//! The stage of the tests of intakes: a PostgreSQL with the schema, a Redis, producers that remember what
//! Redis acknowledged, and intakes as processes of their own.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pillarbox_relay::schema;
use pillarbox_testkit::oracle::{Content, Found, Oracle, Precision, Published};
use pillarbox_testkit::servers::{Persistence, PgVersion, Postgres, Redis, eventually};
use redis::aio::MultiplexedConnection;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Bound of every wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// SIGKILL.
pub(crate) const KILLED: i32 = 9;

/// Entries that producers let wait before they wait themselves.
const WAITING_MAX: u64 = 300;

/// How producers write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Stream,
    List,
}

impl Kind {
    pub(crate) const BOTH: [Self; 2] = [Self::Stream, Self::List];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stream => "redis-stream",
            Self::List => "redis-list",
        }
    }

    fn length(self) -> &'static str {
        match self {
            Self::Stream => "XLEN",
            Self::List => "LLEN",
        }
    }
}

/// Servers, and a queue.
pub(crate) struct Queue {
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    pub(crate) kind: Kind,
    dir: TempDir,
    runs: AtomicU32,
}

/// The key of every queue; of a name that a pattern could take for something else.
pub(crate) const KEY: &str = "events[1]*";

impl Queue {
    pub(crate) async fn start(kind: Kind, persistence: Persistence) -> Result<Self> {
        let version = match kind {
            Kind::Stream => PgVersion::V18,
            Kind::List => PgVersion::V15,
        };
        let postgres = Postgres::start(version).await?;
        Self::on(postgres, kind, Redis::start(persistence).await?).await
    }

    pub(crate) async fn on(postgres: Postgres, kind: Kind, redis: Redis) -> Result<Self> {
        let mut client = postgres.connect().await?;
        schema::migrate(&mut client).await?;
        Ok(Self {
            postgres,
            redis,
            kind,
            dir: TempDir::new()?,
            runs: AtomicU32::new(0),
        })
    }

    pub(crate) async fn connect(&self) -> Result<MultiplexedConnection> {
        let client = redis::Client::open(self.redis.url())?;
        Ok(client.get_multiplexed_async_connection().await?)
    }

    /// An intake; `mode` is `run` or `drain`.
    pub(crate) fn intake(&self, mode: &str, failpoints: &str) -> Command {
        let mut command = intake(self.postgres.url(), &self.redis.url(), self.kind, mode);
        command.env("FAILPOINTS", failpoints);
        command
    }

    /// Starts a command whose standard error becomes a log.
    pub(crate) fn spawn(&self, mut command: Command) -> Result<Running> {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let log = self.dir.path().join(format!("intake-{number}.log"));
        let child = command.stderr(File::create(&log)?).spawn()?;
        Ok(Running { child, log })
    }

    pub(crate) fn running(&self) -> Result<Running> {
        self.spawn(self.intake("run", ""))
    }

    /// Takes over what is there; gives how many became events, dead letters, and came again.
    pub(crate) async fn drain(&self) -> Result<[u64; 3]> {
        self.drain_with(&[]).await
    }

    /// The same with other variables. Again while PostgreSQL has not noticed that the process before was
    /// killed.
    pub(crate) async fn drain_with(&self, variables: &[(&str, &str)]) -> Result<[u64; 3]> {
        eventually("the drain to be active", PATIENCE, || async {
            let mut command = self.intake("drain", "");
            command.envs(variables.iter().copied());
            let output = tokio::time::timeout(PATIENCE, command.stderr(Stdio::piped()).output());
            let output = output.await.context("the drain does not end")??;
            let log = String::from_utf8_lossy(&output.stderr);
            if log.contains("another process is active for the intake") {
                return Ok(None);
            }
            ensure!(output.status.success(), "the drain failed:\n{log}");
            numbers(&output.stdout).map(Some)
        })
        .await
    }

    /// A drain that is refused; gives its log.
    pub(crate) async fn refusal(&self) -> Result<String> {
        self.refusal_with(&[]).await
    }

    /// The same with other variables.
    pub(crate) async fn refusal_with(&self, variables: &[(&str, &str)]) -> Result<String> {
        let mut command = self.intake("drain", "");
        command.envs(variables.iter().copied());
        let output = tokio::time::timeout(PATIENCE, command.stderr(Stdio::piped()).output());
        let output = output.await.context("the drain does not end")??;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "it was not refused:\n{log}");
        Ok(log)
    }

    /// Writes an event as a producer does.
    pub(crate) async fn push(&self, event: &Event) -> Result<()> {
        push(&mut self.connect().await?, self.kind, event).await
    }

    /// Writes so many events, each by itself, and tells the oracle.
    pub(crate) async fn push_many(&self, count: u64, oracle: &Oracle) -> Result<()> {
        let mut connection = self.connect().await?;
        for nth in 0..count {
            let event = Event::new(nth);
            push(&mut connection, self.kind, &event).await?;
            oracle.committed(event.published());
        }
        Ok(())
    }

    /// Writes an event to the stream under an id, as a Redis does whose clock says so.
    pub(crate) async fn push_at(&self, id: &str, event: &Event) -> Result<()> {
        let mut command = redis::cmd("XADD");
        command.arg(KEY).arg(id).arg("event").arg(event.json());
        Ok(command.query_async(&mut self.connect().await?).await?)
    }

    /// Kills Redis and starts it again.
    pub(crate) async fn restart_redis(&self) -> Result<()> {
        self.redis.kill()?;
        self.redis.restart().await
    }

    /// Writes bytes that should be an event: to a stream as its only field.
    pub(crate) async fn push_bytes(&self, bytes: &[u8]) -> Result<()> {
        let mut command = match self.kind {
            Kind::Stream => redis::cmd("XADD"),
            Kind::List => redis::cmd("LPUSH"),
        };
        command.arg(KEY);
        if self.kind == Kind::Stream {
            command.arg("*").arg("event");
        }
        command.arg(bytes);
        Ok(command.query_async(&mut self.connect().await?).await?)
    }

    /// Entries that wait, chunks of a list included.
    pub(crate) async fn waiting(&self) -> Result<u64> {
        let mut connection = self.connect().await?;
        let mut waiting = 0;
        let pattern = format!("{}*", KEY.replace(['[', ']', '*'], "?"));
        let keys: Vec<String> = redis::cmd("KEYS")
            .arg(pattern)
            .query_async(&mut connection)
            .await?;
        for key in keys.iter().filter(|key| !key.ends_with(":taken")) {
            let mut length = redis::cmd(self.kind.length());
            waiting += length.arg(key).query_async::<u64>(&mut connection).await?;
        }
        Ok(waiting)
    }

    pub(crate) async fn number(&self, sql: &str) -> Result<i64> {
        let rows = self.postgres.query(sql, &[]).await?;
        Ok(rows.first().context("no row")?.get(0))
    }

    pub(crate) async fn rows(&self) -> Result<i64> {
        self.number("select count(*) from pillarbox.event").await
    }

    /// Reasons of the dead letters, in their order.
    pub(crate) async fn reasons(&self) -> Result<Vec<String>> {
        let sql = "select reason from pillarbox.intake_letter order by dead_letter";
        let rows = self.postgres.query(sql, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Every event that the producers know to be kept is one row of the outbox, and nothing else is
    /// there; what they do not know was kept or not. The counts of the intake are those of the rows.
    pub(crate) async fn outbox_holds(&self, oracle: &Oracle) -> Result<u64> {
        const ROWS: &str = "
            select event_id, event_type, (extract(epoch from event_date_time) * 1000000)::bigint,
                environment, event_context::text, metadata_version
            from pillarbox.event";
        let rows = self.postgres.query(ROWS, &[]).await?;
        let found = rows.iter().map(|row| {
            let content = Content {
                event_type: row.get(1),
                environment: row.get(3),
                event_context: row.get::<_, &str>(4).as_bytes(),
                metadata_version: row.get::<_, i64>(5).cast_unsigned(),
            };
            Found::new(row.get(0), &content, row.get(2), Precision::Micros)
        });
        let found: Vec<Found> = found.collect();
        for id in oracle.unresolved() {
            oracle.resolve(id, found.iter().any(|row| row.event_id == id));
        }
        let verdict = oracle.verdict(&found, &[]);
        ensure!(verdict.holds(), "{verdict}\n{}", verdict.explain());
        let taken = self
            .number("select sum(taken)::bigint from pillarbox.intake")
            .await?;
        let rows = i64::try_from(found.len())?;
        ensure!(taken == rows, "{taken} were counted, {rows} rows are there");
        Ok(verdict.published)
    }
}

/// An intake from a Redis into an outbox.
pub(crate) fn intake(outbox: &str, redis: &str, kind: Kind, mode: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_intake_under_test"));
    command
        .env("DATABASE_URL", outbox)
        .env("REDIS_URL", redis)
        .env("NAME", "trial")
        .env("KIND", kind.as_str())
        .env("KEY", KEY)
        .env("MODE", mode)
        .env("FAILPOINTS", "")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// What a drain or an import printed.
pub(crate) fn numbers(stdout: &[u8]) -> Result<[u64; 3]> {
    let text = String::from_utf8(stdout.to_vec())?;
    let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
    numbers?
        .try_into()
        .ok()
        .with_context(|| format!("it printed {text}"))
}

/// An event that a producer writes.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) event_id: Uuid,
    pub(crate) context: String,
}

/// 2026-01-31 12:00 UTC.
const NOON_US: i64 = 1_769_860_800_000_000;
const NOON: &str = "2026-01-31T12:00:00Z";

impl Event {
    pub(crate) fn new(nth: u64) -> Self {
        let event_id = Uuid::now_v7();
        let context = format!(r#"{{ "n":{nth}, "note":"ü \u00e9 {event_id}" }}"#);
        Self { event_id, context }
    }

    pub(crate) fn json(&self) -> String {
        let Self { event_id, context } = self;
        format!(
            r#"{{"event_type":"trial","event_context":{context},"event_id":"{event_id}","event_date_time":"{NOON}"}}"#
        )
    }

    pub(crate) fn published(&self) -> Published {
        let content = Content {
            event_type: "trial",
            environment: "production",
            event_context: self.context.as_bytes(),
            metadata_version: 1,
        };
        Published::new(self.event_id, &content, NOON_US)
    }
}

async fn push(connection: &mut MultiplexedConnection, kind: Kind, event: &Event) -> Result<()> {
    let mut command = match kind {
        Kind::Stream => redis::cmd("XADD"),
        Kind::List => redis::cmd("LPUSH"),
    };
    command.arg(KEY);
    match kind {
        Kind::List => command.arg(event.json()),
        Kind::Stream => command
            .arg("*")
            .arg(&["event_type", "trial", "event_date_time", NOON])
            .arg(&["event_id", &event.event_id.to_string(), "event_context"])
            .arg(&event.context),
    };
    let asked = tokio::time::timeout(PATIENCE, command.query_async::<redis::Value>(connection));
    asked.await??;
    Ok(())
}

/// Producers at work, through every restart of Redis.
pub(crate) struct Load {
    stop: CancellationToken,
    producers: JoinSet<Result<()>>,
    record: Arc<Record>,
}

#[derive(Default)]
struct Record {
    oracle: Oracle,
    /// Lives of Redis.
    life: AtomicU64,
    /// What was acknowledged, and in which life it was sent.
    acknowledged: Mutex<Vec<(Published, u64)>>,
    /// How much was acknowledged before the last snapshot of a life was begun.
    saved: Mutex<Vec<(u64, usize)>>,
}

impl Load {
    pub(crate) fn start(queue: &Queue, producers: u64) -> Self {
        Self::on(&queue.redis, queue.kind, producers)
    }

    pub(crate) fn on(redis: &Redis, kind: Kind, producers: u64) -> Self {
        let (stop, record) = (CancellationToken::new(), Arc::new(Record::default()));
        let mut tasks = JoinSet::new();
        for nth in 0..producers {
            let (stop, record) = (stop.clone(), Arc::clone(&record));
            let url = redis.url();
            tasks.spawn(async move { produce(&url, kind, nth << 32, &stop, &record).await });
        }
        Self {
            stop,
            producers: tasks,
            record,
        }
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.record.acknowledged().len()
    }

    /// Waits until so many more were acknowledged.
    pub(crate) async fn more(&self, count: usize) -> Result<()> {
        let goal = self.acknowledged() + count;
        eventually("producers to go on", PATIENCE, || async {
            Ok((self.acknowledged() >= goal).then_some(()))
        })
        .await
    }

    /// Has Redis write a snapshot.
    pub(crate) async fn save(&self, redis: &Redis) -> Result<()> {
        let acknowledged = self.acknowledged();
        redis.save().await?;
        let life = self.record.life.load(Ordering::SeqCst);
        let mut saved = self
            .record
            .saved
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        saved.push((life, acknowledged));
        Ok(())
    }

    /// Kills Redis and starts it again.
    pub(crate) async fn kill(&self, redis: &Redis) -> Result<()> {
        redis.kill()?;
        self.record.life.fetch_add(1, Ordering::SeqCst);
        redis.restart().await
    }

    /// Stops the producers; gives what is kept in any case, and what may be.
    pub(crate) async fn finish(mut self, persistence: Persistence) -> Result<Arc<Oracle>> {
        self.stop.cancel();
        while let Some(ended) = self.producers.join_next().await {
            ended??;
        }
        let last = self.record.life.load(Ordering::SeqCst);
        let saved = self
            .record
            .saved
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_appended = matches!(
            persistence,
            Persistence::AppendAlways | Persistence::AppendEverySecond
        );
        for (place, (event, life)) in self.record.acknowledged().iter().enumerate() {
            let of_life = saved.iter().rfind(|(of, _)| of == life);
            let is_saved = of_life.is_some_and(|(_, until)| place < *until);
            if !is_appended && *life < last && !is_saved {
                self.record.oracle.unanswered(*event);
            }
        }
        drop(saved);
        let record = Arc::into_inner(self.record).context("a producer holds the record")?;
        Ok(Arc::new(record.oracle))
    }
}

impl Record {
    fn acknowledged(&self) -> std::sync::MutexGuard<'_, Vec<(Published, u64)>> {
        self.acknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

async fn produce(
    url: &str,
    kind: Kind,
    first: u64,
    stop: &CancellationToken,
    record: &Record,
) -> Result<()> {
    let client = redis::Client::open(url)?;
    let mut connection: Option<MultiplexedConnection> = None;
    for nth in first.. {
        if stop.is_cancelled() {
            break;
        }
        let open = match &mut connection {
            Some(open) => open,
            None => {
                let opened = eventually("redis", PATIENCE, || async {
                    Ok(client.get_multiplexed_async_connection().await.ok())
                });
                connection.insert(opened.await?)
            }
        };
        let event = Event::new(nth);
        let life = record.life.load(Ordering::SeqCst);
        match push(open, kind, &event).await {
            Ok(()) => {
                record.oracle.committed(event.published());
                record.acknowledged().push((event.published(), life));
            }
            Err(_) => {
                record.oracle.unanswered(event.published());
                connection = None;
                continue;
            }
        }
        if nth % 20 == 0 {
            let _ = eventually("room", PATIENCE, || async {
                let mut length = redis::cmd(kind.length());
                let asked = length.arg(KEY).query_async::<u64>(&mut open.clone()).await;
                let has_room = asked.map_or(true, |length| length < WAITING_MAX);
                Ok((has_room || stop.is_cancelled()).then_some(()))
            })
            .await;
        }
    }
    Ok(())
}

/// An intake that was started; killed when dropped.
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.child.id().context("it has ended")?;
        let pid = Pid::from_raw(pid.cast_signed()).context("a pid")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Waits until its log holds `text`.
    pub(crate) async fn says(&self, text: &str) -> Result<()> {
        let said = eventually(text, PATIENCE, || async {
            Ok(self.log().contains(text).then_some(()))
        });
        said.await.with_context(|| self.log())
    }

    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        Ok(ended.with_context(|| format!("it does not end:\n{}", self.log()))??)
    }

    /// Waits for it to be killed by its step; anything else is a failure.
    pub(crate) async fn killed(mut self, step: &str) -> Result<()> {
        let status = self.ended().await?;
        let is_killed = status.signal() == Some(KILLED);
        ensure!(
            is_killed,
            "it ended with {status} instead of at {step}:\n{}",
            self.log()
        );
        Ok(())
    }

    /// SIGTERM; it must end cleanly.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.ended().await?;
        ensure!(status.success(), "SIGTERM: {status}\n{}", self.log());
        Ok(())
    }

    /// SIGKILL.
    pub(crate) async fn kill(self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.killed("SIGKILL").await
    }
}
