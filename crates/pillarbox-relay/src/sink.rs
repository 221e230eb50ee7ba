//! A sink: a destination of events, as the spine sees it.
//!
//! Protocol: `prepare` checks the destination and returns a plan; the plan's encoder turns the rows of
//! a batch into blocks; each block is given to `deliver` until it is delivered. What `deliver` answers
//! is one of four results and never two of them: *unknown* is answered only by `resolve`.

pub mod clickhouse;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::batch::{Batch, EncodedBlock, Row};
use crate::body::Body;
use crate::expression::Expression;
use crate::snapshot::Cut;

/// A destination of events. Dropping a future of it is safe: an insert cut short is *unknown*.
pub trait Sink: Send + Sync + 'static {
    /// What `prepare` found out.
    type Plan: Plan;

    /// Connects, checks every precondition, and plans how outbox columns become sink columns.
    ///
    /// # Errors
    /// A [`Trouble`] whose reaction tells an unreachable destination from one that needs mending.
    fn prepare(
        &self,
        outbox: &[OutboxColumn],
    ) -> impl Future<Output = Result<Self::Plan, Trouble>> + Send;

    /// Whether the destination still has the columns for which the plan was made. One that cannot be
    /// asked has: `deliver` will tell what is wrong with it. Asked before each batch, so it must be
    /// cheap.
    fn is_current(&self, plan: &Self::Plan) -> impl Future<Output = bool> + Send {
        let _ = plan;
        std::future::ready(true)
    }

    /// Sends one block as one insert and says what became of it.
    fn deliver(
        &self,
        plan: &Self::Plan,
        insert: &Insert<'_>,
        attempt: Attempt,
    ) -> impl Future<Output = Delivery> + Send;

    /// Decides about a block whose insert may or may not have been applied.
    ///
    /// # Errors
    /// When the destination could not be asked; the spine asks again later.
    fn resolve(
        &self,
        plan: &Self::Plan,
        insert: &Insert<'_>,
        doubt: Doubt,
    ) -> impl Future<Output = Result<Resolution, Trouble>> + Send;

    /// Looks for the rows of a block that was refused: it may be split only when none of them is there.
    /// With a `doubt`, an attempt before may still be at work, and has to be ended first.
    ///
    /// # Errors
    /// When the destination could not be asked; the spine asks again later.
    fn look(
        &self,
        plan: &Self::Plan,
        insert: &Insert<'_>,
        doubt: Option<Doubt>,
    ) -> impl Future<Output = Result<Look, Trouble>> + Send;

    /// A batch number of `origin` above `known` that the destination holds, where it can be asked. What
    /// was sealed by `since` is of no interest. Asked at each take-over, so it must be cheap.
    ///
    /// # Errors
    /// When the destination does not answer; the spine asks again later.
    fn surplus(
        &self,
        plan: &Self::Plan,
        origin: u32,
        known: i64,
        since: SystemTime,
    ) -> impl Future<Output = Result<Option<i64>, Trouble>> + Send {
        let _ = (plan, origin, known, since);
        std::future::ready(Ok(None))
    }

    /// The highest batch number of `origin` that the destination holds, or `None` when it holds none.
    ///
    /// # Errors
    /// When the destination cannot tell, because it does not keep the column `batch` or is not there.
    fn highest_number(
        &self,
        plan: &Self::Plan,
        origin: u32,
    ) -> impl Future<Output = Result<Option<i64>, Trouble>> + Send;
}

/// How outbox columns become sink columns, and what the destination can promise. Two plans are equal
/// when they encode every row alike.
pub trait Plan: Clone + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// Encodes one batch.
    type Encoder: Encoder;

    /// The outbox columns to read, in the order in which the encoder expects them.
    fn columns(&self) -> &[String];

    /// The same for a batch that was sealed on these terms: what its digest covers is read, too, where
    /// the destination has no such column any more.
    fn columns_for(&self, terms: Option<&Terms>) -> Vec<String> {
        let _ = terms;
        self.columns().to_vec()
    }

    /// On what a batch is sealed now.
    fn terms(&self) -> &Terms;

    /// An encoder of one batch, of the rows of one partition where `only` names it. The digest of a
    /// batch that was sealed before covers the columns of the `terms` of that time.
    fn encoder(&self, only: Option<&str>, terms: Option<&Terms>) -> Self::Encoder;

    /// How the destination keeps a batch from being written twice.
    fn guarantee(&self) -> Guarantee;
}

/// Turns rows into blocks, one for each partition of the destination. Pure.
pub trait Encoder: fmt::Debug + Send {
    /// Encodes a row, or skips it, or says that it would open a block too many.
    ///
    /// # Errors
    /// When the destination cannot represent the row; the encoder is unchanged then.
    fn push(&mut self, row: &Row<'_>) -> Result<Pushed, RowError>;

    /// Whether the row belongs to a partition that is not encoded, told by what is not computed.
    fn skips(&mut self, row: &Row<'_>) -> bool {
        let _ = row;
        false
    }

    /// The blocks of the batch whose column `batch` is `sink_value`, ordered by first appearance of
    /// their partition.
    fn finish(self, sink_value: u64) -> Vec<EncodedBlock>;
}

/// What became of a row given to a builder or an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is in the batch, or set aside from it.
    Taken,
    /// It is not one of the batch's rows; the next one may be.
    Skipped,
    /// The batch is full; the row is not in it.
    NoRoom,
}

