//! The relay is killed at every step of the spine, under load, on both ClickHouse engines, and again
//! and again; in the end ClickHouse holds what was committed, each event once (INV-2).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use pillarbox_relay::failpoint::STEPS;
use pillarbox_relay::schema::registry::{self, Start};
use pillarbox_relay::schema::{self, settings};
use pillarbox_relay::sink::clickhouse::{ClickHouse as Sink, ClickHouseConfig, CreateOptions};
use pillarbox_testkit::servers::{ClickHouse, Flavour, PgVersion, Postgres, eventually};
use tokio::process::{Child, Command};
use uuid::Uuid;

/// Kills per test: more than one, so that what a killed relay left is met by another kill.
const KILLS: u32 = 3;

/// How long a relay may take to come to its step, and a drain to its end.
const PATIENCE: Duration = Duration::from_secs(60);

/// SIGKILL.
const KILLED: i32 = 9;

type Contexts = BTreeMap<Uuid, String>;

/// Servers, a registered sink, and what was committed.
struct Scene {
    postgres: Postgres,
    clickhouse: ClickHouse,
}

impl Scene {
    async fn start(flavour: Flavour) -> Result<Self> {
        let postgres = Postgres::start(PgVersion::V15).await?;
        let clickhouse = ClickHouse::start(flavour).await?;
        let mut client = postgres.connect().await?;
        schema::migrate(&mut client).await?;
        // Every tend turns the ring and empties what it can.
        let change = settings::Change {
            retention: Some("0".to_owned()),
            leaf_bytes_max: Some(1),
            ..settings::Change::default()
        };
        settings::change(&mut client, &change).await?;
        let scene = Self {
            postgres,
            clickhouse,
        };
        scene.sink()?.create(&CreateOptions::default()).await?;
        registry::register(&client, "clickhouse", "test", Start::Outbox).await?;
        Ok(scene)
    }

    fn sink(&self) -> Result<Sink> {
        let url = self.clickhouse.url_with_credentials()?;
        Ok(Sink::new(ClickHouseConfig::new(
            url,
            self.clickhouse.database(),
            "events",
        ))?)
    }

    fn relay(&self, mode: &str, failpoints: &str) -> Result<Command> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_relay_under_test"));
        command
            .env("DATABASE_URL", self.postgres.url())
            .env("SINK", "clickhouse")
            .env("CLICKHOUSE_URL", self.clickhouse.url_with_credentials()?)
            .env("CLICKHOUSE_DATABASE", self.clickhouse.database())
            .env("CLICKHOUSE_TABLE", "events")
            .env("MODE", mode)
            .env("MAX_ROWS", "40")
            .env("MAX_AGE_MS", "20")
            .env("FAILPOINTS", failpoints)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Ok(command)
    }

    /// Publishes until told to stop: commits, rollbacks, many events in a transaction.
    async fn publish(&self, writer: u32, stop: Arc<AtomicBool>) -> Result<Contexts> {
        let mut client = self.postgres.connect().await?;
        let mut committed = Contexts::new();
        let mut round = 0_u32;
        while !stop.load(Ordering::Relaxed) {
            round += 1;
            let transaction = client.transaction().await?;
            let mut written = Contexts::new();
            for event in 0..round % 7 + 1 {
                let context = format!(r#"{{"writer": {writer}, "round":{round},"event":{event}}}"#);
                let row = transaction
                    .query_one(
                        "select pillarbox.publish('killed', $1::text::json,
                             now() - $2::integer * interval '20 days')",
                        &[&context, &(i32::try_from(event)? % 3)],
                    )
                    .await?;
                written.insert(row.get(0), context);
            }
            if round.is_multiple_of(5) {
                transaction.rollback().await?;
            } else {
                transaction.commit().await?;
                committed.append(&mut written);
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        Ok(committed)
    }

    /// What ClickHouse holds, with the number of times it holds it.
    async fn held(&self) -> Result<BTreeMap<Uuid, (u32, String)>> {
        let rows = self
            .clickhouse
            .query("select toString(event_id), event_context from events format JSONCompactEachRow")
            .await;
        let rows = match rows {
            Ok(rows) => rows,
            Err(_) => {
                self.clickhouse
                    .query(
                        "select toString(event_id), event_context from events format JSONEachRow",
                    )
                    .await?
            }
        };
        let mut held = BTreeMap::new();
        for line in rows.lines().filter(|line| !line.is_empty()) {
            let (id, context) = fields(line)?;
            let entry = held.entry(id.parse()?).or_insert((0, context));
            entry.0 += 1;
        }
        Ok(held)
    }
}

fn fields(line: &str) -> Result<(String, String)> {
    let value: serde_json::Value = serde_json::from_str(line)?;
    let texts: Vec<String> = match value {
        serde_json::Value::Array(items) => items
            .into_iter()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect(),
        serde_json::Value::Object(map) => {
            let text = |key: &str| {
                map.get(key)
                    .and_then(|item| item.as_str())
                    .map(str::to_owned)
            };
            text("toString(event_id)")
                .into_iter()
                .chain(text("event_context"))
                .collect()
        }
        _ => bail!("not a row: {line}"),
    };
    let [id, context] = <[String; 2]>::try_from(texts).map_err(|_| anyhow::anyhow!("{line}"))?;
    Ok((id, context))
}

/// Waits for the relay to be killed by its step; anything else is a failure.
async fn wait_killed(mut child: Child, step: &str) -> Result<()> {
    use std::os::unix::process::ExitStatusExt as _;
    use tokio::io::AsyncReadExt as _;
    let mut stderr = child.stderr.take().context("no stderr")?;
    let mut log = Vec::new();
    let reading = async {
        while stderr.read_buf(&mut log).await? > 0 {}
        std::io::Result::Ok(())
    };
    let in_time = tokio::time::timeout(PATIENCE, reading).await;
    let log = String::from_utf8_lossy(&log);
    ensure!(in_time.is_ok(), "the relay did not come to {step}:\n{log}");
    let status = child.wait().await?;
    let is_killed = status.signal() == Some(KILLED);
    ensure!(
        is_killed,
        "the relay ended with {status} instead of at {step}:\n{log}"
    );
    Ok(())
}

async fn kill_at(step: &str, flavour: Flavour) -> Result<()> {
    let scene = Arc::new(Scene::start(flavour).await?);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (scene, stop) = (Arc::clone(&scene), Arc::clone(&stop));
            tokio::spawn(async move { scene.publish(writer, stop).await })
        })
        .collect();
    for kill in 0..KILLS {
        // Each relay comes a little further than the one before; it takes over only once.
        let passed = if step == "took-over" { 0 } else { kill };
        let failpoints = match passed {
            0 => format!("{step}=return"),
            _ => format!("{step}={passed}*off->return"),
        };
        wait_killed(scene.relay("run", &failpoints)?.spawn()?, step).await?;
    }
    stop.store(true, Ordering::Relaxed);
    let mut committed = Contexts::new();
    for writer in writers {
        committed.append(&mut writer.await??);
    }
    let output = tokio::time::timeout(PATIENCE, scene.relay("drain", "")?.output()).await??;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let held = scene.held().await?;
    let doubled = held.values().filter(|(times, _)| *times != 1).count();
    let lost = committed.keys().filter(|id| !held.contains_key(id)).count();
    let phantom = held.keys().filter(|id| !committed.contains_key(id)).count();
    let altered = held
        .iter()
        .filter(|(id, (_, context))| committed.get(id).is_some_and(|sent| sent != context))
        .count();
    assert!(
        committed.len() > 100,
        "only {} events were committed",
        committed.len()
    );
    assert_eq!(
        (lost, doubled, phantom, altered),
        (0, 0, 0, 0),
        "of {}",
        committed.len()
    );
    Ok(())
}

