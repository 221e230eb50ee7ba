//! Any rows through the Native encoder: the official client reads back what was put in.
//!
//! What each value must become is worked out here a second time, from the documentation of both formats.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};
use clickhouse::native::Block;
use libfuzzer_sys::fuzz_target;
use pillarbox_relay::fuzzing::{Encoded, FuzzedEncoder, sink_types};

mod official;

use official::Raw;

/// Types of the outbox, as object identifiers.
const GIVEN: [u32; 12] = [16, 20, 21, 23, 25, 114, 700, 701, 1082, 1184, 2950, 3802];
/// Of 2000-01-01 since 1970-01-01.
const EPOCH_DAYS: i64 = 10_957;
const EPOCH_US: i64 = EPOCH_DAYS * 86_400_000_000;
const PARTITIONS: [&str; 5] = [
    "",
    "toYYYYMM(c0)",
    "toYYYYMMDD(c0)",
    "toDate(c0)",
    "toMonday(c0)",
];

type Fields = Vec<Option<Vec<u8>>>;

fuzz_target!(|bytes: &[u8]| {
    let _ = run(&mut Unstructured::new(bytes));
});

fn run(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let columns = columns(input)?;
    let shown: Vec<(&str, u32, &str)> = columns
        .iter()
        .map(|(name, oid, of)| (name.as_str(), *oid, of.as_str()))
        .collect();
    let partition = *input.choose(&PARTITIONS)?;
    let Some(mut encoder) = FuzzedEncoder::new(&shown, partition, "", input.arbitrary()?) else {
        return Ok(());
    };
    let mut taken: Vec<Vec<Option<Vec<u8>>>> = Vec::new();
    for _ in 0..input.int_in_range(1..=40)? {
        let row = fields(input, &columns)?;
        let borrowed: Vec<Option<&[u8]>> = row.iter().map(Option::as_deref).collect();
        let wanted: Option<Vec<_>> = columns
            .iter()
            .zip(&row)
            .map(|((_, oid, of), field)| wanted(*oid, of, field.as_deref()))
            .collect();
        match encoder.push(&borrowed) {
            Some(is_taken) => {
                assert_eq!(is_taken, wanted.is_some(), "{columns:?} {row:?}");
                taken.extend(wanted);
            }
            None => assert!(!partition.is_empty(), "one partition always has room"),
        }
    }
    let batch = encoder.sink_value().to_le_bytes();
    compare(&columns, &taken, batch, encoder.finish());
    Ok(())
}

/// Each row is in one block, in the order in which it came, with the values that were put in.
fn compare(
    columns: &[(String, u32, String)],
    taken: &[Vec<Option<Vec<u8>>>],
    batch: [u8; 8],
    blocks: Vec<Encoded>,
) {
    let mut left: BTreeMap<&[Option<Vec<u8>>], usize> = BTreeMap::new();
    for row in taken {
        *left.entry(row).or_default() += 1;
    }
    let in_order = blocks.len() == 1;
    let mut seen: Vec<Vec<Option<Vec<u8>>>> = Vec::new();
    for encoded in blocks {
        let block = official::decode(encoded.body);
        assert_eq!(block.num_rows() as u64, encoded.rows);
        assert_eq!(block.columns().len(), columns.len() + 1);
        for ((name, _, of), column) in columns.iter().zip(block.columns()) {
            assert_eq!((column.name(), &column.data_type().to_string()), (name.as_str(), &wire(of)));
        }
        assert!(cells(&block, columns.len()).iter().all(|cell| *cell == Some(batch.to_vec())));
        let decoded: Vec<_> = (0..columns.len()).map(|column| cells(&block, column)).collect();
        for row in 0..block.num_rows() {
            seen.push(decoded.iter().map(|cells| cells[row].clone()).collect());
        }
    }
    if in_order {
        assert_eq!(seen, taken);
    }
    for row in &seen {
        let count = left.get_mut(row.as_slice()).expect("a row that was not put in");
        *count = count.checked_sub(1).expect("a row is there once too often");
    }
    assert!(left.values().all(|count| *count == 0), "a row is missing");
}

fn cells(block: &Block, column: usize) -> Vec<Option<Vec<u8>>> {
    let cells = block[column].iter::<Raw>().expect("any type is taken");
    cells.map(|cell| cell.expect("a value").0).collect()
}

/// The type in a block: the server makes a LowCardinality of its own.
fn wire(of: &str) -> String {
    let inner = of.strip_prefix("LowCardinality(");
    inner.map_or(of, |inner| &inner[..inner.len() - 1]).to_owned()
}

fn columns(input: &mut Unstructured<'_>) -> arbitrary::Result<Vec<(String, u32, String)>> {
    let mut columns = Vec::new();
    for at in 0..input.int_in_range(1..=6)? {
        let oid = *input.choose(&GIVEN)?;
        let plain = *input.choose(&sink_types())?;
        let of = match (input.ratio(1, 3)?, plain) {
            (false, plain) => plain.to_owned(),
            (true, "LowCardinality(String)") => "LowCardinality(Nullable(String))".to_owned(),
            (true, plain) => format!("Nullable({plain})"),
        };
        columns.push((format!("c{at}"), oid, of));
    }
    Ok(columns)
}

