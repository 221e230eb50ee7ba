//! What a test makes go wrong at a fake, call by call.

use std::time::Duration;

use pillarbox_relay::sink::{Reaction, Trouble};

/// An operation of a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// `prepare`.
    Prepare,
    /// `deliver`.
    Deliver,
    /// `resolve`.
    Resolve,
    /// `highest_number`.
    HighestNumber,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Prepare,
        Self::Deliver,
        Self::Resolve,
        Self::HighestNumber,
    ];
}

/// What goes wrong with one call. Operations other than `deliver` only read: for them *before* and
/// *after* mean the same, and what concerns rows does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Refused; nothing was written.
    Refuse(Reaction),
    /// The rows are called bad; nothing was written.
    Reject,
    /// The connection is lost before anything was written: *unknown*.
    FailBefore,
    /// The rows are written and the answer is lost: *unknown*.
    FailAfter,
    /// Half of the rows are written, and no token: *unknown*.
    FailHalfway,
    /// The token is remembered and the part is not committed: *unknown*.
    TokenOnly,
    /// The rows are written and no view gets them: *unknown*.
    FailInView,
    /// The insert arrives twice, and so does the answer.
    Twice,
    /// No answer, and nothing is written. Ends by the deadline as *unknown*, or by cancellation.
    Hang,
    /// No answer, but the rows are written at once.
    HangAfter,
    /// The answer is *unknown* now; the rows are written when this many further operations began.
    Late(u32),
    /// The answer is *unknown* now; the rows are written after this long, and no fence ends that.
    LateBy(Duration),
    /// It works, but takes this long; cancelled before, it wrote nothing.
    Slow(Duration),
    /// It works once [`FakeSink::release`](super::FakeSink::release) was called.
    Hold,
}

/// An operation of a source or a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionOperation {
    /// `take_over`.
    TakeOver,
    /// `standing`.
    Standing,
    /// `outbox_columns`.
    OutboxColumns,
    /// `probe`.
    Probe,
    /// `read`.
    Read,
    /// `seal`.
    Seal,
    /// `confirm`.
    Confirm,
    /// `beat`.
    Beat,
    /// `tend`.
    Tend,
    /// Within `tend`, between the check of a leaf and its lock.
    LockLeaf,
    /// `report`.
    Report,
    /// `renew_origin`.
    RenewOrigin,
}

impl SessionOperation {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::TakeOver,
        Self::Standing,
        Self::OutboxColumns,
        Self::Probe,
        Self::Read,
        Self::Seal,
        Self::Confirm,
        Self::Beat,
        Self::Tend,
        Self::LockLeaf,
        Self::Report,
        Self::RenewOrigin,
    ];
}

/// What goes wrong with one call of a session. Losing it frees its lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionFault {
    /// The session ends before the call did anything.
    LostBefore,
    /// The call does its work; the session ends before the answer.
    LostAfter,
    /// No answer, nothing done; after the deadline of a statement the session is lost.
    Hang,
    /// The work is done, but there is no answer.
    HangAfter,
    /// It works, but takes this long.
    Slow(Duration),
    /// The server crashes before the call and starts again; unflushed commits are lost.
    CrashBefore,
    /// The server crashes after the call and starts again; unflushed commits are lost.
    CrashAfter,
}

impl SessionFault {
    /// Every way to lose a session.
    pub const LOSSES: [Self; 6] = [
        Self::LostBefore,
        Self::LostAfter,
        Self::Hang,
        Self::HangAfter,
        Self::CrashBefore,
        Self::CrashAfter,
    ];

    pub(super) fn is_before(self) -> bool {
        matches!(self, Self::LostBefore | Self::Hang | Self::CrashBefore)
    }
}

pub(super) fn trouble(reason: &str, reaction: Reaction) -> Trouble {
    Trouble {
        code: None,
        reason: reason.to_owned(),
        reaction,
        source: None,
    }
}
