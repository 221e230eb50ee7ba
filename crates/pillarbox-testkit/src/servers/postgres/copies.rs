//! Ways in which a database comes to live elsewhere, or at another time: a dump restored into another
//! cluster, a file-system snapshot put back, and `pg_upgrade`. By Debian's programs of version 15.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::process::Command;

use super::template::{bin_dir, init};
use super::{PgVersion, Postgres, append_settings, default_settings, give_to};
use crate::servers::place::{Place, Port};
use crate::servers::tools::RunAs;

/// A dump, as `pg_dump` made it.
#[derive(Debug)]
pub struct Dump {
    roles: String,
    database: String,
}

/// The files of a server at one moment.
#[derive(Debug)]
pub struct Files {
    data: PathBuf,
    _dir: TempDir,
}

impl Postgres {
    /// Dumps roles and the first database. `options` go to `pg_dump`, for example `--inserts`.
    pub async fn dump(&self, options: &[&str]) -> Result<Dump> {
        let bin = bin_dir(PgVersion::V15)?;
        let mut roles = Command::new(bin.join("pg_dumpall"));
        roles.args(["--globals-only", "--dbname", &self.url]);
        let mut database = Command::new(bin.join("pg_dump"));
        database.args(options).arg(&self.url);
        Ok(Dump {
            roles: output(roles).await?,
            database: output(database).await?,
        })
    }

    /// Restores a dump into the first database.
    pub async fn restore(&self, dump: &Dump) -> Result<()> {
        // The role postgres is there already.
        let roles: Vec<&str> = dump.roles.lines().collect();
        let roles: Vec<&str> = roles
            .into_iter()
            .filter(|line| !line.contains("ROLE postgres"))
            .collect();
        self.script(&roles.join("\n")).await?;
        self.script(&dump.database).await
    }

    /// Runs a script by `psql`, which takes the data of a COPY out of it.
    async fn script(&self, text: &str) -> Result<()> {
        let dir = TempDir::new()?;
        let file = dir.path().join("script.sql");
        std::fs::write(&file, text)?;
        let mut psql = Command::new("psql");
        psql.args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"]);
        psql.arg("--file").arg(&file).arg(&self.url);
        output(psql).await.map(drop)
    }

    /// Copies the files of a server that was stopped or killed.
    pub async fn files(&self) -> Result<Files> {
        let own = self.own("copying its files")?;
        ensure!(own.process.id().is_none(), "stop the server first");
        let dir = TempDir::new()?;
        let data = dir.path().join("data");
        copy(&own.place.path().join("data"), &data).await?;
        Ok(Files { data, _dir: dir })
    }

    /// Puts the files back, as a snapshot of the machine would be. The server is stopped.
    pub async fn set_back(&self, files: &Files) -> Result<()> {
        let own = self.own("setting it back")?;
        ensure!(own.process.id().is_none(), "stop the server first");
        let data = own.place.path().join("data");
        std::fs::remove_dir_all(&data)?;
        copy(&files.data, &data).await
    }

    /// Upgrades to a new cluster with `pg_upgrade`; the old one is stopped for good.
    pub async fn upgrade(&self) -> Result<Self> {
        let own = self.own("upgrading")?;
        ensure!(own.version == PgVersion::V15, "only 15 has a pg_upgrade");
        if own.process.id().is_some() {
            self.stop().await?;
        }
        let bin = bin_dir(own.version)?;
        let place = Place::create(own.user)?;
        let data = place.path().join("data");
        init(own.version, "UTF8", own.user, &data).await?;
        let work = place.path().join("upgrade");
        std::fs::create_dir(&work)?;
        give_to(own.user, &work)?;
        let (old_port, port) = (Port::lease()?, Port::lease()?);
        let mut upgrade = run_as(own.user, &bin.join("pg_upgrade"));
        upgrade.arg("--old-bindir").arg(&bin);
        upgrade.arg("--new-bindir").arg(&bin);
        upgrade
            .arg("--old-datadir")
            .arg(own.place.path().join("data"));
        upgrade.arg("--new-datadir").arg(&data);
        upgrade.arg("--socketdir").arg(&work);
        upgrade.args(["--username", "postgres"]);
        upgrade.args(["--old-port", &old_port.number.to_string()]);
        upgrade.args(["--new-port", &port.number.to_string()]);
        upgrade.current_dir(&work);
        output(upgrade).await?;
        append_settings(&data, place.path(), &port, &default_settings(false))?;
        Self::launch(own.version, own.user, place, port, Vec::new()).await
    }
}

fn run_as(user: Option<RunAs>, program: &Path) -> Command {
    let Some(RunAs { uid, gid }) = user else {
        return Command::new(program);
    };
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
    command.args(["--clear-groups", "--"]).arg(program);
    command
}

async fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"]).arg(from).arg(to);
    output(copy).await?;
    for name in ["postmaster.pid", "postmaster.opts"] {
        let _ = std::fs::remove_file(to.join(name));
    }
    Ok(())
}

async fn output(mut command: Command) -> Result<String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    command.env("LC_ALL", "C");
    let shown = format!("{:?}", command.as_std().get_program());
    let output = command.output().await.context(shown.clone())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{shown}: {}: {}\n{text}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}
