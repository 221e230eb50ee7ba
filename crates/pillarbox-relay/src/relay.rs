//! The spine: owns every branch, retry and stop decision of the delivery path.
//!
//! Tenure by tenure: take over, read the ledger, plan, deliver what is sealed but not confirmed, then
//! probe → read → encode → seal → deliver → confirm. Reading and encoding of the next batch overlaps
//! with the delivery of the last ones. Two things are always at work beside it: the beat, which shows
//! that this relay lives, and the tending of the ring. Losing the session ends the tenure, with every
//! snapshot and row in memory: the ledger alone says where sealing stands.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::future::OptionFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::pulse::Pulse;
use crate::sink::{Plan as _, Reaction, Sink, Trouble};
use crate::source::{JUST_ENDED, Request, Session, Source, SourceError, Standby, Switches};

mod beside;
mod delivering;
mod dividing;
mod family;
mod halt;
mod options;
mod planning;
mod pressure;
mod reading;
mod requests;
mod sealing;

use halt::stopped;
pub use halt::{Drained, Halt};
use options::Mode;
pub use options::{Options, Poison};
use pressure::Pressure;
use sealing::Sealing;

/// Changes of the columns in a row, with nothing delivered between them, that are somebody at work on them.
/// More are replicas that differ for long: the sink stops, and says so.
const OUTDATED_MAX: u32 = 10;

/// Delivers the events of one source to one sink, each exactly once.
#[derive(Debug)]
pub struct Relay<S, K, C> {
    source: S,
    sink: K,
    clock: C,
    options: Options,
    /// Blocks sent, ever: tells how far a deduplication window has moved on.
    blocks: AtomicU64,
    pressure: Pressure,
    pulse: Arc<Pulse>,
}

/// What one tenure works with.
struct Tenure<'a, S, P> {
    session: &'a S,
    plan: P,
    mode: Mode,
    stop: &'a CancellationToken,
    switches: watch::Receiver<Switches>,
    /// Since when this relay alone may send; taken a little late.
    began: Instant,
    /// One permit per delivery at once, given in the order of the batches.
    permits: Semaphore,
    /// Random bits of the registration.
    origin: u32,
    /// Number of the ledger's last batch. Locked from giving the next number to sealing it.
    last_number: Mutex<i64>,
    /// When the plan was last compared with the sink.
    plan_checked_at: Mutex<Option<Instant>>,
    /// What somebody wants to be delivered again, found but not answered yet.
    request: Mutex<Option<Request>>,
}

impl<S: Source, K: Sink, C: Clock> Relay<S, K, C> {
    /// A relay that does nothing yet.
    pub fn new(source: S, sink: K, clock: C, options: Options) -> Self {
        let pulse = Pulse::new(&options.sink, options.stuck_after, clock.now());
        Self {
            source,
            sink,
            clock,
            options,
            blocks: AtomicU64::default(),
            pressure: Pressure::default(),
            pulse: Arc::new(pulse),
        }
    }

    /// What it shows of itself while it runs.
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// Delivers until `stop` is cancelled, or stands by while another relay does.
    ///
    /// A sink that stands still is reported and looked at again; the first look decides whether the
    /// relay starts at all. Dropping the future is as safe as `kill -9`.
    ///
    /// # Errors
    /// When the sink or the database refuses at the start, or the sink was retired.
    pub async fn run(&self, stop: &CancellationToken) -> Result<(), Halt> {
        let mut failures = 0;
        let mut has_started = false;
        loop {
            let began = self.clock.now();
            let before = self.pulse.counts();
            let ended = match self.tenure(Mode::Run, stop, &mut has_started).await {
                Ok(()) => return Ok(()),
                // Later it may be a failover under way.
                Err(Halt::Source(SourceError::Refused(reason))) if !has_started => {
                    return Err(Halt::Source(SourceError::Refused(reason)));
                }
                Err(ended @ (Halt::Source(_) | Halt::Stuck(_))) => ended,
                Err(other) => return Err(other),
            };
            let has_worked = self.pulse.counts() != before;
            failures = if has_worked || began.elapsed() > Backoff::USUAL.last {
                1
            } else {
                failures + 1
            };
            tracing::warn!(error = &ended as &dyn std::error::Error, "the tenure ended");
            self.pulse.set_back(ended.to_string(), self.clock.now());
            if self
                .rest(Backoff::USUAL.wait(failures, self.clock.chance()), stop)
                .await
            {
                return Ok(());
            }
        }
    }

