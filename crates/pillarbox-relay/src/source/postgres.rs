//! The source on a real server: one session holds the sink's lock and writes the ledger, a second
//! reads events, a third tends the ring. They are opened together and dropped together.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_postgres::Config;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    Probe, Record, Request, Rows, Session as Tenure, Source, SourceError, Standby, Standing,
    Switches,
};
use crate::batch::Selection;
use crate::expression::Expression;
use crate::failpoint::step;
use crate::identity::{Identity, identify};
use crate::postgres::{self, Session};
use crate::schema::{self, LOCK_CLASS};
use crate::sink::OutboxColumn;
use crate::snapshot::{Position, Span};

use holder::{Holder, Watch};

mod copy;
mod failed;
mod gate;
#[cfg(feature = "fuzzing")]
pub(crate) use copy::fuzzing;
pub(crate) mod holder;
mod ledger;
mod outbox;
mod read;
mod ring;
mod statement;

pub use outbox::outbox_columns;
use outbox::{COLUMNS, Outbox, column};
use statement::{begin, in_time, lost, query_one, timed};

/// How long a statement on the ledger may take; longer means that the session is as good as lost.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// A session that is at work is never ended for its silence: it beats every second, and waits no longer
/// than this for a statement.
const SILENCE_MIN: Duration = STATEMENT_TIMEOUT;
/// Ends every session of a relay but the one that asks.
const DISPLACE: &str = include_str!("postgres/sql/displace.sql");

/// A relay that lives beats in this time, even when its server is slow.
const BEATS: Duration = Duration::from_secs(4);

/// How often a stand-by asks for the lock.
const STANDBY_INTERVAL: Duration = Duration::from_millis(500);

/// One sink's outbox and ledger on a PostgreSQL server.
#[derive(Clone, Debug)]
pub struct PostgresSource {
    config: Config,
    sink: String,
    expressions: BTreeMap<String, Expression>,
    relay: String,
    takeover_after: Duration,
    /// Outlasts the sessions of a stand-by.
    watch: Arc<std::sync::Mutex<Watch>>,
}

impl PostgresSource {
    /// A source for the sink registered under `sink`. A relay that shows no life for
    /// `takeover_after` is displaced.
    pub fn new(config: Config, sink: &str, takeover_after: Duration) -> Self {
        let instance = Uuid::new_v4().simple().to_string();
        let relay = format!("pillarbox/{sink}/{}", &instance[..12]);
        Self {
            config,
            sink: sink.to_owned(),
            expressions: BTreeMap::new(),
            relay,
            takeover_after,
            watch: Arc::default(),
        }
    }

    /// Has these columns of the sink computed while events are read.
    #[must_use]
    pub fn computing(self, expressions: BTreeMap<String, Expression>) -> Self {
        Self {
            expressions,
            ..self
        }
    }

    /// The `application_name` of this relay's sessions.
    pub fn relay(&self) -> &str {
        &self.relay
    }

    async fn open(&self) -> Result<Session, SourceError> {
        const LIMIT: &str = "
            select
                pg_catalog.set_config('idle_in_transaction_session_timeout', $1, false),
                pg_catalog.set_config('tcp_user_timeout', $1, false)";
        let session = postgres::connect(&self.config, &self.relay).await?;
        query_one(&session, LIMIT, &[&self.silence_max()]).await?;
        Ok(session)
    }

    /// How long a session of ours may show no life before the server itself ends it. So a frozen relay
    /// keeps neither lock nor snapshot, whoever may end whose sessions. A stand-by that may ends all of
    /// them, so it comes first.
    fn silence_max(&self) -> String {
        let silence = self.takeover_after.max(SILENCE_MIN) + STANDBY_INTERVAL * 4;
        format!("{}ms", silence.as_millis())
    }

    /// Asks for the sink's lock on `control`, and waits for it if `standby` says so.
    async fn lock(
        &self,
        control: &Session,
        sink: i32,
        standby: Standby,
    ) -> Result<bool, SourceError> {
        const LOCK: &str = "select pg_catalog.pg_try_advisory_lock($1, $2)";
        let mut waiting_for = None;
        loop {
            let lock = query_one(control, LOCK, &[&LOCK_CLASS, &sink]).await?;
            if lock.get(0) {
                return Ok(true);
            }
            let asked_at = Instant::now();
            let holder = timed(async { Holder::of(control.client(), sink).await.map_err(lost) });
            // None when it has just gone.
            let holder = holder.await?;
            if let Some(holder) = &holder {
                let shows_no_life_for = self.watch(holder, asked_at);
                let Some(patience) = self.patience(holder, standby) else {
                    return Ok(false);
                };
                if shows_no_life_for >= patience {
                    self.displace_frozen(control, holder).await?;
                }
            }
            if let Some(holder) = holder.filter(|holder| waiting_for.as_ref() != Some(&holder.name))
            {
                self.announce(&holder);
                waiting_for = Some(holder.name);
            }
            tokio::time::sleep(STANDBY_INTERVAL).await;
        }
    }

