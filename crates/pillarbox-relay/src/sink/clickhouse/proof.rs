//! What the digest of a batch covers of each row. Pure.

use super::column::ColumnType;
use super::digest;
use super::plan::{Layout, Planned};
use super::value::Value;
use crate::batch::Row;
use crate::sink::{RowError, Terms};

/// The columns that a digest covers, in its order.
#[derive(Debug)]
pub(super) struct Proof {
    proven: Vec<Proven>,
    /// Columns that are read for the digest only, after those of the layout.
    gone: Vec<Planned>,
    /// What is hashed of the last row.
    text: Vec<u8>,
}

#[derive(Debug)]
struct Proven {
    index: usize,
    /// Its type when the batch was sealed, where that was another one.
    of: Option<ColumnType>,
}

impl Proof {
    /// Of a batch that is sealed now.
    pub(super) fn of_today(layout: &Layout) -> Self {
        let today = |index: &usize| Proven {
            index: *index,
            of: None,
        };
        Self {
            proven: layout.digest.iter().map(today).collect(),
            gone: Vec::new(),
            text: Vec::new(),
        }
    }

    /// Of a batch that was sealed on these terms. The columns in `gone` are read after those of the layout.
    pub(super) fn of_terms(layout: &Layout, terms: &Terms, gone: Vec<Planned>) -> Self {
        let sealed = terms.proven.iter().zip(0..);
        let proven = sealed.filter_map(|(name, nth): (_, usize)| {
            let mut columns = layout.columns.iter().chain(&gone);
            let index = columns.position(|column| column.name == *name)?;
            let Some(planned) = layout.columns.get(index) else {
                let of = gone.get(index - layout.columns.len())?.of.clone();
                return Some(Proven {
                    index,
                    of: Some(of),
                });
            };
            let of = terms.types.get(nth).map(|of| ColumnType::parse(of));
            let of = of.flatten().filter(|of| *of != planned.of);
            Some(Proven { index, of })
        });
        Self {
            proven: proven.collect(),
            gone,
            text: Vec::new(),
        }
    }

    /// Whether it covers the column at this index.
    pub(super) fn covers(&self, index: usize) -> bool {
        self.proven.iter().any(|proven| proven.index == index)
    }

    /// What the row adds to the digest of its block; `values` are those of the layout's columns.
    pub(super) fn hash(
        &mut self,
        layout: &Layout,
        row: &Row<'_>,
        values: &[Value<'_>],
    ) -> Result<u64, RowError> {
        if self.proven.is_empty() {
            return Ok(0);
        }
        self.text.clear();
        for Proven { index, of } in &self.proven {
            match of {
                None => digest::append(&mut self.text, &values[*index]),
                Some(of) => {
                    let mut columns = layout.columns.iter().chain(&self.gone);
                    let Some(column) = columns.nth(*index) else {
                        continue;
                    };
                    let value = column.value_of(of, row, *index)?;
                    digest::append(&mut self.text, &value);
                }
            }
        }
        Ok(digest::hash(&self.text))
    }
}
