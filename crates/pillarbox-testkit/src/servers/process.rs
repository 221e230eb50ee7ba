//! One server process: started, signalled and reaped by its own id, never by a name.
//!
//! It ends with us even when we are killed: `setpriv --pdeathsig KILL` has the kernel kill it
//! when its parent *thread* ends. A thread of a test or of a runtime may end long before the
//! process, so one thread, which never ends, starts every server.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::tools::RunAs;
use super::{POLL, STOP_DEADLINE};

/// How much of the server's log an error shows.
const LOG_TAIL_BYTES: usize = 4_000;

/// What to run, as often as it is started.
#[derive(Debug)]
pub(crate) struct Launch {
    /// What error messages call it.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) run_as: Option<RunAs>,
    /// Its standard output and error, appended.
    pub(crate) log: PathBuf,
}

/// A server process that can be started again after it ended.
#[derive(Debug)]
pub(crate) struct Process {
    launch: Launch,
    child: Mutex<Option<Child>>,
}

impl Process {
    pub(crate) fn new(launch: Launch) -> Self {
        Self {
            launch,
            child: Mutex::new(None),
        }
    }

    /// Starts the process. An error if it runs already.
    pub(crate) fn start(&self) -> Result<()> {
        let mut slot = self.slot();
        if slot.is_some() {
            bail!("{} runs already", self.launch.name);
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.launch.log)
            .with_context(|| format!("opening the log {}", self.launch.log.display()))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(RunAs { uid, gid }) = self.launch.run_as {
            command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
            command.arg("--clear-groups");
        }
        command
            .arg("--")
            .arg(&self.launch.program)
            .args(&self.launch.args);
        command.envs(self.launch.env.iter().map(|(k, v)| (k, v)));
        command.current_dir("/").stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        let child = spawn(command).with_context(|| {
            format!(
                "starting {} through setpriv (package util-linux)",
                self.launch.name
            )
        })?;
        *slot = Some(child);
        Ok(())
    }

    pub(crate) fn id(&self) -> Option<u32> {
        self.slot().as_ref().map(Child::id)
    }

    /// An error with the log's tail if the process ended by itself.
    pub(crate) fn check_alive(&self) -> Result<()> {
        let mut slot = self.slot();
        let child = slot
            .as_mut()
            .ok_or_else(|| anyhow!("{} was not started", self.launch.name))?;
        let Some(status) = child.try_wait()? else {
            return Ok(());
        };
        *slot = None;
        drop(slot);
        bail!("{} ended: {status}{}", self.launch.name, self.log_tail())
    }

