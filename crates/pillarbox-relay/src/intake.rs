//! Intakes: ways for events in outside of a business transaction.
//!
//! Entries of a Redis queue, or lines of a file, become rows of the outbox. Where an intake stands is
//! written in the transaction of the rows, through the session that holds the intake's lock, so that each
//! entry is taken over exactly once (INV-14). `docs/decisions/0010-intake.md` says what that depends on.

use std::time::Duration;

use redis::{Client, Script, Value};
use tokio_util::sync::CancellationToken;

use self::entry::Reason;
use self::server::{Server, array, number, text, unreadable};
use self::stream::Id;
use self::tenure::{Forget, Identity, Tenure};
use crate::backoff::Backoff;
use crate::config::{self, ConfigError, IntakeKind};
use crate::metric::IntakeMeters;
use crate::source::JUST_ENDED;

pub mod entry;
pub mod import;
pub mod letters;
mod lines;
mod list;
mod memory;
mod server;
mod stream;
mod tenure;
mod trouble;
mod writing;

use trouble::DEADLINE;
pub use trouble::IntakeError;
pub use writing::{Item, Written};

/// Attempts of a drain before it gives up.
const DRAIN_ATTEMPTS: u32 = 5;

/// The longest wait between two looks in which the session shows no life.
const STRIDE: Duration = Duration::from_secs(20);

/// What one batch may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) rows_max: u64,
    pub(crate) bytes_max: u64,
}

/// What one batch did.
#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(crate) written: Written,
    /// Came again and were not taken.
    pub(crate) restored: u64,
    /// The greatest id of a stream that was looked at.
    pub(crate) last: Option<String>,
    /// Whether there may be more.
    pub(crate) is_full: bool,
}

/// What an intake has done since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Entries that became events.
    pub taken: u64,
    /// Entries that became dead letters.
    pub dead: u64,
    /// Entries that came again and were not taken.
    pub restored: u64,
}

/// What waits in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Entries.
    pub entries: u64,
    /// Since when the oldest one waits; a list does not know.
    pub age: Option<Duration>,
}

/// An intake from Redis.
#[derive(Debug)]
pub struct Intake {
    identity: Identity,
    kind: IntakeKind,
    client: Client,
    postgres: tokio_postgres::Config,
    bounds: Bounds,
    age_max: Duration,
    remember: Duration,
    metrics: IntakeMeters,
}

/// How far a drain has to come.
#[derive(Debug)]
enum Goal {
    /// None: it runs until it is told to stop.
    Never,
    /// Up to this id of a stream.
    Id(Option<Id>),
    /// Up to the end of a list that was renamed since.
    List,
}

impl Intake {
    /// An intake that has not connected to anything yet.
    ///
    /// # Errors
    /// When the configuration lacks something.
    pub fn new(
        name: &str,
        config: &config::Intake,
        postgres: tokio_postgres::Config,
    ) -> Result<Self, ConfigError> {
        let kind = config.kind.ok_or_else(|| {
            ConfigError::Invalid(format!(
                "intake.{name}.kind is missing; write redis-stream or redis-list"
            ))
        })?;
        Ok(Self {
            identity: Identity {
                name: name.to_owned(),
                kind: kind.as_str(),
                source: config.key.clone(),
            },
            kind,
            client: config.client(name)?,
            postgres,
            bounds: Bounds {
                rows_max: config.max_rows,
                bytes_max: config.max_bytes.0,
            },
            age_max: config.max_age.0,
            remember: config.remember.0,
            metrics: IntakeMeters::new(name),
        })
    }

    /// Takes over until it is told to stop. Stands by while another process is active. Dropping the
    /// future abandons it as a kill would, which is safe.
    ///
    /// # Errors
    /// When somebody has to mend something.
    pub async fn run(&self, stop: &CancellationToken) -> Result<Summary, IntakeError> {
        self.work(stop, false).await
    }

    /// Takes over what is there, and ends. Dropping the future is as safe.
    ///
    /// # Errors
    /// When somebody has to mend something, a server stays away, or another process is active.
    pub async fn drain(&self, stop: &CancellationToken) -> Result<Summary, IntakeError> {
        self.work(stop, true).await
    }