macro_rules! killed_at {
    ($($name:ident: $step:literal),+ $(,)?) => {
        /// The steps that have a case below.
        const CASES: &[&str] = &[$($step),+];

        $(mod $name {
            use super::*;

            #[tokio::test]
            async fn inv_2_holds_on_clickhouse_18() -> Result<()> {
                kill_at($step, Flavour::V18).await
            }

            #[tokio::test]
            async fn inv_2_holds_on_clickhouse_26() -> Result<()> {
                kill_at($step, Flavour::V26).await
            }
        })+
    };
}

killed_at! {
    killed_at_took_over: "took-over",
    killed_at_probed: "probed",
    killed_at_read: "read",
    killed_at_seal_inserted: "seal-inserted",
    killed_at_sealed: "sealed",
    killed_at_before_send: "before-send",
    killed_at_block_answered: "block-answered",
    killed_at_before_confirm: "before-confirm",
    killed_at_confirmed: "confirmed",
    killed_at_ring_turned: "ring-turned",
    killed_at_leaf_checked: "leaf-checked",
    killed_at_leaf_locked: "leaf-locked",
    killed_at_leaf_checked_again: "leaf-checked-again",
    killed_at_leaf_truncated: "leaf-truncated",
    killed_at_leaf_emptied: "leaf-emptied",
}

#[test]
fn every_step_of_the_spine_has_a_case() -> Result<()> {
    assert_eq!(CASES, STEPS);
    let mut named = Vec::new();
    collect_steps(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../pillarbox-relay/src"),
        &mut named,
    )?;
    named.sort_unstable();
    let mut steps: Vec<String> = STEPS.iter().map(|step| (*step).to_owned()).collect();
    steps.sort_unstable();
    assert_eq!(
        named, steps,
        "the steps named in the source are those of STEPS"
    );
    Ok(())
}

fn collect_steps(directory: &Path, named: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path: PathBuf = entry?.path();
        if path.is_dir() {
            collect_steps(&path, named)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path)?;
            let calls = text.split("step!(\"").skip(1);
            named.extend(calls.filter_map(|rest| rest.split('"').next().map(str::to_owned)));
        }
    }
    Ok(())
}

/// The tests above would pass if a relay did nothing: it must also deliver while it lives.
#[tokio::test]
async fn a_relay_stops_cleanly_on_sigterm_and_loses_nothing() -> Result<()> {
    let scene = Arc::new(Scene::start(Flavour::V18).await?);
    let stop = Arc::new(AtomicBool::new(false));
    let publishing = {
        let (scene, stop) = (Arc::clone(&scene), Arc::clone(&stop));
        tokio::spawn(async move { scene.publish(0, stop).await })
    };
    for _ in 0..3 {
        let before = scene.held().await?.len();
        let mut child = scene.relay("run", "")?.spawn()?;
        let pid = child.id().context("the relay has ended")?;
        eventually("the relay delivers", PATIENCE, || async {
            Ok((scene.held().await?.len() > before).then_some(()))
        })
        .await?;
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).context("no pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = tokio::time::timeout(PATIENCE, child.wait()).await??;
        ensure!(status.success(), "SIGTERM ended the relay with {status}");
    }
    stop.store(true, Ordering::Relaxed);
    let committed = publishing.await??;
    let output = scene.relay("drain", "")?.output().await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let held = scene.held().await?;
    assert!(held.values().all(|(times, _)| *times == 1));
    assert_eq!(
        held.keys().collect::<Vec<_>>(),
        committed.keys().collect::<Vec<_>>()
    );
    Ok(())
}
