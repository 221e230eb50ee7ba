//! A relay whose machine is frozen at one exact moment, for longer than the take-over, and goes on there
//! (INV-2).
//!
//! What it has handed to the network, nothing can stop any more: a token makes nothing of that insert;
//! in `lookup` mode it is the one hole, and `verify` names it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pillarbox_relay::verify::{Difference, Proof};
use pillarbox_testkit::oracle::{Oracle, Verdict};
use pillarbox_testkit::proof;
use pillarbox_testkit::proxy::{Faults, Proxy};
use pillarbox_testkit::servers::{Flavour, eventually};
use rustix::process::Signal;

use crate::scene::{PATIENCE, Running, SINK, Scene, TABLE};
use crate::traffic::{Event, Way, commit};

const NOON_US: i64 = 1_795_176_000_000_000;

/// Microseconds of a month, about.
const MONTH_US: i64 = 31 * 86_400_000_000;

/// Events of one batch: so many for each of two partitions, in the order of their blocks.
const BLOCKS: [u64; 2] = [19, 11];

/// One batch, whose first block has [`BLOCKS`]' first rows.
async fn publish(scene: &Scene, oracle: &Oracle) -> Result<()> {
    let mut client = scene.postgres.connect().await?;
    let months = (0_i64..).zip(BLOCKS);
    let events = months.flat_map(|(month, count)| {
        let time_us = NOON_US + month * MONTH_US;
        (0..count).map(move |n| Event::at(time_us, "trial", format!("{{\"n\": {n}}}")))
    });
    let events: Vec<Event> = events.collect();
    commit(&mut client, oracle, Way::Batch, &events).await
}

/// A relay that stops at its first pass of `step`, as its machine would be frozen there.
async fn frozen_at(scene: &Scene, step: &str) -> Result<Running> {
    let relay = scene.running_with(&[("TAKEOVER_MS", "2500"), ("FREEZE_AT", step)])?;
    relay.is_frozen().await?;
    Ok(relay)
}

/// A relay on a machine that was frozen after its last look at its session, before the first byte of its
/// insert was out: the process is stopped, and what it has written waits in the proxy.
struct Frozen {
    relay: Running,
    network: Proxy,
}

impl Frozen {
    async fn before_its_first_byte(scene: &Scene) -> Result<Self> {
        let upstream = SocketAddr::from(([127, 0, 0, 1], scene.clickhouse.port()?));
        let network = Proxy::start(upstream)?;
        network.arm(b"query=INSERT", Faults::half_open());
        let url = network.url(&scene.clickhouse.url_with_credentials()?)?;
        let variables = [("TAKEOVER_MS", "2500"), ("CLICKHOUSE_URL", &url)];
        let relay = scene.running_with(&variables)?;
        eventually("an insert to be on its way", PATIENCE, || async {
            Ok((network.counts().held > 0).then_some(()))
        })
        .await
        .map_err(|error| error.context(relay.log_tail()))?;
        relay.signal(Signal::STOP)?;
        Ok(Self { relay, network })
    }

    /// The machine goes on: its insert goes out, then the relay looks about.
    async fn thaws(self) -> Result<Running> {
        let before = self.network.counts().to_server;
        self.network.heal().await?;
        eventually("the insert to go out", PATIENCE, || async {
            Ok((self.network.counts().to_server > before).then_some(()))
        })
        .await?;
        resumed(&self.relay).await?;
        Ok(self.relay)
    }
}

/// Another relay takes over from the frozen one, and delivers what that had sealed.
async fn displaced(scene: &Scene, oracle: &Oracle) -> Result<Running> {
    let relay = scene.running_with(&[("TAKEOVER_MS", "2500")])?;
    relay.says("taking over from a frozen relay").await?;
    let published = oracle.published();
    eventually("what was sealed to be delivered", PATIENCE, || async {
        let is_there = scene.count().await? == published && scene.in_flight().await? == 0;
        Ok(is_there.then_some(()))
    })
    .await
    .map_err(|error| error.context(relay.log_tail()))?;
    Ok(relay)
}

/// The frozen one goes on where it was, finds its sessions gone, and stands by.
async fn resumed(frozen: &Running) -> Result<()> {
    let lines = frozen.lines();
    frozen.signal(Signal::CONT)?;
    frozen.says_after(lines, "another relay is active").await
}

async fn proven(scene: &Scene) -> Result<Proof> {
    let client = scene.postgres.connect().await?;
    proof::prove(&client, &scene.sink(TABLE)?, SINK).await
}

/// Frozen at each of `steps` in turn, each time displaced: nothing is lost or doubled.
async fn does_no_harm(steps: &[&str]) -> Result<()> {
    let scene = Scene::start(Flavour::V18).await?;
    let oracle = Oracle::new();
    for step in steps {
        publish(&scene, &oracle).await?;
        let frozen = frozen_at(&scene, step).await.context(step.to_string())?;
        let active = displaced(&scene, &oracle).await.context(step.to_string())?;
        resumed(&frozen).await.context(step.to_string())?;
        publish(&scene, &oracle).await?;
        frozen.stop().await?;
        let verdict = scene.holds(&oracle, active).await;
        verdict.context(step.to_string())?;
    }
    let proof = proven(&scene).await?;
    ensure!(proof.findings.is_empty(), "{proof:?}");
    ensure!(proof.rows == oracle.published(), "{proof:?}");
    Ok(())
}

