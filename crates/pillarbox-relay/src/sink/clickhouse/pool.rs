//! Buffers that go from one batch to the next: what a process gives back and takes again is not filled
//! with zeros by the kernel each time, and buffers of one size leave no gaps between them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::body::PIECE_BYTES_MAX;

/// Buffers of [`PIECE_BYTES_MAX`]. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool(Arc<Mutex<Shelf>>);

#[derive(Debug, Default)]
struct Shelf {
    free: Vec<Vec<u8>>,
    /// Buffers that were taken for the batch that is being encoded.
    taken: usize,
    /// Buffers to keep free at most: as many as the last batch took.
    kept: usize,
}

/// Bytes whose buffer comes back when nobody needs them any more.
struct Lent {
    bytes: Vec<u8>,
    pool: Pool,
}

impl Pool {
    /// An empty buffer.
    pub(super) fn take(&self) -> Vec<u8> {
        let mut shelf = self.shelf();
        shelf.taken += 1;
        let free = shelf.free.pop();
        free.unwrap_or_else(|| Vec::with_capacity(PIECE_BYTES_MAX))
    }

    /// The bytes, whoever needs them, until the last one does.
    pub(super) fn lend(&self, bytes: Vec<u8>) -> Bytes {
        let pool = self.clone();
        match bytes.capacity() {
            PIECE_BYTES_MAX => Bytes::from_owner(Lent { bytes, pool }),
            _ => Bytes::from(bytes),
        }
    }

    /// Keeps free, from now on, no more than the batch took that ends here: after a backlog, memory
    /// goes back.
    pub(super) fn end_batch(&self) {
        let mut shelf = self.shelf();
        shelf.kept = std::mem::take(&mut shelf.taken);
        let kept = shelf.kept;
        shelf.free.truncate(kept);
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
    fn buffers_come_back_as_many_as_the_last_batch_took() {
        let pool = Pool::default();
        let lent: Vec<Bytes> = (0..3).map(|_| pool.lend(pool.take())).collect();
        pool.end_batch();
        let clone = lent[0].clone();
        drop(lent);
        assert_eq!(free(&pool), 2, "one is needed still");
        drop(clone);
        assert_eq!(free(&pool), 3);

        let mut next = pool.take();
        assert!(next.is_empty() && next.capacity() == PIECE_BYTES_MAX);
        next.push(7);
        let next = pool.lend(next);
        assert_eq!(next, [7].as_slice());
        pool.end_batch();
        assert_eq!(free(&pool), 1, "a smaller batch keeps fewer");
        drop(next);
        assert_eq!(free(&pool), 1);
        pool.end_batch();
        assert_eq!(free(&pool), 0);
    }

    #[test]
    fn a_buffer_of_another_size_does_not_come_back() {
        let pool = Pool::default();
        drop(pool.take());
        pool.end_batch();
        drop(pool.lend(vec![1, 2, 3]));
        assert_eq!(free(&pool), 0);
    }
}
