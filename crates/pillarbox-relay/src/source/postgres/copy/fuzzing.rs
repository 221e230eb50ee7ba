//! Entry points of the fuzz target for binary COPY, and of its benchmark.

use bytes::Bytes;

use super::Decoder;
use crate::sink::Pushed;

/// A row: transaction, id, and the further columns.
pub type CopiedRow = (u64, i64, Vec<Option<Vec<u8>>>);

/// The rows that come out of chunks, and whether they were taken for whole COPYs. Rows that came before
/// a chunk that cannot be read are given, too.
pub fn decode_copy<'a>(
    columns: usize,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<CopiedRow>, bool) {
    let mut rows = Vec::new();
    let mut decoder = Decoder::new(columns, None);
    let is_read = chunks.into_iter().all(|chunk| {
        let fed = decoder.feed(Bytes::copy_from_slice(chunk), |row| {
            let fields = row.fields.iter().map(|field| field.map(<[u8]>::to_vec));
            rows.push((row.at.tx, row.at.id, fields.collect()));
            Ok(Pushed::Taken)
        });
        fed.is_ok()
    });
    (rows, is_read && decoder.end().is_ok())
}

/// How many rows a whole COPY has; `None` when it is not one.
pub fn count_copied(columns: usize, copy: &Bytes) -> Option<usize> {
    let mut decoder = Decoder::new(columns, None);
    let fed = decoder.feed(copy.clone(), |row| {
        std::hint::black_box(row);
        Ok(Pushed::Taken)
    });
    let is_whole = fed.is_ok() && decoder.end().is_ok();
    is_whole.then(|| decoder.taken() as usize)
}
