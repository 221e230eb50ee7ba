//! How a command ends: exit codes, and errors as one line on standard error.

use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitCode;

use pillarbox_relay::config::ConfigError;
use pillarbox_relay::postgres::ConnectError;
use pillarbox_relay::schema::SchemaError;
use pillarbox_relay::sink::{Reaction, Trouble};
use pillarbox_relay::source::SourceError;

/// What a command tells the shell. `--help` and `docs/cli.md` list the codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed, for a reason that is none of the others.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// A precondition does not hold: something has to be mended or decided first.
    Refused = 3,
    /// A server does not answer; trying again later may help.
    Unreachable = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What ClickHouse answers to a user or password that is wrong: UNKNOWN_USER, WRONG_PASSWORD,
/// REQUIRED_PASSWORD, AUTHENTICATION_FAILED.
const WRONG_USER: [u32; 4] = [192, 193, 194, 516];

/// How a command ended.
pub(crate) type Outcome = Result<Exit, Failure>;

/// Why a command failed, and how it tells the shell.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    error: anyhow::Error,
}

impl Failure {
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        let error = error.into();
        Self { exit, error }
    }

    /// How it tells the shell.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// The error with everything that caused it, on one line.
    pub(crate) fn text(&self) -> String {
        chain(self.error.as_ref())
    }

    /// The same about an object that the error does not name.
    pub(crate) fn of(self, object: String) -> Self {
        Self::new(self.exit, self.error.context(object))
    }

    /// Failed for a reason that is none of the others.
    pub(crate) fn failed(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::Failed, error)
    }

    /// Wrong usage or configuration.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, anyhow::anyhow!("{message}"))
    }

    /// A precondition does not hold.
    pub(crate) fn refused(message: impl fmt::Display) -> Self {
        Self::new(Exit::Refused, anyhow::anyhow!("{message}"))
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let exit = match &error {
            ConnectError::Url(_) | ConnectError::Refused { .. } => Exit::Usage,
            ConnectError::Unreachable { .. } => Exit::Unreachable,
            ConnectError::Unsuitable(_) => Exit::Refused,
        };
        Self::new(exit, error)
    }
}

impl From<SchemaError> for Failure {
    fn from(error: SchemaError) -> Self {
        match error {
            SchemaError::Server(error) => error.into(),
            SchemaError::Statement(error) if error.is_closed() => {
                Self::new(Exit::Unreachable, SchemaError::Statement(error))
            }
            SchemaError::Statement(_) => Self::new(Exit::Failed, error),
            SchemaError::Missing
            | SchemaError::Newer { .. }
            | SchemaError::Older { .. }
            | SchemaError::Rights { .. }
            | SchemaError::InUse { .. }
            | SchemaError::Invalid(_) => Self::new(Exit::Refused, error),
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        let exit = match error {
            SourceError::Lost(..) => Exit::Unreachable,
            SourceError::Refused(_) | SourceError::Broken(_) => Exit::Refused,
            _ => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        SchemaError::from(error).into()
    }
}

impl From<&Trouble> for Exit {
    fn from(trouble: &Trouble) -> Self {
        match trouble.reaction {
            _ if trouble.code.is_some_and(|code| WRONG_USER.contains(&code)) => Self::Usage,
            Reaction::Backoff | Reaction::Soon | Reaction::Slower | Reaction::Halve => {
                Self::Unreachable
            }
            Reaction::Replan | Reaction::Stop => Self::Refused,
        }
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::new(Exit::from(&trouble), trouble)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(Exit::Failed, error)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::new(Exit::Failed, error)
    }
}

/// Writes the failure to standard error as one line.
pub(crate) fn report(failure: &Failure) -> Exit {
    let pipe = failure.error.downcast_ref::<io::Error>();
    if pipe.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        // The reader, such as `head`, has seen enough.
        return Exit::Done;
    }
    eprintln!("error: {}", failure.text());
    failure.exit
}

/// An error with everything that caused it; a cause that a message repeats is left out.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
