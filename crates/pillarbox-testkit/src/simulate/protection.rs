//! What keeps events from being lost or doubled, to be taken out one by one.

/// A protection of the delivery path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// A batch is in the ledger before its first byte is sent.
    SealBeforeSend,
    /// The destination drops a block whose token it knows.
    Token,
    /// A leaf is checked again under its lock.
    CheckUnderLock,
    /// Outside of the window, the destination is looked into before a resend.
    LookOutsideWindow,
    /// A number of the ledger is sealed once.
    LedgerFence,
    /// A cut window is continued with the same two snapshots.
    CutRule,
    /// A leaf is emptied only of what is delivered.
    SafePosition,
}

impl Protection {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::SealBeforeSend,
        Self::Token,
        Self::CheckUnderLock,
        Self::LookOutsideWindow,
        Self::LedgerFence,
        Self::CutRule,
        Self::SafePosition,
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SealBeforeSend => "seal before send",
            Self::Token => "token",
            Self::CheckUnderLock => "check under the lock",
            Self::LookOutsideWindow => "look outside the window",
            Self::LedgerFence => "ledger fence",
            Self::CutRule => "cut rule",
            Self::SafePosition => "safe position",
        }
    }
}
