//! The relay is killed at every step of the spine, under load, on both ClickHouse engines, and again
//! and again; in the end ClickHouse holds what was committed, each event once (INV-2).

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use pillarbox_relay::failpoint::{INTAKE_STEPS, RECOVERY_STEPS, STEPS};
use pillarbox_testkit::servers::{Flavour, eventually};
use tokio::process::Child;

use crate::scene::{KILLED, PATIENCE, Scene};
use crate::traffic::Traffic;

/// Kills per test: more than one, so that what a killed relay left is met by another kill.
const KILLS: u32 = 3;

/// Publishers of the tests below.
const WRITERS: u32 = 3;

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
    let scene = Scene::start(flavour).await?;
    let traffic = Traffic::start(&scene.postgres, WRITERS, false).await?;
    for kill in 0..KILLS {
        // Each relay comes a little further than the one before; it takes over only once.
        let passed = if step == "took-over" { 0 } else { kill };
        let failpoints = match passed {
            0 => format!("{step}=return"),
            _ => format!("{step}={passed}*off->return"),
        };
        wait_killed(scene.relay("run", &failpoints)?.spawn()?, step).await?;
    }
    let oracle = traffic.finish(&scene.postgres).await?;
    let verdict = scene.holds_when_drained(&oracle).await?;
    assert!(verdict.published > 100, "{verdict}");
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
    // `recover.rs` and `intake.rs` kill at these.
    let elsewhere = [&RECOVERY_STEPS[..], &INTAKE_STEPS].concat();
    named.retain(|step| !elsewhere.contains(&step.as_str()));
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
    let scene = Scene::start(Flavour::V18).await?;
    let traffic = Traffic::start(&scene.postgres, 1, false).await?;
    for _ in 0..3 {
        let before = scene.count().await?;
        let relay = scene.running()?;
        eventually("the relay delivers", PATIENCE, || async {
            Ok((scene.count().await? > before).then_some(()))
        })
        .await?;
        relay.stop().await?;
    }
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds_when_drained(&oracle).await?;
    Ok(())
}