    /// Asks the process to end with `signal` and waits for it.
    pub(crate) async fn stop(&self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        let started = Instant::now();
        loop {
            if let Some(status) = self.reap()? {
                return Ok(status);
            }
            if started.elapsed() > STOP_DEADLINE {
                bail!(
                    "{} did not end within {STOP_DEADLINE:?}{}",
                    self.name(),
                    self.log_tail()
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Kills the process and its children at once, and waits until none is left.
    pub(crate) fn kill(&self) -> Result<()> {
        let Some(pid) = self.pid() else {
            bail!("{} does not run", self.name())
        };
        let children = children_of(pid);
        self.signal(Signal::KILL)?;
        for child in &children {
            signal(*child, Signal::KILL)?;
        }
        if let Some(mut child) = self.slot().take() {
            child.wait()?;
        }
        // Orphans belong to the init process now: gone is all that can be seen of them.
        let all_gone = || {
            children
                .iter()
                .all(|c| matches!(state_of(*c), None | Some('Z' | 'X')))
        };
        wait_blocking(&format!("the children of {} to end", self.name()), all_gone)
    }

    /// Freezes the process and its children, and waits until they are.
    pub(crate) fn pause(&self) -> Result<()> {
        let Some(pid) = self.pid() else {
            bail!("{} does not run", self.name())
        };
        self.signal(Signal::STOP)?;
        // The parent is frozen by now, so it starts no more of them.
        let frozen = |pid: Pid| matches!(state_of(pid), None | Some('T' | 't' | 'Z' | 'X'));
        wait_blocking(&format!("{} to freeze", self.name()), || frozen(pid))?;
        let children = children_of(pid);
        for child in &children {
            signal(*child, Signal::STOP)?;
        }
        wait_blocking(
            &format!("the children of {} to freeze", self.name()),
            || children.iter().all(|child| frozen(*child)),
        )
    }

    /// Lets a frozen process and its children go on.
    pub(crate) fn resume(&self) -> Result<()> {
        let Some(pid) = self.pid() else {
            bail!("{} does not run", self.name())
        };
        for child in children_of(pid) {
            signal(child, Signal::CONT)?;
        }
        self.signal(Signal::CONT)
    }

    /// Ends the process in `Drop`: `signal` first where that cleans up, SIGKILL after `grace`.
    pub(crate) fn end(&self, first: Option<Signal>, grace: Duration) {
        if let Some(first) = first {
            // A frozen process would not see the signal.
            let _ = self.resume();
            let _ = self.signal(first);
            let started = Instant::now();
            while started.elapsed() < grace {
                if self.id().is_none() || matches!(self.reap(), Ok(Some(_))) {
                    return;
                }
                std::thread::sleep(POLL);
            }
        }
        if self.id().is_some() {
            let _ = self.kill();
        }
    }

    /// The end of the log, as a paragraph for an error message.
    pub(crate) fn log_tail(&self) -> String {
        let bytes = fs::read(&self.launch.log).unwrap_or_default();
        let tail = &bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..];
        let text = String::from_utf8_lossy(tail);
        format!(
            "; its log {} ends:\n{}",
            self.launch.log.display(),
            text.trim_end()
        )
    }

    pub(crate) fn name(&self) -> &str {
        &self.launch.name
    }

    /// The status of a process that has ended.
    pub(crate) fn reap(&self) -> Result<Option<ExitStatus>> {
        let mut slot = self.slot();
        let Some(child) = slot.as_mut() else {
            return Ok(None);
        };
        let status = child.try_wait()?;
        if status.is_some() {
            *slot = None;
        }
        Ok(status)
    }

    fn signal(&self, sig: Signal) -> Result<()> {
        let slot = self.slot();
        let Some(child) = slot.as_ref() else {
            bail!("{} does not run", self.launch.name)
        };
        signal(Pid::from_child(child), sig)
    }

    fn pid(&self) -> Option<Pid> {
        self.slot().as_ref().map(Pid::from_child)
    }

    fn slot(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn signal(pid: Pid, signal: Signal) -> Result<()> {
    match kill_process(pid, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("sending {signal:?} to {pid:?}")),
    }
}

/// Starts `command` on the thread that outlives every server.
fn spawn(command: Command) -> Result<Child> {
    type Job = (Command, mpsc::SyncSender<std::io::Result<Child>>);
    static STARTER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (send, receive) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in receive {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(send)
    });
    let (answer, answered) = mpsc::sync_channel(1);
    let gone = || anyhow!("the thread that starts servers has ended");
    let sender = starter
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    sender.send((command, answer)).map_err(|_| gone())?;
    Ok(answered.recv().map_err(|_| gone())??)
}

/// The direct children of `parent`: PostgreSQL's backends, which have sessions of their own.
fn children_of(parent: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Pid::from_raw)
        .filter(|pid| stat_of(*pid).is_some_and(|(_, ppid)| ppid == parent.as_raw_nonzero().get()))
        .collect()
}

fn state_of(pid: Pid) -> Option<char> {
    stat_of(pid).map(|(state, _)| state)
}

/// State letter and parent of a process, from `/proc/PID/stat` (proc(5)).
fn stat_of(pid: Pid) -> Option<(char, i32)> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name before it may hold spaces and parentheses.
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn wait_blocking(what: &str, condition: impl Fn() -> bool) -> Result<()> {
    let started = Instant::now();
    while !condition() {
        if started.elapsed() > STOP_DEADLINE {
            bail!("timed out after {STOP_DEADLINE:?} waiting for {what}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
