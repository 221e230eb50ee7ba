//! What networks do between relay and ClickHouse, under load, on both engines: in the end the table
//! holds each committed event once (INV-2).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use pillarbox_testkit::proxy::{Close, Direction, Faults, Proxy};
use pillarbox_testkit::servers::{Flavour, eventually};

use crate::scene::{PATIENCE, Running, Scene};
use crate::traffic::Traffic;

/// In the head of an insert, and of no other request.
const INSERT: &[u8] = b"query=INSERT";

/// What the relay waits for an answer.
const INSERT_TIMEOUT: Duration = Duration::from_millis(1_000);

/// A relay that reaches ClickHouse through a proxy, under load.
struct Wire {
    scene: Scene,
    proxy: Proxy,
    relay: Running,
    traffic: Traffic,
    /// Bytes of the head of the last insert.
    head: Arc<AtomicUsize>,
}

impl Wire {
    async fn start(flavour: Flavour) -> Result<Self> {
        let scene = Scene::start(flavour).await?;
        let upstream = SocketAddr::from(([127, 0, 0, 1], scene.clickhouse.port()?));
        let head = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&head);
        let proxy = Proxy::start_watched(upstream, move |first| {
            let end = first.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = end.filter(|_| first.windows(12).any(|part| part == INSERT)) {
                seen.store(end + 4, Ordering::Relaxed);
            }
        })?;
        let url = proxy.url(&scene.clickhouse.url_with_credentials()?)?;
        let relay = scene.running_with(&[
            ("CLICKHOUSE_URL", &url),
            ("INSERT_TIMEOUT_MS", &INSERT_TIMEOUT.as_millis().to_string()),
            ("MAX_AGE_MS", "100"),
        ])?;
        let traffic = Traffic::start(&scene.postgres, 3, false).await?;
        let wire = Self {
            scene,
            proxy,
            relay,
            traffic,
            head,
        };
        wire.delivers().await?;
        Ok(wire)
    }

    /// Waits until another batch is delivered.
    async fn delivers(&self) -> Result<()> {
        let lines = self.relay.lines();
        self.relay.says_after(lines, " delivered ").await
    }

    /// Does this to the next insert and waits until it happened, by the proxy's count.
    async fn meets(&self, faults: Faults) -> Result<()> {
        let done = |proxy: &Proxy| {
            let counts = proxy.counts();
            counts.cut + counts.swallowed + counts.delayed + counts.held
        };
        let before = done(&self.proxy);
        self.proxy.arm(INSERT, faults);
        eventually("the fault to meet an insert", PATIENCE, || async {
            Ok((self.proxy.armed() == 0 && done(&self.proxy) > before).then_some(()))
        })
        .await
        .map_err(|error| error.context(self.relay.log_tail()))
    }

    /// The same, and waits until the relay took it for unknown and delivered after all.
    async fn unknown(&self, faults: Faults) -> Result<()> {
        let lines = self.relay.lines();
        self.meets(faults).await?;
        self.relay.says_after(lines, "is_unknown=true").await?;
        self.delivers().await
    }

    async fn all_arrived(self) -> Result<()> {
        self.proxy.heal().await?;
        let oracle = self.traffic.finish(&self.scene.postgres).await?;
        let verdict = self.scene.holds(&oracle, self.relay).await?;
        ensure!(verdict.published > 100, "{verdict}");
        Ok(())
    }
}

/// The server has written the block when the first byte of its answer is due.
async fn cut_after_the_server_accepted(flavour: Flavour) -> Result<()> {
    let wire = Wire::start(flavour).await?;
    for close in [Close::Reset, Close::Fin] {
        for byte in [0, 1, 9, 40] {
            let faults = Faults::cut_at(Direction::ToClient, byte, close);
            wire.unknown(faults).await?;
        }
    }
    wire.all_arrived().await
}

async fn an_answer_is_lost(flavour: Flavour) -> Result<()> {
    let wire = Wire::start(flavour).await?;
    for _ in 0..3 {
        wire.unknown(Faults::answers_lost()).await?;
    }
    wire.all_arrived().await
}

/// Once before the relay gives up, then after.
async fn an_answer_is_late(flavour: Flavour) -> Result<()> {
    let wire = Wire::start(flavour).await?;
    let late = |delay| Faults::late(Direction::ToClient, delay);
    wire.meets(late(INSERT_TIMEOUT / 4)).await?;
    wire.delivers().await?;
    for _ in 0..2 {
        wire.unknown(late(INSERT_TIMEOUT * 2)).await?;
    }
    wire.all_arrived().await
}

