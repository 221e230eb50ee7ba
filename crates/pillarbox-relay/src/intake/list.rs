//! A list, which producers LPUSH to.
//!
//! The list is renamed to a chunk, `KEY:UUID`, which nobody pushes to any more; how many of its entries
//! were taken is recorded with them, and it is deleted at its end. The next list is renamed only then.
//!
//! A marker in Redis, written with each renaming, names the chunk and the one before it. A Redis that
//! comes back as it was some time ago so tells where it was: its list begins with what a later chunk
//! began with, because a renaming takes the list whole. That much of it is skipped.

use std::sync::LazyLock;

use redis::{Script, Value};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::entry::{Body, Reason};
use super::memory::{self, Hash, Stretch};
use super::server::{Server, array, bytes, number, text, unreadable};
use super::tenure::{Advance, Tenure, commit};
use super::trouble::{IntakeError, in_time};
use super::writing::{self, Item, LargeLetter, Written};
use super::{Bounds, Round};
use crate::failpoint::step;

static RENAME: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/list_rename.lua")));
static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/list_read.lua")));
static PIECE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/list_piece.lua")));

/// Chunks that others have left behind, looked for when a connection begins.
const STRAYS_MAX: usize = 10_000;

/// The end of the marker's name; a chunk ends with a UUID.
const MARKER: &str = ":taken";

/// A chunk in Redis.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    uuid: Uuid,
    key: String,
    /// The chunk before it, '' for none; `None` when it is not by this intake.
    previous: Option<String>,
    /// Whether it was the list until now.
    pub(crate) is_new: bool,
}

/// What PostgreSQL has of a chunk.
#[derive(Debug)]
struct Record {
    restored: u64,
    is_doubtful: bool,
    taken: u64,
    is_done: bool,
    /// Redis had nothing of ours when it was renamed.
    is_after_loss: bool,
}

/// Some entries of a chunk, oldest first.
struct Entries {
    length: u64,
    large: u64,
    entries: Vec<Vec<u8>>,
}

/// Every chunk that is there, but the one that the marker names.
pub(crate) async fn strays(server: &mut Server) -> Result<Vec<Chunk>, IntakeError> {
    let start = format!("{}:", server.key);
    let keys = server.keys_from(&start, STRAYS_MAX).await?;
    let mut marker = redis::cmd("GET");
    marker.arg(format!("{}{MARKER}", server.key));
    let marker: Option<String> = server.ask(&marker).await?;
    let named = marker.unwrap_or_default();
    let mut found: Vec<Chunk> = keys
        .into_iter()
        .filter_map(|key| {
            let uuid = key.strip_prefix(&start)?;
            let is_ours = named.split(' ').next() == Some(uuid);
            Some(Chunk {
                uuid: Uuid::try_parse(uuid).ok().filter(|_| !is_ours)?,
                previous: None,
                is_new: false,
                key,
            })
        })
        .collect();
    found.sort_unstable_by_key(|chunk| chunk.uuid);
    Ok(found)
}

/// The chunk that has to be taken: one that is there, else the list, renamed.
pub(crate) async fn next(
    server: &mut Server,
    tenure: &mut Tenure,
) -> Result<Option<Chunk>, IntakeError> {
    let greatest = greatest(tenure).await?;
    let key = server.key.clone();
    let marker = format!("{key}{MARKER}");
    let uuid = successor(greatest, Uuid::now_v7());
    let answer = server
        .run(&RENAME, &[&key, &marker], &[uuid.to_string()])
        .await?;
    let answer = array(answer);
    if answer.is_empty() {
        return Ok(None);
    }
    let [uuid, previous, is_new] = <[Value; 3]>::try_from(answer).map_err(|_| unreadable())?;
    let uuid = text(uuid);
    let chunk = Chunk {
        key: format!("{key}:{uuid}"),
        uuid: Uuid::try_parse(&uuid).map_err(|_| foreign_marker(&marker))?,
        previous: Some(text(previous)),
        is_new: number(&is_new) == 1,
    };
    if chunk.is_new {
        step!("intake-renamed");
    }
    Ok(Some(chunk))
}

