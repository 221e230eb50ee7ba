//! What can be done to a connection.

use std::time::Duration;

/// A direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server: requests.
    ToServer,
    /// From the server to the client: answers.
    ToClient,
}

/// How both ends learn that a connection was cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Close {
    /// Reset: what was on its way is lost.
    #[default]
    Reset,
    /// As an end that closes in good order.
    Fin,
}

/// What happens to one direction of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Cuts the connection where the next byte would be the one of this number, from 0.
    pub cut_at: Option<u64>,
    /// Each byte arrives so much later.
    pub delay: Duration,
    /// Bytes and the end are read and forgotten. A connection that lost some is cut when this is over:
    /// TCP never leaves bytes out.
    pub swallows: bool,
    /// Nothing is forwarded, the end of the connection neither.
    pub is_held: bool,
    /// Forwards no faster.
    pub bytes_per_second: Option<u32>,
    /// What is held back, delayed or slowed down is dropped when the end that sent it goes away.
    /// Otherwise it arrives all the same, as from a router's queue.
    pub dies_with_sender: bool,
}

impl Fault {
    /// Nothing.
    pub const NONE: Self = Self {
        cut_at: None,
        delay: Duration::ZERO,
        swallows: false,
        is_held: false,
        bytes_per_second: None,
        dies_with_sender: false,
    };
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// To what the client sends.
    pub to_server: Fault,
    /// To what the server answers.
    pub to_client: Fault,
    /// How it ends where a fault cuts it.
    pub close: Close,
}

impl Faults {
    /// One fault in one direction.
    pub fn one(direction: Direction, fault: Fault) -> Self {
        match direction {
            Direction::ToServer => Self {
                to_server: fault,
                ..Self::default()
            },
            Direction::ToClient => Self {
                to_client: fault,
                ..Self::default()
            },
        }
    }

    /// Cut after `bytes` bytes of one direction, counted from its beginning.
    pub fn cut_at(direction: Direction, bytes: u64, close: Close) -> Self {
        let fault = Fault {
            cut_at: Some(bytes),
            ..Fault::NONE
        };
        Self {
            close,
            ..Self::one(direction, fault)
        }
    }

    /// Requests arrive, answers are lost; the connection stays.
    pub fn answers_lost() -> Self {
        let fault = Fault {
            swallows: true,
            ..Fault::NONE
        };
        Self::one(Direction::ToClient, fault)
    }

    /// Both ends believe in a connection that forwards nothing.
    pub fn half_open() -> Self {
        let held = Fault {
            is_held: true,
            ..Fault::NONE
        };
        Self {
            to_server: held,
            to_client: held,
            ..Self::default()
        }
    }

    /// Everything of one direction arrives `delay` later.
    pub fn late(direction: Direction, delay: Duration) -> Self {
        let fault = Fault {
            delay,
            ..Fault::NONE
        };
        Self::one(direction, fault)
    }

    /// A narrow line, both ways.
    pub fn narrow(bytes_per_second: u32) -> Self {
        let fault = Fault {
            bytes_per_second: Some(bytes_per_second),
            ..Fault::NONE
        };
        Self {
            to_server: fault,
            to_client: fault,
            ..Self::default()
        }
    }

    pub(super) fn of(&self, direction: Direction) -> Fault {
        match direction {
            Direction::ToServer => self.to_server,
            Direction::ToClient => self.to_client,
        }
    }
}
