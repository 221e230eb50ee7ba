//! ZooKeeper, which keeps what the replicas of a ClickHouse table agree on: Debian's package, one
//! server of its own.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::place::{Place, Port};
use super::process::{Launch, Process};
use super::tools::installed;
use super::{START_DEADLINE, eventually};

/// Its manifest names the jars that it needs.
const JAR: &str = "/usr/share/java/zookeeper.jar";

/// A running ZooKeeper. Dropping it ends the server and removes its directory.
#[derive(Debug)]
pub struct Keeper {
    // Declared in the order of their end.
    process: Process,
    port: Port,
    _place: Place,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.process.end(None, Duration::ZERO);
    }
}

impl Keeper {
    /// Starts a server and waits until it serves. Dropping the future ends the server.
    pub async fn start() -> Result<Self> {
        let place = Place::create(None)?;
        let port = Port::lease()?;
        let dir = place.path();
        let java = installed("java (for zookeeper)", PathBuf::from("/usr/bin/java"))?;
        let jar = installed("zookeeper", PathBuf::from(JAR))?;
        fs::write(dir.join("zoo.cfg"), config(dir, port.number))?;
        fs::write(dir.join("log4j.properties"), LOG4J)?;
        let launch = Launch {
            name: format!("zookeeper on port {}", port.number),
            program: java,
            args: vec![
                "-Xmx128m".to_owned(),
                "-XX:+UseSerialGC".to_owned(),
                "-XX:TieredStopAtLevel=1".to_owned(),
                // Its write-ahead log is on a disk that outlives its kill.
                "-Dzookeeper.forceSync=no".to_owned(),
                "-cp".to_owned(),
                format!("{}:{}", dir.display(), jar.display()),
                "org.apache.zookeeper.server.quorum.QuorumPeerMain".to_owned(),
                dir.join("zoo.cfg").display().to_string(),
            ],
            env: Vec::new(),
            run_as: None,
            log: dir.join("zookeeper.log"),
        };
        let keeper = Self {
            process: Process::new(launch),
            port,
            _place: place,
        };
        keeper.restart().await?;
        Ok(keeper)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// `kill -9`.
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    /// Starts again on the same port and data, stopping first if need be.
    pub async fn restart(&self) -> Result<()> {
        if self.process.id().is_some() {
            self.process.stop(Signal::TERM).await?;
        }
        self.process.start()?;
        let serves = eventually("zookeeper to serve", START_DEADLINE, || async {
            self.process.check_alive()?;
            let asked = tokio::time::timeout(Duration::from_secs(1), self.ask("srvr"));
            let served = matches!(asked.await, Ok(Ok(answer)) if answer.contains("Mode:"));
            Ok(served.then_some(()))
        });
        serves.await.with_context(|| self.process.log_tail())
    }

    /// One of its four-letter commands.
    async fn ask(&self, command: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port.number)).await?;
        stream.write_all(command.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

/// A tick of half a second lets sessions be as short as one.
fn config(dir: &std::path::Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "tickTime=500\ndataDir={dir}/data\nclientPort={port}\nclientPortAddress=127.0.0.1\n\
         admin.enableServer=false\n4lw.commands.whitelist=srvr\nmaxClientCnxns=0\n"
    )
}

const LOG4J: &str = "log4j.rootLogger=WARN, out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=%d %p %c: %m%n
";
