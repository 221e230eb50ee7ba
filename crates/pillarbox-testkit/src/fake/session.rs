//! A tenure on the fake database.

use std::time::{Duration, SystemTime};

use pillarbox_relay::batch::{Row, Selection, Store};
use pillarbox_relay::clock::Clock as _;
use pillarbox_relay::sink::{OutboxColumn, Pushed};
use pillarbox_relay::snapshot::{Cut, Position, Span};
use pillarbox_relay::source::{
    Probe, Record, Request, Rows, Session, SourceError, Standing, Switches,
};
use tokio::sync::Mutex;

use super::database::{Disk, FakeDatabase, State};
use super::event::outbox_columns;
use super::fault::{SessionFault, SessionOperation};
use super::ring::{LEAVES, OutboxRow};

/// How long a statement may take before its session counts as lost.
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// So many rows are read before others get a turn.
const ROWS_AT_ONCE: usize = 16;

/// A tenure: dropped, it ends its session and frees the sink's lock.
#[derive(Debug)]
pub struct FakeSession {
    database: FakeDatabase,
    id: u64,
    sink: i32,
    /// One statement at a time on the session that writes the ledger.
    control: Mutex<()>,
}

impl FakeSession {
    pub(super) fn new(database: FakeDatabase, id: u64, sink: i32) -> Self {
        Self {
            database,
            id,
            sink,
            control: Mutex::default(),
        }
    }

    /// Runs one statement under the fault that is planned for it.
    async fn statement<T>(
        &self,
        operation: SessionOperation,
        work: impl FnOnce(&mut State, i32, SystemTime) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let _control = self.control.lock().await;
        let fault = self.begin(operation).await?;
        let answer = {
            let now = self.database.clock().wall();
            let mut state = self.database.state();
            let own = state.sessions.get_mut(&self.id);
            own.ok_or_else(|| lost("the session was ended"))?
                .last_statement = self.database.clock().elapsed();
            work(&mut state, self.sink, now)
        };
        self.end(fault).await?;
        answer
    }

    /// The fault of a call, after what it does before the call.
    async fn begin(
        &self,
        operation: SessionOperation,
    ) -> Result<Option<SessionFault>, SourceError> {
        tokio::task::yield_now().await;
        let fault = self.database.state().script.next(operation);
        match fault {
            Some(SessionFault::Slow(wait)) => self.database.clock().sleep(wait).await,
            Some(fault) if fault.is_before() => self.lose(fault).await?,
            _ => {}
        }
        Ok(fault)
    }

    async fn end(&self, fault: Option<SessionFault>) -> Result<(), SourceError> {
        match fault {
            None | Some(SessionFault::Slow(_)) => Ok(()),
            Some(fault) => self.lose(fault).await,
        }
    }

    async fn lose(&self, fault: SessionFault) -> Result<(), SourceError> {
        match fault {
            SessionFault::CrashBefore | SessionFault::CrashAfter => self.database.crash(true),
            SessionFault::Hang | SessionFault::HangAfter => {
                self.database.clock().sleep(STATEMENT_TIMEOUT).await;
                self.database.state().sessions.remove(&self.id);
            }
            _ => {
                self.database.state().sessions.remove(&self.id);
            }
        }
        Err(lost("the connection broke"))
    }

    fn check_alive(&self) -> Result<(), SourceError> {
        match self.database.state().sessions.contains_key(&self.id) {
            true => Ok(()),
            false => Err(lost("the session was ended")),
        }
    }

    /// Empties a leaf as `source::postgres::ring` does.
    async fn empty(&self, slot: usize) -> Result<(), SourceError> {
        let hook = {
            let now = self.database.clock().wall();
            let mut state = self.database.state();
            if state.is_needed(slot, now) {
                return Ok(());
            }
            state.before_leaf_lock.take()
        };
        if let Some(hook) = hook {
            hook();
        }
        let fault = self.begin(SessionOperation::LockLeaf).await?;
        self.check_alive()?;
        self.lock_and_empty(slot);
        self.end(fault).await
    }

    /// Empties a leaf if no writer is in it, and if it still may be.
    fn lock_and_empty(&self, slot: usize) {
        let now = self.database.clock().wall();
        let mut state = self.database.state();
        // Asking for the lock takes an id and is logged, granted or not.
        state.wrote();
        let transactions = &state.disk.transactions;
        let mut rows = state.disk.ring.leaf(slot).iter();
        if rows.any(|row| transactions.is_running(row.at.tx)) {
            return;
        }
        let checks_again = state.disk.ring.settings.is_checked_under_lock;
        if checks_again && state.is_needed(slot, now) {
            return;
        }
        state.disk.ring.truncate(slot);
    }
}

