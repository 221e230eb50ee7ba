//! PostgreSQL's disk is full under load, data and WAL: publishers get errors, nothing that was answered
//! is lost, and when there is space again delivery goes on (INV-1, INV-2).

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::{Flavour, Postgres, eventually};

use crate::scene::{PATIENCE, Scene};
use crate::traffic::Traffic;

const DISK_BYTES: u64 = 192 * 1024 * 1024;

/// Takes what space there is, down to the last page.
fn fill(ballast: &Path) -> Result<()> {
    let mut file = File::options().create(true).append(true).open(ballast)?;
    for step in [1 << 20, 1 << 12] {
        let chunk = vec![0_u8; step];
        while file.write_all(&chunk).is_ok() {}
    }
    Ok(())
}

async fn the_disk_is_full(flavour: Flavour, times: u32) -> Result<()> {
    let postgres = Postgres::builder()
        .disk(DISK_BYTES)
        .setting("wal_keep_size", "0")
        .setting("min_wal_size", "32MB")
        .setting("max_wal_size", "48MB")
        .setting("shared_buffers", "8MB");
    let scene = Scene::on(postgres.start().await?, flavour).await?;
    let data = std::fs::canonicalize(scene.postgres.data_dir()?)?;
    let ballast = data.parent().context("the disk")?.join("ballast");
    let log = data.parent().and_then(Path::parent).context("the place")?;
    let log = log.join("postgresql.log");
    let refusals = || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.matches("No space left on device").count()
    };
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    let relay = scene.running()?;
    for _ in 0..times {
        traffic.more(50).await?;
        let before = refusals();
        eventually("postgresql to find no space", PATIENCE, || async {
            // Again and again: emptied leaves give space back.
            fill(&ballast)?;
            Ok((refusals() > before).then_some(()))
        })
        .await?;
        std::fs::remove_file(&ballast)?;
        // A full disk of the WAL ends the server; whoever runs it starts it again.
        if scene.postgres.wait_ready().await.is_err() {
            scene.postgres.restart().await?;
        }
        eventually("postgresql to be back", PATIENCE, || async {
            match scene.postgres.connect().await {
                Ok(_) => Ok(Some(())),
                Err(_) => {
                    if scene.postgres.wait_ready().await.is_err() {
                        scene.postgres.restart().await?;
                    }
                    Ok(None)
                }
            }
        })
        .await?;
    }
    traffic.more(50).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    let verdict = scene.holds(&oracle, relay).await?;
    ensure!(verdict.published > 100, "{verdict}");
    Ok(())
}

#[tokio::test]
async fn inv_2_the_disk_of_postgresql_is_full_before_clickhouse_18() -> Result<()> {
    the_disk_is_full(Flavour::V18, 2).await
}

#[tokio::test]
async fn inv_2_the_disk_of_postgresql_is_full_before_clickhouse_26() -> Result<()> {
    the_disk_is_full(Flavour::V26, 2).await
}
