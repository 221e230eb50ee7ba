//! A stream, which producers XADD to.
//!
//! The position is the greatest id that was taken; whatever is above it is new. Entries at or below it
//! are there for one of three reasons: a commit whose XDEL was lost; a Redis that came back as it was
//! some time ago; or producers who wrote to such a Redis before its ids were raised. The memory tells
//! the last ones from the others.

use std::fmt;
use std::sync::LazyLock;

use redis::{Script, Value};
use tokio_postgres::Transaction;

use super::entry::{Body, Reason};
use super::memory::{Hash, Stretch};
use super::server::{Server, array, bytes, number, text, unreadable};
use super::tenure::{Advance, Tenure, commit};
use super::trouble::IntakeError;
use super::writing::{self, Item, LargeLetter};
use super::{Bounds, Round};
use crate::failpoint::step;

static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/stream_read.lua")));
static PIECE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/stream_piece.lua")));

/// The id of an entry: milliseconds and a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    ms: u64,
    seq: u64,
}

impl Id {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (ms, seq) = text.split_once('-')?;
        Some(Self {
            ms: ms.parse().ok()?,
            seq: seq.parse().ok()?,
        })
    }

    /// In the order of ids.
    fn bytes(self) -> [u8; 16] {
        (u128::from(self.ms) << 64 | u128::from(self.seq)).to_be_bytes()
    }

    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let whole = u128::from_be_bytes(bytes.try_into().ok()?);
        Some(Self {
            ms: u64::try_from(whole >> 64).ok()?,
            seq: u64::try_from(whole & u128::from(u64::MAX)).ok()?,
        })
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// An entry as it was read.
struct Entry {
    id: Id,
    item: Item,
    hash: Hash,
}

/// What one look gave.
struct Look {
    /// Whether they are at or below the position.
    is_low: bool,
    /// Bytes of the only entry, when it is too large to be given.
    large: u64,
    entries: Vec<Entry>,
    /// Whether there may be more.
    is_full: bool,
}

/// Takes one batch.
pub(crate) async fn take(
    server: &mut Server,
    tenure: &mut Tenure,
    bounds: &Bounds,
) -> Result<Round, IntakeError> {
    let look = look(server, tenure, bounds).await?;
    let Some(last) = look.entries.last().map(|entry| entry.id) else {
        return Ok(Round::default());
    };
    step!("intake-read");
    let is_full = look.is_full;
    let mut round = match look {
        Look {
            large: 0,
            is_low: false,
            ..
        } => take_new(tenure, &look.entries).await?,
        Look { large: 0, .. } => take_low(tenure, &look.entries).await?,
        Look { large, is_low, .. } => {
            take_large(server, tenure, last, large, is_low, bounds).await?
        }
    };
    step!("intake-committed");
    round.last = Some(last.to_string());
    round.is_full = is_full;
    // These ids and no others: what a clock that was set back has added below is looked at first.
    let mut delete = redis::cmd("XDEL");
    delete.arg(&server.key);
    for entry in &look.entries {
        delete.arg(entry.id.to_string());
    }
    server.ask::<i64>(&delete).await?;
    step!("intake-deleted");
    Ok(round)
}

async fn look(server: &mut Server, tenure: &Tenure, bounds: &Bounds) -> Result<Look, IntakeError> {
    let key = server.key.clone();
    let arguments = [
        tenure.position.clone().unwrap_or_default(),
        bounds.rows_max.to_string(),
        bounds.bytes_max.to_string(),
    ];
    let answer = array(server.run(&READ, &[&key], &arguments).await?);
    let [raised, is_low, large, entries, more] =
        <[Value; 5]>::try_from(answer).map_err(|_| unreadable())?;
    if number(&raised) == 1 {
        tracing::warn!(
            key,
            position = tenure.position,
            "redis has lost what it had of the stream: its ids go on from the position"
        );
    }
    let read = |entry: Value| {
        let [id, fields] = <[Value; 2]>::try_from(array(entry)).ok()?;
        let id = Id::parse(&text(id))?;
        let mut texts = array(fields).into_iter().map(bytes);
        let mut fields = Vec::new();
        while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
            fields.push((name, value));
        }
        let body = Body::Fields(fields);
        let mut hashed = id.bytes().to_vec();
        hashed.extend_from_slice(&body.bytes());
        Some(Entry {
            id,
            hash: Hash::of(&hashed),
            item: Item {
                place: id.to_string(),
                body,
                doubt: None,
                event_id: None,
            },
        })
    };
    let entries: Option<Vec<Entry>> = array(entries).into_iter().map(read).collect();
    Ok(Look {
        is_low: number(&is_low) == 1,
        large: number(&large),
        entries: entries.ok_or_else(unreadable)?,
        is_full: number(&more) == 1,
    })
}

async fn take_new(tenure: &mut Tenure, entries: &[Entry]) -> Result<Round, IntakeError> {
    let items: Vec<Item> = entries.iter().map(|entry| entry.item.clone()).collect();
    let position = entries.last().map(|entry| entry.id.to_string());
    let (intake, before) = (tenure.intake, tenure.position.clone());
    let warnings = tenure.warnings();
    let transaction = tenure.transaction().await?;
    let written = writing::write(&transaction, intake, &items).await?;
    remember(&transaction, intake, entries.iter()).await?;
    let advance = Advance {
        position: position.as_deref(),
        written,
        restored: 0,
    };
    advance
        .write(&transaction, intake, before.as_deref())
        .await?;
    step!("intake-written");
    commit(transaction, &warnings).await?;
    tenure.position = position;
    Ok(Round {
        written,
        ..Round::default()
    })
}

