//! What networks do between relay and PostgreSQL, under load, before both engines: each of the three
//! sessions is cut at some byte, or falls silent; in the end each committed event is in ClickHouse
//! once (INV-2).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::proxy::{Close, Direction, Fault, Faults, Proxy, Seen};
use pillarbox_testkit::servers::{Flavour, eventually};

use crate::scene::{PATIENCE, Running, Scene};
use crate::traffic::Traffic;

/// How the relays of these tests run beside their addresses.
const OTHERS: &[(&str, &str)] = &[("TAKEOVER_MS", "13000"), ("MAX_ROWS", "500")];

/// The sessions of an active relay.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    /// Holds the sink's lock and writes the ledger.
    Control,
    /// Reads events.
    Reader,
    /// Turns and empties the ring.
    Ring,
}

impl Role {
    const ALL: [Self; 3] = [Self::Control, Self::Reader, Self::Ring];
}

/// Relays that reach PostgreSQL through a proxy, under load.
struct Wire {
    scene: Scene,
    proxy: Proxy,
    traffic: Traffic,
}

impl Wire {
    async fn start(flavour: Flavour) -> Result<Self> {
        let scene = Scene::start(flavour).await?;
        let upstream = SocketAddr::from(([127, 0, 0, 1], scene.postgres.port()?));
        let proxy = Proxy::start(upstream)?;
        let traffic = Traffic::start(&scene.postgres, 3, false).await?;
        Ok(Self {
            scene,
            proxy,
            traffic,
        })
    }

    /// A relay behind the proxy.
    fn relay(&self) -> Result<Running> {
        let url = self.proxy.url(self.scene.postgres.url())?;
        let variables = [("DATABASE_URL", url.as_str())];
        self.scene.running_with(&[&variables[..], OTHERS].concat())
    }

    /// Waits for longer than the longest silence that a relay bears, that of a reader.
    async fn tenure_ends(&self, relay: &Running, lines: usize) -> Result<()> {
        let ended = "the tenure ended";
        if relay.says_after(lines, ended).await.is_ok() {
            return Ok(());
        }
        relay.says_after(lines, ended).await
    }

    async fn delivers(&self, relay: &Running) -> Result<()> {
        let lines = relay.lines();
        relay.says_after(lines, " delivered ").await
    }

    /// The session of the active relay, once it can be told from the others: the reader's answers are
    /// by far longer than the ring's.
    async fn session(&self, role: Role) -> Result<Seen> {
        eventually("the session", PATIENCE, || async {
            let Some(control) = self.control().await? else {
                return Ok(None);
            };
            let mut open = self.proxy.connections();
            open.sort_by_key(|seen| seen.to_client);
            let (control, others): (Vec<Seen>, Vec<Seen>) = open
                .into_iter()
                .partition(|seen| seen.server_sees_port == control);
            Ok(match (role, control.as_slice(), others.as_slice()) {
                (Role::Control, [control], _) => Some(*control),
                (_, _, [ring, reader]) if reader.to_client > 4 * ring.to_client => {
                    Some(if role == Role::Ring { *ring } else { *reader })
                }
                _ => None,
            })
        })
        .await
        .with_context(|| format!("{role:?} among {:?}", self.proxy.connections()))
    }

    /// The client's port of the session that holds the sink's lock.
    async fn control(&self) -> Result<Option<u16>> {
        let sql = "select a.client_port from pg_locks l join pg_stat_activity a using (pid)
                   where l.locktype = 'advisory' and l.granted and l.objid <> 0
                       and a.application_name like 'pillarbox/%'";
        let rows = self.scene.postgres.query(sql, &[]).await?;
        let port: Option<i32> = rows.first().map(|row| row.get(0));
        Ok(port.map(u16::try_from).transpose()?)
    }

    async fn all_arrived(self, relay: Running) -> Result<()> {
        self.proxy.heal().await?;
        let oracle = self.traffic.finish(&self.scene.postgres).await?;
        let verdict = self.scene.holds(&oracle, relay).await?;
        ensure!(verdict.published > 100, "{verdict}");
        Ok(())
    }
}

