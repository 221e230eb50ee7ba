//! Where events come from, as the spine sees it: the outbox and the ledger of one sink.
//!
//! Protocol: `take_over` waits until this relay is the one active relay of the sink; the session it
//! returns holds the lock. `standing` reads the ledger; then the spine repeats `probe`, `read`, `seal`
//! and `confirm`. A session that returned [`SourceError::Lost`] is dropped, with every snapshot and
//! row it gave: the ledger alone says where sealing stands.

pub mod postgres;

use std::fmt;
use std::future::Future;
use std::time::Duration;

use crate::batch::{Batch, Row};
use crate::sink::{OutboxColumn, Pushed, RowError};
use crate::snapshot::{Position, Snapshot, Span};

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

/// A tenure as the one active relay of a sink. Methods may be called concurrently.
///
/// Dropping a future leaves the outcome to the ledger: the session must be dropped as well, unless
/// the method only reads.
pub trait Session: fmt::Debug + Send + Sync + 'static {
    /// Where the ledger stands, and what is sealed but not confirmed, in ascending order.
    fn standing(&self) -> impl Future<Output = Result<Standing, SourceError>> + Send;

    /// The columns of the outbox.
    fn outbox_columns(&self)
    -> impl Future<Output = Result<Vec<OutboxColumn>, SourceError>> + Send;

    /// Takes a snapshot, and says whether it shows events after `position`.
    fn probe(&self, position: &Position)
    -> impl Future<Output = Result<Probe, SourceError>> + Send;

    /// Reads the span in the order of `(tx, id)` and gives each row to `into` until it has no room
    /// or `rows_max` rows were read. Fails with [`SourceError::Changed`] when the outbox no longer has
    /// the columns that `outbox_columns` last told.
    fn read<R: Rows>(
        &self,
        span: &Span,
        columns: &[String],
        rows_max: u64,
        into: &mut R,
    ) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Commits the batch to the ledger, durably, and sets its `sealed_at`. Fails without a trace
    /// when the number is taken.
    fn seal(&self, batch: &mut Batch) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Records the outcome of a batch. The first record wins.
    fn confirm(&self, outcome: &Outcome) -> impl Future<Output = Result<(), SourceError>> + Send;

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
}

/// What a probe saw.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The snapshot of the probe; it must not outlive the session.
    pub snapshot: Snapshot,
    /// Time since the first event after the position was published; `None` when there is none.
    pub waiting: Option<Duration>,
    /// Bytes that the outbox takes on disk.
    pub outbox_bytes: u64,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The batch.
    pub number: i64,
    /// Rows that are in the sink.
    pub rows: u64,
    /// Inserts sent for it.
    pub attempts: u32,
    /// The server that took it.
    pub server: String,
}

/// What people set while the relay runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// Seal and deliver nothing for now.
    pub paused: bool,
    /// The sink was retired: stop.
    pub retired: bool,
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
}