async fn remember(
    transaction: &Transaction<'_>,
    intake: i32,
    entries: impl Iterator<Item = &Entry>,
) -> Result<(), IntakeError> {
    let entries: Vec<&Entry> = entries.collect();
    let (Some(low), Some(high)) = (entries.first(), entries.last()) else {
        return Ok(());
    };
    let stretch = Stretch {
        chunk: None,
        low: &low.id.bytes(),
        high: &high.id.bytes(),
    };
    let hashes = entries.iter().map(|entry| entry.hash);
    stretch.remember(transaction, intake, hashes).await
}

/// Takes those of them that are not remembered: they were added to a Redis that had lost its ids.
async fn take_low(tenure: &mut Tenure, entries: &[Entry]) -> Result<Round, IntakeError> {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
        return Ok(Round::default());
    };
    let stretch = Stretch {
        chunk: None,
        low: &first.id.bytes(),
        high: &last.id.bytes(),
    };
    let hashes: Vec<Hash> = entries.iter().map(|entry| entry.hash).collect();
    let known = stretch.known(tenure, &hashes).await?;
    let is_known = |(_, known): &(&Entry, bool)| *known;
    let (again, unknown): (Vec<_>, Vec<_>) = entries.iter().zip(known).partition(is_known);
    let unknown: Vec<&Entry> = unknown.into_iter().map(|(entry, _)| entry).collect();
    let forgotten = tenure.forgotten.as_deref().and_then(Id::parse);
    let items: Vec<Item> = unknown
        .iter()
        .map(|entry| Item {
            doubt: (Some(entry.id) <= forgotten).then(doubt),
            ..entry.item.clone()
        })
        .collect();
    let (intake, before) = (tenure.intake, tenure.position.clone());
    let restored = again.len() as u64;
    let warnings = tenure.warnings();
    let transaction = tenure.transaction().await?;
    let written = writing::write(&transaction, intake, &items).await?;
    remember(&transaction, intake, unknown.into_iter()).await?;
    let advance = Advance {
        position: None,
        written,
        restored,
    };
    advance
        .write(&transaction, intake, before.as_deref())
        .await?;
    step!("intake-written");
    commit(transaction, &warnings).await?;
    tracing::warn!(
        restored,
        taken = written.taken,
        dead = written.dead,
        "redis shows entries below the position: restored ones were taken before and are not taken again"
    );
    Ok(Round {
        written,
        restored,
        ..Round::default()
    })
}

fn doubt() -> Reason {
    Reason(
        "redis shows it below the position, and what was taken then is forgotten: it may have been \
         taken before; retry it if it is not among the events, else drop it"
            .to_owned(),
    )
}

/// Sets an entry aside that is larger than what is held at once.
async fn take_large(
    server: &mut Server,
    tenure: &mut Tenure,
    id: Id,
    size: u64,
    is_low: bool,
    bounds: &Bounds,
) -> Result<Round, IntakeError> {
    let hash = Hash::of(&[&id.bytes()[..], &size.to_be_bytes()[..]].concat());
    let stretch_of = id.bytes();
    let stretch = Stretch {
        chunk: None,
        low: &stretch_of,
        high: &stretch_of,
    };
    if is_low && stretch.known(tenure, &[hash]).await? == [true] {
        return Ok(Round {
            restored: 1,
            ..Round::default()
        });
    }
    let (key, place) = (server.key.clone(), id.to_string());
    let (intake, before) = (tenure.intake, tenure.position.clone());
    let position = (!is_low).then(|| place.clone());
    let reason = super::too_large(bounds);
    let warnings = tenure.warnings();
    let transaction = tenure.transaction().await?;
    let mut letter = LargeLetter::begin(&transaction, intake, &place, "fields", &reason).await?;
    for start in (1..).step_by(LargeLetter::PIECE) {
        let end = start + LargeLetter::PIECE - 1;
        let arguments = [place.clone(), start.to_string(), end.to_string()];
        let piece = bytes(server.run(&PIECE, &[&key], &arguments).await?);
        if piece.is_empty() {
            break;
        }
        letter.add(&transaction, &piece).await?;
    }
    let written = letter.end(&transaction).await?;
    stretch
        .remember(&transaction, intake, std::iter::once(hash))
        .await?;
    let advance = Advance {
        position: position.as_deref(),
        written,
        restored: 0,
    };
    advance
        .write(&transaction, intake, before.as_deref())
        .await?;
    step!("intake-written");
    commit(transaction, &warnings).await?;
    tenure.position = position.or(before);
    Ok(Round {
        written,
        ..Round::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_keep_their_order_as_bytes() {
        let texts = [
            "0-1",
            "1-0",
            "1-18446744073709551615",
            "2-0",
            "18446744073709551615-0",
        ];
        let ids = texts.map(|text| Id::parse(text).unwrap());
        assert!(ids.is_sorted());
        assert!(ids.map(Id::bytes).is_sorted());
        for (id, text) in ids.into_iter().zip(texts) {
            assert_eq!(id.to_string(), text);
            assert_eq!(Id::read(&id.bytes()), Some(id));
        }
        for wrong in ["", "1", "1-", "-1", "1-x", "18446744073709551616-0"] {
            assert_eq!(Id::parse(wrong), None);
        }
    }
}
