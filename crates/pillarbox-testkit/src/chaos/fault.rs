//! Makes faults happen, and ends each of them.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::{sleep, timeout};

use super::kind::{Kind, Side, Wire};
use super::load::{self, Draft};
use super::stage::{INSERT, Relay, Stage, TAKEOVER_AFTER};
use crate::oracle::Oracle;
use crate::proxy::{Close, Counts, Direction, Fault, Faults, Proxy};
use crate::publish::session_lost;
use crate::servers::Flavour;

/// How long a relay may take to become active while other things break: longer than the take-over
/// from a frozen one.
const ACTIVE_MAX: Duration = Duration::from_secs(40);

/// How long a fault of the network may wait for something to hit.
const HIT_MAX: Duration = Duration::from_secs(6);

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What each fault works on. `scale` shortens them in short runs.
pub(super) struct Hand<'a> {
    pub(super) stage: &'a Stage,
    pub(super) oracle: &'a Oracle,
    pub(super) random: StdRng,
    pub(super) scale: f64,
    pub(super) poison_every: u32,
    /// Whether silence for longer than a statement may take fits.
    pub(super) is_long: bool,
}

impl<'a> Hand<'a> {
    /// Makes one fault happen and ends it; says what it was, or nothing where nothing was hit.
    pub(super) async fn inflict(&mut self, kind: Kind) -> Result<Option<String>> {
        match kind {
            Kind::RelayKilled => self.kill_relay().await,
            Kind::RelayFrozen => self.freeze_relay().await,
            Kind::RelayStopped => self.stop_relay().await,
            Kind::ClickHouseKilled => {
                self.stage.clickhouse.kill()?;
                let down = self.hold(100..1_500).await;
                self.stage.clickhouse.restart().await?;
                Ok(Some(format!("for {down:?}")))
            }
            Kind::ClickHouseFrozen => {
                self.stage.clickhouse.pause()?;
                let frozen = self.hold(500..4_000).await;
                self.stage.clickhouse.resume()?;
                Ok(Some(format!("for {frozen:?}")))
            }
            Kind::PostgresKilled => self.kill_postgres().await,
            Kind::Wire(side, wire) => self.disturb(side, wire).await,
            Kind::BackendsTerminated => self.terminate_backends().await,
            Kind::LongTransaction => self.long_transaction().await,
            Kind::SnapshotHeld => self.hold_snapshot().await,
        }
    }

    /// Waits for a random while, in milliseconds.
    async fn hold(&mut self, millis: Range<u64>) -> Duration {
        let hold = self.duration(millis);
        sleep(hold).await;
        hold
    }

