//! A program of ours as a process with the faults that servers have: `kill`, `pause` and `resume`,
//! `stop`, and `start` again. It dies with us, whatever becomes of us.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;

use super::eventually;
use super::process::{Launch, Process};

/// A backlog of minutes takes seconds.
const WAIT_DEADLINE: Duration = Duration::from_secs(180);

/// A program that can be started again and again. Dropping it kills it.
#[derive(Debug)]
pub struct Program {
    process: Process,
    log: PathBuf,
}

impl Program {
    /// Not started yet. All its lives write into `log`.
    pub fn new(name: &str, program: &Path, env: Vec<(String, String)>, log: &Path) -> Self {
        Self::with_args(name, program, &[], env, log)
    }

    /// The same with words on its command line.
    pub fn with_args(
        name: &str,
        program: &Path,
        args: &[&str],
        env: Vec<(String, String)>,
        log: &Path,
    ) -> Self {
        let launch = Launch {
            name: name.to_owned(),
            program: program.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env,
            run_as: None,
            log: log.to_owned(),
        };
        Self {
            process: Process::new(launch),
            log: log.to_owned(),
        }
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Starts it. An error if it runs already.
    pub fn start(&self) -> Result<()> {
        self.process.start()
    }

    /// An error with the end of its log if it has ended by itself.
    pub fn check_alive(&self) -> Result<()> {
        self.process.check_alive()
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&self) -> Result<ExitStatus> {
        self.process.stop(Signal::TERM).await
    }

    /// Waits for the end of a program that ends by itself, for as long as a drain may take.
    pub async fn wait(&self) -> Result<ExitStatus> {
        let what = format!("{} to end", self.process.name());
        eventually(&what, WAIT_DEADLINE, || async { self.process.reap() })
            .await
            .map_err(|error| error.context(self.process.log_tail()))
    }

    /// `kill -9`.
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    /// Freezes it (SIGSTOP).
    pub fn pause(&self) -> Result<()> {
        self.process.pause()
    }

    /// Ends a pause.
    pub fn resume(&self) -> Result<()> {
        self.process.resume()
    }

    /// What all its lives wrote.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The end of it.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.process.end(None, Duration::ZERO);
    }
}
