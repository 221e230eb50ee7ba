//! What a test of a source needs around it: publishers, administrators, and somebody who breaks it.

use std::future::Future;
use std::time::Duration;

use anyhow::Result;
use pillarbox_relay::source::Source;
use uuid::Uuid;

/// An outbox with one sink registered from its beginning, and what a test can do around it.
pub trait SourceWorld: Send + Sync {
    /// The implementation.
    type Source: Source;
    /// A transaction of a publisher.
    type Publisher: Publisher;

    /// A further relay of the sink, whose patience outlasts every part of the suite but the one about it.
    fn source(&self) -> Result<Self::Source>;

    /// The same that displaces a relay without a sign of life after this time.
    fn impatient(&self, takeover_after: Duration) -> Result<Self::Source>;

    /// Sets the clock of the database forward. `false` when this world cannot.
    fn set_clock_forward(&self, by: Duration) -> impl Future<Output = Result<bool>> + Send;

    /// Begins a transaction.
    fn begin(&self) -> impl Future<Output = Result<Self::Publisher>> + Send;

    /// Ends every session of every relay, as an administrator would.
    fn kill_sessions(&self) -> impl Future<Output = Result<()>> + Send;

    /// Sets or lifts a person's pause.
    fn set_paused(&self, paused: bool) -> impl Future<Output = Result<()>> + Send;

    /// Retires the sink.
    fn retire(&self) -> impl Future<Output = Result<()>> + Send;

    /// What `report` left.
    fn stopped_reason(&self) -> impl Future<Output = Result<Option<String>>> + Send;

    /// Makes every leaf due at once, and nothing retained after its delivery.
    fn hurry_ring(&self) -> impl Future<Output = Result<()>> + Send;

    /// Committed events in the outbox.
    fn events_held(&self) -> impl Future<Output = Result<usize>> + Send;

    /// Ends the session at the next seal or confirmation, before or after it is done. `false` when
    /// this world cannot.
    fn lose_session(&self, at: Loss) -> impl Future<Output = Result<bool>> + Send;
}

/// Where a session is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Before the next seal.
    BeforeSeal,
    /// After the next seal, before its answer.
    AfterSeal,
    /// Never an answer to the next seal, which was done.
    SealUnanswered,
    /// Before the next confirmation.
    BeforeConfirm,
    /// After the next confirmation, before its answer.
    AfterConfirm,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::BeforeSeal,
        Self::AfterSeal,
        Self::SealUnanswered,
        Self::BeforeConfirm,
        Self::AfterConfirm,
    ];
}

/// A transaction of a publisher.
pub trait Publisher: Send {
    /// Publishes events; gives them in order.
    fn publish(&mut self, count: usize) -> impl Future<Output = Result<Vec<Uuid>>> + Send;

    /// Commits.
    fn commit(self) -> impl Future<Output = Result<()>> + Send;

    /// Rolls back.
    fn rollback(self) -> impl Future<Output = Result<()>> + Send;
}
