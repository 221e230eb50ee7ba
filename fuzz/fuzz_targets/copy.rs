//! Any bytes in any chunks as binary COPY: no panic, the same rows whatever the chunks, and rows only in
//! their order. Bytes that are rows come out as they went in.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pillarbox_relay::fuzzing::{CopiedRow, decode_copy};

#[derive(Arbitrary, Debug)]
struct Given<'a> {
    columns: u8,
    /// Where the bytes are cut into chunks.
    cuts: Vec<u8>,
    bytes: Bytes<'a>,
}

#[derive(Arbitrary, Debug)]
enum Bytes<'a> {
    Any(&'a [u8]),
    /// After the head of a COPY.
    Headed(&'a [u8]),
    /// COPYs, one after the other, with their rows in order.
    Rows(Vec<Vec<Vec<Option<&'a [u8]>>>>),
}

const HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

fuzz_target!(|given: Given<'_>| {
    let columns = usize::from(given.columns % 129);
    match given.bytes {
        Bytes::Any(bytes) => same_in_chunks(columns, bytes, &given.cuts),
        Bytes::Headed(bytes) => {
            same_in_chunks(columns, &[HEAD, bytes].concat(), &given.cuts);
        }
        Bytes::Rows(copies) => {
            let (copies, rows) = encode(columns, &copies);
            // A chunk never holds bytes of two COPYs: each is answered by itself.
            let chunks = copies.iter().flat_map(|copy| cut(copy, &given.cuts));
            let (decoded, is_whole) = decode_copy(columns, chunks);
            assert_eq!(decoded, rows);
            assert!(is_whole);
        }
    }
});

fn same_in_chunks(columns: usize, bytes: &[u8], cuts: &[u8]) {
    let whole = decode_copy(columns, [bytes]);
    let places: Vec<_> = whole.0.iter().map(|(tx, id, _)| (*tx, *id)).collect();
    assert!(places.is_sorted_by(|a, b| a < b));
    assert!(whole.0.iter().all(|(_, _, fields)| fields.len() == columns));
    // Where a chunk ends with the end of a COPY, another COPY may follow; in one piece it may not.
    for chunks in [cut(bytes, cuts), bytes.chunks(1).collect()] {
        let pieces = decode_copy(columns, chunks);
        assert!(pieces.0.starts_with(&whole.0));
        assert!(!whole.1 || pieces == whole);
    }
}

fn cut<'a>(bytes: &'a [u8], cuts: &[u8]) -> Vec<&'a [u8]> {
    let (mut rest, mut chunks) = (bytes, Vec::new());
    for length in cuts {
        let (chunk, later) = rest.split_at(usize::from(*length).min(rest.len()));
        chunks.push(chunk);
        rest = later;
    }
    chunks.push(rest);
    chunks
}

fn encode(
    columns: usize,
    copies: &[Vec<Vec<Option<&[u8]>>>],
) -> (Vec<Vec<u8>>, Vec<CopiedRow>) {
    let (mut encoded, mut rows) = (Vec::new(), Vec::new());
    for copy in copies {
        let mut bytes = HEAD.to_vec();
        for fields in copy {
            let place = rows.len() as u64 + 1;
            let (tx, id) = (place / 2 + 1, place as i64 - 100);
            bytes.extend((columns as i16 + 2).to_be_bytes());
            for number in [tx.to_be_bytes(), id.to_be_bytes()] {
                bytes.extend(8_i32.to_be_bytes());
                bytes.extend(number);
            }
            let mut given = fields.iter().copied();
            let fields: Vec<_> = (0..columns).map(|_| given.next().flatten()).collect();
            for field in &fields {
                match field {
                    None => bytes.extend((-1_i32).to_be_bytes()),
                    Some(field) => {
                        bytes.extend((field.len() as i32).to_be_bytes());
                        bytes.extend(*field);
                    }
                }
            }
            let fields = fields.iter().map(|field| field.map(<[u8]>::to_vec));
            rows.push((tx, id, fields.collect()));
        }
        bytes.extend((-1_i16).to_be_bytes());
        encoded.push(bytes);
    }
    (encoded, rows)
}
