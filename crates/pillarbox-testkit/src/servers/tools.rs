//! Where `make setup` puts what Debian does not bring, and as whom PostgreSQL runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The user and group a server runs as, where it is not the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunAs {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The tools directory: `PILLARBOX_TOOLS`, else a cache directory (the same rule as
/// `scripts/setup`).
pub(crate) fn tools_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("PILLARBOX_TOOLS") {
        return dir.into();
    }
    if rustix::process::geteuid().is_root() {
        return "/var/cache/pillarbox".into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| {
            let home = std::env::var_os("HOME")?;
            Some(Path::new(&home).join(".cache"))
        });
    cache.unwrap_or_else(std::env::temp_dir).join("pillarbox")
}

/// The interpreter of Python that has psycopg, Django and Celery.
///
/// # Errors
/// When `make setup` has not installed it.
pub fn client_python() -> Result<PathBuf> {
    installed(
        "python with psycopg",
        tools_dir().join("clients/bin/python"),
    )
}

/// `path` if it is there, else the error that names the remedy.
pub(crate) fn installed(what: &str, path: PathBuf) -> Result<PathBuf> {
    if path.exists() {
        return Ok(path);
    }
    bail!(
        "{what} is not installed (looked for {}); run `make setup`",
        path.display()
    )
}

/// An unprivileged user for servers that refuse to run as root, if the caller is root.
pub(crate) fn unprivileged() -> Result<Option<RunAs>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    let found = ["postgres", "nobody"]
        .iter()
        .find_map(|name| find_user(&passwd, name));
    let user = found.context(
        "postgresql refuses to run as root, and neither user postgres nor nobody exists; \
         run `make setup`",
    )?;
    Ok(Some(user))
}

fn find_user(passwd: &str, name: &str) -> Option<RunAs> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(RunAs { uid, gid })
    })
}
