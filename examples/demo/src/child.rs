//! A program of ours as a child process: its log in a file, and it dies with the demo.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

/// How much of a log an error shows.
const LOG_TAIL_BYTES: usize = 3_000;

/// How long a short command may take: `migrate` takes half a second.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Child {
    name: String,
    process: tokio::process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts `program` with its output appended to `log`.
    pub(crate) fn start(
        name: &str,
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
        log: &Path,
    ) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening the log {}", log.display()))?;
        let process = command(program, arguments, environment)
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {name} through setpriv (package util-linux)"))?;
        Ok(Self {
            name: name.to_owned(),
            process,
            log: log.to_owned(),
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id().unwrap_or_default()
    }

    /// Lets it run for `duration`; an error with the end of its log if it ends by itself.
    pub(crate) async fn run_for(&mut self, duration: Duration) -> Result<()> {
        match tokio::time::timeout(duration, self.process.wait()).await {
            Err(_) => Ok(()),
            Ok(ended) => self.ended(ended?),
        }
    }

    /// An error if it has ended by itself.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => self.ended(status),
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.check()?;
        self.process.kill().await?;
        Ok(())
    }

    pub(crate) fn log(&self) -> Result<String> {
        std::fs::read_to_string(&self.log)
            .with_context(|| format!("reading the log {}", self.log.display()))
    }

    /// The end of its log, as a paragraph.
    pub(crate) fn log_tail(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let tail = &bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..];
        let text = String::from_utf8_lossy(tail);
        format!("the log of {} ends:\n{}", self.name, text.trim_end())
    }

    fn ended(&self, status: ExitStatus) -> Result<()> {
        bail!("{} ended by itself: {status}", self.name)
    }
}

/// A command that dies with the demo.
///
/// To be started on threads that live as long as the demo: the kernel kills the child when the
/// thread that started it ends (`setpriv --pdeathsig`).
pub(crate) fn command(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        // Ctrl-C is for the demo, which ends its children in order.
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// Runs a short command and gives what it prints.
pub(crate) async fn output(
    program: &Path,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Result<String> {
    let what = || {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        format!("{name} {}", arguments.join(" "))
    };
    let mut command = command(program, arguments, environment);
    let output = tokio::time::timeout(COMMAND_DEADLINE, command.output())
        .await
        .with_context(|| format!("{} took longer than {COMMAND_DEADLINE:?}", what()))?
        .with_context(what)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}: {}", what(), output.status, text.trim_end());
    }
    Ok(String::from_utf8(output.stdout)?)
}
