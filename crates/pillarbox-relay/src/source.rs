//! Where events come from, as the spine sees it: the outbox and the ledger of one sink.
//!
//! Protocol: `take_over` waits until this relay is the one active relay of the sink; the session it
//! returns holds the lock. `standing` reads the ledger; then the spine repeats `probe`, `read`, `seal`
//! and `confirm`. A session that returned [`SourceError::Lost`] is dropped, with every snapshot and
//! row it gave: the ledger alone says where sealing stands.

pub mod postgres;

use std::fmt;
use std::future::Future;
use std::time::{Duration, SystemTime};

use crate::batch::{Batch, Kind, Row, Selection};
use crate::sink::{OutboxColumn, Pushed, RowError};
use crate::snapshot::{Cut, Position, Snapshot, Span};

/// Opens sessions on one sink's outbox and ledger.
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// A tenure as the sink's one active relay.
    type Session: Session;

    /// Becomes the sink's one active relay. Where another one is, waits as its stand-by or returns
    /// `None`. Dropping the future is safe.
    ///
    /// # Errors
    /// When the server is away, or refuses, or must be refused.
    fn take_over(
        &self,
        standby: Standby,
    ) -> impl Future<Output = Result<Option<Self::Session>, SourceError>> + Send;
}

/// What to do while another relay is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standby {
    /// Wait until it is gone.
    Wait,
    /// Leave it to the other one.
    Leave,
}

/// How long a server may need to notice that the holder of a lock has ended: one who does not stand by asks
/// again for so long.
pub(crate) const JUST_ENDED: Duration = Duration::from_secs(2);

/// A tenure as the one active relay of a sink. Methods may be called concurrently.
///
/// Dropping a future leaves the outcome to the ledger: the session must be dropped as well, unless
/// the method only reads.
pub trait Session: fmt::Debug + Send + Sync + 'static {
    /// Where the ledger stands, and what is sealed but not confirmed, in ascending order.
    fn standing(&self) -> impl Future<Output = Result<Standing, SourceError>> + Send;

    /// The columns of the outbox, and what the configuration computes from them.
    fn outbox_columns(&self)
    -> impl Future<Output = Result<Vec<OutboxColumn>, SourceError>> + Send;

    /// Takes a snapshot, and says whether it shows events after `position`.
    fn probe(&self, position: &Position)
    -> impl Future<Output = Result<Probe, SourceError>> + Send;

    /// Reads the events of the span in the order of `(tx, id)`, those from the selection's store and
    /// between its times, and gives each row to `into` until it has no room
    /// or `rows_max` rows were read. Fails with [`SourceError::Changed`] when the outbox no longer has
    /// the columns that `outbox_columns` last told.
    fn read_selected<R: Rows>(
        &self,
        span: &Span,
        selection: &Selection,
        columns: &[String],
        rows_max: u64,
        into: &mut R,
    ) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Reads every event of the span; see `read_selected`.
    fn read<R: Rows>(
        &self,
        span: &Span,
        columns: &[String],
        rows_max: u64,
        into: &mut R,
    ) -> impl Future<Output = Result<(), SourceError>> + Send {
        async move {
            let all = Selection::default();
            self.read_selected(span, &all, columns, rows_max, into)
                .await
        }
    }

    /// Commits everything in `record` to the ledger in one transaction, or nothing of it. With batches
    /// in it the commit is durable, and sets their `sealed_at`; their numbers must follow the last one
    /// of the ledger. The first outcome of a batch wins.
    fn record(
        &self,
        record: &mut Record<'_>,
    ) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Seals one batch; see `record`.
    fn seal(&self, batch: &mut Batch) -> impl Future<Output = Result<(), SourceError>> + Send {
        async move {
            let batches = std::slice::from_mut(batch);
            self.record(&mut Record {
                batches,
                ..Record::default()
            })
            .await
        }
    }

    /// Records the outcome of one batch; see `record`.
    fn confirm(&self, outcome: &Outcome) -> impl Future<Output = Result<(), SourceError>> + Send {
        async move {
            let outcomes = std::slice::from_ref(outcome);
            self.record(&mut Record {
                outcomes,
                ..Record::default()
            })
            .await
        }
    }

    /// How many events of this sink were set aside within the last hour.
    fn lately_dead(&self) -> impl Future<Output = Result<u64, SourceError>> + Send;

    /// What people want to be delivered again, the oldest wish first.
    fn request(&self) -> impl Future<Output = Result<Option<Request>, SourceError>> + Send;

    /// Says to people that a replay cannot be, and why.
    fn refuse(
        &self,
        replay: i64,
        reason: &str,
    ) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Gives back what keeps the events of a request, which is asked for again.
    fn forget_request(&self) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Shows that this relay is alive, proves that it still holds the lock, and reads the switches
    /// that people set.
    fn beat(&self) -> impl Future<Output = Result<Switches, SourceError>> + Send;

    /// Turns the ring and empties its leaves where that is due.
    fn tend(&self) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Shows to people why the sink stands still, or that it no longer does.
    fn report(&self, stopped: Option<&str>)
    -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Makes the ledger's batch numbers start a new life under a new origin.
    fn renew_origin(&self) -> impl Future<Output = Result<u32, SourceError>> + Send;
}

