//! A server that has lost its last seconds: a standby that was promoted without them, or a snapshot of
//! its machine that was put back.

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::{Flavour, Postgres, eventually};

use crate::recovery::{delivered, go_on, life_until, own_server, recover_scene};
use crate::scene::{PATIENCE, Scene};
use crate::traffic::{Event, Way, commit};

/// A standby that has stopped to listen: what the primary does from now on, it will never know.
async fn deaf_standby(scene: &Scene) -> Result<Postgres> {
    let standby = Postgres::standby_of(&scene.postgres).await?;
    standby.caught_up_with(&scene.postgres).await?;
    standby
        .execute("alter system set primary_conninfo = ''")
        .await?;
    standby.execute("select pg_reload_conf()").await?;
    eventually("the standby to be deaf", PATIENCE, || async {
        let rows = standby
            .query("select count(*) from pg_stat_wal_receiver", &[])
            .await?;
        Ok((rows.first().context("a row")?.get::<_, i64>(0) == 0).then_some(()))
    })
    .await?;
    Ok(standby)
}

/// The sink holds batches that the promoted server has never heard of, some of them in part.
async fn promoted(flavour: Flavour) -> Result<()> {
    let primary = own_server().await?;
    let (scene, oracle, standby) = life_until(flavour, primary, deaf_standby).await?;
    let last = "select max(number) from pillarbox.batch";
    let sealed = scene.number(last).await?;
    scene.postgres.kill()?;
    standby.promote().await?;
    let scene = scene.moved_to(standby);
    ensure!(scene.number(last).await? < sealed, "no seal was lost");
    let traffic = go_on(&scene, oracle).await?;
    traffic.more(40).await?;
    let refused = scene.refusal().await?;
    ensure!(
        refused.contains("promoted without the last seals")
            && refused.contains("pillarbox recover"),
        "{refused}"
    );
    let findings = recover_scene(&scene).await?;
    ensure!(findings.sinks[0].found > 0, "{findings:?}");
    let verdict = delivered(&scene, traffic).await?;
    ensure!(verdict.published > 200, "{verdict}");
    Ok(())
}

#[tokio::test]
async fn inv_2_a_promoted_standby_has_lost_seals_before_clickhouse_26() -> Result<()> {
    promoted(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_a_promoted_standby_has_lost_seals_before_clickhouse_18() -> Result<()> {
    promoted(Flavour::V18).await
}

/// The files of the server at an earlier moment: same identifier, same timeline, and a ledger that
/// has never heard of what the sink holds.
async fn set_back(flavour: Flavour) -> Result<()> {
    let server = own_server().await?;
    let last = "select max(number) from pillarbox.batch";
    let (scene, oracle, files) = life_until(flavour, server, async |scene: &Scene| {
        scene.postgres.kill()?;
        let files = scene.postgres.files().await?;
        scene.postgres.restart().await?;
        let last = scene.number(last).await?;
        eventually("batches that the files do not know", PATIENCE, || async {
            let delivered = "select coalesce(max(number), 0) from pillarbox.delivery";
            Ok((scene.number(delivered).await? > last + 1).then_some(()))
        })
        .await?;
        Ok(files)
    })
    .await?;
    let sealed = scene.number(last).await?;
    scene.postgres.kill()?;
    scene.postgres.set_back(&files).await?;
    scene.postgres.restart().await?;
    ensure!(scene.number(last).await? < sealed, "no seal was lost");
    let traffic = go_on(&scene, oracle).await?;
    traffic.more(40).await?;
    let refused = scene.refusal().await?;
    ensure!(
        refused.contains("was set back") && refused.contains("pillarbox recover"),
        "{refused}"
    );
    let findings = recover_scene(&scene).await?;
    ensure!(findings.sinks[0].found > 0, "{findings:?}");
    delivered(&scene, traffic).await?;
    Ok(())
}

#[tokio::test]
async fn inv_2_a_snapshot_of_the_machine_is_put_back_before_clickhouse_26() -> Result<()> {
    set_back(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_a_snapshot_of_the_machine_is_put_back_before_clickhouse_18() -> Result<()> {
    set_back(Flavour::V18).await
}

/// A promoted server lacks an outcome of before some that it has: what is judged again is accounted for once.
#[tokio::test]
async fn inv_13_a_recovery_counts_no_event_twice() -> Result<()> {
    let scene = Scene::on(own_server().await?, Flavour::V26).await?;
    let retain = "update pillarbox.settings set retention = '1 hour'";
    scene.postgres.execute(retain).await?;
    let oracle = Oracle::new();
    let mut client = scene.postgres.connect().await?;
    for _ in 0..3 {
        let events: Vec<Event> = (0..10)
            .map(|n| Event::at(n, "trial", "{}".to_owned()))
            .collect();
        commit(&mut client, &oracle, Way::Batch, &events).await?;
        scene.drain().await?;
    }
    let forget = "delete from pillarbox.delivery where number = 2";
    scene.postgres.execute(forget).await?;
    let findings = recover_scene(&scene).await?;
    assert_eq!(
        (findings.sinks[0].proven, findings.sinks[0].found),
        (10, 20)
    );
    scene.holds_when_drained(&oracle).await?;
    let account = "select count(*) from pillarbox.accounting()
                   where (published, delivered) = (30, 30)";
    assert_eq!(scene.number(account).await?, 1);
    Ok(())
}
