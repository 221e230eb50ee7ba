//! What the relay does with each row, by itself: decode a COPY, encode, hash, put in order, gather.
//!
//! Times of a shared machine; `make bench-micro` prints the instructions beside them.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pillarbox_relay::fuzzing::{FuzzedEncoder, count_copied};
use pillarbox_testkit::sample::{COLUMNS, PARTITION, SORTING_KEY, copy_of, rows};

/// Rows of a block: enough that it does not fit in a core's cache.
const ROWS: usize = 20_000;

fn rows_of_a_block(criterion: &mut Criterion) {
    let rows = rows();
    let mut group = criterion.benchmark_group("rows");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.sample_size(30);
    let encode = |key: &str, has_digest: bool| {
        let encoder = FuzzedEncoder::new(&COLUMNS, PARTITION, key, 1)?;
        let mut encoder = match has_digest {
            true => encoder,
            false => encoder.without_digest(),
        };
        for row in rows.iter().cycle().take(ROWS) {
            let fields = row.each_ref().map(|field| Some(field.as_slice()));
            encoder.push(&fields)?;
        }
        Some(encoder)
    };
    group.bench_function("encode", |bench| bench.iter(|| encode("", false)));
    group.bench_function("encode, digest", |bench| bench.iter(|| encode("", true)));
    group.bench_function("encode, digest, sort", |bench| {
        bench.iter(|| encode(SORTING_KEY, true));
    });
    group.bench_function("encode, digest, sort, gather", |bench| {
        bench.iter(|| encode(SORTING_KEY, true).map(FuzzedEncoder::finish));
    });
    let block: Vec<_> = rows.iter().cycle().take(ROWS).cloned().collect();
    let copy = copy_of(&block);
    group.bench_function("decode", |bench| {
        bench.iter(|| count_copied(COLUMNS.len(), &copy));
    });
    group.finish();
}

criterion_group!(benches, rows_of_a_block);
criterion_main!(benches);