/// From the byte that comes next on, in each direction: in the middle of a message, of a row, of a
/// statement's answer.
async fn each_session_is_cut(flavour: Flavour, direction: Direction) -> Result<()> {
    let wire = Wire::start(flavour).await?;
    for role in Role::ALL {
        // A new relay for each: the waits between the tenures of one grow.
        let relay = wire.relay()?;
        for (bytes, close) in [
            (0, Close::Reset),
            (3, Close::Fin),
            (70, Close::Reset),
            (1_000, Close::Fin),
        ] {
            wire.delivers(&relay).await?;
            let seen = wire.session(role).await?;
            let so_far = match direction {
                Direction::ToServer => seen.to_server,
                Direction::ToClient => seen.to_client,
            };
            let (lines, cut) = (relay.lines(), wire.proxy.counts().cut);
            let faults = Faults::cut_at(direction, so_far + bytes, close);
            wire.proxy.set_on(seen.id, faults);
            relay
                .says_after(lines, "the tenure ended")
                .await
                .with_context(|| format!("{role:?} cut {direction:?} after {bytes} more bytes"))?;
            ensure!(wire.proxy.counts().cut > cut, "by the cut");
        }
        wire.delivers(&relay).await?;
        relay.stop().await?;
    }
    let relay = wire.relay()?;
    wire.all_arrived(relay).await
}

/// Silent for longer than a statement may take, though the connection stays: the relay gives the
/// session up. Another tenure goes on, by displacing the old one where the server still believes in it.
async fn a_session_falls_silent(flavour: Flavour, role: Role) -> Result<()> {
    let wire = Wire::start(flavour).await?;
    let relay = wire.relay()?;
    wire.delivers(&relay).await?;
    let seen = wire.session(role).await?;
    let lines = relay.lines();
    wire.proxy.set_on(seen.id, Faults::half_open());
    wire.tenure_ends(&relay, lines).await?;
    relay.says_after(lines, "the sink is ready").await?;
    wire.delivers(&relay).await?;
    ensure!(wire.control().await? != Some(seen.server_sees_port));
    let left = wire
        .scene
        .number("select count(*) from pg_stat_activity where application_name like 'pillarbox/%'")
        .await?;
    ensure!(
        left == 3,
        "{left} sessions of one relay: a tenure has left one behind"
    );
    wire.all_arrived(relay).await
}

/// The whole network is gone for longer than a statement may take, for one of two relays: the other
/// one takes over from it as from a frozen one.
async fn a_relay_is_cut_off(flavour: Flavour) -> Result<()> {
    let wire = Wire::start(flavour).await?;
    let cut_off = wire.relay()?;
    wire.delivers(&cut_off).await?;
    let standby = wire.scene.running_with(OTHERS)?;
    standby.says("another relay is active").await?;
    let lines = cut_off.lines();
    wire.proxy.set(Faults::half_open());
    standby.says("taking over from a frozen relay").await?;
    standby.says("the sink is ready").await?;
    wire.delivers(&standby).await?;
    ensure!(
        cut_off
            .log()
            .lines()
            .skip(lines)
            .any(|line| line.contains("the tenure ended")),
        "it had noticed before the other one took over"
    );
    wire.proxy.heal().await?;
    cut_off.says_after(lines, "another relay is active").await?;
    cut_off.stop().await?;
    wire.all_arrived(standby).await
}

/// Answers of the session that seals and confirms are lost, COMMITs among them.
async fn answers_of_the_ledger_are_lost(flavour: Flavour) -> Result<()> {
    let wire = Wire::start(flavour).await?;
    let relay = wire.relay()?;
    wire.delivers(&relay).await?;
    let seen = wire.session(Role::Control).await?;
    let lines = relay.lines();
    let lost = Fault {
        swallows: true,
        ..Fault::NONE
    };
    wire.proxy
        .set_on(seen.id, Faults::one(Direction::ToClient, lost));
    relay.says_after(lines, "the tenure ended").await?;
    wire.proxy.heal().await?;
    relay.says_after(lines, "the sink is ready").await?;
    wire.delivers(&relay).await?;
    wire.all_arrived(relay).await
}