    /// What waits in Redis now.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn waiting(&self) -> Result<Waiting, IntakeError> {
        let mut server = Server::connect(&self.client, &self.identity.source).await?;
        Ok(look(&mut server).await?.0)
    }

    async fn work(&self, stop: &CancellationToken, once: bool) -> Result<Summary, IntakeError> {
        let mut summary = Summary::default();
        let mut failures = 0;
        loop {
            let before = summary;
            let attempt = self
                .attempt(stop, (once, failures == 0), &mut summary)
                .await;
            self.metrics.set_active(false);
            let (what, error) = match attempt {
                Ok(()) | Err(IntakeError::Stopped) => return Ok(summary),
                Err(error @ IntakeError::Away { .. }) => (error.to_string(), error),
                Err(error) => return Err(error),
            };
            failures = if summary == before { failures + 1 } else { 1 };
            if once && failures >= DRAIN_ATTEMPTS {
                return Err(error);
            }
            self.metrics.failed();
            let wait = Backoff::USUAL.wait(failures, rand::random());
            let source = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(error = what, source, ?wait, "trying again");
            tokio::select! { biased;
                () = stop.cancelled() => return Ok(summary),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Works with one session of PostgreSQL and one connection to Redis, until either fails.
    async fn attempt(
        &self,
        stop: &CancellationToken,
        (once, is_first): (bool, bool),
        summary: &mut Summary,
    ) -> Result<(), IntakeError> {
        // A drain that has lost its session waits for the server to notice, which may take long.
        let patience = once.then_some(if is_first { JUST_ENDED } else { DEADLINE });
        let mut tenure = Tenure::begin(&self.postgres, &self.identity, patience, stop).await?;
        let mut server = Server::connect(&self.client, &self.identity.source).await?;
        tracing::info!(
            kind = self.identity.kind,
            key = self.identity.source,
            "intake active"
        );
        self.metrics.set_active(true);
        let goal = match (once, self.kind) {
            (false, _) => Goal::Never,
            (true, IntakeKind::RedisList) => Goal::List,
            (true, IntakeKind::RedisStream) => Goal::Id(look(&mut server).await?.1),
        };
        if self.kind == IntakeKind::RedisList {
            for chunk in list::strays(&mut server).await? {
                self.take_chunk(&mut server, &mut tenure, &chunk, stop, summary)
                    .await?;
            }
        }
        while !stop.is_cancelled() {
            let (round, is_there) = match self.kind {
                IntakeKind::RedisStream => {
                    self.take_stream(&mut server, &mut tenure, &goal).await?
                }
                IntakeKind::RedisList => {
                    let Some(chunk) = list::next(&mut server, &mut tenure).await? else {
                        if once {
                            return self.forget(&mut tenure).await;
                        }
                        self.rest(&mut server, &mut tenure, stop).await?;
                        continue;
                    };
                    let is_there = once && chunk.is_new;
                    self.take_chunk(&mut server, &mut tenure, &chunk, stop, summary)
                        .await?;
                    (
                        Round {
                            is_full: !chunk.is_new,
                            ..Round::default()
                        },
                        is_there,
                    )
                }
            };
            self.count(&round, summary);
            if is_there {
                return self.forget(&mut tenure).await;
            }
            if !round.is_full {
                self.rest(&mut server, &mut tenure, stop).await?;
            }
        }
        Ok(())
    }

    async fn take_stream(
        &self,
        server: &mut Server,
        tenure: &mut Tenure,
        goal: &Goal,
    ) -> Result<(Round, bool), IntakeError> {
        let round = stream::take(server, tenure, &self.bounds).await?;
        let is_there = match goal {
            Goal::Id(end) => {
                !round.is_full || tenure.position.as_deref().and_then(Id::parse) >= *end
            }
            Goal::Never | Goal::List => false,
        };
        // A stop between two batches of low entries leaves nothing behind that is not looked at again.
        let is_there = is_there && (round.last.is_none() || round.last == tenure.position);
        Ok((round, is_there))
    }

    /// Takes a chunk to its end, or to a request to stop.
    async fn take_chunk(
        &self,
        server: &mut Server,
        tenure: &mut Tenure,
        chunk: &list::Chunk,
        stop: &CancellationToken,
        summary: &mut Summary,
    ) -> Result<(), IntakeError> {
        while !stop.is_cancelled() {
            let (round, is_end) = list::take(server, tenure, chunk, &self.bounds).await?;
            self.count(&round, summary);
            if is_end {
                break;
            }
        }
        Ok(())
    }

    fn count(&self, round: &Round, summary: &mut Summary) {
        summary.taken += round.written.taken;
        summary.dead += round.written.dead;
        summary.restored += round.restored;
        self.metrics.round(round.written, round.restored);
        if round.written.dead > 0 {
            let dead = round.written.dead;
            tracing::warn!(
                dead,
                "entries are no events; see: pillarbox dead-letters list"
            );
        }
    }

    /// Forgets what was taken long ago. What Redis shows below the position was looked at by now.
    async fn forget(&self, tenure: &mut Tenure) -> Result<(), IntakeError> {
        let kind = match self.kind {
            IntakeKind::RedisStream => Forget::Stream,
            IntakeKind::RedisList => Forget::List,
        };
        tenure.forget(kind, self.remember).await
    }

    /// Waits until it is time to look again.
    async fn rest(
        &self,
        server: &mut Server,
        tenure: &mut Tenure,
        stop: &CancellationToken,
    ) -> Result<(), IntakeError> {
        self.forget(tenure).await?;
        let mut left = self.age_max;
        while !left.is_zero() && !stop.is_cancelled() {
            let step = left.min(STRIDE);
            tokio::select! { biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(step) => {}
            }
            left -= step;
            tenure.beat().await?;
            self.metrics.waiting(look(server).await?.0);
        }
        Ok(())
    }
}

/// What waits, and the greatest id that the stream has given.
async fn look(server: &mut Server) -> Result<(Waiting, Option<Id>), IntakeError> {
    const WAITING: &str = include_str!("intake/lua/waiting.lua");
    let key = server.key.clone();
    let answer = array(server.run(&Script::new(WAITING), &[&key], &[]).await?);
    let [entries, age, last] = <[Value; 3]>::try_from(answer).map_err(|_| unreadable())?;
    let age = match age {
        Value::Int(ms) => u64::try_from(ms).ok().map(Duration::from_millis),
        _ => None,
    };
    let waiting = Waiting {
        entries: number(&entries),
        age,
    };
    Ok((waiting, Id::parse(&text(last))))
}

fn too_large(bounds: &Bounds) -> Reason {
    Reason(format!(
        "it has more bytes than are held at once ({}); a retry takes what the outbox allows (pillarbox \
         settings --event-bytes-max)",
        bounds.bytes_max
    ))
}
