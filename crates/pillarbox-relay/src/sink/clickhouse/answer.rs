//! What came back from a server, and the one place where its error text is read. Pure.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderMap;

use super::payload::Sent;

/// Longest piece of a server's text that is kept: stack traces and queries follow the message.
const TEXT_BYTES_MAX: usize = 1000;

/// A cause that keeps its own chain.
pub(super) type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why a request did not succeed.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// No byte of the body left: there was no connection, or it was gone before it was used.
    Unreachable(Cause),
    /// The server is not the one that it should be.
    Untrusted(Cause),
    /// The server answered, and it was not success.
    Answered(Answer),
    /// Success, but not as ClickHouse says it.
    Foreign(Strange),
    /// The connection broke after the first byte.
    Lost(Cause),
    /// No whole answer in time.
    Overdue(Duration),
}

/// Why a success is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strange {
    /// No header of ClickHouse.
    Nameless,
    /// An insert answers with nothing.
    Wordy,
}

impl Strange {
    /// Looks at an answer of status 200 that names no exception. A proxy, a portal and a health
    /// check answer so too; ClickHouse, from 18.16 on, names itself in its headers.
    pub(super) fn of(headers: &HeaderMap, body: &[u8], is_insert: bool) -> Option<Self> {
        let names_itself = headers
            .keys()
            .any(|name| name.as_str().starts_with("x-clickhouse-"));
        if !names_itself {
            Some(Self::Nameless)
        } else if is_insert && !body.is_empty() {
            Some(Self::Wordy)
        } else {
            None
        }
    }
}

/// A server's answer that is not success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// HTTP status.
    pub(super) status: u16,
    /// ClickHouse's error code.
    pub(super) code: Option<u32>,
    /// The message, without column values.
    pub(super) text: String,
    /// How much of the body had left when the answer came.
    pub(super) sent: Sent,
}

impl Answer {
    /// Reads an answer. `None` when it is a success: status 200, no exception in header or text.
    ///
    /// An insert answers with nothing; a body that is more than that is looked at for an exception
    /// that came after the status.
    pub(super) fn failure(
        status: u16,
        header: Option<&str>,
        body: &[u8],
        sent: Sent,
    ) -> Option<Self> {
        let whole = String::from_utf8_lossy(body);
        let late = || whole.contains("DB::Exception") || whole.contains("__exception__");
        if status == 200 && header.is_none() && !late() {
            return None;
        }
        let start = whole
            .find("Code: ")
            .filter(|_| whole.contains("Exception"))
            .unwrap_or(0);
        let text = &whole[start..];
        let leading = text.strip_prefix("Code: ").unwrap_or_default();
        let digits: String = leading.chars().take_while(char::is_ascii_digit).collect();
        let code = header
            .and_then(|code| code.trim().parse().ok())
            .or_else(|| digits.parse().ok());
        Some(Self {
            status,
            code,
            text: without_values(text),
            sent,
        })
    }

    /// A success is looked at by its length too: a result is not searched for words.
    pub(super) fn query_failure(status: u16, header: Option<&str>, body: &[u8]) -> Option<Self> {
        if status == 200 && header.is_none() {
            return None;
        }
        Self::failure(status, header, body, Sent::All)
    }

    /// Whether the text says so, in any case.
    pub(super) fn says(&self, words: &str) -> bool {
        self.text.to_ascii_lowercase().contains(words)
    }
}

/// What stands before values of rows: of a violated constraint, of JSON that cannot be parsed.
const BEFORE_VALUES: [&str; 4] = [
    "Column values:",
    "object here:",
    "JSON object from JSON element:",
    "while parsing JSON object:",
];

/// The message without values of rows, and not too long.
fn without_values(text: &str) -> String {
    let ends = BEFORE_VALUES.iter().filter_map(|words| text.find(words));
    let end = ends.min().unwrap_or(text.len());
    let text = text[..end].trim();
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(_) => f.write_str("cannot reach clickhouse"),
            Self::Untrusted(_) => f.write_str("the certificate of clickhouse cannot be trusted"),
            Self::Answered(answer) if answer.text.is_empty() => {
                write!(f, "clickhouse answered with http status {}", answer.status)
            }
            Self::Answered(answer) if answer.code.is_none() => {
                write!(
                    f,
                    "clickhouse answered with http status {}: {}",
                    answer.status, answer.text
                )
            }
            Self::Answered(answer) => write!(f, "clickhouse answered: {}", answer.text),
            Self::Foreign(Strange::Nameless) => f.write_str(
                "http status 200 without a header of clickhouse: something between relay and server \
                 answered; point the sink's url at clickhouse",
            ),
            Self::Foreign(Strange::Wordy) => f.write_str(
                "http status 200 with a body, which clickhouse does not send after an insert: \
                 something between relay and server answered; point the sink's url at clickhouse",
            ),
            Self::Lost(_) => f.write_str("the connection to clickhouse broke before its answer"),
            Self::Overdue(limit) => write!(f, "clickhouse did not answer within {limit:?}"),
        }
    }
}

impl Fault {
    /// Whether the server said nothing, or not all of it.
    pub(super) fn is_silence(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::Lost(_) | Self::Overdue(_)
        )
    }

    /// What caused it, where it is not the whole story.
    pub(super) fn cause(&self) -> Option<Cause> {
        match self {
            Self::Unreachable(cause) | Self::Untrusted(cause) | Self::Lost(cause) => {
                Some(Arc::clone(cause))
            }
            Self::Answered(_) | Self::Foreign(_) | Self::Overdue(_) => None,
        }
    }

    /// The server's error code.
    pub(super) fn code(&self) -> Option<u32> {
        match self {
            Self::Answered(answer) => answer.code,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any bytes: no panic, no success beside an exception, no value of a column.
        #[test]
        fn any_answer_is_read(
            is_ok: bool,
            header in proptest::option::of("[ 0-9]{0,12}|.{0,8}"),
            before in "(Code: [0-9]{0,12})?(DB::Exception)?.{0,40}",
            after in proptest::option::of(".{0,40}"),
            junk in proptest::collection::vec(any::<u8>(), 0..1200),
        ) {
            let mut body = before.into_bytes();
            body.extend(junk);
            if let Some(after) = &after {
                body.extend(b"Column values: ");
                body.extend(after.bytes());
            }
            let status = if is_ok { 200 } else { 500 };
            let text = String::from_utf8_lossy(&body);
            match Answer::failure(status, header.as_deref(), &body, Sent::All) {
                None => {
                    prop_assert!(is_ok && header.is_none() && !text.contains("DB::Exception"));
                }
                Some(answer) => {
                    prop_assert!(answer.text.len() <= TEXT_BYTES_MAX);
                    prop_assert!(!answer.text.contains("Column values:"));
                    let named = header.and_then(|header| header.trim().parse().ok());
                    prop_assert!(named.is_none() || answer.code == named);
                }
            }
        }
    }
}
