//! A recovery that is killed at each of its steps has changed nothing, or all.

use std::os::unix::process::ExitStatusExt as _;

use anyhow::{Context as _, Result, ensure};
use pillarbox_relay::failpoint::RECOVERY_STEPS;
use pillarbox_testkit::servers::{Flavour, eventually};

use crate::recovery::{delivered, go_on, life_until, own_server};
use crate::scene::{KILLED, PATIENCE, Scene};

/// What a recovery may change.
async fn state(scene: &Scene) -> Result<String> {
    let sql = "select md5(string_agg(line, ',' order by line)) from (
        select tx::text || id || event_id from pillarbox.event
        union all select 'batch' || number || origin from pillarbox.batch
        union all select 'delivery' || number || outcome from pillarbox.delivery
        union all select 'sink' || origin || genesis from pillarbox.sink) of (line)";
    let rows = scene.postgres.query(sql, &[]).await?;
    Ok(rows.first().context("a row")?.get(0))
}

#[tokio::test]
async fn inv_2_a_recovery_is_killed_at_each_step() -> Result<()> {
    let origin = own_server().await?;
    let (scene, oracle, dump) = life_until(Flavour::V26, origin, async |scene: &Scene| {
        scene.postgres.dump(&[]).await
    })
    .await?;
    scene.postgres.kill()?;
    let scene = scene.moved_to(own_server().await?);
    scene.postgres.restore(&dump).await?;
    for step in RECOVERY_STEPS {
        let before = state(&scene).await?;
        let failpoint = format!("{step}=return");
        let killed = scene.relay("recover", &failpoint)?.output();
        let killed = tokio::time::timeout(PATIENCE, killed).await??;
        let log = String::from_utf8_lossy(&killed.stderr);
        ensure!(killed.status.signal() == Some(KILLED), "{step}: {log}");
        eventually("its session to end", PATIENCE, || async {
            let sessions = "select count(*) from pg_stat_activity
                            where application_name = 'pillarbox recover'";
            Ok((scene.number(sessions).await? == 0).then_some(()))
        })
        .await?;
        let is_same = state(&scene).await? == before;
        ensure!(is_same == (step != "recover-committed"), "{step}");
    }
    let traffic = go_on(&scene, oracle).await?;
    delivered(&scene, traffic).await?;
    Ok(())
}
