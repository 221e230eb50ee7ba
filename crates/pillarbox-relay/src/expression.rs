//! A value that the outbox does not hold as it is: computed while events are read.

use serde::Deserialize;

/// How a column of a sink is computed from an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    /// SQL over the columns of one event, evaluated with the rights of the relay's user.
    pub sql: String,
    /// Whether it reads more than the event, so that it may have another value when it is read again.
    pub is_volatile: bool,
    /// What becomes of an event for which it is null.
    pub missing: Missing,
}

impl Expression {
    /// The expression as one value: null where it gives no row.
    pub fn scalar(&self) -> String {
        // A comment at its end must not reach further.
        format!("(select ({}\n))", self.sql)
    }
}

/// What becomes of an event for which an expression is null, as when the row that it refers to is not
/// there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// It is delivered with null.
    #[default]
    Null,
    /// It is set aside.
    DeadLetter,
    /// It is waited for, and so is every event after it.
    Wait,
}

impl Missing {
    /// The word in configuration and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::DeadLetter => "dead-letter",
            Self::Wait => "wait",
        }
    }
}
