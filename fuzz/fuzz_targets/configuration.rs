//! Any text as configuration: an error or a configuration, no panic, and no secret in either.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use pillarbox_relay::config::{Config, Urls};
use pillarbox_relay::fuzzing::read_configuration;
use secrecy::SecretString;

/// Shorter ones are found by chance.
const SECRET_MIN: usize = 6;

fuzz_target!(|text: &str| {
    // The second half, if there is one, is the environment.
    let (file, lines) = text.split_once("\n---\n").unwrap_or((text, ""));
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    let environment: HashMap<String, String> = pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    match read_configuration(file, &environment) {
        Ok(config) => {
            let shown = format!("{config:?}");
            assert_eq!(shown, format!("{:?}", without_secrets(&config)));
            let _ = config.postgres();
        }
        Err(error) => {
            let shown = chain(&error);
            for secret in secrets(file) {
                let is_elsewhere = file.matches(&secret).count() > 1 || lines.contains(&secret);
                assert!(is_elsewhere || !shown.contains(&secret), "{shown}");
            }
        }
    }
});

/// What it shows does not depend on its secrets if this shows the same.
fn without_secrets(config: &Config) -> Config {
    let mut config = config.clone();
    let nothing = || SecretString::from("");
    config.postgres.url = config.postgres.url.map(|_| nothing());
    for sink in config.sinks.values_mut() {
        sink.password = sink.password.take().map(|_| nothing());
        let urls = sink.url.addresses("url").map_or(0, |urls| urls.len());
        sink.url = Urls::from(vec!["x"; urls].join(",").as_str());
    }
    config
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut shown = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(error) = source {
        shown.push_str(&format!(" {error} {error:?}"));
        source = error.source();
    }
    shown
}

/// Passwords of a file that is TOML, wherever in it a password has its place.
fn secrets(file: &str) -> Vec<String> {
    let Ok(table) = file.parse::<toml::Table>() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut urls = Vec::new();
    let sinks = table.get("sinks").and_then(toml::Value::as_table);
    let sections = table.get("postgres").into_iter().chain(sinks.into_iter().flat_map(|s| s.values()));
    for section in sections {
        let text = |key| section.get(key).and_then(toml::Value::as_str);
        found.extend(text("password").map(str::to_owned));
        urls.extend(text("url").map(str::to_owned));
    }
    for url in urls {
        let user = url.split_once("://").and_then(|(_, rest)| rest.split_once('@'));
        let password = user.and_then(|(user, _)| user.split_once(':'));
        found.extend(password.map(|(_, password)| password.to_owned()));
    }
    found.retain(|secret| secret.len() >= SECRET_MIN);
    found
}
