//! A disk that is small enough to be filled: a tmpfs of the server's own, in a mount namespace that
//! ends with it. It takes no privileges where the kernel lets users make namespaces.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::process::Launch;
use super::tools::installed;

/// What a server needs at rest, and some.
const BYTES: u64 = 256 << 20;

/// Mounts, then becomes the server: the process keeps its id.
const MOUNT: &str = "mount -t tmpfs -o size=\"$1\" tmpfs \"$2\" && shift 2 && exec \"$@\"";

const FILLER: &str = "filler";

/// The same launch with a small disk at `data`.
pub(super) fn with_small_disk(launch: Launch, data: &Path) -> Result<Launch> {
    fs::create_dir_all(data)?;
    let unshare = installed("unshare (util-linux)", PathBuf::from("/usr/bin/unshare"))?;
    let mut args: Vec<String> = ["--map-root-user", "--mount", "sh", "-ec", MOUNT, "sh"]
        .map(str::to_owned)
        .into();
    args.push(BYTES.to_string());
    args.push(data.display().to_string());
    args.push(launch.program.display().to_string());
    args.extend(launch.args);
    Ok(Launch {
        program: unshare,
        args,
        ..launch
    })
}

/// Writes until nothing more fits on the disk at `data` of the process `pid`.
pub(super) fn fill(pid: u32, data: &Path) -> Result<()> {
    let path = seen_by(pid, data).join(FILLER);
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    for size in [1 << 20, 1 << 10, 1] {
        let zeros = vec![0; size];
        loop {
            match file.write_all(&zeros) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error).context("filling the disk"),
            }
        }
    }
    Ok(())
}

/// Takes away what [`fill`] wrote.
pub(super) fn free(pid: u32, data: &Path) -> Result<()> {
    Ok(fs::remove_file(seen_by(pid, data).join(FILLER))?)
}

/// A path in the mount namespace of a process.
fn seen_by(pid: u32, path: &Path) -> PathBuf {
    let inside = path.strip_prefix("/").unwrap_or(path);
    PathBuf::from(format!("/proc/{pid}/root")).join(inside)
}
