//! Entry point of the fuzz target for configurations.

use std::collections::HashMap;

use super::{Config, ConfigError};

/// Reads a configuration from the text of a file and from the environment.
///
/// # Errors
/// As [`Config::load`].
pub fn read_configuration(
    text: &str,
    environment: &HashMap<String, String>,
) -> Result<Config, ConfigError> {
    Config::merge(text, "pillarbox.toml", environment)
}
