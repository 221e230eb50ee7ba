//! Decodes binary COPY output into rows. Pure.
//!
//! Format: PostgreSQL documentation, COPY, "Binary Format".

use bytes::{Buf as _, Bytes, BytesMut};

use crate::batch::Row;
use crate::sink::{Pushed, RowError};
use crate::snapshot::Cut;

/// Columns of a plan at most, so that a row's fields need no allocation.
pub(super) const COLUMNS_MAX: usize = 128;
/// Fields of most plans at most: an array for all of them takes longer to clear than a row to decode.
const COLUMNS_USUAL: usize = 16;

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// In the place of a row's number of columns.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();
const HEADER_FIXED: usize = SIGNATURE.len() + 8;

/// What a COPY could not be read for.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    /// The bytes are not what the format promises, or out of order.
    #[error("the rows that postgresql sent cannot be read: {0}")]
    Malformed(&'static str),
    /// The sink cannot represent a row.
    #[error(transparent)]
    Row(#[from] RowError),
}

/// Decodes the chunks of COPYs that follow one another.
#[derive(Debug)]
pub(super) struct Decoder {
    columns: usize,
    begun: bool,
    pending: BytesMut,
    last: Option<Cut>,
    taken: u64,
}

impl Decoder {
    /// For rows of `tx`, `id` and `columns` further columns, all after `last`.
    pub(super) fn new(columns: usize, last: Option<Cut>) -> Self {
        Self {
            columns,
            begun: false,
            pending: BytesMut::new(),
            last,
            taken: 0,
        }
    }

    /// The last row that was taken.
    pub(super) fn last(&self) -> Option<Cut> {
        self.last
    }

    /// How many rows were taken.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Gives each whole row of the chunk to `take` until it has no room.
    pub(super) fn feed(
        &mut self,
        chunk: Bytes,
        mut take: impl FnMut(&Row<'_>) -> Result<Pushed, RowError>,
    ) -> Result<Pushed, CopyError> {
        if self.pending.is_empty() {
            let mut rest = chunk;
            let pushed = self.drain(&mut rest, &mut take)?;
            self.pending.extend_from_slice(&rest);
            return Ok(pushed);
        }
        self.pending.extend_from_slice(&chunk);
        let mut rest = std::mem::take(&mut self.pending).freeze();
        let pushed = self.drain(&mut rest, &mut take)?;
        self.pending.extend_from_slice(&rest);
        Ok(pushed)
    }

    fn drain(
        &mut self,
        rest: &mut Bytes,
        take: &mut impl FnMut(&Row<'_>) -> Result<Pushed, RowError>,
    ) -> Result<Pushed, CopyError> {
        if !self.begun && !rest.is_empty() {
            let Some(length) = header_length(rest)? else {
                return Ok(Pushed::Taken);
            };
            rest.advance(length);
            self.begun = true;
        }
        loop {
            if rest.starts_with(&TRAILER) {
                rest.advance(TRAILER.len());
                if !rest.is_empty() {
                    return Err(CopyError::Malformed("something follows the end of a copy"));
                }
                self.begun = false;
                return Ok(Pushed::Taken);
            }
            let Some((length, pushed)) = self.row(rest, take)? else {
                return Ok(Pushed::Taken);
            };
            if pushed == Pushed::NoRoom {
                return Ok(Pushed::NoRoom);
            }
            rest.advance(length);
        }
    }

    /// Checks that the last COPY came to its end: half of one would close a window too early.
    pub(super) fn end(&self) -> Result<(), CopyError> {
        if self.begun || !self.pending.is_empty() {
            return Err(CopyError::Malformed("a copy ended in the middle"));
        }
        Ok(())
    }

    /// The first row of `bytes`: its length and what became of it; `None` when it is not whole.
    fn row(
        &mut self,
        bytes: &[u8],
        take: &mut impl FnMut(&Row<'_>) -> Result<Pushed, RowError>,
    ) -> Result<Option<(usize, Pushed)>, CopyError> {
        match self.columns + 2 <= COLUMNS_USUAL {
            true => self.row_within::<COLUMNS_USUAL>(bytes, take),
            false => self.row_within::<{ COLUMNS_MAX + 2 }>(bytes, take),
        }
    }

    /// The same, of at most `N` fields.
    fn row_within<const N: usize>(
        &mut self,
        bytes: &[u8],
        take: &mut impl FnMut(&Row<'_>) -> Result<Pushed, RowError>,
    ) -> Result<Option<(usize, Pushed)>, CopyError> {
        let Some(count) = bytes
            .first_chunk::<2>()
            .map(|count| i16::from_be_bytes(*count))
        else {
            return Ok(None);
        };
        if usize::try_from(count) != Ok(self.columns + 2) {
            return Err(CopyError::Malformed("a row has another number of columns"));
        }
        let mut at = 2;
        let mut fields = [None; N];
        for field in fields.iter_mut().take(self.columns + 2) {
            let Some(length) = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()) else {
                return Ok(None);
            };
            at += 4;
            let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
                continue;
            };
            let Some(value) = bytes.get(at..at + length) else {
                return Ok(None);
            };
            *field = Some(value);
            at += length;
        }
        let cut = Cut {
            tx: u64::from_be_bytes(eight(fields[0])?),
            id: i64::from_be_bytes(eight(fields[1])?),
        };
        // The order is the index's; a plan that sorts otherwise would cut a batch in a wrong place.
        if self.last.is_some_and(|last| cut <= last) {
            return Err(CopyError::Malformed(
                "rows are not in the order of (tx, id)",
            ));
        }
        let pushed = take(&Row {
            at: cut,
            fields: &fields[2..self.columns + 2],
        })?;
        if pushed != Pushed::NoRoom {
            self.last = Some(cut);
        }
        if pushed == Pushed::Taken {
            self.taken += 1;
        }
        Ok(Some((at, pushed)))
    }
}

fn header_length(bytes: &[u8]) -> Result<Option<usize>, CopyError> {
    let Some(fixed) = bytes.get(..HEADER_FIXED) else {
        return Ok(None);
    };
    if !fixed.starts_with(SIGNATURE) {
        return Err(CopyError::Malformed("the copy has no signature"));
    }
    let extension = fixed
        .last_chunk::<4>()
        .map_or(0, |length| u32::from_be_bytes(*length));
    let length = HEADER_FIXED + usize::try_from(extension).unwrap_or(usize::MAX);
    Ok((bytes.len() >= length).then_some(length))
}

fn eight(field: Option<&[u8]>) -> Result<[u8; 8], CopyError> {
    field
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(CopyError::Malformed("tx or id is not eight bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// The rows of one row after the other, whatever comes, and whether all of it was whole.
    fn decoded(chunks: &[&[u8]]) -> (Seen, bool) {
        let mut seen = Seen::new();
        let mut decoder = Decoder::new(1, None);
        let is_read = chunks.iter().all(|chunk| {
            let fed = decoder.feed(Bytes::copy_from_slice(chunk), |row| {
                seen.push((row.at.tx, row.at.id, row.fields[0].map(<[u8]>::to_vec)));
                Ok(Pushed::Taken)
            });
            fed.is_ok()
        });
        (seen, is_read && decoder.end().is_ok())
    }

    proptest! {
        /// Any bytes, and valid ones with a few changed: no panic, and chunks change nothing.
        #[test]
        fn chunks_change_nothing(
            any_bytes in vec(any::<u8>(), 0..80),
            contexts in vec(proptest::option::of(vec(any::<u8>(), 0..20)), 0..5),
            changed in vec((any::<usize>(), any::<u8>()), 0..3),
            is_copy: bool,
            cut in any::<usize>(),
        ) {
            let rows: Vec<_> = (1..).zip(&contexts).map(|(id, c)| (7, id, c.as_deref())).collect();
            let mut bytes = if is_copy { copy_of(&rows) } else { any_bytes };
            for (at, byte) in changed {
                let length = bytes.len().max(1);
                if let Some(place) = bytes.get_mut(at % length) {
                    *place = byte;
                }
            }
            let whole = decoded(&[&bytes]);
            let (first, second) = bytes.split_at(cut % (bytes.len() + 1));
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            for pieces in [decoded(&[first, second]), decoded(&single)] {
                prop_assert!(pieces.0.starts_with(&whole.0));
                prop_assert!(!whole.1 || pieces == whole);
            }
        }
    }

    fn copy_of(rows: &[(u64, i64, Option<&[u8]>)]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0; 8]);
        for (tx, id, context) in rows {
            bytes.extend(3_i16.to_be_bytes());
            bytes.extend(8_i32.to_be_bytes());
            bytes.extend(tx.to_be_bytes());
            bytes.extend(8_i32.to_be_bytes());
            bytes.extend(id.to_be_bytes());
            match context {
                None => bytes.extend((-1_i32).to_be_bytes()),
                Some(context) => {
                    bytes.extend(i32::try_from(context.len()).unwrap().to_be_bytes());
                    bytes.extend(*context);
                }
            }
        }
        bytes.extend((-1_i16).to_be_bytes());
        bytes
    }

    type Seen = Vec<(u64, i64, Option<Vec<u8>>)>;

    #[test]
    fn copies_follow_one_another_in_every_split() {
        let first = copy_of(&[(7, 1, None), (7, 2, None)]);
        let (empty, last) = (copy_of(&[]), copy_of(&[(7, 3, None)]));
        for piece in 1..=first.len() {
            let mut seen = Vec::new();
            let mut decoder = Decoder::new(1, None);
            for copy in [&first, &empty, &last] {
                for chunk in copy.chunks(piece) {
                    let chunk = Bytes::copy_from_slice(chunk);
                    let pushed = decoder.feed(chunk, |row| {
                        seen.push(row.at.id);
                        Ok(Pushed::Taken)
                    });
                    assert_eq!(pushed.unwrap(), Pushed::Taken);
                }
                decoder.end().unwrap();
            }
            assert_eq!(seen, [1, 2, 3], "chunks of {piece} bytes");
        }
    }

    #[test]
    fn half_a_copy_is_refused() {
        let bytes = copy_of(&[(7, 1, None)]);
        for length in 1..bytes.len() {
            let mut decoder = Decoder::new(1, None);
            let half = Bytes::copy_from_slice(&bytes[..length]);
            decoder.feed(half, |_| Ok(Pushed::Taken)).unwrap();
            assert!(decoder.end().is_err(), "{length} bytes");
        }
    }

    fn read(bytes: &[u8], piece: usize) -> Result<Seen, CopyError> {
        let mut seen = Seen::new();
        let mut decoder = Decoder::new(1, None);
        for chunk in bytes.chunks(piece) {
            decoder.feed(Bytes::copy_from_slice(chunk), |row| {
                seen.push((row.at.tx, row.at.id, row.fields[0].map(<[u8]>::to_vec)));
                Ok(Pushed::Taken)
            })?;
        }
        Ok(seen)
    }

    #[test]
    fn rows_survive_every_split_into_chunks() {
        let bytes = copy_of(&[(7, 1, Some(b"{}")), (7, 2, None), (9, -3, Some(b""))]);
        for piece in 1..=bytes.len() {
            let seen = read(&bytes, piece).unwrap();
            let expected: Seen = vec![
                (7, 1, Some(b"{}".to_vec())),
                (7, 2, None),
                (9, -3, Some(Vec::new())),
            ];
            assert_eq!(seen, expected, "chunks of {piece} bytes");
        }
    }

    #[test]
    fn rows_out_of_order_are_refused() {
        let bytes = copy_of(&[(7, 2, None), (7, 2, None)]);
        assert!(matches!(read(&bytes, 1024), Err(CopyError::Malformed(_))));
    }

    #[test]
    fn a_row_without_room_is_not_counted() {
        let bytes = copy_of(&[(7, 1, None), (7, 2, None)]);
        let mut decoder = Decoder::new(1, None);
        let mut room = 1;
        let pushed = decoder
            .feed(Bytes::from(bytes), |_| {
                room -= 1;
                Ok(if room >= 0 {
                    Pushed::Taken
                } else {
                    Pushed::NoRoom
                })
            })
            .unwrap();
        assert_eq!(pushed, Pushed::NoRoom);
        assert_eq!(decoder.last, Some(Cut { tx: 7, id: 1 }));
    }
}