impl Drop for FakeSession {
    fn drop(&mut self) {
        self.database.state().sessions.remove(&self.id);
    }
}

impl Session for FakeSession {
    async fn standing(&self) -> Result<Standing, SourceError> {
        self.statement(SessionOperation::Standing, |state, sink, now| {
            state.disk.ledger.standing(sink, now)
        })
        .await
    }

    async fn outbox_columns(&self) -> Result<Vec<OutboxColumn>, SourceError> {
        self.statement(SessionOperation::OutboxColumns, |_, _, _| {
            Ok(outbox_columns())
        })
        .await
    }

    async fn probe(&self, position: &Position) -> Result<Probe, SourceError> {
        self.statement(SessionOperation::Probe, |state, _, now| {
            let disk = &state.disk;
            let seen = disk.ring.rows().filter(|row| {
                disk.transactions.is_visible(row.at.tx) && !position.to.sees(row.at.tx)
            });
            let oldest = seen.map(|row| row.published_at).min();
            Ok(Probe {
                trace_parent: None,
                snapshot: disk.transactions.snapshot(),
                waiting: oldest.map(|at| now.duration_since(at).unwrap_or_default()),
                outbox_bytes: disk.ring.bytes(),
            })
        })
        .await
    }

    async fn read_selected<R: Rows>(
        &self,
        span: &Span,
        selection: &Selection,
        columns: &[String],
        rows_max: u64,
        into: &mut R,
    ) -> Result<(), SourceError> {
        let fault = self.begin(SessionOperation::Read).await?;
        self.check_alive()?;
        let _transaction = self.database.reads().enter();
        let rows = self.database.state().rows_of(self.sink, span, selection);
        // One row more than fits, so that a batch is cut only where another row follows.
        let most = usize::try_from(rows_max).unwrap_or(usize::MAX);
        for (count, row) in rows.iter().take(most.saturating_add(1)).enumerate() {
            if count % ROWS_AT_ONCE == ROWS_AT_ONCE - 1 {
                tokio::task::yield_now().await;
                self.check_alive()?;
            }
            let fields: Vec<Option<Vec<u8>>> = columns
                .iter()
                .map(|column| row.event.field(column, row.published_at))
                .collect();
            let fields: Vec<Option<&[u8]>> = fields.iter().map(Option::as_deref).collect();
            let row = Row {
                at: row.at,
                fields: &fields,
            };
            if into.push(&row)? == Pushed::NoRoom {
                break;
            }
        }
        self.end(fault).await?;
        self.check_alive()
    }

    async fn record(&self, record: &mut Record<'_>) -> Result<(), SourceError> {
        let operation = match record.batches.is_empty() {
            true => SessionOperation::Confirm,
            false => SessionOperation::Seal,
        };
        self.statement(operation, |state, sink, now| {
            let Disk {
                transactions,
                ring,
                ledger,
                ..
            } = &mut state.disk;
            let row = |at| {
                let mut rows = ring.rows();
                rows.find(|row| row.at == at && transactions.is_visible(row.at.tx))
                    .cloned()
            };
            if ledger.record(sink, record, now, row)? {
                state.wrote();
            }
            Ok(())
        })
        .await
    }

    async fn lately_dead(&self) -> Result<u64, SourceError> {
        self.statement(SessionOperation::Probe, |state, sink, now| {
            Ok(state.disk.ledger.letters.lately(sink, now))
        })
        .await
    }

    async fn request(&self) -> Result<Option<Request>, SourceError> {
        self.statement(SessionOperation::Probe, |state, sink, _| {
            Ok(state.disk.ledger.request(sink))
        })
        .await
    }

    async fn forget_request(&self) -> Result<(), SourceError> {
        Ok(())
    }

    async fn refuse(&self, replay: i64, reason: &str) -> Result<(), SourceError> {
        self.statement(SessionOperation::Report, |state, sink, _| {
            if let Some(wish) = state.disk.ledger.letters.replay(sink, replay) {
                wish.refused = Some(reason.to_owned());
                state.wrote();
            }
            Ok(())
        })
        .await
    }