/// The greatest chunk that is recorded.
async fn greatest(tenure: &mut Tenure) -> Result<Option<Uuid>, IntakeError> {
    const GREATEST: &str = include_str!("sql/greatest_chunk.sql");
    if let Some(known) = tenure.greatest {
        return Ok(known);
    }
    let found = in_time(tenure.client().query_opt(GREATEST, &[&tenure.intake])).await?;
    let greatest = found.map(|row| row.get(0));
    tenure.greatest = Some(greatest);
    Ok(greatest)
}

fn foreign_marker(marker: &str) -> IntakeError {
    IntakeError::Refused(format!(
        "the key {marker} in redis is not what an intake writes there; delete it if nobody else needs it"
    ))
}

/// A uuid above every one that was recorded, also when the clock was set back.
fn successor(greatest: Option<Uuid>, now: Uuid) -> Uuid {
    match greatest {
        Some(greatest) if greatest >= now && greatest.get_version_num() == 7 => {
            Uuid::from_u128(greatest.as_u128().wrapping_add(1))
        }
        _ => now,
    }
}

/// Takes one batch of the chunk; tells whether it was the last one, and deletes the chunk then.
pub(crate) async fn take(
    server: &mut Server,
    tenure: &mut Tenure,
    chunk: &Chunk,
    bounds: &Bounds,
) -> Result<(Round, bool), IntakeError> {
    let record = match find(tenure, chunk.uuid).await? {
        Some(record) => record,
        None => record(server, tenure, chunk, bounds).await?,
    };
    let mut round = Round::default();
    if !record.is_done {
        let found = read(server, &chunk.key, record.taken, bounds).await?;
        step!("intake-read");
        let is_end;
        (round, is_end) = match found.large {
            0 => take_entries(tenure, chunk, &record, &found).await?,
            size => take_large(server, tenure, chunk, &record, size, found.length, bounds).await?,
        };
        step!("intake-committed");
        if !is_end {
            return Ok((round, false));
        }
    } else {
        // Whoever recorded that may not have seen it become durable.
        tenure.settle().await?;
    }
    let mut delete = redis::cmd("DEL");
    delete.arg(&chunk.key);
    server.ask::<i64>(&delete).await?;
    step!("intake-deleted");
    Ok((round, true))
}

async fn find(tenure: &Tenure, chunk: Uuid) -> Result<Option<Record>, IntakeError> {
    const CHUNK: &str = include_str!("sql/chunk.sql");
    let given: &[&(dyn ToSql + Sync)] = &[&tenure.intake, &chunk];
    let found = in_time(tenure.client().query_opt(CHUNK, given)).await?;
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(found.map(|row| Record {
        restored: unsigned(row.get(0)),
        is_doubtful: row.get(1),
        taken: unsigned(row.get(2)),
        is_done: row.get(3),
        is_after_loss: row.get::<_, Option<&str>>(4) == Some(""),
    }))
}

/// Finds out how much of a chunk was taken before under another name, and records that.
async fn record(
    server: &mut Server,
    tenure: &mut Tenure,
    chunk: &Chunk,
    bounds: &Bounds,
) -> Result<Record, IntakeError> {
    const SUCCESSORS: &str = include_str!("sql/successors.sql");
    const RECORD: &str = include_str!("sql/record_chunk.sql");
    let given: &[&(dyn ToSql + Sync)] = &[&tenure.intake, &chunk.previous, &chunk.uuid];
    let rows = in_time(tenure.client().query(SUCCESSORS, given)).await?;
    let others: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let restored = longest(server, tenure, chunk, others, bounds).await?;
    let is_doubtful = restored == 0 && is_doubtful(tenure, chunk).await?;
    let count = i64::try_from(restored).unwrap_or(i64::MAX);
    let given: &[&(dyn ToSql + Sync)] = &[
        &tenure.intake,
        &chunk.uuid,
        &chunk.previous,
        &count,
        &is_doubtful,
    ];
    // Not durable by itself: nothing is deleted before the commits that follow are.
    in_time(tenure.client().execute(RECORD, given)).await?;
    if chunk.previous.is_some() {
        tenure.greatest = Some(tenure.greatest.flatten().max(Some(chunk.uuid)));
    }
    if restored > 0 {
        tracing::warn!(
            chunk = %chunk.uuid,
            restored,
            "redis has come back as it was before: the list begins with entries that were taken \
             already, and they are not taken again"
        );
    }
    if is_doubtful {
        tracing::warn!(
            chunk = %chunk.uuid,
            "redis has come back as it was so long ago that nobody remembers what was taken then: all \
             entries become dead letters; see: pillarbox dead-letters list"
        );
    }
    step!("intake-recorded");
    Ok(Record {
        restored,
        is_doubtful,
        taken: 0,
        is_done: false,
        is_after_loss: chunk.previous.as_deref() == Some(""),
    })
}