    fn duration(&mut self, millis: Range<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(millis)).mul_f64(self.scale)
    }

    fn chance(&mut self, share: f64) -> bool {
        self.random.random_bool(share)
    }

    /// The active relay, or any where none is for now.
    fn target(&mut self) -> &'a Relay {
        let any = self.random.random_range(0..2);
        let stage = self.stage;
        stage.active().unwrap_or(&stage.relays[any])
    }

    /// Counts where it hit the active one.
    async fn kill_relay(&mut self) -> Result<Option<String>> {
        let (stage, relay) = (self.stage, self.target());
        let was_active = relay.is_active();
        {
            let _down = relay.down.lock().await;
            relay.program.kill()?;
            self.hold(0..1_500).await;
            relay.start()?;
        }
        stage.becomes_active(|_| true, ACTIVE_MAX).await;
        Ok(was_active.then(|| relay.name.to_owned()))
    }

    /// Counts where it hit the active one.
    async fn stop_relay(&mut self) -> Result<Option<String>> {
        let (stage, relay) = (self.stage, self.target());
        let was_active = relay.is_active();
        {
            let _down = relay.down.lock().await;
            let ended = relay.program.stop().await?;
            let tail = relay.program.log_tail();
            ensure!(
                ended.success(),
                "relay {}, SIGTERM: {ended}{tail}",
                relay.name
            );
            self.hold(0..1_000).await;
            relay.start()?;
        }
        stage.becomes_active(|_| true, ACTIVE_MAX).await;
        Ok(was_active.then(|| relay.name.to_owned()))
    }

    /// Until another one has taken over, and for longer than it waits before that.
    async fn freeze_relay(&mut self) -> Result<Option<String>> {
        let stage = self.stage;
        if !stage.becomes_active(|_| true, ACTIVE_MAX).await {
            return Ok(None);
        }
        let Some(frozen) = stage.active() else {
            return Ok(None);
        };
        let began = Instant::now();
        let _down = frozen.down.lock().await;
        frozen.program.pause()?;
        let others = |relay: &Relay| relay.name != frozen.name;
        let is_taken_over = stage
            .becomes_active(others, TAKEOVER_AFTER + ACTIVE_MAX)
            .await;
        sleep(TAKEOVER_AFTER.saturating_sub(began.elapsed())).await;
        self.hold(200..1_500).await;
        frozen.program.resume()?;
        let text = format!("{} for {:?}", frozen.name, began.elapsed());
        Ok(is_taken_over.then_some(text))
    }

    async fn kill_postgres(&mut self) -> Result<Option<String>> {
        let postgres = &self.stage.postgres;
        let is_kill = self.chance(0.5);
        match is_kill {
            true => postgres.kill()?,
            false => postgres.abort().await?,
        }
        self.hold(0..1_000).await;
        self.stage.postgres.restart().await?;
        let how = if is_kill { "kill -9" } else { "immediate" };
        Ok(Some(how.to_owned()))
    }

    /// Some or all sessions of relays and publishers.
    async fn terminate_backends(&mut self) -> Result<Option<String>> {
        let like = ["pillarbox/%", load::PUBLISHER, "%"][self.random.random_range(0..3)];
        let share = [0.3, 1.0][self.random.random_range(0..2)];
        let sql = format!(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
             where pid <> pg_backend_pid() and backend_type = 'client backend'
                 and application_name like '{like}' and random() < {share}"
        );
        // PostgreSQL may be down, or this session be among those of another fault.
        let Ok(rows) = self.stage.postgres.query(&sql, &[]).await else {
            return Ok(None);
        };
        let count = rows.first().map_or(0, |row| row.get::<_, i64>(0));
        let text = format!("{count} of {like}");
        Ok((count > 0).then_some(text))
    }

    /// A transaction that publishes now and then, and ends long after others have been delivered.
    async fn long_transaction(&mut self) -> Result<Option<String>> {
        let Ok(mut client) = load::connect(self.stage.postgres.url()).await else {
            return Ok(None);
        };
        let hold = self.duration(3_000..9_000);
        let mut draft = Draft::new(&mut self.random);
        let parts = 20;
        for _ in 0..parts {
            draft.add(&mut self.random, self.poison_every)?;
        }
        draft.pause = hold / parts;
        let sent = load::transact(&mut client, &draft, self.oracle);
        // What another fault ends has happened all the same.
        match timeout(hold + load::TRANSACTION_MAX, sent).await {
            Ok(Err(error)) if !session_lost(&error) => Err(error),
            _ => Ok(Some(format!("for {hold:?}"))),
        }
    }

    /// A snapshot, with or without a lock on every leaf.
    async fn hold_snapshot(&mut self) -> Result<Option<String>> {
        let Ok(client) = load::connect(self.stage.postgres.url()).await else {
            return Ok(None);
        };
        let table = if self.chance(0.5) {
            "pillarbox.event"
        } else {
            "business"
        };
        let begin = format!("begin isolation level repeatable read; select count(*) from {table}");
        if client.batch_execute(&begin).await.is_err() {
            return Ok(None);
        }
        let held = self.hold(3_000..9_000).await;
        // The session may have been ended by another fault.
        let _ = client.batch_execute("rollback").await;
        Ok(Some(format!("of {table} for {held:?}")))
    }

    /// Between one or both relays and one of the servers.
    async fn disturb(&mut self, side: Side, wire: Wire) -> Result<Option<String>> {
        let stage = self.stage;
        if side == Side::ClickHouse {
            stage.becomes_active(|_| true, HIT_MAX).await;
        }
        let active = stage.relays.iter().position(Relay::is_active);
        let active = active.unwrap_or(0);
        let targets = match self.random.random_range(0..10) {
            0 => vec![1 - active],
            1..4 => vec![0, 1],
            _ => vec![active],
        };
        let proxies: Vec<&Proxy> = targets
            .iter()
            .map(|target| stage.relays[*target].proxy(side))
            .collect();
        let before = sum(&proxies);
        let (text, hold) = self.set(&proxies, side, wire).await?;
        let began = Instant::now();
        let has_hit = |counts: &Counts| match wire {
            Wire::Cut => counts.cut > before.cut,
            Wire::AnswersLost => counts.swallowed > before.swallowed,
            Wire::HalfOpen => counts.held > before.held,
            Wire::Late => counts.delayed > before.delayed,
            Wire::Narrow => counts.slowed > before.slowed,
            // A session that stays open does not notice. An insert opens a connection of its own.
            Wire::Refused => side == Side::ClickHouse || counts.cut > before.cut,
        };
        let is_over = || match wire {
            Wire::Cut => has_hit(&sum(&proxies)),
            _ => began.elapsed() >= hold && has_hit(&sum(&proxies)),
        };
        while !is_over() && began.elapsed() < hold + HIT_MAX {
            sleep(LOOK_EVERY).await;
        }
        if wire == Wire::Cut && !is_over() {
            proxies.iter().for_each(|proxy| proxy.cut_all(Close::Reset));
            sleep(LOOK_EVERY).await;
        }
        let happened = has_hit(&sum(&proxies));
        let dies = stage.flavour == Flavour::V18 && side == Side::ClickHouse;
        for proxy in &proxies {
            // What a line has held for long must not reach a server that nothing but a look protects.
            if dies && wire == Wire::HalfOpen {
                proxy.cut_all(Close::Reset);
            }
            proxy.heal().await?;
        }
        let names: Vec<&str> = targets
            .iter()
            .map(|target| stage.relays[*target].name)
            .collect();
        let text = format!("{}: {text}", names.join(" and "));
        Ok(happened.then_some(text))
    }

    /// Sets the fault; says what it is and how long it lasts.
    async fn set(
        &mut self,
        proxies: &[&Proxy],
        side: Side,
        wire: Wire,
    ) -> Result<(String, Duration)> {
        let (mut faults, text, hold) = match wire {
            Wire::Cut => return Ok((self.cut(proxies, side), Duration::ZERO)),
            Wire::Refused => {
                let hold = self.duration(300..2_500);
                for proxy in proxies {
                    proxy.refuse().await?;
                    if side == Side::Postgres || self.chance(0.5) {
                        proxy.cut_all(Close::Fin);
                    }
                }
                return Ok((format!("for {hold:?}"), hold));
            }
            Wire::AnswersLost => (Faults::answers_lost(), String::new(), 1_000..4_000),
            // Longer than a statement may take, now and then.
            Wire::HalfOpen if side == Side::Postgres && self.is_long && self.chance(0.3) => {
                (Faults::half_open(), String::new(), 11_000..15_000)
            }
            Wire::HalfOpen => (Faults::half_open(), String::new(), 1_000..4_000),
            Wire::Late => {
                let delay = Duration::from_millis(self.random.random_range(20..700));
                let fault = Fault {
                    delay,
                    ..Fault::NONE
                };
                let both = Faults {
                    to_server: fault,
                    to_client: fault,
                    ..Faults::default()
                };
                (both, format!("by {delay:?} "), 1_000..3_000)
            }
            Wire::Narrow => {
                let rate = 1 << self.random.random_range(11..18);
                (Faults::narrow(rate), format!("{rate} B/s "), 1_000..3_000)
            }
        };
        faults.to_server.dies_with_sender = match side {
            Side::ClickHouse if self.stage.flavour == Flavour::V18 => true,
            _ => self.chance(0.5),
        };
        let hold = self.duration(hold);
        proxies.iter().for_each(|proxy| proxy.set(faults));
        Ok((format!("{text}for {hold:?}"), hold))
    }

    /// Cuts an insert, or open sessions, at a byte of one of the next messages.
    fn cut(&mut self, proxies: &[&Proxy], side: Side) -> String {
        let direction = match self.chance(0.5) {
            true => Direction::ToServer,
            false => Direction::ToClient,
        };
        let close = if self.chance(0.5) {
            Close::Fin
        } else {
            Close::Reset
        };
        let bits = match (side, direction) {
            (Side::ClickHouse, Direction::ToServer) => 20,
            (Side::ClickHouse, Direction::ToClient) => 7,
            (Side::Postgres, _) => 13,
        };
        // Small ones as often as large ones.
        let bits = self.random.random_range(0..=bits);
        let byte = self.random.random_range(0..1_u64 << bits);
        for proxy in proxies {
            if side == Side::ClickHouse {
                proxy.arm(INSERT, Faults::cut_at(direction, byte, close));
                continue;
            }
            for open in proxy.connections() {
                let so_far = match direction {
                    Direction::ToServer => open.to_server,
                    Direction::ToClient => open.to_client,
                };
                if self.chance(0.5) {
                    proxy.set_on(open.id, Faults::cut_at(direction, so_far + byte, close));
                }
            }
        }
        format!("{direction:?} at byte {byte}, {close:?}")
    }
}

fn sum(proxies: &[&Proxy]) -> Counts {
    let counts = proxies.iter().map(|proxy| proxy.counts());
    counts.fold(Counts::default(), |mut sum, one| {
        sum.cut += one.cut;
        sum.swallowed += one.swallowed;
        sum.delayed += one.delayed;
        sum.held += one.held;
        sum.slowed += one.slowed;
        sum
    })
}