    async fn beat(&self) -> Result<Switches, SourceError> {
        self.statement(SessionOperation::Beat, |state, sink, _| {
            let has_requests = state.disk.ledger.letters.has_requests(sink);
            let found = state.disk.ledger.sinks.get(&sink);
            let sink = found.ok_or_else(|| lost("the sink is gone"))?;
            Ok(Switches {
                paused: sink.paused,
                retired: sink.retired,
                has_requests,
            })
        })
        .await
    }

    async fn tend(&self) -> Result<(), SourceError> {
        let fault = self.begin(SessionOperation::Tend).await?;
        self.check_alive()?;
        let now = self.database.clock().wall();
        let slots: Vec<usize> = {
            let mut state = self.database.state();
            let disk = &mut state.disk;
            let transactions = &disk.transactions;
            if disk.ring.turn(now, |tx| transactions.is_visible(tx)) {
                state.wrote();
            }
            let ring = &state.disk.ring;
            let others = (0..LEAVES).filter(|slot| *slot != ring.slot());
            others.filter(|slot| !ring.leaf(*slot).is_empty()).collect()
        };
        for slot in slots {
            self.empty(slot).await?;
        }
        self.end(fault).await
    }

    async fn report(&self, stopped: Option<&str>) -> Result<(), SourceError> {
        self.statement(SessionOperation::Report, |state, sink, _| {
            let stopped = stopped.map(str::to_owned);
            let found = state.disk.ledger.sinks.get_mut(&sink);
            let sink = found.ok_or_else(|| lost("the sink is gone"))?;
            if sink.stopped != stopped {
                sink.stopped = stopped;
                state.wrote();
            }
            Ok(())
        })
        .await
    }

    async fn renew_origin(&self) -> Result<u32, SourceError> {
        let origin = self.database.random_origin();
        self.statement(SessionOperation::RenewOrigin, |state, sink, _| {
            let found = state.disk.ledger.sinks.get_mut(&sink);
            found.ok_or_else(|| lost("the sink is gone"))?.origin = origin;
            state.wrote();
            Ok(origin)
        })
        .await
    }
}

impl State {
    /// The visible rows of a span in a store, in the order of `(tx, id)`.
    fn rows_of(&self, sink: i32, span: &Span, selection: &Selection) -> Vec<OutboxRow> {
        let is_between = |at: Cut| {
            span.after.is_none_or(|after| at > after) && span.until.is_none_or(|until| at <= until)
        };
        let mut rows: Vec<OutboxRow> = match selection.store {
            Store::Outbox => {
                let rows = self.disk.ring.rows();
                let visible = rows.filter(|row| self.disk.transactions.is_visible(row.at.tx));
                visible
                    .filter(|row| span.contains(row.at))
                    .cloned()
                    .collect()
            }
            store => self.disk.ledger.rows_of(sink, store),
        };
        rows.retain(|row| is_between(row.at));
        rows.sort_by_key(|row| row.at);
        rows
    }

    /// Whether a leaf holds a visible event that a registered sink still needs, or there is no sink.
    fn is_needed(&self, slot: usize, now: SystemTime) -> bool {
        let disk = &self.disk;
        let as_of = now
            .checked_sub(disk.ring.settings.retention)
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let sinks = disk.ledger.sinks.iter().filter(|(_, sink)| !sink.retired);
        let sinks: Vec<i32> = sinks.map(|(sink, _)| *sink).collect();
        let rows = disk.ring.leaf(slot).iter();
        let visible: Vec<_> = rows
            .filter(|row| disk.transactions.is_visible(row.at.tx))
            .map(|row| row.at)
            .collect();
        let is_unsealed = |sink: i32| {
            let placed = disk.ledger.placed(sink);
            let mut rows = visible.iter();
            rows.any(|at| placed.as_ref().is_none_or(|placed| !placed.is_done(*at)))
        };
        if self.weakness.truncates_by_position {
            return sinks.is_empty() || sinks.into_iter().any(is_unsealed);
        }
        let is_undone = |sink: i32| {
            let safe = disk.ledger.safe(sink, as_of);
            visible.iter().any(|at| {
                safe.as_ref().is_none_or(|(_, safe)| !safe.is_done(*at))
                    || disk
                        .ledger
                        .open(sink)
                        .any(|open| !open.span.from.sees(at.tx))
            })
        };
        sinks.is_empty() || sinks.into_iter().any(is_undone)
    }
}

pub(super) fn lost(reason: &str) -> SourceError {
    SourceError::Lost(reason.to_owned(), None)
}