fn fields(
    input: &mut Unstructured<'_>,
    columns: &[(String, u32, String)],
) -> arbitrary::Result<Fields> {
    let fields = columns.iter().map(|(_, oid, _)| {
        if input.ratio(1, 8)? {
            return Ok(None);
        }
        Ok(Some(match oid {
            16 => vec![u8::from(bool::arbitrary(input)?)],
            20 | 701 => number(input)?.to_be_bytes().to_vec(),
            // Times near the bounds of the types as often as any.
            1184 => (number(input)? / 1000).to_be_bytes().to_vec(),
            21 => i16::arbitrary(input)?.to_be_bytes().to_vec(),
            23 | 700 | 1082 => (number(input)? as i32).to_be_bytes().to_vec(),
            2950 => <[u8; 16]>::arbitrary(input)?.to_vec(),
            3802 => [&[1], <&[u8]>::arbitrary(input)?].concat(),
            _ => <&[u8]>::arbitrary(input)?.to_vec(),
        }))
    });
    fields.collect()
}

fn number(input: &mut Unstructured<'_>) -> arbitrary::Result<i64> {
    let number = i64::arbitrary(input)?;
    Ok(number >> input.int_in_range(0..=63_u32)?)
}

/// The value's bytes in the block; inner `None` for null, outer `None` when it has no place there.
#[allow(clippy::option_option)]
fn wanted(oid: u32, of: &str, field: Option<&[u8]>) -> Option<Option<Vec<u8>>> {
    let of = wire(of);
    let inner = of.strip_prefix("Nullable(");
    let base = inner.map_or(of.as_str(), |inner| &inner[..inner.len() - 1]);
    let Some(field) = field else {
        return inner.map(|_| None);
    };
    let value = match oid {
        25 | 114 => field.to_vec(),
        3802 => field[1..].to_vec(),
        2950 if base == "String" => hyphenated(field),
        2950 => field[..8].iter().rev().chain(field[8..].iter().rev()).copied().collect(),
        16 => integer(i128::from(field[0]), base)?,
        21 => integer(i128::from(i16::from_be_bytes(field.try_into().ok()?)), base)?,
        23 => integer(i128::from(i32::from_be_bytes(field.try_into().ok()?)), base)?,
        20 => integer(i128::from(i64::from_be_bytes(field.try_into().ok()?)), base)?,
        700 if base == "Float32" => field.iter().rev().copied().collect(),
        700 => f64::from(f32::from_be_bytes(field.try_into().ok()?)).to_le_bytes().to_vec(),
        701 => field.iter().rev().copied().collect(),
        1082 => day(i32::from_be_bytes(field.try_into().ok()?), base)?,
        1184 => time(i64::from_be_bytes(field.try_into().ok()?), base)?,
        _ => unreachable!("not among the types of the outbox"),
    };
    Some(Some(value))
}

fn hyphenated(field: &[u8]) -> Vec<u8> {
    let hex: String = field.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    parts.join("-").into_bytes()
}

fn integer(value: i128, base: &str) -> Option<Vec<u8>> {
    if base == "Bool" {
        return Some(vec![value as u8]);
    }
    let bits: u32 = base.trim_start_matches(char::is_alphabetic).parse().ok()?;
    let (lowest, highest) = match base.starts_with('U') {
        true => (0, (1_i128 << bits) - 1),
        false => (-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1),
    };
    let fits = (lowest..=highest).contains(&value);
    fits.then(|| value.to_le_bytes()[..bits as usize / 8].to_vec())
}

fn day(days: i32, base: &str) -> Option<Vec<u8>> {
    if [i32::MIN, i32::MAX].contains(&days) {
        return None;
    }
    let days = i64::from(days) + EPOCH_DAYS;
    match base {
        "Date" => Some(u16::try_from(days).ok()?.to_le_bytes().to_vec()),
        "Date32" => (-25_567..=120_529)
            .contains(&days)
            .then(|| (days as i32).to_le_bytes().to_vec()),
        _ => instant(i128::from(days) * 86_400_000_000, base),
    }
}

fn time(us: i64, base: &str) -> Option<Vec<u8>> {
    if [i64::MIN, i64::MAX].contains(&us) {
        return None;
    }
    instant(i128::from(us) + i128::from(EPOCH_US), base)
}

fn instant(us: i128, base: &str) -> Option<Vec<u8>> {
    let Some(precision) = base.strip_prefix("DateTime64(") else {
        let seconds = u32::try_from(us.div_euclid(1_000_000)).ok()?;
        return Some(seconds.to_le_bytes().to_vec());
    };
    // 1900-01-01 to 2299-12-31.
    if !(-25_567..=120_529).contains(&us.div_euclid(86_400_000_000)) {
        return None;
    }
    let ticks = match precision.as_bytes()[0] - b'0' {
        fine @ 7.. => us * 10_i128.pow(u32::from(fine) - 6),
        coarse => us.div_euclid(10_i128.pow(6 - u32::from(coarse))),
    };
    Some(i64::try_from(ticks).ok()?.to_le_bytes().to_vec())
}
