//! What goes wrong in ClickHouse itself, on real servers and a real relay: each case ends with every
//! published event in the table, once.

mod altered;
mod boundary;
mod data;
mod evicted;
mod memory;
mod pressure;
mod refused;
mod space;
mod views;

use std::os::unix::process::ExitStatusExt as _;

use anyhow::{Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::{ClickHouse, eventually};

use crate::scene::{KILLED, PATIENCE, Running, Scene};
use crate::traffic::{Event, Way, commit};

/// 2026-11-20 12:00:00 UTC.
const NOON_US: i64 = 1_795_176_000_000_000;
const DAY_US: i64 = 86_400_000_000;

/// A stopped sink is looked at again after this time.
const STOPPED_MS: (&str, &str) = ("STOPPED_MS", "300");

/// The recommended columns of 18.16.
const OLD_COLUMNS: &str = "event_id UUID, event_type String, event_date_time DateTime('UTC'), \
                           environment String, event_context String, metadata_version UInt64, \
                           batch UInt64";

/// `count` events, `apart_us` from each other.
fn events(count: i64, apart_us: i64) -> Vec<Event> {
    let event = |nth| {
        Event::at(
            NOON_US + nth * apart_us,
            "trial",
            format!(r#"{{"n":{nth}}}"#),
        )
    };
    (0..count).map(event).collect()
}

/// Commits the events in one transaction.
async fn publish(scene: &Scene, oracle: &Oracle, events: &[Event]) -> Result<()> {
    let mut client = scene.postgres.connect().await?;
    commit(&mut client, oracle, Way::Batch, events).await
}

/// A relay that is killed at `step`.
async fn killed_at(scene: &Scene, step: &str) -> Result<()> {
    let mut relay = scene.relay("drain", &format!("{step}=return"))?;
    let output = tokio::time::timeout(PATIENCE, relay.output()).await??;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.signal() == Some(KILLED), "{log}");
    Ok(())
}

/// Why the sink stands still, as the registry shows it to `pillarbox status`.
async fn stopped_reason(scene: &Scene) -> Result<Option<String>> {
    let sql = "select stopped_reason from pillarbox.sink";
    Ok(scene.postgres.query(sql, &[]).await?[0].get(0))
}

/// Waits until the sink stands still for a reason that holds all the words.
async fn stands_still(scene: &Scene, relay: &Running, words: &[&str]) -> Result<()> {
    let stopped = eventually("the sink to stand still", PATIENCE, || async {
        let reason = stopped_reason(scene).await?.unwrap_or_default();
        let says = words.iter().all(|word| reason.contains(word));
        Ok(says.then_some(()))
    })
    .await;
    let last = stopped_reason(scene).await?;
    stopped.map_err(|error| {
        error.context(format!(
            "{words:?} is not in {last:?}; {}",
            relay.log_tail()
        ))
    })
}

/// Waits until the sink goes on.
async fn goes_on(scene: &Scene) -> Result<()> {
    eventually("the sink to go on", PATIENCE, || async {
        Ok(stopped_reason(scene).await?.is_none().then_some(()))
    })
    .await
}

/// Gives the tests' user of 18.16 a profile, and waits until the server has read it.
async fn profile(server: &ClickHouse, settings: &[(&str, &str)]) -> Result<()> {
    let given: String = settings
        .iter()
        .map(|(name, value)| format!("<{name}>{value}</{name}>"))
        .collect();
    server.change_users(|users| {
        let (head, rest) = users
            .split_once("<profiles><default>")
            .unwrap_or_else(|| panic!("no profile in {users}"));
        let (_, tail) = rest.split_once("</default></profiles>").unwrap();
        format!("{head}<profiles><default>{given}</default></profiles>{tail}")
    })?;
    eventually("the profile to be read", PATIENCE, || async {
        let changed = "select name, value from system.settings where changed order by name";
        // A profile may be such that this is refused.
        let Ok(read) = server.query(changed).await else {
            return Ok((!settings.is_empty()).then_some(()));
        };
        let has = |(name, value): &(&str, &str)| read.contains(&format!("{name}\t{value}\n"));
        let is_read = settings.iter().all(has) && read.lines().count() == settings.len();
        Ok(is_read.then_some(()))
    })
    .await
}
