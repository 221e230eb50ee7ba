//! A program that is timed from its start to its end, with its CPU time and peak memory.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::cpu;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::process::{Child, Command};

use crate::stage::PATIENCE;

/// How often memory is looked at. A peak grows only, so that little of it is missed.
const LOOK: Duration = Duration::from_millis(20);

/// What a program took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ran {
    pub(crate) wall: Duration,
    /// Of the program and the children that it waited for.
    pub(crate) cpu: Duration,
    /// The most memory that the program itself had.
    pub(crate) peak_bytes: u64,
}

/// A program with all that it starts, which end with this value.
struct Group {
    child: Child,
    pid: Pid,
}

impl Drop for Group {
    fn drop(&mut self) {
        // Once it was waited for, its number may be another's.
        if self.child.id().is_some() {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }
}

/// A program that has ended and was not waited for: its times can still be read.
pub(crate) struct Ended {
    group: Group,
    ran: Ran,
}

/// Runs a program until it ends, and leaves it unreaped so that nothing stands between its end and what is
/// read next.
pub(crate) async fn run(mut command: Command, log: &Path) -> Result<Ended> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(log)?)
        .process_group(0)
        .kill_on_drop(true);
    let started = Instant::now();
    let child = command
        .spawn()
        .with_context(|| format!("starting {:?}; run `make setup`", command.as_std()))?;
    let id = child.id().context("it has ended")?;
    let pid = Pid::from_raw(id.cast_signed()).context("a process id")?;
    let group = Group { child, pid };
    let mut peak_bytes = 0;
    let look = || peak_bytes = cpu::peak_memory(id).unwrap_or(peak_bytes);
    tokio::time::timeout(PATIENCE, end(pid, look))
        .await
        .with_context(|| format!("{:?} did not end within {PATIENCE:?}", command.as_std()))??;
    let ran = Ran {
        wall: started.elapsed(),
        cpu: cpu::of_family(id)?,
        peak_bytes,
    };
    Ok(Ended { group, ran })
}

/// Waits for the end of a child, and looks at it meanwhile. It is not reaped.
async fn end(pid: Pid, mut look: impl FnMut()) -> Result<()> {
    let only_see = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    // The thread ends with the child, which ends with its group.
    let mut waiting = tokio::task::spawn_blocking(move || waitid(WaitId::Pid(pid), only_see));
    loop {
        look();
        tokio::select! {
            ended = &mut waiting => return Ok(ended?.map(drop)?),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

impl Ended {
    pub(crate) fn ran(&self) -> Ran {
        self.ran
    }

    /// An error with the log when it did not end well.
    pub(crate) async fn check(mut self, log: &Path) -> Result<()> {
        let status = self.group.child.wait().await?;
        let text = fs::read_to_string(log).unwrap_or_default();
        ensure!(
            status.success(),
            "it ended with {status}:\n{}",
            text.trim_end()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pipe_is_timed_and_its_failure_is_seen() -> Result<()> {
        let log = tempfile::NamedTempFile::new()?;
        for (script, succeeds) in [("sleep 0.1 | cat", true), ("false | cat", false)] {
            let mut command = Command::new("bash");
            command.args(["-o", "pipefail", "-c", script]);
            let ended = run(command, log.path()).await?;
            assert_eq!(ended.ran().wall >= Duration::from_millis(100), succeeds);
            assert!(ended.ran().peak_bytes > 0);
            assert_eq!(ended.check(log.path()).await.is_ok(), succeeds);
        }
        Ok(())
    }
}
