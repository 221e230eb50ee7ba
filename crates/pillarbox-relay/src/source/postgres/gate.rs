//! Between a COPY and a batch: rows of which a computed value is missing.

use crate::batch::Row;
use crate::expression::Missing;
use crate::sink::{Pushed, RowError};
use crate::source::{Rows, SourceError};

use super::outbox::Outbox;

/// Gives rows on, but for those that lack what the configuration wants them to have.
pub(super) struct Gate<'a, R> {
    into: &'a mut R,
    /// Columns that must not be null: their index, name, and what becomes of a row without.
    watched: Vec<(usize, &'a str, Missing)>,
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
            awaited: None,
        }
    }

    pub(super) fn push(&mut self, row: &Row<'_>) -> Result<Pushed, RowError> {
        let is_null = |index: usize| row.fields.get(index).copied().flatten().is_none();
        let lacks = self.watched.iter().find(|(index, ..)| is_null(*index));
        let Some(&(_, name, missing)) = lacks else {
            return self.into.push(row);
        };
        let error = RowError {
            tx: row.at.tx,
            id: row.at.id,
            column: name.to_owned(),
            reason: "what it refers to is missing".to_owned(),
        };
        if missing != Missing::Wait {
            return self.into.refuse(error);
        }
        if !self.into.close() {
            self.awaited = Some(error);
        }
        Ok(Pushed::NoRoom)
    }

    pub(super) fn refuse(&mut self, error: RowError) -> Result<Pushed, RowError> {
        self.into.refuse(error)
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
