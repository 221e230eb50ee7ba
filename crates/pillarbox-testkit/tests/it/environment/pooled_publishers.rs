//! Publishers behind PgBouncer in transaction mode, by driver and by psql, under load; the relay has a
//! connection of its own (INV-1, INV-2).

use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::{Flavour, PgBouncer, PoolMode};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::scene::{PATIENCE, Scene};
use crate::traffic::{Event, Traffic};

/// Transactions by psql, each with two events.
const BY_PSQL: i64 = 30;

async fn psql(url: &str, script: &str) -> Result<()> {
    let mut command = Command::new("psql");
    command
        .args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", url])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().context("psql")?;
    let mut stdin = child.stdin.take().context("standard input")?;
    stdin.write_all(script.as_bytes()).await?;
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await??;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{errors}");
    Ok(())
}

fn publish(event: &Event, time_us: i64) -> String {
    format!(
        "select pillarbox.publish('{}', '{}', to_timestamp({}) + interval '{} us', event_id => '{}');\n",
        event.event_type,
        event.context,
        time_us / 1_000_000,
        time_us % 1_000_000,
        event.event_id
    )
}

async fn behind_a_pooler(flavour: Flavour) -> Result<()> {
    const START_US: i64 = 1_790_000_000_000_000;
    let scene = Scene::start(flavour).await?;
    // Far fewer server connections than publishers.
    let bouncer = PgBouncer::start(&scene.postgres, PoolMode::Transaction, 3, "postgres").await?;
    let url = bouncer.url("postgres");
    let traffic = Traffic::through(&scene.postgres, &url, 12, true, Arc::default()).await?;
    let relay = scene.running()?;
    for n in 0..BY_PSQL {
        let times = [START_US + n * 1_000_001, START_US + n * 1_000_001 + 7];
        let events =
            times.map(|at| Event::at(at, "by_psql", format!(r#"{{"n": {n}, "at":{at}}}"#)));
        let ends = if n % 3 == 0 { "rollback" } else { "commit" };
        let [first, second] = &events;
        let script = format!(
            "begin;\n{}savepoint s;\n{}{ends};\n",
            publish(first, times[0]),
            publish(second, times[1])
        );
        psql(&url, &script).await?;
        for event in &events {
            match ends {
                "commit" => traffic.oracle.committed(event.published()?),
                _ => traffic.oracle.rolled_back(event.event_id),
            }
        }
    }
    traffic.more(200).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

#[tokio::test]
async fn inv_2_publishers_behind_pgbouncer_before_clickhouse_18() -> Result<()> {
    behind_a_pooler(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_publishers_behind_pgbouncer_before_clickhouse_26() -> Result<()> {
    behind_a_pooler(Flavour::V26).await
}