/// How many entries the chunk has in common, from the oldest on, with one of these.
async fn longest(
    server: &mut Server,
    tenure: &mut Tenure,
    chunk: &Chunk,
    mut others: Vec<Uuid>,
    bounds: &Bounds,
) -> Result<u64, IntakeError> {
    let mut common = 0;
    while !others.is_empty() {
        let found = read(server, &chunk.key, common, bounds).await?;
        let hashes: Vec<Hash> = match found.large {
            0 => found.entries.iter().map(|entry| Hash::of(entry)).collect(),
            size => vec![hash_of_large(size)],
        };
        let mut equal = Vec::new();
        for other in others {
            equal.push((memory::common(tenure, other, common, &hashes).await?, other));
        }
        let most = equal.iter().map(|(count, _)| *count).max().unwrap_or(0);
        let is_end = most < hashes.len() as u64 || hashes.is_empty();
        common += most;
        let goes_on = |(count, other): (u64, Uuid)| (!is_end && count == most).then_some(other);
        others = equal.into_iter().filter_map(goes_on).collect();
        tenure.beat().await?;
    }
    Ok(common)
}

/// Whether what followed the chunk before it, or the chunk itself, may have been forgotten.
async fn is_doubtful(tenure: &Tenure, chunk: &Chunk) -> Result<bool, IntakeError> {
    let forgotten = tenure
        .forgotten
        .as_deref()
        .and_then(|text| Uuid::try_parse(text).ok());
    let is_forgotten = |uuid: Uuid| {
        let is_ours = uuid.get_version_num() == 7;
        is_ours && forgotten.is_some_and(|forgotten| uuid <= forgotten)
    };
    if is_forgotten(chunk.uuid) {
        return Ok(true);
    }
    let previous = chunk
        .previous
        .as_deref()
        .and_then(|text| Uuid::try_parse(text).ok());
    match previous {
        Some(previous) if is_forgotten(previous) => Ok(find(tenure, previous).await?.is_none()),
        _ => Ok(false),
    }
}

async fn read(
    server: &mut Server,
    key: &str,
    from: u64,
    bounds: &Bounds,
) -> Result<Entries, IntakeError> {
    let arguments = [from, bounds.rows_max, bounds.bytes_max].map(|number| number.to_string());
    let answer = array(server.run(&READ, &[key], &arguments).await?);
    let [length, large, entries] = <[Value; 3]>::try_from(answer).map_err(|_| unreadable())?;
    Ok(Entries {
        length: number(&length),
        large: number(&large),
        entries: array(entries).into_iter().map(bytes).collect(),
    })
}

fn hash_of_large(size: u64) -> Hash {
    Hash::of(format!("an entry of {size} bytes").as_bytes())
}

async fn take_entries(
    tenure: &mut Tenure,
    chunk: &Chunk,
    record: &Record,
    found: &Entries,
) -> Result<(Round, bool), IntakeError> {
    let mut items = Vec::with_capacity(found.entries.len());
    let mut restored = 0;
    for (place, entry) in (record.taken..).zip(&found.entries) {
        let body = Body::Json(entry.clone());
        let is_restored = place < record.restored;
        // Two entries of the same bytes are two events, or one that came back: an identity tells.
        let is_known = is_restored
            && (!record.is_after_loss || body.event().is_ok_and(|event| event.event_id.is_some()));
        if is_known {
            restored += 1;
            continue;
        }
        items.push(Item {
            place: place_of(chunk, place),
            body,
            doubt: (record.is_doubtful || is_restored).then(doubt),
            event_id: None,
        });
    }
    let after = record.taken + found.entries.len() as u64;
    let is_end = after >= found.length;
    let hashes = found.entries.iter().map(|entry| Hash::of(entry));
    let intake = tenure.intake;
    let position = tenure.position.clone();
    let warnings = tenure.warnings();
    let transaction = tenure.transaction().await?;
    let written = writing::write(&transaction, intake, &items).await?;
    let progress = Progress {
        chunk,
        before: record.taken,
        after,
        is_end,
    };
    progress.write(&transaction, intake, hashes).await?;
    let advance = Advance {
        position: None,
        written,
        restored,
    };
    advance
        .write(&transaction, intake, position.as_deref())
        .await?;
    step!("intake-written");
    commit(transaction, &warnings).await?;
    let round = Round {
        written,
        restored,
        ..Round::default()
    };
    Ok((round, is_end))
}