/// The cancellation of a COPY travels on a connection of its own, and comes when the COPY has long ended by
/// itself: it must not hit a statement that follows.
async fn cancellations_are_late(flavour: Flavour) -> Result<()> {
    /// The code of the message that asks for it.
    const CANCEL: &[u8] = &80_877_102_u32.to_be_bytes();
    const LATE: Duration = Duration::from_millis(300);
    let scene = Scene::start(flavour).await?;
    let upstream = SocketAddr::from(([127, 0, 0, 1], scene.postgres.port()?));
    let proxy = Proxy::start(upstream)?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    traffic.more(200).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    for _ in 0..1_000 {
        proxy.arm(CANCEL, Faults::late(Direction::ToServer, LATE));
    }
    let url = proxy.url(scene.postgres.url())?;
    // Without the question for TLS, which else comes first.
    let separator = if url.contains('?') { '&' } else { '?' };
    let url = format!("{url}{separator}sslmode=disable");
    // The bytes end a batch, and the COPY with it.
    scene
        .drain_with(&[("DATABASE_URL", &url), ("MAX_BYTES", "2000")])
        .await?;
    ensure!(proxy.armed() < 1_000, "nothing was cancelled");
    scene.holds_when_drained(&oracle).await?;
    Ok(())
}

#[tokio::test]
async fn inv_2_cancellations_are_late_before_clickhouse_18() -> Result<()> {
    cancellations_are_late(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_requests_of_each_session_are_cut_before_clickhouse_18() -> Result<()> {
    each_session_is_cut(Flavour::V18, Direction::ToServer).await
}

#[tokio::test]
async fn inv_2_answers_to_each_session_are_cut_before_clickhouse_18() -> Result<()> {
    each_session_is_cut(Flavour::V18, Direction::ToClient).await
}

#[tokio::test]
async fn inv_2_the_locks_session_falls_silent_before_clickhouse_18() -> Result<()> {
    a_session_falls_silent(Flavour::V18, Role::Control).await
}

#[tokio::test]
async fn inv_2_the_rings_session_falls_silent_before_clickhouse_18() -> Result<()> {
    a_session_falls_silent(Flavour::V18, Role::Ring).await
}

#[tokio::test]
async fn inv_2_a_relay_is_cut_off_from_postgresql_before_clickhouse_18() -> Result<()> {
    a_relay_is_cut_off(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_answers_of_the_ledger_are_lost_before_clickhouse_18() -> Result<()> {
    answers_of_the_ledger_are_lost(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_requests_of_each_session_are_cut_before_clickhouse_26() -> Result<()> {
    each_session_is_cut(Flavour::V26, Direction::ToServer).await
}

#[tokio::test]
async fn inv_2_answers_to_each_session_are_cut_before_clickhouse_26() -> Result<()> {
    each_session_is_cut(Flavour::V26, Direction::ToClient).await
}

#[tokio::test]
async fn inv_2_the_locks_session_falls_silent_before_clickhouse_26() -> Result<()> {
    a_session_falls_silent(Flavour::V26, Role::Control).await
}

#[tokio::test]
async fn inv_2_the_reader_falls_silent_before_clickhouse_26() -> Result<()> {
    a_session_falls_silent(Flavour::V26, Role::Reader).await
}

#[tokio::test]
async fn inv_2_the_rings_session_falls_silent_before_clickhouse_26() -> Result<()> {
    a_session_falls_silent(Flavour::V26, Role::Ring).await
}

#[tokio::test]
async fn inv_2_a_relay_is_cut_off_from_postgresql_before_clickhouse_26() -> Result<()> {
    a_relay_is_cut_off(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_answers_of_the_ledger_are_lost_before_clickhouse_26() -> Result<()> {
    answers_of_the_ledger_are_lost(Flavour::V26).await
}