/// The request reaches the server when the relay has long given it up, looked and sent it again: the
/// token makes nothing of it.
async fn a_request_arrives_after_its_successor() -> Result<()> {
    let wire = Wire::start(Flavour::V26).await?;
    for _ in 0..3 {
        wire.unknown(Faults::half_open()).await?;
        let before = wire.proxy.counts().to_server;
        wire.proxy.heal().await?;
        eventually("the held request to arrive", PATIENCE, || async {
            Ok((wire.proxy.counts().to_server > before).then_some(()))
        })
        .await?;
        wire.delivers().await?;
    }
    wire.all_arrived().await
}

/// The connection looks open and carries nothing; what was on its way dies with it.
async fn half_open(flavour: Flavour) -> Result<()> {
    let wire = Wire::start(flavour).await?;
    let mut faults = Faults::half_open();
    faults.to_server.dies_with_sender = true;
    for _ in 0..2 {
        wire.unknown(faults).await?;
    }
    // All at once, for longer than an insert may take: nothing is delivered, nobody is hurt.
    let lines = wire.relay.lines();
    wire.proxy.set(faults);
    wire.relay.says_after(lines, "is_unknown=true").await?;
    wire.traffic.more(50).await?;
    wire.proxy.cut_all(Close::Reset);
    wire.proxy.heal().await?;
    wire.delivers().await?;
    wire.all_arrived().await
}

async fn cut_in_the_middle_of_the_body(flavour: Flavour) -> Result<()> {
    let wire = Wire::start(flavour).await?;
    for close in [Close::Reset, Close::Fin] {
        for byte in [0, 1, 8, 9, 16, 25, 26, 60, 120] {
            let head = u64::try_from(wire.head.load(Ordering::Relaxed))?;
            let faults = Faults::cut_at(Direction::ToServer, head + byte, close);
            wire.meets(faults).await?;
            // Before the next one, or the waits between attempts grow.
            wire.delivers().await?;
        }
    }
    ensure!(wire.proxy.counts().cut >= 18);
    wire.all_arrived().await
}

/// In the middle of the head, and a server that refuses, says nothing of the block: it is sent again.
async fn cut_before_the_body_or_refused(flavour: Flavour) -> Result<()> {
    let wire = Wire::start(flavour).await?;
    for byte in [0, 1, 100] {
        let faults = Faults::cut_at(Direction::ToServer, byte, Close::Reset);
        wire.meets(faults).await?;
    }
    wire.delivers().await?;
    let lines = wire.relay.lines();
    wire.proxy.refuse().await?;
    wire.relay.says_after(lines, "not delivered yet").await?;
    wire.traffic.more(50).await?;
    wire.proxy.heal().await?;
    wire.delivers().await?;
    wire.all_arrived().await
}

/// A line on which a block takes longer than the relay waits, until it is wide again.
async fn a_narrow_line(flavour: Flavour) -> Result<()> {
    let wire = Wire::start(flavour).await?;
    let lines = wire.relay.lines();
    let mut faults = Faults::narrow(500);
    faults.to_server.dies_with_sender = true;
    wire.proxy.set(faults);
    wire.relay.says_after(lines, "not delivered yet").await?;
    wire.traffic.more(50).await?;
    wire.proxy.heal().await?;
    wire.delivers().await?;
    ensure!(wire.proxy.counts().slowed > 0);
    wire.all_arrived().await
}

#[tokio::test]
async fn inv_2_cut_after_clickhouse_18_accepted() -> Result<()> {
    cut_after_the_server_accepted(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_cut_after_clickhouse_26_accepted() -> Result<()> {
    cut_after_the_server_accepted(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_an_answer_of_clickhouse_18_is_lost() -> Result<()> {
    an_answer_is_lost(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_an_answer_of_clickhouse_26_is_lost() -> Result<()> {
    an_answer_is_lost(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_an_answer_of_clickhouse_18_is_late() -> Result<()> {
    an_answer_is_late(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_an_answer_of_clickhouse_26_is_late() -> Result<()> {
    an_answer_is_late(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_a_request_reaches_clickhouse_26_after_its_successor() -> Result<()> {
    a_request_arrives_after_its_successor().await
}

#[tokio::test]
async fn inv_2_half_open_before_clickhouse_18() -> Result<()> {
    half_open(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_half_open_before_clickhouse_26() -> Result<()> {
    half_open(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_cut_in_the_middle_of_a_body_for_clickhouse_18() -> Result<()> {
    cut_in_the_middle_of_the_body(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_cut_in_the_middle_of_a_body_for_clickhouse_26() -> Result<()> {
    cut_in_the_middle_of_the_body(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_cut_before_a_body_or_refused_by_clickhouse_18() -> Result<()> {
    cut_before_the_body_or_refused(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_cut_before_a_body_or_refused_by_clickhouse_26() -> Result<()> {
    cut_before_the_body_or_refused(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_a_narrow_line_to_clickhouse_18() -> Result<()> {
    a_narrow_line(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_a_narrow_line_to_clickhouse_26() -> Result<()> {
    a_narrow_line(Flavour::V26).await
}
