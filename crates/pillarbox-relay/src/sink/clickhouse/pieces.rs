//! Bytes that are appended to and then given away without a copy.

use bytes::Bytes;

use super::pool::Pool;
use crate::body::{PIECE_BYTES_MAX, Place};

/// Size of the first piece: a batch may have few rows and many partitions.
const FIRST_PIECE_BYTES: usize = 4 * 1024;
/// A text from this size on may lie in several pieces: more room than this is never left at the end of one.
pub(super) const LONG_TEXT_BYTES: usize = 64 * 1024;

/// Pieces of one column, or of the head of a block.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    full: Vec<Bytes>,
    open: Vec<u8>,
    pool: Pool,
}

impl Pieces {
    pub(super) fn of(pool: &Pool) -> Self {
        Self {
            full: Vec::new(),
            open: Vec::new(),
            pool: pool.clone(),
        }
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.make_room(bytes.len());
        self.open.extend_from_slice(bytes);
    }

    /// The first `width` of the bytes. A copy of a width that is known here is one instruction, not a call.
    pub(super) fn number<const N: usize>(&mut self, bytes: &[u8; N], width: usize) {
        self.make_room(width);
        let to = &mut self.open;
        match width {
            1 => to.extend_from_slice(bytes.first_chunk::<1>().unwrap_or(&[0])),
            2 => to.extend_from_slice(bytes.first_chunk::<2>().unwrap_or(&[0; 2])),
            4 => to.extend_from_slice(bytes.first_chunk::<4>().unwrap_or(&[0; 4])),
            8 => to.extend_from_slice(bytes.first_chunk::<8>().unwrap_or(&[0; 8])),
            16 => to.extend_from_slice(bytes.first_chunk::<16>().unwrap_or(&[0; 16])),
            _ => to.extend_from_slice(&bytes[..width]),
        }
    }

    /// Makes room for `more` bytes in one piece: by doubling up to the size of a piece, then by opening
    /// another one.
    #[inline]
    fn make_room(&mut self, more: usize) {
        // A piece may get more room than was asked for; where values lie in it must not depend on that.
        if self.open.len() + more > self.open.capacity().min(PIECE_BYTES_MAX) {
            self.grow(more);
        }
    }

    #[cold]
    fn grow(&mut self, more: usize) {
        let wanted = self.open.len() + more;
        let doubled = wanted.max(self.open.capacity() * 2).max(FIRST_PIECE_BYTES);
        if doubled < PIECE_BYTES_MAX {
            self.open.reserve_exact(doubled - self.open.len());
            return;
        }
        let next = match more {
            ..=PIECE_BYTES_MAX => self.pool.take(),
            _ => Vec::with_capacity(more),
        };
        let last = std::mem::replace(&mut self.open, next);
        if wanted <= PIECE_BYTES_MAX {
            self.open.extend_from_slice(&last);
        } else {
            self.close(last);
        }
    }

    fn close(&mut self, piece: Vec<u8>) {
        if !piece.is_empty() {
            self.full.push(self.pool.lend(piece));
        }
    }

    /// Buffers of the pool in it, at most.
    pub(super) fn pooled(&self) -> usize {
        self.full.len() + usize::from(self.open.capacity() == PIECE_BYTES_MAX)
    }

    pub(super) fn zeros(&mut self, count: usize) {
        self.make_room(count);
        self.open.resize(self.open.len() + count, 0);
    }

    /// Bytes, filled up with zeros.
    pub(super) fn filled(&mut self, bytes: &[u8], width: usize) {
        self.make_room(width);
        let end = self.open.len() + width;
        self.open.extend_from_slice(bytes);
        self.open.resize(end, 0);
    }

    /// A length or a count.
    pub(super) fn varint(&mut self, number: u64) {
        let mut buffer = [0; VARINT_BYTES];
        let length = varint(number, &mut buffer);
        self.raw(&buffer[..length]);
    }

    /// A length and so many bytes; their place, unless it is too far away.
    pub(super) fn text(&mut self, bytes: &[u8]) -> Option<Place> {
        if bytes.len() >= LONG_TEXT_BYTES {
            return self.long_text(bytes);
        }
        self.make_room(VARINT_BYTES + bytes.len());
        let place = Place::new(self.full.len(), self.open.len());
        if bytes.len() < 0x80 {
            self.open.push(bytes.len() as u8);
        } else {
            let mut buffer = [0; VARINT_BYTES];
            let length = varint(bytes.len() as u64, &mut buffer);
            self.open.extend_from_slice(&buffer[..length]);
        }
        self.open.extend_from_slice(bytes);
        place
    }

    #[cold]
    fn long_text(&mut self, mut bytes: &[u8]) -> Option<Place> {
        self.make_room(VARINT_BYTES);
        let place = Place::new(self.full.len(), self.open.len());
        self.varint(bytes.len() as u64);
        while !bytes.is_empty() {
            self.make_room(1);
            let room = PIECE_BYTES_MAX - self.open.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.raw(now);
            bytes = later;
        }
        place
    }

    pub(super) fn into_bytes(mut self) -> Vec<Bytes> {
        let last = std::mem::take(&mut self.open);
        self.close(last);
        self.full
    }
}

const VARINT_BYTES: usize = 10;

/// Writes a number as LEB128; its length.
fn varint(mut number: u64, buffer: &mut [u8; VARINT_BYTES]) -> usize {
    let mut length = 0;
    while number >= 0x80 {
        buffer[length] = (number & 0x7f) as u8 | 0x80;
        number >>= 7;
        length += 1;
    }
    buffer[length] = number as u8;
    length + 1
}
