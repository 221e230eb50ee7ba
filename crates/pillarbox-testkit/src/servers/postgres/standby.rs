//! A physical standby, made by the low-level backup protocol (the manual's "Continuous Archiving
//! and PITR", 26.3.3): the npm builds bring no `pg_basebackup`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::{Postgres, append_settings, give_to};
use crate::servers::place::{Place, Port};
use crate::servers::{START_DEADLINE, eventually};

impl Postgres {
    /// Starts a hot standby that streams from `primary`, under the application name
    /// `standby_PORT`. It is asynchronous until the primary's `synchronous_standby_names` say
    /// otherwise. Settings are the primary's.
    pub async fn standby_of(primary: &Self) -> Result<Self> {
        let source = primary.own("making a standby")?;
        let place = Place::create(source.user)?;
        let data = place.path().join("data");
        let client = primary.connect().await?;
        client
            .query("select pg_backup_start('standby', true)", &[])
            .await?;
        copy_running(&source.place.path().join("data"), &data).await?;
        let row = client
            .query_one("select labelfile from pg_backup_stop(false)", &[])
            .await?;
        let label: String = row.get(0);

        let port = Port::lease()?;
        let upstream = format!(
            "host=127.0.0.1 port={} user=postgres application_name=standby_{}",
            source.port.number, port.number
        );
        let settings = [("primary_conninfo".to_owned(), upstream)];
        append_settings(&data, place.path(), &port, &settings)?;
        for (name, text) in [("backup_label", label.as_str()), ("standby.signal", "")] {
            fs::write(data.join(name), text)?;
            give_to(source.user, &data.join(name))?;
        }
        Self::launch(source.version, source.user, place, port, Vec::new()).await
    }

    /// Makes a standby a primary, and waits until it takes writes.
    pub async fn promote(&self) -> Result<()> {
        let rows = self.query("select pg_promote(true, 60)", &[]).await?;
        if rows.first().is_none_or(|row| !row.get::<_, bool>(0)) {
            bail!(
                "the standby was not promoted within 60 s{}",
                self.log_tail()
            );
        }
        Ok(())
    }

    /// Waits until this standby has replayed all that `primary` has written so far.
    pub async fn caught_up_with(&self, primary: &Self) -> Result<()> {
        let target = primary
            .query("select pg_current_wal_lsn()::text", &[])
            .await?;
        let target: String = target
            .first()
            .context("the position of the primary")?
            .get(0);
        let client = self.connect().await?;
        let sql = "select coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)";
        eventually("the standby to catch up", START_DEADLINE, || async {
            let replayed: bool = client.query_one(sql, &[&target]).await?.get(0);
            Ok(replayed.then_some(()))
        })
        .await
    }
}

/// Copies the directory of a running server. Files may change (the WAL mends them) or vanish.
async fn copy_running(from: &Path, to: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"])
        .arg(from)
        .arg(to)
        .kill_on_drop(true)
        .env("LC_ALL", "C");
    let output = copy.output().await.context("copying the primary")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !text
        .lines()
        .all(|line| line.contains("No such file or directory"))
    {
        bail!("copying the primary: {}", text.trim_end());
    }
    for name in ["postmaster.pid", "postmaster.opts"] {
        let _ = fs::remove_file(to.join(name));
    }
    // The primary's slots would hold the standby's WAL back for ever.
    for slot in fs::read_dir(to.join("pg_replslot"))?.flatten() {
        fs::remove_dir_all(slot.path())?;
    }
    Ok(())
}
