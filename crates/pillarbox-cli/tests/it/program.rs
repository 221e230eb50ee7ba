//! Runs the program in a directory and an environment of its own.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::{ClickHouse, PgVersion, Postgres};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

/// Far above what any command needs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The program with its environment.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) dir: TempDir,
    /// Its table in ClickHouse.
    pub(crate) table: String,
    variables: Vec<(String, String)>,
}

/// What a run left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Program {
    /// With nothing configured.
    pub(crate) fn bare() -> Result<Self> {
        Ok(Self {
            dir: TempDir::new()?,
            table: String::new(),
            variables: Vec::new(),
        })
    }

    /// For a database.
    pub(crate) fn on(url: &str) -> Result<Self> {
        Ok(Self::bare()?.with("DATABASE_URL", url))
    }

    /// With one more variable.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a ClickHouse, and a table there that nobody else has.
    pub(crate) fn with_clickhouse(self, clickhouse: &ClickHouse) -> Result<Self> {
        let table = unique("events");
        let mut program = self
            .with("CLICKHOUSE_URL", &clickhouse.url_with_credentials()?)
            .with("PILLARBOX_SINKS__CLICKHOUSE__TABLE", &table);
        program.table = table;
        Ok(program)
    }

    /// With a `pillarbox.toml` in its directory.
    pub(crate) fn file(self, text: &str) -> Result<Self> {
        std::fs::write(self.dir.path().join("pillarbox.toml"), text)?;
        Ok(self)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pillarbox"));
        command.args(arguments).current_dir(self.dir.path());
        command.env_clear().env("HOME", self.dir.path());
        // Relays of tests that run at once would meet on the default port.
        command.env("PILLARBOX_CONSOLE__LISTEN", "off");
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        command
    }

    /// Runs it to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Result<Ran> {
        finish(self.command(arguments).spawn()?).await
    }

    /// Runs it with this standard input.
    pub(crate) async fn run_with_input(&self, arguments: &[&str], input: &str) -> Result<Ran> {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("standard input")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        finish(child).await
    }

    /// Starts it and lets it run.
    pub(crate) fn start(&self, arguments: &[&str]) -> Result<Child> {
        Ok(self.command(arguments).spawn()?)
    }

    /// Runs it and gives its output; an error unless it ends with 0.
    pub(crate) async fn done(&self, arguments: &[&str]) -> Result<String> {
        let ran = self.run(arguments).await?;
        ensure!(ran.code == 0, "{arguments:?} ended with {ran:?}");
        Ok(ran.out)
    }

    /// Runs it with `--json` and gives what it printed.
    pub(crate) async fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let arguments = [arguments, &["--json"]].concat();
        let out = self.done(&arguments).await?;
        serde_json::from_str(&out).with_context(|| format!("{arguments:?} printed {out}"))
    }

    /// Runs it, and gives its one line of error; fails unless it ends with `code`.
    pub(crate) async fn refusal(&self, code: i32, arguments: &[&str]) -> Result<String> {
        let ran = self.run(arguments).await?;
        ensure!(
            ran.code == code,
            "{arguments:?} ended with {ran:?}, not {code}"
        );
        ensure!(ran.out.is_empty(), "{arguments:?} printed {}", ran.out);
        let line = ran.err.trim_end();
        ensure!(
            line.lines().count() == 1,
            "{arguments:?} gives no single line: {line}"
        );
        let text = line.strip_prefix("error: ");
        Ok(text
            .with_context(|| format!("not an error: {line}"))?
            .to_owned())
    }
}

/// Waits for a program to end.
pub(crate) async fn finish(child: Child) -> Result<Ran> {
    let ended = tokio::time::timeout(DEADLINE, child.wait_with_output());
    let output = ended.await.context("the program does not end")??;
    Ok(Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

/// Reads from a running program until it has said `text`; gives all that it said.
pub(crate) async fn says<R: AsyncRead + Unpin>(stream: &mut R, text: &str) -> Result<String> {
    let mut said = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&said).contains(text) {
            said.push(stream.read_u8().await?);
        }
        std::io::Result::Ok(())
    };
    let read = tokio::time::timeout(DEADLINE, reading).await;
    let said = String::from_utf8(said)?;
    read.with_context(|| format!("not {text:?} but {said}"))??;
    Ok(said)
}

/// Sends a signal to a running program.
pub(crate) fn signal(child: &Child, signal: Signal) -> Result<()> {
    let id = i32::try_from(child.id().context("it ended")?)?;
    let pid = Pid::from_raw(id).context("a pid")?;
    Ok(kill_process(pid, signal)?)
}

/// A PostgreSQL with a database of its own, and the program for it.
pub(crate) async fn database(version: PgVersion) -> Result<(Postgres, Program, String)> {
    let postgres = Postgres::start(version).await?;
    let url = postgres.create_database(&unique("cli")).await?;
    let program = Program::on(&url)?;
    Ok((postgres, program, url))
}

/// A session of its own at a URL.
pub(crate) async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(async move {
        // Its error also reaches the client's next statement.
        let _ = connection.await;
    });
    Ok(client)
}

/// A name that nothing else has.
pub(crate) fn unique(prefix: &str) -> String {
    format!(
        "{prefix}_{}",
        &uuid::Uuid::new_v4().simple().to_string()[..12]
    )
}