    fn watch(&self, holder: &Holder, asked_at: Instant) -> Duration {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        watch.look(holder, asked_at)
    }

    fn announce(&self, holder: &Holder) {
        tracing::info!(sink = %self.sink, %holder, "another relay is active: standing by");
        if holder.is_relay() && !holder.may_end {
            tracing::warn!(
                sink = %self.sink,
                %holder,
                "this user may not end the sessions of the active relay's user: should that relay \
                 freeze, the server ends them by itself, after the takeover time that it has"
            );
        }
    }

    /// How long the holder has to show no life before it counts as frozen; `None` when there is nothing
    /// to wait for. Who has no time goes by the server's clock, which somebody may have set, and looks
    /// at a few beats only.
    fn patience(&self, holder: &Holder, standby: Standby) -> Option<Duration> {
        if standby == Standby::Wait {
            return Some(self.takeover_after);
        }
        let is_silent = holder
            .silence
            .is_some_and(|silence| silence >= self.takeover_after);
        let may_displace = is_silent && holder.is_relay() && holder.may_end;
        may_displace.then_some(BEATS.min(self.takeover_after))
    }

    /// Ends every session of a relay that holds the lock but shows no life.
    async fn displace_frozen(&self, control: &Session, holder: &Holder) -> Result<(), SourceError> {
        if !holder.is_relay() || !holder.may_end {
            return Ok(());
        }
        let silence = holder.silence;
        tracing::warn!(sink = %self.sink, %holder, ?silence, "taking over from a frozen relay");
        query_one(control, DISPLACE, &[&holder.name]).await?;
        Ok(())
    }
}

impl Source for PostgresSource {
    type Session = PostgresSession;

    async fn take_over(&self, standby: Standby) -> Result<Option<PostgresSession>, SourceError> {
        const REGISTRATION: &str = include_str!("postgres/sql/registration.sql");
        let control = self.open().await?;
        postgres::check_server(control.client()).await?;
        schema::check_version(control.client()).await?;
        let found = in_time(control.client().query_opt(REGISTRATION, &[&self.sink])).await?;
        let registration = found.ok_or_else(|| {
            SourceError::Refused(format!(
                "no sink named {0} is registered; run: pillarbox sink create {0}",
                self.sink
            ))
        })?;
        let sink: i32 = registration.get(0);
        if registration.get(2) {
            return Err(SourceError::Refused(format!(
                "the sink {} was retired",
                self.sink
            )));
        }
        let identity = timed(async { identify(control.client(), sink).await.map_err(lost) });
        let identity = identity.await?;
        if matches!(identity, Identity::Restored | Identity::Copied) {
            return Err(SourceError::Refused(format!(
                "{}, so the ledger of the sink {} does not tell what the sink holds; deliver from the \
                 original, or, if this database takes its place, run: pillarbox recover",
                identity.describe(),
                self.sink
            )));
        }
        if !self.lock(&control, sink, standby).await? {
            return Ok(None);
        }
        // An earlier tenure of this relay may have left sessions that the server still believes in: a
        // reader holds a snapshot, and one that tended the ring holds a leaf that publishers wait for.
        query_one(&control, DISPLACE, &[&self.relay]).await?;
        if identity == Identity::Upgraded {
            const ADOPT: &str = include_str!("postgres/sql/adopt.sql");
            in_time(control.client().execute(ADOPT, &[&sink])).await?;
            tracing::info!(sink = %self.sink, "postgresql was upgraded: going on");
        }
        // From now on it beats. The others may have nothing to do for long.
        const LIMIT: &str = "select pg_catalog.set_config('idle_session_timeout', $1, false)";
        query_one(&control, LIMIT, &[&self.silence_max()]).await?;
        let backend = query_one(&control, "select pg_catalog.pg_backend_pid()", &[]).await?;
        let backend = backend.get(0);
        let (reader, ring) = tokio::try_join!(self.open(), self.open())?;
        step!("took-over");
        Ok(Some(PostgresSession {
            source: self.clone(),
            sink,
            backend,
            control: Mutex::new(control),
            reader: Mutex::new(Some(reader)),
            outbox: Mutex::default(),
            ring: Mutex::new(ring::Ring::new(ring)),
            holds_ring: AtomicBool::new(false),
        }))
    }
}

