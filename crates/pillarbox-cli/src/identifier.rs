//! Names as PostgreSQL identifiers.

/// A name as a quoted identifier: the only way a name enters a statement.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
