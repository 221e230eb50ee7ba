//! The text of a configuration file, and the names in it.

use super::ConfigError;

/// Refuses what cannot name `what`.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), ConfigError> {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let first = name.starts_with(|c: char| c.is_ascii_lowercase());
    if first && name.len() <= 32 && name.chars().all(word) {
        return Ok(());
    }
    Err(ConfigError::Invalid(format!(
        "{name:?} cannot name {what}; use a lower-case word of at most 32 letters, digits, - and _"
    )))
}

/// Refuses what is not TOML, without showing the line.
pub(super) fn check_syntax(text: &str, file: &str) -> Result<(), ConfigError> {
    let Err(error) = text.parse::<toml::Table>() else {
        return Ok(());
    };
    let start = error.span().map_or(0, |span| span.start).min(text.len());
    let before = text.as_bytes().get(..start).unwrap_or_default();
    Err(ConfigError::Syntax {
        path: file.to_owned(),
        line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
        reason: error.message().to_owned(),
    })
}
