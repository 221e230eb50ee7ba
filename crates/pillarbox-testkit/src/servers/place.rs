//! A server's directory and port, owned by exactly one process at a time.
//!
//! Both carry a file lock, which the kernel drops with the process: what a killed process left
//! behind is recognised without looking at process ids, and swept by the next one.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::tools::RunAs;

const PREFIX: &str = "pillarbox-srv-";
const LOCK: &str = "owner.lock";

/// Below the ephemeral range: an outgoing connection can then never take the port of a server
/// that is down for a moment.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// A directory that only lives as long as this value, or as its process.
#[derive(Debug)]
pub(crate) struct Place {
    dir: TempDir,
    _lock: File,
}

impl Place {
    /// Makes an empty directory that `user` can reach, and sweeps what dead processes left.
    pub(crate) fn create(user: Option<RunAs>) -> Result<Self> {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir()
            .with_context(|| {
                format!(
                    "making a server directory in {}",
                    std::env::temp_dir().display()
                )
            })?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        // Locked before it has its name, so that no sweep sees it unlocked.
        let fresh = dir.path().join("owner.lock.new");
        let lock = File::create(&fresh)?;
        lock.lock()?;
        fs::rename(&fresh, dir.path().join(LOCK))?;
        if let Some(user) = user {
            chown(dir.path(), Some(user.uid), Some(user.gid))?;
        }
        Ok(Self { dir, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        free_shared_memory(self.dir.path());
        unmount(self.dir.path());
    }
}

impl Place {
    /// Makes `name` in it a disk of its own, of so many bytes, in memory. Needs root.
    pub(crate) fn mount(&self, name: &str, bytes: u64, user: Option<RunAs>) -> Result<PathBuf> {
        let at = self.path().join(name);
        fs::create_dir(&at)?;
        let owner = user.map_or_else(String::new, |user| {
            format!(",uid={},gid={}", user.uid, user.gid)
        });
        let options = format!("size={bytes},mode=0700{owner}");
        let mut mount = std::process::Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&at);
        let output = mount.output().context("mount (package mount)")?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("a disk of its own needs root: {}", text.trim_end());
        }
        Ok(at)
    }
}

/// Ends what [`Place::mount`] began below `place`, also when its process was killed.
fn unmount(place: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = mounts.lines().filter_map(|line| {
        let at = Path::new(line.split(' ').nth(1)?);
        at.starts_with(place).then(|| at.to_owned())
    });
    for at in below {
        // Lazily: a server that is just ending may still stand in it.
        let _ = std::process::Command::new("umount")
            .arg("--lazy")
            .arg(at)
            .status();
    }
}

/// Removes the directories whose owner is dead. Failures leave them for the next sweep.
fn sweep() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join(LOCK)) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            free_shared_memory(&entry.path());
            unmount(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Frees the System V segment of a PostgreSQL that was killed: nobody else does, and the kernel
/// has room for 4,096.
fn free_shared_memory(place: &Path) {
    let Ok(text) = fs::read_to_string(place.join("data/postmaster.pid")) else {
        return;
    };
    let Some((key, id)) = text
        .lines()
        .nth(6)
        .and_then(|line| line.trim().split_once(' '))
    else {
        return;
    };
    let id = id.trim();
    let Ok(segments) = fs::read_to_string("/proc/sysvipc/shm") else {
        return;
    };
    let unused = segments.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.first() == Some(&key) && fields.get(1) == Some(&id) && fields.get(6) == Some(&"0")
    });
    if unused {
        let _ = std::process::Command::new("ipcrm")
            .args(["-m", id])
            .status();
    }
}

/// A loopback port that no other process using this module is given while this value lives.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    _lock: File,
}

impl Port {
    pub(crate) fn lease() -> Result<Self> {
        let dir = lease_dir();
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let count = PORTS.end - PORTS.start;
        // A random start keeps concurrent processes from walking the same ports.
        let start = (uuid::Uuid::new_v4().as_u128() % u128::from(count)) as u16;
        for step in 0..count {
            let number = PORTS.start + (start + step) % count;
            let Ok(lock) = File::create(dir.join(number.to_string())) else {
                continue;
            };
            let free = || TcpListener::bind(("127.0.0.1", number)).is_ok();
            if lock.try_lock().is_ok() && free() {
                return Ok(Self {
                    number,
                    _lock: lock,
                });
            }
        }
        bail!(
            "no free loopback port between {} and {}",
            PORTS.start,
            PORTS.end
        )
    }
}

fn lease_dir() -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    std::env::temp_dir().join(format!("pillarbox-ports-{uid}"))
}