/// Takes the rows that a session reads.
pub trait Rows: Send {
    /// Takes a row or refuses it.
    ///
    /// # Errors
    /// When the sink cannot represent the row.
    fn push(&mut self, row: &Row<'_>) -> Result<Pushed, RowError>;

    /// Takes notice of a row of which a value cannot be read.
    ///
    /// # Errors
    /// When it cannot be set aside.
    fn refuse(&mut self, error: RowError) -> Result<Pushed, RowError> {
        Err(error)
    }

    /// Whether the row is not one of those that are read for, whatever its computed values are.
    fn leaves_out(&mut self, row: &Row<'_>) -> bool {
        let _ = row;
        false
    }

    /// What to do about a row of which a value is to be waited for.
    fn close(&mut self) -> Closed {
        Closed::Wait
    }
}

/// What is done about a row of which a value is to be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Nothing more is taken: what was taken before it is enough.
    Enough,
    /// It is read again later.
    Wait,
    /// It is not waited for: it is refused.
    Refuse,
}

/// What the ledger says about a sink.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Random bits of the registration.
    pub origin: u32,
    /// Number of the last batch of any kind.
    pub last_number: i64,
    /// Up to where sealing has come.
    pub position: Position,
    /// Sealed batches without an outcome, ascending; each is to be delivered as *unknown*.
    pub unfinished: Vec<Unfinished>,
    /// Whether the server's history is another one than that of the last batch.
    pub timeline_changed: bool,
    /// When the last batch was sealed, by PostgreSQL's clock.
    pub last_sealed_at: SystemTime,
}

/// A sealed batch without an outcome.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// The batch.
    pub batch: Batch,
    /// Time since it was sealed, by PostgreSQL's clock.
    pub age: Duration,
    /// Blocks of the batches sealed after it.
    pub blocks_since: u64,
    /// Rows of the first batch of its family.
    pub family_rows: u64,
}

/// What a probe saw.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The snapshot of the probe; it must not outlive the session.
    pub snapshot: Snapshot,
    /// Time since the first event after the position was published; `None` when there is none.
    pub waiting: Option<Duration>,
    /// The trace context of the publisher of one of the first events after the position.
    pub trace_parent: Option<String>,
    /// Bytes that the outbox takes on disk.
    pub outbox_bytes: u64,
}

/// What one transaction writes to the ledger.
#[derive(Debug, Default)]
pub struct Record<'a> {
    /// Batches to seal.
    pub batches: &'a mut [Batch],
    /// What became of batches that were sealed before, or are sealed with it.
    pub outcomes: &'a [Outcome],
    /// Events to set aside.
    pub dead: &'a [DeadLetter],
    /// The dead letters that the first of the batches retries.
    pub retried: &'a [Cut],
    /// The replay that the first of the batches answers.
    pub replay: Option<i64>,
    /// The batch that retried dead letters and is settled: what is not set aside again has arrived.
    pub settled_retry: Option<i64>,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The batch.
    pub number: i64,
    /// How it ended.
    pub ending: Ending,
    /// Rows that are in the sink.
    pub rows: u64,
    /// Rows that were set aside.
    pub dead: u64,
    /// Ordinals of the blocks that are in the sink, where these are not all.
    pub blocks: Option<Vec<usize>>,
    /// Inserts sent for it.
    pub attempts: u32,
    /// The server that took it.
    pub server: String,
}

impl Outcome {
    /// Of a batch that is in the sink as it was sealed.
    pub fn delivered(number: i64, rows: u64) -> Self {
        Self {
            number,
            ending: Ending::Delivered,
            rows,
            dead: 0,
            blocks: None,
            attempts: 0,
            server: String::new(),
        }
    }
}

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its rows are in the sink, but for those that were set aside.
    Delivered,
    /// Some of its blocks go on as children.
    Split,
    /// All of its rows were set aside.
    Dead,
}

impl Ending {
    /// The word in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Split => "split",
            Self::Dead => "dead",
        }
    }
}

/// An event that is set aside because the sink cannot take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The batch that held it.
    pub number: i64,
    /// The event.
    pub at: Cut,
    /// The destination's error code, where it gave one.
    pub code: Option<u32>,
    /// The column, where it is known.
    pub column: Option<String>,
    /// Why, without a payload.
    pub reason: String,
}

/// What people want to be delivered again.
#[derive(Clone, Debug)]
pub enum Request {
    /// Dead letters.
    Retry,
    /// A batch, or a part of it.
    Replay(Box<Replay>),
    /// A batch, but the ring is held by somebody else: to be asked again.
    Later,
}

/// A batch that is to be delivered again.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Number of the wish.
    pub replay: i64,
    /// [`Kind::Replay`] or [`Kind::Repair`].
    pub kind: Kind,
    /// The batch.
    pub batch: Batch,
    /// Which part of it; events that were set aside since are left out.
    pub selection: Selection,
}

/// What people set while the relay runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// Seal and deliver nothing for now.
    pub paused: bool,
    /// The sink was retired: stop.
    pub retired: bool,
    /// Something is to be delivered again.
    pub has_requests: bool,
}

/// Why a source could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The session is gone: drop it and take over again.
    #[error("the session with postgresql is lost: {0}")]
    Lost(
        String,
        #[source] Option<Box<dyn std::error::Error + Send + Sync>>,
    ),
    /// The server or its schema must be mended first; says how.
    #[error("{0}")]
    Refused(String),
    /// Another relay sealed under this number: the session is void.
    #[error("batch {0} was sealed by another relay")]
    Fenced(i64),
    /// The outbox has other columns than the plan was made for: plan again.
    #[error("the columns of the outbox changed")]
    Changed,
    /// What is stored contradicts the ledger.
    #[error("{0}")]
    Broken(String),
    /// The sink cannot represent a row.
    #[error(transparent)]
    Row(#[from] RowError),
    /// A value of the next row is not there yet: read again later.
    #[error("{0}")]
    Awaited(RowError),
}