    /// Delivers what has been committed up to now, and returns. For cron, schedulers and tests.
    ///
    /// # Errors
    /// When not everything could be delivered; what is left is safe, and the next call goes on.
    pub async fn drain(&self, stop: &CancellationToken) -> Result<Drained, Halt> {
        let before = self.pulse.counts();
        self.tenure(Mode::Drain, stop, &mut false).await?;
        let (batches, rows) = self.pulse.counts();
        Ok(Drained {
            batches: batches - before.0,
            rows: rows - before.1,
        })
    }

    /// From taking over to losing the session or ending well.
    async fn tenure(
        &self,
        mode: Mode,
        stop: &CancellationToken,
        has_started: &mut bool,
    ) -> Result<(), Halt> {
        self.pulse.asking(self.clock.now());
        let session = tokio::select! { biased;
            () = stop.cancelled() => return Ok(()),
            taken = self.take_over(mode) => taken?.ok_or(Halt::NotActive)?,
        };
        self.pulse.took_over(self.clock.now());
        let (switch, switches) = watch::channel(session.beat().await?);
        let ended = tokio::select! { biased;
            ended = self.work(&session, mode, switches, stop, has_started) => ended,
            // A beat or a ring that fails has lost the session, and so the right to deliver.
            Err(lost) = self.beat(&session, &switch) => Err(lost),
            Err(lost) = self.tend(&session) => Err(lost),
        };
        if mode == Mode::Drain && ended.is_ok() {
            session.tend().await?;
        }
        ended
    }

    /// Waits as the stand-by of another relay, or, in a drain, only for one that has just ended.
    async fn take_over(&self, mode: Mode) -> Result<Option<S::Session>, SourceError> {
        if mode == Mode::Run {
            return self.source.take_over(Standby::Wait).await;
        }
        let began = self.clock.now();
        loop {
            let taken = self.source.take_over(Standby::Leave).await?;
            if taken.is_some() || self.clock.now() - began >= JUST_ENDED {
                return Ok(taken);
            }
            self.clock.sleep(JUST_ENDED / 10).await;
        }
    }

    /// Works until the end; a sink that stands still is looked at again from the ledger on.
    async fn work(
        &self,
        session: &S::Session,
        mode: Mode,
        switches: watch::Receiver<Switches>,
        stop: &CancellationToken,
        has_started: &mut bool,
    ) -> Result<(), Halt> {
        let mut replanned_at = None;
        let mut outdated = (0, None);
        loop {
            let ended = self
                .serve(session, mode, switches.clone(), stop, has_started)
                .await;
            if matches!(
                ended,
                Err(Halt::Replan(_) | Halt::Outdated(_) | Halt::Stopped(..))
            ) {
                session.forget_request().await?;
            }
            let delivered = Some(self.pulse.counts().0);
            if outdated.1 != delivered {
                outdated = (0, delivered);
            }
            let halt = match ended {
                Err(Halt::Outdated(trouble)) if outdated.0 < OUTDATED_MAX => {
                    outdated.0 += 1;
                    tracing::info!(reason = %trouble.reason, "planning again");
                    if self.rest(Backoff::SHORT.wait(outdated.0, 1.0), stop).await {
                        return Ok(());
                    }
                    continue;
                }
                Err(Halt::Replan(_)) if replanned_at != delivered => {
                    replanned_at = delivered;
                    continue;
                }
                Err(Halt::Replan(trouble) | Halt::Outdated(trouble)) => {
                    Halt::Stopped(trouble.reason.clone(), Some(trouble))
                }
                Err(halt @ Halt::Stopped(..)) => halt,
                other => return other,
            };
            let reason = halt.to_string();
            tracing::error!(
                error = &halt as &dyn std::error::Error,
                "the sink stands still"
            );
            self.pulse.stopped(&reason, self.clock.now());
            session.report(Some(&reason)).await?;
            if mode == Mode::Drain || !*has_started {
                return Err(halt);
            }
            if self.rest(self.options.stopped_for, stop).await {
                return Ok(());
            }
        }
    }