fn place_of(chunk: &Chunk, place: u64) -> String {
    format!("{}:{place}", chunk.uuid)
}

fn doubt() -> Reason {
    Reason(
        "redis has lost what it knew of this intake, and shows what was taken before or what looks the \
         same; retry it if it is not among the events, else drop it"
            .to_owned(),
    )
}

/// How far a chunk is taken.
struct Progress<'a> {
    chunk: &'a Chunk,
    before: u64,
    after: u64,
    is_end: bool,
}

impl Progress<'_> {
    /// Records it, behind the fence of how far it was.
    async fn write(
        &self,
        transaction: &tokio_postgres::Transaction<'_>,
        intake: i32,
        hashes: impl Iterator<Item = Hash>,
    ) -> Result<(), IntakeError> {
        const ADVANCE: &str = include_str!("sql/advance_chunk.sql");
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let (before, after) = (number(self.before), number(self.after));
        let given: &[&(dyn ToSql + Sync)] =
            &[&intake, &self.chunk.uuid, &before, &after, &self.is_end];
        if in_time(transaction.execute(ADVANCE, given)).await? != 1 {
            return Err(IntakeError::Away {
                what: "another process has taken of this chunk".to_owned(),
                source: None,
            });
        }
        if self.after == self.before {
            return Ok(());
        }
        let stretch = Stretch {
            chunk: Some(self.chunk.uuid),
            low: &self.before.to_be_bytes(),
            high: &(self.after - 1).to_be_bytes(),
        };
        stretch.remember(transaction, intake, hashes).await
    }
}

/// Sets an entry aside that is larger than what is held at once.
async fn take_large(
    server: &mut Server,
    tenure: &mut Tenure,
    chunk: &Chunk,
    record: &Record,
    size: u64,
    length: u64,
    bounds: &Bounds,
) -> Result<(Round, bool), IntakeError> {
    let (intake, position) = (tenure.intake, tenure.position.clone());
    let is_known = record.taken < record.restored;
    let progress = Progress {
        chunk,
        before: record.taken,
        after: record.taken + 1,
        is_end: record.taken + 1 >= length,
    };
    let warnings = tenure.warnings();
    let transaction = tenure.transaction().await?;
    let mut written = Written::default();
    if !is_known {
        let place = place_of(chunk, record.taken);
        let reason = super::too_large(bounds);
        let mut letter = LargeLetter::begin(&transaction, intake, &place, "json", &reason).await?;
        for start in (1..).step_by(LargeLetter::PIECE) {
            let end = start + LargeLetter::PIECE - 1;
            let arguments = [record.taken.to_string(), start.to_string(), end.to_string()];
            let piece = bytes(server.run(&PIECE, &[&chunk.key], &arguments).await?);
            if piece.is_empty() {
                break;
            }
            letter.add(&transaction, &piece).await?;
        }
        written = letter.end(&transaction).await?;
    }
    progress
        .write(&transaction, intake, std::iter::once(hash_of_large(size)))
        .await?;
    let advance = Advance {
        position: None,
        written,
        restored: u64::from(is_known),
    };
    advance
        .write(&transaction, intake, position.as_deref())
        .await?;
    step!("intake-written");
    commit(transaction, &warnings).await?;
    let round = Round {
        written,
        restored: u64::from(is_known),
        ..Round::default()
    };
    Ok((round, progress.is_end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_comes_after_every_one_before_it() {
        let now = Uuid::now_v7();
        assert_eq!(successor(None, now), now);
        let later = Uuid::from_u128(now.as_u128() + 5);
        assert!(
            successor(Some(later), now) > later,
            "the clock was set back"
        );
        assert_eq!(successor(Some(now), later), later);
        let foreign = Uuid::from_u128(u128::MAX);
        assert_eq!(successor(Some(foreign), now), now);
    }
}
