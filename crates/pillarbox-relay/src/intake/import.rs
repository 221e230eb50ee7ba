//! Imports lines, each an event, from where an import of the same lines has come to.
//!
//! How far that is stands in PostgreSQL, in the transaction of the rows, with a hash of all lines before:
//! an import that was killed goes on behind its last batch, and a file that has changed is refused.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::entry::Body;
use super::lines::{Line, Lines, Mark, Part};
use super::tenure::{Advance, Identity, Tenure, commit};
use super::trouble::IntakeError;
use super::writing::{self, Item, LargeLetter, Refused, Written};
use super::{Bounds, too_large};
use crate::failpoint::step;
use crate::source::JUST_ENDED;

/// Lines of a batch, and their bytes; a larger line becomes a dead letter.
const BOUNDS: Bounds = Bounds {
    rows_max: 5_000,
    bytes_max: 8 * 1024 * 1024,
};

/// What is imported.
pub struct Input {
    /// What errors call it.
    pub path: String,
    /// Its bytes.
    pub from: Box<dyn Read + Send>,
    /// Whether the same bytes can be read again: standard input cannot, unless it has a name.
    pub is_resumable: bool,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// How an import is done.
#[derive(Clone, Debug)]
pub struct Import {
    /// Its name; by default one that its first line gives.
    pub name: Option<String>,
    /// Whether a line that is no event ends it.
    pub is_strict: bool,
}

/// What an import has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Its name.
    pub name: String,
    /// Lines that were read now, blank ones too.
    pub lines: u64,
    /// Lines that an earlier run has dealt with.
    pub lines_before: u64,
    /// Lines that became events now.
    pub taken: u64,
    /// Lines that became dead letters now; in a trial, lines that would.
    pub dead: u64,
    /// The first of them.
    pub first_dead: Option<(u64, String)>,
    /// Bytes of all lines, not compressed.
    pub bytes: u64,
    /// Whether it was told to stop before the end.
    pub is_stopped: bool,
}

/// Bytes of the input that were read, compressed as they are there.
#[derive(Clone, Debug)]
pub struct Raw(Arc<AtomicU64>);

impl Raw {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Reads ahead by one part, on a thread that may wait.
struct Ahead {
    path: String,
    reading: JoinHandle<(Lines, std::io::Result<Part>)>,
}

impl Ahead {
    fn new(path: &str, mut lines: Lines) -> Self {
        let reading = tokio::task::spawn_blocking(move || {
            let part = lines.next();
            (lines, part)
        });
        Self {
            path: path.to_owned(),
            reading,
        }
    }

    async fn next(self) -> Result<(Part, Self), IntakeError> {
        let read = self.reading.await.map_err(std::io::Error::other);
        let (lines, part) = read.map_err(|error| unreadable(&self.path, error))?;
        let part = part.map_err(|error| unreadable(&self.path, error))?;
        Ok((part, Self::new(&self.path, lines)))
    }
}

fn unreadable(path: &str, source: std::io::Error) -> IntakeError {
    let path = path.to_owned();
    IntakeError::Unreadable { path, source }
}

impl Import {
    /// Imports what was not imported yet. `progress` is told after each batch. Dropping the future
    /// abandons it as a kill would: the next run goes on behind the last batch.
    ///
    /// # Errors
    /// When the lines have changed, cannot be read, or are no events where that is not allowed; or
    /// PostgreSQL is away.
    pub async fn run(
        &self,
        input: Input,
        postgres: &tokio_postgres::Config,
        stop: &CancellationToken,
        mut progress: impl FnMut(&Imported, &Raw),
    ) -> Result<Imported, IntakeError> {
        let Some((mut lines, first)) = open(&input.path, input.from).await? else {
            return Ok(Imported::default());
        };
        let raw = Raw(lines.raw());
        let name = match (&self.name, input.is_resumable) {
            (Some(name), _) => name.clone(),
            (None, true) => format!("import-{first:016x}"),
            (None, false) => format!("stdin-{}", &Uuid::new_v4().simple().to_string()[..16]),
        };
        let identity = Identity {
            name: name.clone(),
            kind: "import",
            source: format!("{first:016x}"),
        };
        let mut tenure = Tenure::begin(postgres, &identity, Some(JUST_ENDED), stop).await?;
        let mut imported = Imported {
            name,
            ..Imported::default()
        };
        if let Some(mark) = tenure.position.as_deref().and_then(Mark::read) {
            lines = skip(&input.path, lines, mark, &imported.name).await?;
            (imported.lines_before, imported.bytes) = (mark.lines, mark.bytes);
        }
        let mut ahead = Ahead::new(&input.path, lines);
        loop {
            progress(&imported, &raw);
            if stop.is_cancelled() {
                imported.is_stopped = true;
                return Ok(imported);
            }
            let (part, next) = ahead.next().await?;
            ahead = next;
            match part {
                Part::End => return Ok(imported),
                Part::Lines(lines, mark) => {
                    let written = self.take(&mut tenure, lines, mark, &mut imported).await?;
                    imported.count(written, mark);
                }
                Part::Piece { line, piece, end } => {
                    let large = (line, piece, end);
                    ahead = self
                        .take_large(&mut tenure, large, ahead, &mut imported)
                        .await?;
                }
            }
            step!("import-committed");
        }
    }