    /// Plans, then seals and delivers until a stop request, the end of a drain, or trouble.
    async fn serve(
        &self,
        session: &S::Session,
        mode: Mode,
        switches: watch::Receiver<Switches>,
        stop: &CancellationToken,
        has_started: &mut bool,
    ) -> Result<(), Halt> {
        let Some(plan) = self.plan(session, mode, stop).await? else {
            return Ok(());
        };
        let permits = Semaphore::new(self.options.in_flight_max);
        let mut standing = session.standing().await?;
        let mut tenure = Tenure {
            session,
            plan,
            mode,
            stop,
            switches,
            began: self.clock.now(),
            permits,
            origin: standing.origin,
            last_number: Mutex::new(standing.last_number),
            plan_checked_at: Mutex::new(None),
            request: Mutex::new(None),
        };
        let judged = if standing.timeline_changed {
            self.judge_timeline(&tenure, &mut standing).await
        } else {
            self.look_back(&tenure, &standing).await
        };
        if judged? {
            return Ok(());
        }
        tenure.origin = standing.origin;
        let guarantee = tenure.plan.guarantee().as_str();
        tracing::info!(guarantee, "the sink is ready");
        *has_started = true;
        self.pulse.standing(&standing.unfinished, self.clock.now());
        if standing.unfinished.is_empty() {
            session.report(None).await?;
        }
        let work = self.seal_and_deliver(&tenure, Sealing::from(standing));
        tokio::select! { biased;
            ended = work => ended,
            () = self.grace(stop) => {
                tracing::warn!("stopping with deliveries in flight: the next relay settles them");
                Ok(())
            }
        }
    }

    async fn seal_and_deliver(
        &self,
        tenure: &Tenure<'_, S::Session, K::Plan>,
        sealing: Sealing,
    ) -> Result<(), Halt> {
        let mut deliveries = FuturesUnordered::new();
        // Of the events that are being delivered.
        let mut bytes = 0;
        let mut idle = Some(sealing);
        let mut preparing = std::pin::pin!(OptionFuture::default());
        loop {
            // One batch is prepared ahead of those in flight, and none while these are as large as one
            // may be: memory stays bounded, and a COPY, once begun, never waits for a sink.
            let has_room = deliveries.len() <= self.options.in_flight_max
                && bytes <= self.options.limits.bytes_max;
            if let Some(sealing) = idle.take_if(|_| has_room) {
                preparing.set(Some(self.prepare(tenure, sealing)).into());
            }
            tokio::select! { biased;
                // An ended delivery frees its place and its memory before anything new is taken up.
                Some((freed, settled)) = deliveries.next() => {
                    bytes -= freed;
                    settled?;
                }
                // `None` is polled only after an end, which clears the branch below.
                Some((sealing, prepared)) = &mut preparing => {
                    preparing.set(None.into());
                    let ended = match prepared {
                        Ok(Some(prepared)) => {
                            let held = prepared.bytes();
                            bytes += held;
                            let delivery = self.deliver(tenure, prepared);
                            deliveries.push(delivery.map(move |settled| (held, settled)));
                            idle = Some(sealing);
                            continue;
                        }
                        Ok(None) => Ok(()),
                        // What is in flight was encoded for the sink as it was.
                        Err(replan @ (Halt::Replan(_) | Halt::Outdated(_))) => Err(replan),
                        Err(halt) => return Err(halt),
                    };
                    while let Some((_, settled)) = deliveries.next().await {
                        settled?;
                    }
                    return ended;
                }
                else => return Ok(()),
            }
        }
    }

    /// Waits as `trouble` asks for, or gives up; returns whether to stop.
    async fn bear(
        &self,
        mode: Mode,
        trouble: Trouble,
        failures: u32,
        began: Instant,
        stop: &CancellationToken,
    ) -> Result<bool, Halt> {
        let backoff = match trouble.reaction {
            Reaction::Backoff => Backoff::USUAL,
            Reaction::Soon => Backoff::SHORT,
            Reaction::Slower | Reaction::Halve => Backoff::SLOWER,
            Reaction::Replan => return Err(Halt::Replan(trouble)),
            Reaction::Stop => return Err(stopped(trouble)),
        };
        if mode == Mode::Drain && self.clock.now() - began > self.options.drain_patience {
            return Err(Halt::GaveUp(trouble));
        }
        Ok(self
            .rest(backoff.wait(failures, self.clock.chance()), stop)
            .await)
    }

    /// Waits while somebody has paused the sink. Returns whether nothing more is to be done: a stop
    /// was requested, or a drain, which does not wait, found it paused.
    async fn held_back(&self, tenure: &Tenure<'_, S::Session, K::Plan>) -> bool {
        while tenure.switches.borrow().paused {
            self.moved();
            if tenure.mode == Mode::Drain || self.rest(self.options.probe_max, tenure.stop).await {
                return true;
            }
        }
        false
    }

    /// Waits; returns whether a stop was requested.
    async fn rest(&self, wait: Duration, stop: &CancellationToken) -> bool {
        tokio::select! { biased;
            () = stop.cancelled() => true,
            () = self.clock.sleep(wait) => false,
        }
    }

    async fn grace(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        self.clock.sleep(self.options.grace).await;
    }

    fn moved(&self) {
        self.pulse.moved(self.clock.now());
    }
}
