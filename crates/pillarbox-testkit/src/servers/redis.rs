//! Redis: Debian's package, one server of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::place::{Place, Port};
use super::process::{Launch, Process};
use super::tools::installed;
use super::{START_DEADLINE, eventually};

/// What outlives `kill -9`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing.
    None,
    /// What the last [`Redis::save`] saw.
    Rdb,
    /// An append-only file, written through before each answer.
    AppendAlways,
    /// An append-only file, written through once a second: a killed process loses nothing, a
    /// machine that loses its power up to a second or two.
    AppendEverySecond,
}

impl Persistence {
    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::None | Self::Rdb => &[("appendonly", "no")],
            Self::AppendAlways => &[("appendonly", "yes"), ("appendfsync", "always")],
            Self::AppendEverySecond => &[("appendonly", "yes"), ("appendfsync", "everysec")],
        }
    }
}

/// A running Redis. Dropping it ends the server and removes its directory.
#[derive(Debug)]
pub struct Redis {
    // Declared in the order of their end.
    process: Process,
    port: Port,
    password: Option<String>,
    place: Place,
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.process.end(None, Duration::ZERO);
    }
}

impl Redis {
    /// Starts a server and waits until it serves. Dropping the future ends the server.
    pub async fn start(persistence: Persistence) -> Result<Self> {
        Self::with(persistence, &[]).await
    }

    /// The same with further settings of `redis.conf`, which outrank those of `persistence`.
    pub async fn with(persistence: Persistence, settings: &[(&str, &str)]) -> Result<Self> {
        let place = Place::create(None)?;
        let port = Port::lease()?;
        let program = installed("redis-server", PathBuf::from("/usr/bin/redis-server"))?;
        let number = port.number.to_string();
        let dir = place.path().display().to_string();
        let own = [
            ("bind", "127.0.0.1"),
            ("port", &*number),
            ("dir", &*dir),
            ("daemonize", "no"),
            // Snapshots are taken when a test asks, never by time.
            ("save", ""),
            ("stop-writes-on-bgsave-error", "no"),
        ];
        let all = own.iter().chain(persistence.settings()).chain(settings);
        let args = all.flat_map(|(name, value)| [format!("--{name}"), (*value).to_owned()]);
        let process = Process::new(Launch {
            name: format!("redis on port {number}"),
            program,
            args: args.collect(),
            env: Vec::new(),
            run_as: None,
            log: place.path().join("redis.log"),
        });
        let password = settings.iter().find(|(name, _)| *name == "requirepass");
        let redis = Self {
            process,
            port,
            password: password.map(|(_, value)| (*value).to_owned()),
            place,
        };
        redis.restart().await?;
        Ok(redis)
    }

    /// A replica of `primary`, in step with it. `replicaof no one` promotes it.
    pub async fn replica_of(primary: &Self, persistence: Persistence) -> Result<Self> {
        let of = format!("127.0.0.1 {}", primary.port());
        let replica = Self::with(persistence, &[("replicaof", &of)]).await?;
        let linked = eventually("the replica to follow", START_DEADLINE, || async {
            let answer = replica.command("info replication").await?;
            Ok(answer.contains("master_link_status:up").then_some(()))
        });
        linked.await?;
        Ok(replica)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Its directory: `dump.rdb` and `appendonlydir`.
    pub fn dir(&self) -> &Path {
        self.place.path()
    }

    /// `redis://127.0.0.1:PORT`, with the password if it has one.
    pub fn url(&self) -> String {
        let password = self.password.as_ref().map(|p| format!(":{p}@"));
        format!(
            "redis://{}127.0.0.1:{}",
            password.unwrap_or_default(),
            self.port.number
        )
    }

    /// `kill -9`.
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    /// Freezes the process.
    pub fn pause(&self) -> Result<()> {
        self.process.pause()
    }

    /// Lets a frozen process go on.
    pub fn resume(&self) -> Result<()> {
        self.process.resume()
    }

    /// Asks the server to end and waits for it. It saves nothing that it would not have had after a
    /// kill.
    pub async fn stop(&self) -> Result<()> {
        self.process.stop(Signal::TERM).await.map(drop)
    }

    /// Starts again on the same port and directory, stopping first if need be; waits until the data
    /// is loaded.
    pub async fn restart(&self) -> Result<()> {
        if self.process.id().is_some() {
            self.stop().await?;
        }
        self.process.start()?;
        let serves = eventually("redis to serve", START_DEADLINE, || async {
            self.process.check_alive()?;
            // Refused, or still loading.
            Ok(self.command("ping").await.ok().map(drop))
        });
        serves.await.with_context(|| self.process.log_tail())
    }

    /// Writes `dump.rdb`: what a server with [`Persistence::Rdb`] has after the next kill.
    pub async fn save(&self) -> Result<()> {
        self.command("save").await.map(drop)
    }

    /// The answer to a command without arguments that hold spaces: the line of a simple one, the text
    /// of a bulk one. For looking and arranging; what is measured goes through a real client.
    pub async fn command(&self, line: &str) -> Result<String> {
        let asked = tokio::time::timeout(START_DEADLINE, self.ask(line));
        asked
            .await
            .with_context(|| format!("no answer to {line}"))?
    }

    async fn ask(&self, line: &str) -> Result<String> {
        let stream = TcpStream::connect(("127.0.0.1", self.port.number)).await?;
        let mut stream = BufReader::new(stream);
        if let Some(password) = &self.password {
            let login = format!("auth {password}\r\n");
            stream.write_all(login.as_bytes()).await?;
            answer(&mut stream).await?;
        }
        stream.write_all(format!("{line}\r\n").as_bytes()).await?;
        answer(&mut stream).await
    }
}

async fn answer(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut head = String::new();
    stream.read_line(&mut head).await?;
    let head = head.trim_end();
    match (head.get(..1), head.get(1..)) {
        (Some("+" | ":"), Some(text)) => Ok(text.to_owned()),
        (Some("$"), Some("-1")) => Ok(String::new()),
        (Some("$"), Some(length)) => {
            let mut text = vec![0; length.parse()?];
            stream.read_exact(&mut text).await?;
            Ok(String::from_utf8(text)?)
        }
        _ => bail!("redis answered: {head}"),
    }
}
