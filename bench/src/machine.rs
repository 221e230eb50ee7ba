//! Where and on what was measured.

use std::fs;
use std::process::Command;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The machine, the versions and the settings of one run.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The day, in UTC.
    pub(crate) date: String,
    /// Commit of the sources, with a `+` when they were changed since.
    pub(crate) commit: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    pub(crate) postgresql: String,
    pub(crate) clickhouse: String,
    /// Load of the machine in the minute before the run.
    pub(crate) load: f64,
    /// Settings of PostgreSQL beyond its defaults.
    pub(crate) settings: Vec<(String, String)>,
    /// Whether more was measured than the targets need.
    pub(crate) is_full: bool,
    /// The share of all counts; 1 in a whole run.
    pub(crate) share: f64,
}

impl Machine {
    /// The versions of the servers come from a stage.
    pub(crate) fn read(is_full: bool, share: f64) -> Result<Self> {
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let memory = fs::read_to_string("/proc/meminfo")?;
        let kib: f64 = field(&memory, "MemTotal").trim_end_matches(" kB").parse()?;
        let load = fs::read_to_string("/proc/loadavg")?;
        let load = load.split_whitespace().next().unwrap_or_default();
        Ok(Self {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            commit: commit(),
            cpu: field(&cpus, "model name").to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: (kib / 1024.0 / 102.4).round() / 10.0,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            load: load.parse()?,
            is_full,
            share,
            ..Self::default()
        })
    }
}

/// The value behind `name :` in a file of proc(5).
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(key, _)| key.trim() == name);
    found.map_or("", |(_, value)| value.trim())
}

/// The commit that is checked out; `unknown` outside of a repository.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(arguments)
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(hash) = git(&["rev-parse", "--short=10", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    match changed.is_some_and(|list| !list.is_empty()) {
        true => format!("{hash}+"),
        false => hash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "model\t\t: 143\nmodel name\t: Some CPU @ 2 GHz\n";
        assert_eq!(field(text, "model name"), "Some CPU @ 2 GHz");
        assert_eq!(field(text, "stepping"), "");
    }
}