    /// Reads everything and writes nothing: what would become a dead letter for its own sake.
    ///
    /// # Errors
    /// When the lines cannot be read.
    pub async fn try_out(
        &self,
        input: Input,
        mut progress: impl FnMut(&Imported, &Raw),
    ) -> Result<Imported, IntakeError> {
        let mut imported = Imported::default();
        let Some((lines, _)) = open(&input.path, input.from).await? else {
            return Ok(imported);
        };
        let raw = Raw(lines.raw());
        let mut ahead = Ahead::new(&input.path, lines);
        loop {
            progress(&imported, &raw);
            let (part, next) = ahead.next().await?;
            ahead = next;
            match part {
                Part::End => return Ok(imported),
                Part::Lines(lines, mark) => {
                    let mut written = Written::default();
                    for item in items(lines) {
                        match item.body.event() {
                            Ok(_) => written.taken += 1,
                            Err(reason) => {
                                written.dead += 1;
                                imported.note(&item.place, &reason.0);
                            }
                        }
                    }
                    imported.count(written, mark);
                }
                Part::Piece { line, end, .. } => {
                    if let Some(mark) = end {
                        imported.note(&format!("line {line}"), "it is too large");
                        imported.count(Written { taken: 0, dead: 1 }, mark);
                    }
                }
            }
        }
    }

    async fn take(
        &self,
        tenure: &mut Tenure,
        lines: Vec<Line>,
        mark: Mark,
        imported: &mut Imported,
    ) -> Result<Written, IntakeError> {
        let items = items(lines);
        let (intake, before) = (tenure.intake, tenure.position.clone());
        let position = mark.write();
        let warnings = tenure.warnings();
        let transaction = tenure.transaction().await?;
        let refused = writing::publish(&transaction, &items).await?;
        if let Some(Refused { index, reason, .. }) = refused.first() {
            let place = items.get(*index).map_or("", |item| item.place.as_str());
            if self.is_strict {
                return Err(IntakeError::Malformed {
                    line: line_of(place),
                    reason: reason.0.clone(),
                });
            }
            imported.note(place, &reason.0);
        }
        writing::set_aside(&transaction, intake, &items, &refused).await?;
        let written = Written {
            taken: (items.len() - refused.len()) as u64,
            dead: refused.len() as u64,
        };
        let advance = Advance {
            position: Some(&position),
            written,
            restored: 0,
        };
        advance
            .write(&transaction, intake, before.as_deref())
            .await?;
        step!("intake-written");
        commit(transaction, &warnings).await?;
        tenure.position = Some(position);
        Ok(written)
    }

    /// Sets a line aside that is larger than what is held at once.
    async fn take_large(
        &self,
        tenure: &mut Tenure,
        (line, first, mut end): (u64, Vec<u8>, Option<Mark>),
        mut ahead: Ahead,
        imported: &mut Imported,
    ) -> Result<Ahead, IntakeError> {
        let place = format!("line {line}");
        let reason = too_large(&BOUNDS);
        if self.is_strict {
            let reason = reason.0;
            return Err(IntakeError::Malformed { line, reason });
        }
        let (intake, before) = (tenure.intake, tenure.position.clone());
        let warnings = tenure.warnings();
        let transaction = tenure.transaction().await?;
        let mut letter = LargeLetter::begin(&transaction, intake, &place, "json", &reason).await?;
        letter.add(&transaction, &first).await?;
        let mark = loop {
            if let Some(mark) = end {
                break mark;
            }
            let (part, next) = ahead.next().await?;
            ahead = next;
            let Part::Piece {
                piece, end: now, ..
            } = part
            else {
                break Mark::default();
            };
            letter.add(&transaction, &piece).await?;
            end = now;
        };
        let written = letter.end(&transaction).await?;
        let position = mark.write();
        let advance = Advance {
            position: Some(&position),
            written,
            restored: 0,
        };
        advance
            .write(&transaction, intake, before.as_deref())
            .await?;
        commit(transaction, &warnings).await?;
        tenure.position = Some(position);
        imported.note(&place, &reason.0);
        imported.count(written, mark);
        Ok(ahead)
    }
}

impl Imported {
    fn count(&mut self, written: Written, mark: Mark) {
        self.taken += written.taken;
        self.dead += written.dead;
        self.lines = mark.lines - self.lines_before;
        self.bytes = mark.bytes;
    }

    fn note(&mut self, place: &str, reason: &str) {
        if self.first_dead.is_none() {
            self.first_dead = Some((line_of(place), reason.to_owned()));
        }
    }
}

fn items(lines: Vec<Line>) -> Vec<Item> {
    let item = |line: Line| Item {
        place: format!("line {}", line.number),
        body: Body::Json(line.text),
        doubt: None,
        event_id: None,
    };
    lines.into_iter().map(item).collect()
}

fn line_of(place: &str) -> u64 {
    place.trim_start_matches("line ").parse().unwrap_or(0)
}

/// Opens the lines; gives their identity, or `None` when there are none.
async fn open(path: &str, from: Box<dyn Read + Send>) -> Result<Option<(Lines, u64)>, IntakeError> {
    let opening = tokio::task::spawn_blocking(move || {
        let mut lines = Lines::new(from, BOUNDS, LargeLetter::PIECE)?;
        let identity = lines.identity()?;
        Ok(identity.map(|identity| (lines, identity)))
    });
    let opened = opening
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)));
    opened.map_err(|error| unreadable(path, error))
}

async fn skip(path: &str, mut lines: Lines, mark: Mark, name: &str) -> Result<Lines, IntakeError> {
    let skipping = tokio::task::spawn_blocking(move || {
        let is_same = lines.skip(mark)?;
        Ok((lines, is_same))
    });
    let skipped = skipping
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)));
    let (lines, is_same) = skipped.map_err(|error| unreadable(path, error))?;
    if is_same {
        return Ok(lines);
    }
    Err(IntakeError::Refused(format!(
        "{path} has changed in its first {} lines since the import {name} took them; give the file as it \
         was, or import all of it anew under another --name",
        mark.lines
    )))
}