/// A tenure: the three sessions of an active relay.
#[derive(Debug)]
pub struct PostgresSession {
    source: PostgresSource,
    sink: i32,
    /// The server process behind `control`; a pooler would change it, and the lock with it.
    backend: i32,
    control: Mutex<Session>,
    reader: Mutex<Option<Session>>,
    /// The columns of the outbox that were told last, for which plans were made.
    outbox: Mutex<Option<Outbox>>,
    ring: Mutex<ring::Ring>,
    /// Whether `control` keeps leaves from being emptied, from finding a replay to sealing it.
    holds_ring: AtomicBool,
}

impl PostgresSession {
    /// Lets leaves be emptied again.
    async fn release_ring(&self, control: &Session) -> Result<(), SourceError> {
        const UNLOCK: &str = "select pg_catalog.pg_advisory_unlock($1, $2)";
        if self.holds_ring.swap(false, Ordering::Relaxed) {
            query_one(control, UNLOCK, &[&LOCK_CLASS, &ring::LOCK_RING]).await?;
        }
        Ok(())
    }
}

impl Tenure for PostgresSession {
    async fn standing(&self) -> Result<Standing, SourceError> {
        const POSITION: &str = include_str!("postgres/sql/position.sql");
        const UNFINISHED: &str = include_str!("postgres/sql/unfinished.sql");
        let mut control = self.control.lock().await;
        let row = query_one(&control, POSITION, &[&self.sink]).await?;
        let position = Position {
            from: ledger::snapshot(&row, 2)?,
            to: ledger::snapshot(&row, 3)?,
            until: ledger::cut(&row, 4)?,
        };
        let open = in_time(control.client().query(UNFINISHED, &[&self.sink])).await?;
        if !open.is_empty() {
            ledger::make_durable(&mut control).await?;
        }
        Ok(Standing {
            origin: ledger::origin(&row, 0)?,
            last_number: row.get(7),
            position,
            unfinished: open
                .iter()
                .map(ledger::unfinished)
                .collect::<Result<_, _>>()?,
            timeline_changed: row.get(6),
            last_sealed_at: row.get(8),
        })
    }

    async fn outbox_columns(&self) -> Result<Vec<OutboxColumn>, SourceError> {
        let control = self.control.lock().await;
        let outbox = Outbox::ask(control.client(), &self.source.expressions).await?;
        let given = outbox.given.clone();
        *self.outbox.lock().await = Some(outbox);
        Ok(given)
    }

    async fn probe(&self, position: &Position) -> Result<Probe, SourceError> {
        const PROBE: &str = include_str!("postgres/sql/probe.sql");
        let control = self.control.lock().await;
        let row = query_one(&control, PROBE, &[&position.to.to_string()]).await?;
        step!("probed");
        Ok(Probe {
            snapshot: ledger::snapshot(&row, 0)?,
            waiting: row.get::<_, Option<i64>>(1).map(micros),
            trace_parent: row.get(3),
            outbox_bytes: row.get::<_, i64>(2).cast_unsigned(),
        })
    }

    async fn read_selected<R: Rows>(
        &self,
        span: &Span,
        selection: &Selection,
        columns: &[String],
        rows_max: u64,
        into: &mut R,
    ) -> Result<(), SourceError> {
        let mut place = self.reader.lock().await;
        // Out of its place while it reads: what is cut short closes the connection, and with it the
        // snapshot that its COPY would hold.
        let mut reader = match place.take() {
            Some(reader) => reader,
            None => self.source.open().await?,
        };
        let planned = self.outbox.lock().await.clone();
        let reading = read::Reading {
            sink: self.sink,
            span,
            selection,
            columns,
            outbox: planned.as_ref(),
            rows_max,
            computes: true,
        };
        if read::read(&mut reader, &reading, into).await? {
            *place = Some(reader);
        }
        step!("read");
        Ok(())
    }

    async fn record(&self, record: &mut Record<'_>) -> Result<(), SourceError> {
        let mut control = self.control.lock().await;
        let warnings = control.warnings().clone();
        let is_seal = !record.batches.is_empty();
        let writing = async {
            if let (true, [outcome]) = (is_outcome(record), record.outcomes) {
                return ledger::confirm(control.client(), self.sink, outcome).await;
            }
            let transaction = begin(&mut control).await?;
            ledger::write(&transaction, self.sink, &self.source.relay, record).await?;
            if is_seal {
                step!("seal-inserted");
                return ledger::commit_durably(transaction, &warnings).await;
            }
            transaction.commit().await.map_err(lost)
        };
        timed(writing).await?;
        if is_seal {
            step!("sealed");
        } else {
            step!("confirmed");
        }
        if record.replay.is_some() {
            self.release_ring(&control).await?;
        }
        Ok(())
    }

