//! Values of the configuration that are one of a few words.

use serde::Deserialize;

/// A kind of destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum SinkKind {
    /// ClickHouse by its HTTP interface.
    ClickHouse,
}

/// Compression of what is sent to a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Compression {
    /// LZ4, but none to a server on this machine.
    Auto,
    /// Fast.
    Lz4,
    /// None: for a network that is faster than a core.
    None,
}

/// What the relay must refuse to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Promise {
    /// Refuse a sink that cannot give it.
    ExactlyOnce,
    /// Accept that events may arrive twice.
    AtLeastOnce,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// The value that a word stands for.
pub(super) fn word<T: Copy>(text: &str, known: &[(&str, T)]) -> Result<T, String> {
    let found = known.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        format!("{text:?} is not known here; write {}", words.join(" or "))
    })
}

impl TryFrom<String> for SinkKind {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        word(&text, &[("clickhouse", Self::ClickHouse)])
    }
}

impl TryFrom<String> for Compression {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let known = [
            ("auto", Self::Auto),
            ("lz4", Self::Lz4),
            ("none", Self::None),
        ];
        word(&text, &known)
    }
}

impl TryFrom<String> for Promise {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let known = [
            ("exactly-once", Self::ExactlyOnce),
            ("at-least-once", Self::AtLeastOnce),
        ];
        word(&text, &known)
    }
}

impl TryFrom<String> for LogFormat {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        word(&text, &[("pretty", Self::Pretty), ("json", Self::Json)])
    }
}
