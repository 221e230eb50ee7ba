//! Columns that are computed, and values that do not leave, as `pillarbox.toml` says them.

use serde::Deserialize;

use crate::expression::{Expression, Missing};
use crate::redaction::Path;

/// `tenant_id = "event_context ->> 'tenant_id'"`, or a table that says more.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Given")]
pub struct Column(Expression);

/// Both ways to write it.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "write an expression as text, or { expression = \"…\", volatile = true, missing = \"null\" }, where missing is \
                 null, dead-letter or wait"
)]
enum Given {
    Short(String),
    Long(Long),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Long {
    expression: String,
    #[serde(default)]
    volatile: bool,
    missing: Option<Missing>,
}

impl TryFrom<Given> for Column {
    type Error = &'static str;

    fn try_from(given: Given) -> Result<Self, Self::Error> {
        let long = match given {
            Given::Long(long) => long,
            Given::Short(expression) => Long {
                expression,
                volatile: false,
                missing: None,
            },
        };
        if long.expression.trim().is_empty() {
            return Err("an expression is empty; write SQL over the columns of an event");
        }
        if long.volatile && long.missing.is_none() {
            return Err(
                "a volatile expression needs missing = \"null\", \"dead-letter\" or \"wait\": what becomes of \
                 an event for which it is null, because the row is not there",
            );
        }
        Ok(Self(Expression {
            sql: long.expression,
            is_volatile: long.volatile,
            missing: long.missing.unwrap_or_default(),
        }))
    }
}

impl From<Column> for Expression {
    fn from(column: Column) -> Self {
        column.0
    }
}

/// `"user.email"`, or `["user", "e.mail"]` where a key has a dot in it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "GivenPath")]
pub struct RedactedPath(Path);

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "write a path as \"user.email\" or [\"user\", \"email\"]"
)]
enum GivenPath {
    Dotted(String),
    Keys(Path),
}

impl TryFrom<GivenPath> for RedactedPath {
    type Error = &'static str;

    fn try_from(given: GivenPath) -> Result<Self, Self::Error> {
        let keys: Path = match given {
            GivenPath::Dotted(path) => path.split('.').map(str::to_owned).collect(),
            GivenPath::Keys(keys) => keys,
        };
        if keys.is_empty() || keys.iter().any(String::is_empty) {
            return Err(
                "a path of redact has an empty key; write \"user.email\" or [\"user\", \"email\"]",
            );
        }
        Ok(Self(keys))
    }
}

impl From<RedactedPath> for Path {
    fn from(path: RedactedPath) -> Self {
        path.0
    }
}