    async fn lately_dead(&self) -> Result<u64, SourceError> {
        const LATELY_DEAD: &str = include_str!("postgres/sql/lately_dead.sql");
        let control = self.control.lock().await;
        let row = query_one(&control, LATELY_DEAD, &[&self.sink]).await?;
        Ok(row.get::<_, i64>(0).cast_unsigned())
    }

    async fn request(&self) -> Result<Option<Request>, SourceError> {
        const REQUEST: &str = include_str!("postgres/sql/request.sql");
        const RETRIES: &str = "select exists (
            select from pillarbox.dead_letter l where l.sink = $1 and l.state = 'requested')";
        let control = self.control.lock().await;
        while let Some(row) = in_time(control.client().query_opt(REQUEST, &[&self.sink])).await? {
            match ledger::replay(&row)? {
                Ok(replay) => {
                    // Once it is sealed, the batch itself keeps its events.
                    const LOCK: &str = "select pg_catalog.pg_try_advisory_lock($1, $2)";
                    // The lock counts how often it was taken.
                    if !self.holds_ring.load(Ordering::Relaxed) {
                        let given: [&(dyn ToSql + Sync); 2] = [&LOCK_CLASS, &ring::LOCK_RING];
                        let lock = query_one(&control, LOCK, &given).await?;
                        if !lock.get::<_, bool>(0) {
                            return Ok(Some(Request::Later));
                        }
                        self.holds_ring.store(true, Ordering::Relaxed);
                    }
                    return Ok(Some(Request::Replay(Box::new(replay))));
                }
                Err((replay, reason)) => {
                    let refused = ledger::answer(control.client(), replay, None, Some(&reason));
                    timed(refused).await?;
                }
            }
        }
        let retries = query_one(&control, RETRIES, &[&self.sink]).await?;
        Ok(retries.get::<_, bool>(0).then_some(Request::Retry))
    }

    async fn refuse(&self, replay: i64, reason: &str) -> Result<(), SourceError> {
        let control = self.control.lock().await;
        timed(ledger::answer(control.client(), replay, None, Some(reason))).await?;
        self.release_ring(&control).await
    }

    async fn forget_request(&self) -> Result<(), SourceError> {
        let control = self.control.lock().await;
        self.release_ring(&control).await
    }

    async fn beat(&self) -> Result<Switches, SourceError> {
        const BEAT: &str = include_str!("postgres/sql/beat.sql");
        let control = self.control.lock().await;
        let row = query_one(&control, BEAT, &[&self.sink]).await?;
        if row.get::<_, i32>(2) != self.backend {
            return Err(SourceError::Refused(
                "the relay's connection to postgresql goes through a pooler that gives it to \
                 others between statements; give the relay a direct connection"
                    .to_owned(),
            ));
        }
        Ok(Switches {
            paused: row.get(0),
            retired: row.get(1),
            has_requests: row.get(3),
        })
    }

    async fn tend(&self) -> Result<(), SourceError> {
        const PRUNE: &str = include_str!("postgres/sql/prune.sql");
        let mut ring = self.ring.lock().await;
        ring.tend().await?;
        if let Some(safe) = ring.prune_due(self.sink) {
            let control = self.control.lock().await;
            in_time(control.client().execute(PRUNE, &[&self.sink, &safe])).await?;
        }
        Ok(())
    }

    async fn report(&self, stopped: Option<&str>) -> Result<(), SourceError> {
        const REPORT: &str = include_str!("postgres/sql/report.sql");
        let control = self.control.lock().await;
        in_time(control.client().execute(REPORT, &[&self.sink, &stopped])).await?;
        Ok(())
    }

    async fn renew_origin(&self) -> Result<u32, SourceError> {
        const RENEW: &str = include_str!("postgres/sql/renew_origin.sql");
        let origin = schema::registry::random_origin();
        let control = self.control.lock().await;
        in_time(control.client().execute(RENEW, &[&self.sink, &origin])).await?;
        Ok(origin.cast_unsigned())
    }
}

/// Whether the record is one outcome and nothing else, which needs no transaction of its own.
fn is_outcome(record: &Record<'_>) -> bool {
    record.batches.is_empty() && record.dead.is_empty() && record.settled_retry.is_none()
}

fn micros(count: i64) -> Duration {
    Duration::from_micros(u64::try_from(count).unwrap_or(0))
}
