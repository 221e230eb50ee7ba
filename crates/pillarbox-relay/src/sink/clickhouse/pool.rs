//! The buffers of columns, which go from one batch to the next: the kernel need not fill new ones with
//! zeros for each batch, and buffers of one size leave no gaps between them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::body::PIECE_BYTES_MAX;

/// Buffers of [`PIECE_BYTES_MAX`]. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool(Arc<Mutex<Shelf>>);

#[derive(Debug, Default)]
struct Shelf {
    free: Vec<Vec<u8>>,
    /// Buffers to keep free at most.
    kept: usize,
}

/// Bytes whose buffer comes back when nobody holds them any more.
struct Lent {
    bytes: Vec<u8>,
    pool: Pool,
}

impl Pool {
    /// An empty buffer.
    pub(super) fn take(&self) -> Vec<u8> {
        let free = self.shelf().free.pop();
        free.unwrap_or_else(|| Vec::with_capacity(PIECE_BYTES_MAX))
    }

    /// The bytes; their buffer comes back when nobody holds them any more.
    pub(super) fn lend(&self, bytes: Vec<u8>) -> Bytes {
        if bytes.capacity() != PIECE_BYTES_MAX {
            return Bytes::from(bytes);
        }
        let pool = self.clone();
        Bytes::from_owner(Lent { bytes, pool })
    }

    /// Keeps free, from now on, no more than so many.
    pub(super) fn keep(&self, buffers: usize) {
        let mut shelf = self.shelf();
        shelf.kept = buffers;
        shelf.free.truncate(buffers);
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut shelf = self.pool.shelf();
        if shelf.free.len() < shelf.kept {
            shelf.free.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(pool: &Pool) -> usize {
        pool.shelf().free.len()
    }

    #[test]
    fn buffers_come_back_and_no_more_are_kept_than_asked_for() {
        let pool = Pool::default();
        pool.keep(3);
        let lent: Vec<Bytes> = (0..4).map(|_| pool.lend(pool.take())).collect();
        let clone = lent[0].clone();
        drop(lent);
        assert_eq!(free(&pool), 3, "of four, one is held still");
        drop(clone);
        assert_eq!(free(&pool), 3);

        let mut next = pool.take();
        assert!(next.is_empty() && next.capacity() == PIECE_BYTES_MAX);
        next.push(7);
        let next = pool.lend(next);
        assert_eq!(next, [7].as_slice());
        pool.keep(1);
        assert_eq!(free(&pool), 1);
        drop(next);
        assert_eq!(free(&pool), 1);
        pool.keep(0);
        assert_eq!(free(&pool), 0);
    }

    #[test]
    fn a_buffer_of_another_size_does_not_come_back() {
        let pool = Pool::default();
        pool.keep(1);
        drop(pool.lend(vec![1, 2, 3]));
        assert_eq!(free(&pool), 0);
    }
}