#[tokio::test]
async fn inv_2_frozen_before_its_last_check_or_after_the_answer_of_clickhouse_18() -> Result<()> {
    let steps = [
        "seal-inserted",
        "sealed",
        "block-answered",
        "before-confirm",
    ];
    does_no_harm(&steps).await
}

/// Frozen in the process itself, where nothing has been handed to the network, for longer than an insert may
/// take to begin: the successor looks, sees nothing and sends, and the first insert is never begun.
#[tokio::test]
async fn inv_2_frozen_before_its_first_byte_sends_nothing_to_clickhouse_18() -> Result<()> {
    let scene = Scene::start(Flavour::V18).await?;
    let oracle = Oracle::new();
    publish(&scene, &oracle).await?;
    let frozen = frozen_at(&scene, "before-send").await?;
    let began = Instant::now();
    let active = displaced(&scene, &oracle).await?;
    eventually("the insert to be out of date", PATIENCE, || async {
        Ok((began.elapsed() > Duration::from_secs(11)).then_some(()))
    })
    .await?;
    resumed(&frozen).await?;
    publish(&scene, &oracle).await?;
    frozen.stop().await?;
    scene.holds(&oracle, active).await?;
    Ok(())
}

/// What a person would do about surplus rows: keep one of each event.
async fn keep_one_of_each(scene: &Scene) -> Result<()> {
    for sql in [
        format!("CREATE TABLE kept AS {TABLE}"),
        format!("INSERT INTO kept SELECT * FROM {TABLE} LIMIT 1 BY event_id"),
        format!("TRUNCATE TABLE {TABLE}"),
        format!("INSERT INTO {TABLE} SELECT * FROM kept"),
        "DROP TABLE kept".to_owned(),
    ] {
        scene.clickhouse.query(&sql).await?;
    }
    Ok(())
}

/// The exception of `lookup`: the successor looks, sees nothing and sends; then the first insert arrives. That
/// one block is doubled and nothing else is amiss; `verify` names it, and holds again once it is mended.
#[tokio::test]
async fn inv_2_and_13_verify_names_what_slips_through_the_hole_of_lookup() -> Result<()> {
    let scene = Scene::start(Flavour::V18).await?;
    let oracle = Oracle::new();
    publish(&scene, &oracle).await?;
    let frozen = Frozen::before_its_first_byte(&scene).await?;
    ensure!(scene.in_flight().await? == 1 && scene.count().await? == 0);
    let active = displaced(&scene, &oracle).await?;
    let sealed = "select max(number) from pillarbox.batch where kind <> 'genesis'";
    let number = scene.number(sealed).await?;
    ensure!(proven(&scene).await?.findings.is_empty());

    let thawed = frozen.thaws().await?;
    // Before its second block it looks at its session again.
    let [doubled, _] = BLOCKS;
    publish(&scene, &oracle).await?;
    eventually("the insert and the next batch", PATIENCE, || async {
        let count = scene.count().await?;
        Ok((count == oracle.published() + doubled).then_some(()))
    })
    .await
    .map_err(|error| error.context(thawed.log_tail()))?;
    thawed.stop().await?;
    active.stop().await?;
    let verdict = scene.verdict(&oracle).await?;
    ensure!(verdict.duplicated.count == doubled, "{verdict}");
    let others = Verdict {
        duplicated: Default::default(),
        ..verdict.clone()
    };
    ensure!(others.explain().is_empty(), "{}", others.explain());
    ensure!(verdict.delivered == oracle.published(), "{verdict}");

    let proof = proven(&scene).await?;
    let [finding] = &proof.findings[..] else {
        anyhow::bail!("one finding is due: {proof:?}");
    };
    let (rows, held) = (finding.expected_rows, finding.held_rows);
    ensure!((finding.number, finding.difference) == (number, Difference::Surplus));
    ensure!((rows, held) == (doubled, 2 * doubled), "{finding:?}");
    ensure!(proof.rows == oracle.published() - doubled, "{proof:?}");

    keep_one_of_each(&scene).await?;
    let proof = proven(&scene).await?;
    ensure!(proof.findings.is_empty(), "{proof:?}");
    scene.holds_when_drained(&oracle).await?;
    Ok(())
}

/// The same where the server knows tokens: what comes after its successor is dropped.
#[tokio::test]
async fn inv_2_frozen_before_its_first_byte_reaches_clickhouse_26() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    let oracle = Oracle::new();
    publish(&scene, &oracle).await?;
    let frozen = Frozen::before_its_first_byte(&scene).await?;
    ensure!(scene.in_flight().await? == 1 && scene.count().await? == 0);
    let active = displaced(&scene, &oracle).await?;
    let thawed = frozen.thaws().await?;
    publish(&scene, &oracle).await?;
    thawed.stop().await?;
    scene.holds(&oracle, active).await?;
    let proof = proven(&scene).await?;
    ensure!(proof.findings.is_empty(), "{proof:?}");
    Ok(())
}
