//! What a check found, and what mends it.

use serde::Serialize;

use crate::exit::Exit;
use crate::exit::Failure;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// Could not be looked at; the message says why.
    Skipped,
    /// Works, but will hurt, or hurts already.
    Warning,
    /// Something does not work, or is not safe.
    Problem,
}

impl Level {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// What mends it, by whom. Statements can be pasted as they stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "by", content = "what", rename_all = "lowercase")]
pub(super) enum Remedy {
    /// Statements for the outbox's PostgreSQL.
    Psql(String),
    /// A statement for the sink's server.
    ClickHouse(String),
    /// A command.
    Shell(String),
    /// Something that nobody can paste.
    Person(String),
}

impl Remedy {
    pub(super) fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::Psql(what) => ("psql", what),
            Self::ClickHouse(what) => ("clickhouse", what),
            Self::Shell(what) => ("shell", what),
            Self::Person(what) => ("do", what),
        }
    }

    pub(super) fn psql(what: impl Into<String>) -> Self {
        Self::Psql(what.into())
    }

    pub(super) fn shell(what: impl Into<String>) -> Self {
        Self::Shell(what.into())
    }

    pub(super) fn person(what: impl Into<String>) -> Self {
        Self::Person(what.into())
    }
}

/// One line of the doctor.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    pub(super) area: &'static str,
    /// What was looked at: a word that scripts can rely on.
    pub(super) check: &'static str,
    pub(super) message: String,
    pub(super) remedy: Option<Remedy>,
    /// Whether it is a server that does not answer.
    #[serde(skip)]
    pub(super) is_unreachable: bool,
}

/// The findings of one area.
#[derive(Debug)]
pub(super) struct Findings {
    area: &'static str,
    pub(super) list: Vec<Finding>,
}

impl Findings {
    pub(super) fn of(area: &'static str) -> Self {
        Self {
            area,
            list: Vec::new(),
        }
    }

    pub(super) fn ok(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(Level::Ok, check, message.into(), None);
    }

    pub(super) fn skipped(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(Level::Skipped, check, message.into(), None);
    }

    pub(super) fn warning(
        &mut self,
        check: &'static str,
        message: impl Into<String>,
        remedy: Remedy,
    ) {
        self.add(Level::Warning, check, message.into(), Some(remedy));
    }

    pub(super) fn problem(
        &mut self,
        check: &'static str,
        message: impl Into<String>,
        remedy: Remedy,
    ) {
        self.add(Level::Problem, check, message.into(), Some(remedy));
    }

    /// A command of ours that failed where the doctor stands in for it.
    pub(super) fn failed(
        &mut self,
        check: &'static str,
        failure: &Failure,
        remedy: Option<Remedy>,
    ) {
        self.add(Level::Problem, check, failure.text(), remedy);
        if let Some(finding) = self.list.last_mut() {
            finding.is_unreachable = failure.exit() == Exit::Unreachable;
        }
    }

    /// Says that a check found nothing, unless it did.
    pub(super) fn fine_unless_found(&mut self, check: &'static str, message: impl Into<String>) {
        if self.list.iter().all(|finding| finding.check != check) {
            self.ok(check, message);
        }
    }

    fn add(&mut self, level: Level, check: &'static str, message: String, remedy: Option<Remedy>) {
        self.list.push(Finding {
            level,
            area: self.area,
            check,
            message,
            remedy,
            is_unreachable: false,
        });
    }
}
