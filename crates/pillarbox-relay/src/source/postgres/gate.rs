//! Between a COPY and a batch: rows of which a computed value is missing, or could not be computed.

use crate::batch::Row;
use crate::expression::Missing;
use crate::sink::{Pushed, RowError};
use crate::source::{Closed, Rows, SourceError};

use super::outbox::Outbox;

/// Gives rows on, but for those that lack what the configuration wants them to have.
pub(super) struct Gate<'a, R> {
    into: &'a mut R,
    /// Columns that must not be null: their index, name, and what becomes of a row without.
    watched: Vec<(usize, &'a str, Missing)>,
    /// Why the next row is refused, which was read without what is computed.
    refusing: Option<RowError>,
    /// What became of the last row that was refused in this way.
    refused: Option<Pushed>,
    awaited: Option<RowError>,
}

impl<'a, R: Rows> Gate<'a, R> {
    pub(super) fn new(into: &'a mut R, columns: &'a [String], outbox: Option<&Outbox>) -> Self {
        let watched = columns.iter().enumerate().filter_map(|(index, name)| {
            let column = outbox?.find(name)?;
            let missing = column.expression.as_ref()?.missing;
            (missing != Missing::Null).then_some((index, name.as_str(), missing))
        });
        Self {
            into,
            watched: watched.collect(),
            refusing: None,
            refused: None,
            awaited: None,
        }
    }

    pub(super) fn push(&mut self, row: &Row<'_>) -> Result<Pushed, RowError> {
        if self.refused.is_some() {
            return Ok(Pushed::NoRoom);
        }
        if let Some(error) = self.refusing.take() {
            let pushed = match self.into.leaves_out(row) {
                true => Pushed::Skipped,
                false => self.into.refuse(error)?,
            };
            self.refused = Some(pushed);
            return Ok(pushed);
        }
        let is_null = |index: usize| row.fields.get(index).copied().flatten().is_none();
        let lacks = self.watched.iter().find(|(index, ..)| is_null(*index));
        let Some(&(_, name, missing)) = lacks else {
            return self.into.push(row);
        };
        if self.into.leaves_out(row) {
            return Ok(Pushed::Skipped);
        }
        let error = RowError {
            tx: row.at.tx,
            id: row.at.id,
            column: name.to_owned(),
            reason: "what it refers to is missing".to_owned(),
        };
        let closed = match missing {
            Missing::Wait => self.into.close(),
            Missing::Null | Missing::DeadLetter => Closed::Refuse,
        };
        match closed {
            Closed::Refuse => self.into.refuse(error),
            Closed::Enough => Ok(Pushed::NoRoom),
            Closed::Wait => {
                self.awaited = Some(error);
                Ok(Pushed::NoRoom)
            }
        }
    }

    /// Refuses the next row, and takes none after it until that was asked for.
    pub(super) fn refuse_next(&mut self, error: RowError) {
        (self.refusing, self.refused) = (Some(error), None);
    }

    /// What became of the row that was to be refused; `None` when it did not come.
    pub(super) fn take_refused(&mut self) -> Option<Pushed> {
        self.refused.take()
    }

    /// # Errors
    /// When the first row lacks a value that is waited for.
    pub(super) fn awaited(&mut self) -> Result<(), SourceError> {
        match self.awaited.take() {
            Some(error) => Err(SourceError::Awaited(error)),
            None => Ok(()),
        }
    }
}
