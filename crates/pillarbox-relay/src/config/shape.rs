//! Which keys there are, and which variables of the environment set them.

use std::collections::HashMap;

use config::{Value, ValueKind};

use super::ConfigError;

/// The sections of fixed name, and their keys.
pub(super) const SECTIONS: [(&str, &[&str]); 5] = [
    ("postgres", &["url"]),
    (
        "relay",
        &[
            "max_rows",
            "max_bytes",
            "max_age",
            "in_flight",
            "takeover_after",
            "poison_max_rows",
            "poison_max_share",
            "probe_min",
            "probe_max",
        ],
    ),
    ("console", &["listen"]),
    ("log", &["format", "level"]),
    ("sentry", &["environment", "traces_sample_rate"]),
];

/// The sections that hold a table for each name, and the keys of those.
pub(super) const NAMED: [(&str, &[&str]); 2] = [("sinks", SINK_KEYS), ("intake", INTAKE_KEYS)];

const INTAKE_KEYS: &[&str] = &[
    "kind",
    "url",
    "key",
    "max_rows",
    "max_bytes",
    "max_age",
    "remember",
];

const SINK_KEYS: &[&str] = &[
    "kind",
    "url",
    "user",
    "password",
    "database",
    "table",
    "compression",
    "guarantee",
    "insert_timeout",
    "columns",
    "redact",
];

const PREFIX: &str = "PILLARBOX_";

/// Between the parts of a key in a variable's name: keys hold single underscores.
const SEPARATOR: &str = "__";

/// Variables that have a short name.
const SHORT: [(&str, &str); 2] = [
    ("PILLARBOX_LOG_FORMAT", "log.format"),
    ("PILLARBOX_LOG_LEVEL", "log.level"),
];

/// The keys that variables set, with their values, sorted. An empty variable counts as unset.
///
/// A variable without `__` is not configuration (Kubernetes sets `PILLARBOX_PORT` for a service of
/// that name), unless it spells a key with one underscore for two: that is a slip, and an error.
pub(super) fn variables(
    environment: &HashMap<String, String>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut found = Vec::new();
    for (name, value) in environment {
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        if value.is_empty() {
            continue;
        }
        if let Some((_, key)) = SHORT.iter().find(|(short, _)| short == name) {
            found.push(((*key).to_owned(), value.clone()));
        } else if rest.contains(SEPARATOR) {
            let key = rest.to_lowercase().replace(SEPARATOR, ".");
            check_key(&key, &format!("the variable {name}"))?;
            found.push((key, value.clone()));
        } else if let Some(meant) = slip(rest) {
            return Err(ConfigError::Invalid(format!(
                "the variable {name} is not read; write {meant}, with two underscores"
            )));
        }
    }
    found.sort();
    Ok(found)
}

/// The variable that was meant by one that spells a key with a single underscore.
fn slip(rest: &str) -> Option<String> {
    let lower = rest.to_lowercase();
    SECTIONS.iter().find_map(|(section, keys)| {
        let key = lower.strip_prefix(section)?.strip_prefix('_')?;
        let known = keys.contains(&key);
        known.then(|| format!("{PREFIX}{}__{}", section, key).to_uppercase())
    })
}

/// Refuses every key of the merged tree that is unknown.
pub(super) fn check_keys(tree: &Value, file: &str) -> Result<(), ConfigError> {
    let place = if file.is_empty() {
        "the environment"
    } else {
        file
    };
    for (section, value) in table(tree) {
        for (key, value) in table(value) {
            if named(section).is_none() || table(value).next().is_none() {
                check_key(&format!("{section}.{key}"), place)?;
                continue;
            }
            for (inner, _) in table(value) {
                check_key(&format!("{section}.{key}.{inner}"), place)?;
            }
        }
        if table(value).next().is_none() {
            check_key(section, place)?;
        }
    }
    Ok(())
}

fn named(section: &str) -> Option<&'static [&'static str]> {
    let found = NAMED.iter().find(|(name, _)| *name == section);
    found.map(|(_, keys)| *keys)
}

fn table(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let ValueKind::Table(table) = &value.kind else {
        return None.into_iter().flatten();
    };
    Some(table.iter()).into_iter().flatten()
}

/// Refuses a key that is unknown, naming the one that was probably meant.
fn check_key(key: &str, place: &str) -> Result<(), ConfigError> {
    let parts: Vec<&str> = key.split('.').collect();
    let section = |name: &str| SECTIONS.iter().find(|(section, _)| *section == name);
    let known: Vec<&str> = match parts.as_slice() {
        [name] if section(name).is_some() || named(name).is_some() => return Ok(()),
        [section, _name] if named(section).is_some() => return Ok(()),
        [section, _name, _key] if named(section).is_some() => {
            named(section).unwrap_or_default().to_vec()
        }
        [name, _key] if section(name).is_some() => {
            section(name).map_or_else(Vec::new, |(_, keys)| keys.to_vec())
        }
        _ => vec!["postgres", "relay", "sinks", "intake", "console", "log"],
    };
    let last = match known.contains(&"relay") {
        true => parts.first(),
        false => parts.last(),
    };
    let last = last.copied().unwrap_or_default();
    if known.contains(&last) && parts.len() <= 3 {
        return Ok(());
    }
    let near = known
        .iter()
        .min_by_key(|candidate| distance(candidate, last))
        .filter(|candidate| distance(candidate, last) <= 3);
    let hint = match near {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known here: {}", known.join(", ")),
    };
    Err(ConfigError::Invalid(format!(
        "unknown key {key} in {place}; {hint}"
    )))
}

/// Edits between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let change = corner + usize::from(from != *to);
            corner = row[j + 1];
            row[j + 1] = change.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