/// A row that the destination cannot represent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column} of event (tx {tx}, id {id}) cannot be written: {reason}")]
pub struct RowError {
    /// Transaction of the event.
    pub tx: u64,
    /// Identity of the event.
    pub id: i64,
    /// The column.
    pub column: String,
    /// What is wrong with its value, without the value.
    pub reason: String,
}

impl RowError {
    /// Where the event stands.
    pub fn at(&self) -> Cut {
        Cut {
            tx: self.tx,
            id: self.id,
        }
    }
}

/// A column of the outbox, or an expression over its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxColumn {
    /// Its name.
    pub name: String,
    /// Object identifier of its type in PostgreSQL.
    pub type_oid: u32,
    /// Name of its type, for messages.
    pub type_name: String,
    /// Whether it is declared not null.
    pub not_null: bool,
    /// How it is computed, where the outbox does not hold it.
    pub expression: Option<Expression>,
}

/// One block of a sealed batch.
#[derive(Clone, Copy, Debug)]
pub struct Insert<'a> {
    /// The batch.
    pub batch: &'a Batch,
    /// Index of the block in its map.
    pub ordinal: usize,
    /// The encoded bytes.
    pub body: &'a Body,
}

impl Insert<'_> {
    /// The block's deduplication token.
    pub fn token(&self) -> String {
        self.batch.token(self.ordinal)
    }
}

/// The first byte of an insert leaves so soon after its relay was last seen to hold the lock, or none
/// does. Shorter than the shortest time after which a stand-by takes over.
const BEGINS_WITHIN: Duration = Duration::from_secs(10);

/// One attempt at an insert.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Counts from 1.
    pub number: u32,
    /// After this nothing may begin to be sent: by then another relay may look at what is there.
    pub begins_by: Instant,
}

impl Attempt {
    /// The `number`-th attempt, of a relay that knew at `checked_at` that it may send.
    pub fn new(number: u32, checked_at: Instant) -> Self {
        Self {
            number,
            begins_by: checked_at + BEGINS_WITHIN,
        }
    }
}

/// On what a batch was sealed. A destination may be another one when the batch is looked for, or sent
/// again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// The columns that its digest covers, in their order.
    pub proven: Vec<String>,
    /// The types that the destination had for them; none for a batch of an earlier build.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<String>,
    /// For how long the destination remembered tokens.
    pub token_window: TokenWindow,
}

/// For how long a destination remembers the token of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenWindow {
    /// Blocks that it remembers; 0 when it remembers none.
    pub blocks: u64,
    /// Seconds that it remembers them; `None` when only the number counts.
    pub seconds: Option<u64>,
}

impl TokenWindow {
    /// What both remember.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self {
            blocks: self.blocks.min(other.blocks),
            seconds: self.seconds.into_iter().chain(other.seconds).min(),
        }
    }
}

/// How a destination keeps a batch from being written twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// It remembers tokens.
    Token,
    /// An unknown delivery is looked up by the column `batch` before it is sent again.
    Lookup,
    /// It cannot; the configuration accepts that events may arrive twice.
    AtLeastOnce,
}

impl Guarantee {
    /// The word in configuration, status and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Lookup => "lookup",
            Self::AtLeastOnce => "at-least-once",
        }
    }
}

/// What became of an insert.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// The rows are in the destination, exactly once; names the server that said so.
    Delivered(String),
    /// Nothing was written.
    Retry(Trouble),
    /// The rows are bad and nothing was written.
    Rejected(Trouble),
    /// Nobody knows whether the rows were written.
    Unknown(Trouble),
}

/// What went wrong at a destination, and what to do about it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Trouble {
    /// The server's error code, where it gave one.
    pub code: Option<u32>,
    /// What happened, in full, with the remedy where one is known. Never holds a payload.
    pub reason: String,
    /// What the spine does next.
    pub reaction: Reaction,
    /// What caused it.
    #[source]
    pub source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// What the spine does about a [`Trouble`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Try again after a backoff.
    Backoff,
    /// The sink itself waited as long as it may: try again after a short backoff.
    Soon,
    /// The destination is overloaded: try again after a longer backoff.
    Slower,
    /// The block is too large for the destination: send smaller ones.
    Halve,
    /// The plan may be out of date: prepare again once, then stop.
    Replan,
    /// Somebody has to mend something: stop the sink with the reason.
    Stop,
}

/// What is known about an attempt whose outcome is unknown.
#[derive(Clone, Copy, Debug)]
pub struct Doubt {
    /// Time since the batch was sealed, by PostgreSQL's clock.
    pub age: Duration,
    /// Blocks that this sink was sent after this batch was sealed.
    pub blocks_since: u64,
    /// For how long nobody can have sent the block any more.
    pub quiet: Duration,
}

impl Doubt {
    /// Of a batch that was sealed just now.
    pub const NONE: Self = Self {
        age: Duration::ZERO,
        blocks_since: 0,
        quiet: Duration::ZERO,
    };
}

/// What a destination holds of a block.
#[derive(Clone, Debug)]
pub enum Look {
    /// None of its rows.
    Nothing,
    /// All of them; names the server that said so.
    All(String),
    /// Others than were sealed.
    Other(Trouble),
    /// It cannot tell: it does not keep the column `batch`.
    Blind,
    /// It cannot tell either, but it is as it was before the batch was sealed: rows that it refuses now
    /// it has always refused.
    Unchanged,
}

/// What to do about a block whose insert may have been applied.
#[derive(Clone, Debug)]
pub enum Resolution {
    /// Send it again with the same token: it is certain to be written once.
    Resend,
    /// It is there, whole; names the server that said so.
    Delivered(String),
    /// Nobody can tell: stop the sink with the reason.
    Undecidable(Trouble),
}
