//! CPU time and memory of processes, as proc(5) shows them.

use std::fs;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::param::clock_ticks_per_second;
use rustix::time::{ClockId, clock_gettime};

/// Fields of `/proc/PID/stat` behind the name, which may hold spaces.
const STATE: usize = 0;
const PARENT: usize = 1;
/// User and system time of the process, then of the children that it has waited for.
const TIMES: Range<usize> = 11..15;
const TIMES_OF_CHILDREN: Range<usize> = 13..15;
/// Readings until none is disturbed; each takes milliseconds, and children are few.
const ATTEMPTS: u32 = 10;

/// CPU time of a process and of all its children, those that have ended too.
///
/// # Errors
/// When there is no such process, or its children end all the time.
pub fn of_family(pid: u32) -> Result<Duration> {
    for _ in 0..ATTEMPTS {
        let before = stat(pid)?;
        let mut ticks = ticks(&before)?;
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(child) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let Ok(fields) = stat(child) else { continue };
            if fields[PARENT] == pid.to_string() {
                ticks += self::ticks(&fields)?;
            }
        }
        // The time of a child that ended between the two readings would be counted twice or not at all.
        if stat(pid)?.get(TIMES_OF_CHILDREN) == before.get(TIMES_OF_CHILDREN) {
            let nanoseconds = ticks * 1_000_000_000 / clock_ticks_per_second();
            return Ok(Duration::from_nanos(nanoseconds));
        }
    }
    bail!("children of process {pid} end all the time; try again on a quiet machine")
}

/// Whether a process has ended and nobody has waited for it, so that its times can still be read.
///
/// # Errors
/// When there is no such process.
pub fn has_ended(pid: u32) -> Result<bool> {
    Ok(stat(pid)?[STATE] == "Z")
}

/// The most memory that a process ever had, in bytes; `None` when it has ended.
pub fn peak_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// CPU time of the calling thread.
pub fn of_this_thread() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec as u32)
}

fn stat(pid: u32) -> Result<Vec<String>> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let (_, fields) = text.rsplit_once(')').context("no name in it")?;
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

fn ticks(fields: &[String]) -> Result<u64> {
    let times = fields.get(TIMES).context("a process without times")?;
    times.iter().map(|time| Ok(time.parse::<u64>()?)).sum()
}
