//! The encoder, taken apart again by a decoder of Native that knows nothing of it.

use std::sync::Arc;

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::column::{ColumnType, Given};
use super::digest;
use super::native::{BLOCKS_MAX, NativeEncoder};
use super::order::Order;
use super::partition::Rule;
use super::pieces::LONG_TEXT_BYTES;
use super::plan::{Layout, Planned};
use super::pool::Pool;
use crate::batch::{EncodedBlock, Row};
use crate::body::PIECE_BYTES_MAX;
use crate::sink::{Encoder, Pushed, RowError};
use crate::snapshot::Cut;

const PG_EPOCH_US: i64 = 946_684_800_000_000;
const DAY_US: i64 = 86_400_000_000;

fn layout(columns: &[(&str, Given, &str)], partition: &str) -> Arc<Layout> {
    layout_sorted(columns, partition, "")
}

fn layout_sorted(columns: &[(&str, Given, &str)], partition: &str, key: &str) -> Arc<Layout> {
    let columns: Vec<Planned> = columns
        .iter()
        .map(|(name, given, of)| Planned {
            name: (*name).to_owned(),
            given: *given,
            of: ColumnType::parse(of).unwrap(),
        })
        .collect();
    let find = |name: &str| {
        let at = columns.iter().position(|column| column.name == name)?;
        Some((at, columns[at].of.clone()))
    };
    let rule = Rule::parse(partition, Some(TimeZone::UTC), false, find).unwrap();
    let order = Order::parse(key, None, find, |_| None);
    let digest = (0..columns.len()).collect();
    Arc::new(Layout {
        columns,
        digest,
        batch: true,
        rule,
        order,
        redaction: None,
    })
}

fn push(encoder: &mut NativeEncoder, fields: &[Option<&[u8]>]) -> Result<Pushed, RowError> {
    encoder.push(&Row {
        at: Cut { tx: 7, id: 1 },
        fields,
    })
}

fn timestamp(us: i64) -> [u8; 8] {
    (us - PG_EPOCH_US).to_be_bytes()
}

/// Reads a Native block into its columns: name, type, values.
fn decode(block: &EncodedBlock) -> Vec<(String, String, Vec<Vec<u8>>)> {
    let bytes = block.body.concat();
    let mut rest = bytes.as_slice();
    let (columns, rows) = (varint(&mut rest), varint(&mut rest));
    assert_eq!(rows, block.block.rows);
    let decoded = (0..columns).map(|_| {
        let (name, of) = (string(&mut rest), string(&mut rest));
        let of = String::from_utf8(of).unwrap();
        let base = of
            .strip_prefix("Nullable(")
            .and_then(|of| of.strip_suffix(')'));
        let nulls = base.map(|_| take(&mut rest, rows as usize).to_vec());
        let values = (0..rows as usize).map(|row| {
            let value = value(&mut rest, base.unwrap_or(&of));
            let is_null = nulls.as_ref().is_some_and(|nulls| nulls[row] == 1);
            if is_null { b"null".to_vec() } else { value }
        });
        let values = values.collect();
        (String::from_utf8(name).unwrap(), of, values)
    });
    let decoded = decoded.collect();
    assert!(rest.is_empty());
    decoded
}

fn value(rest: &mut &[u8], of: &str) -> Vec<u8> {
    let width = match of {
        "String" => return string(rest),
        "UInt8" | "Int8" | "Bool" => 1,
        "UInt16" | "Int16" | "Date" => 2,
        "UInt32" | "Int32" | "Float32" | "Date32" => 4,
        "UUID" => 16,
        of if of.starts_with("DateTime") && !of.starts_with("DateTime64") => 4,
        _ => 8,
    };
    take(rest, width).to_vec()
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, left) = rest.split_at(count);
    *rest = left;
    taken
}

fn varint(rest: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..).step_by(7) {
        let byte = take(rest, 1)[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    number
}

fn string(rest: &mut &[u8]) -> Vec<u8> {
    let length = varint(rest) as usize;
    take(rest, length).to_vec()
}

/// So many bytes, none of which is like its neighbours.
fn patterned(length: usize) -> Vec<u8> {
    let pattern: Vec<u8> = (0..251).map(|at| at ^ length as u8).collect();
    let mut bytes = pattern.repeat(length / pattern.len() + 1);
    bytes.truncate(length);
    bytes
}

proptest! {
    // Each case hashes up to 1.5 MB, slowly in a debug build.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_block_holds_exactly_its_rows(
        rows in proptest::collection::vec((
            any::<Vec<u8>>(),
            0_i64..=i64::from(u32::MAX) * 1_000_000 + 999_999,
            any::<u32>(),
            proptest::option::of(any::<[u8; 16]>()),
        ), 1..60),
        large in 0_usize..1_500_000,
    ) {
        let layout = layout(&[
            ("text", Given::Text, "LowCardinality(String)"),
            ("at", Given::Timestamp, "DateTime('UTC')"),
            ("number", Given::Int8, "UInt32"),
            ("uuid", Given::Uuid, "Nullable(UUID)"),
        ], "");
        let mut encoder = NativeEncoder::new(layout, None);
        let mut expected: Vec<Vec<Vec<u8>>> = vec![Vec::new(); 4];
        let mut sum = 0_u64;
        for (at, (text, us, number, uuid)) in rows.iter().enumerate() {
            let text = if at == 0 { vec![b'x'; large] } else { text.clone() };
            let (time, wide) = (timestamp(*us), i64::from(*number).to_be_bytes());
            let pushed = push(&mut encoder, &[
                Some(&text), Some(&time), Some(&wide), uuid.as_ref().map(<[u8; 16]>::as_slice),
            ]);
            prop_assert_eq!(pushed, Ok(Pushed::Taken));
            let seconds = us / 1_000_000;
            let shown = uuid.map(uuid::Uuid::from_bytes);
            let row = format!("{}:", text.len()).into_bytes().into_iter().chain(text.clone())
                .chain(format!("{}:{seconds}{}:{number}{}", seconds.to_string().len(),
                    number.to_string().len(), shown.map_or("~".to_owned(), |id| format!("36:{id}"))).into_bytes());
            sum = sum.wrapping_add(digest::hash(&row.collect::<Vec<u8>>()));
            expected[0].push(text);
            expected[1].push((seconds as u32).to_le_bytes().to_vec());
            expected[2].push(number.to_le_bytes().to_vec());
            expected[3].push(uuid.map_or(b"null".to_vec(), |id| {
                id[..8].iter().rev().chain(id[8..].iter().rev()).copied().collect()
            }));
        }
        let blocks = encoder.finish(0xABCD);
        prop_assert_eq!(blocks.len(), 1);
        prop_assert_eq!(blocks[0].block.digest, sum);
        let decoded = decode(&blocks[0]);
        let types: Vec<&str> = decoded.iter().map(|(_, of, _)| of.as_str()).collect();
        prop_assert_eq!(types, ["String", "DateTime('UTC')", "UInt32", "Nullable(UUID)", "UInt64"]);
        for (column, expected) in decoded.iter().zip(&expected) {
            prop_assert_eq!(&column.2, expected);
        }
        prop_assert!(decoded[4].2.iter().all(|value| value == &0xABCD_u64.to_le_bytes()));
    }

    /// No batch overwrites the bytes of one before it that somebody still holds.
    #[test]
    fn batches_that_share_buffers_are_those_that_do_not(
        batches in proptest::collection::vec(
            (0_i32..6, 1_usize..900_000, any::<bool>(), any::<bool>()), 1..6,
        ),
    ) {
        let pool = Pool::default();
        let mut held = Vec::new();
        for (rows, length, is_sorted, is_held) in batches {
            let columns = [("n", Given::Int4, "Int32"), ("text", Given::Text, "String")];
            let layout = layout_sorted(&columns, "", if is_sorted { "n" } else { "" });
            let encode = |mut encoder: NativeEncoder| {
                for n in (0..rows).rev() {
                    let text = patterned(length / (n as usize + 1));
                    push(&mut encoder, &[Some(&n.to_be_bytes()), Some(&text)]).unwrap();
                }
                encoder.finish(7)
            };
            let new = || NativeEncoder::new(Arc::clone(&layout), None);
            for (shared, own) in encode(new().with_buffers_of(&pool)).into_iter().zip(encode(new())) {
                held.push((shared.body, own.body.concat()));
            }
            for (shared, own) in &held {
                prop_assert!(shared.concat() == *own);
            }
            if !is_held {
                held.clear();
            }
        }
    }

    /// The rows are those of a block that came in order: no value is lost, doubled or in another's row.
    #[test]
    fn rows_that_are_put_in_order_are_the_same_as_rows_that_came_in_it(
        rows in proptest::collection::vec((
            "[ab]{1,3}",
            0_i64..20_000,
            proptest::option::of(any::<i32>()),
            proptest::collection::vec(any::<u8>(), 0..3),
            proptest::option::of(prop_oneof![
                8 => 0_usize..300, 2 => 60_000_usize..70_000, 1 => 500_000_usize..1_100_000,
            ]),
        ), 1..40),
    ) {
        let columns = [
            ("kind", Given::Text, "String"),
            ("at", Given::Timestamp, "DateTime('UTC')"),
            ("number", Given::Int4, "Nullable(Int32)"),
            ("fixed", Given::Text, "FixedString(3)"),
            ("text", Given::Text, "Nullable(String)"),
        ];
        let encode = |rows: &[_], key: &str| {
            let mut encoder = NativeEncoder::new(layout_sorted(&columns, "", key), None);
            for (kind, seconds, number, fixed, length) in rows {
                let kind: &String = kind;
                let (time, number): (_, &Option<i32>) = (timestamp(seconds * 1_000_000), number);
                let number = number.map(i32::to_be_bytes);
                let (fixed, length): (&Vec<u8>, &Option<usize>) = (fixed, length);
                let text = length.map(patterned);
                let pushed = push(&mut encoder, &[
                    Some(kind.as_bytes()), Some(&time), number.as_ref().map(<[u8; 4]>::as_slice),
                    Some(fixed), text.as_deref(),
                ]);
                assert_eq!(pushed, Ok(Pushed::Taken));
            }
            encoder.finish(7).remove(0)
        };
        let as_they_came = encode(&rows, "kind, toStartOfHour(at), at");
        let mut sorted = rows;
        sorted.sort_by_key(|(kind, at, ..)| (kind.clone(), *at));
        let in_order = encode(&sorted, "");
        prop_assert_eq!(as_they_came.block, in_order.block);
        prop_assert!(as_they_came.body.concat() == in_order.body.concat());
    }

    #[test]
    fn an_integer_fits_or_is_refused(value in any::<i64>(), small in -300_i64..300, use_small: bool) {
        let value = if use_small { small } else { value };
        let cases: [(&str, bool); 8] = [
            ("UInt8", u8::try_from(value).is_ok()), ("Int8", i8::try_from(value).is_ok()),
            ("UInt16", u16::try_from(value).is_ok()), ("Int16", i16::try_from(value).is_ok()),
            ("UInt32", u32::try_from(value).is_ok()), ("Int32", i32::try_from(value).is_ok()),
            ("UInt64", value >= 0), ("Int64", true),
        ];
        for (of, fits) in cases {
            let mut encoder = NativeEncoder::new(layout(&[("n", Given::Int8, of)], ""), None);
            prop_assert_eq!(push(&mut encoder, &[Some(&value.to_be_bytes())]).is_ok(), fits);
            if fits {
                let decoded = decode(&encoder.finish(1)[0]);
                let bytes = &decoded[0].2[0];
                prop_assert_eq!(bytes.as_slice(), &value.to_le_bytes()[..bytes.len()]);
            }
        }
    }
}

#[test]
fn a_refused_row_names_the_column_and_leaves_the_encoder_as_it_was() {
    let columns = [
        ("at", Given::Timestamp, "DateTime"),
        ("text", Given::Text, "String"),
    ];
    let mut encoder = NativeEncoder::new(layout(&columns, "toYYYYMM(at)"), None);
    let good = timestamp(1_000_000);
    push(&mut encoder, &[Some(&good), Some(b"x")]).unwrap();
    let before = format!("{encoder:?}");
    let late = timestamp((i64::from(u32::MAX) + 1) * 1_000_000);
    let (infinite, early) = (i64::MAX.to_be_bytes(), timestamp(-1));
    for (at, text, named) in [
        (Some(&infinite[..]), Some(&b"secret"[..]), "at"),
        (Some(&early[..]), Some(b"secret"), "at"),
        (Some(&late[..]), Some(b"secret"), "at"),
        (Some(b"short"), Some(b"secret"), "at"),
        (None, Some(b"secret"), "at"),
        (Some(&good), None, "text"),
    ] {
        let error = push(&mut encoder, &[at, text]).unwrap_err();
        assert_eq!((error.tx, error.id, error.column.as_str()), (7, 1, named));
        assert!(!error.to_string().contains("secret"));
        assert_eq!(format!("{encoder:?}"), before);
    }
    assert_eq!(encoder.finish(1)[0].block.rows, 1);
}

/// Found by the fuzz target `native`: the years that a date can hold overflowed to a time in the range.
#[test]
fn a_date_beyond_all_times_is_refused() {
    for of in ["DateTime('UTC')", "DateTime64(6, 'UTC')"] {
        // 213,503,982 days of microseconds are 2⁶⁴ of them and a little more.
        for days in [213_503_982, -213_503_982, i32::MAX - 1, i32::MIN + 1] {
            let mut encoder = NativeEncoder::new(layout(&[("at", Given::Date, of)], ""), None);
            let pushed = push(&mut encoder, &[Some(&i32::to_be_bytes(days))]);
            assert!(pushed.is_err(), "{days} days in {of}");
        }
    }
}

#[test]
fn precision_is_cut_towards_the_past() {
    for (precision, us, ticks) in [
        (0, -1, -1),
        (3, 1_999, 1),
        (3, -1, -1),
        (6, -1, -1),
        (9, 1, 1_000),
        (9, -1, -1_000),
    ] {
        let of = format!("DateTime64({precision}, 'UTC')");
        let mut encoder = NativeEncoder::new(layout(&[("at", Given::Timestamp, &of)], ""), None);
        push(&mut encoder, &[Some(&timestamp(us))]).unwrap();
        let decoded = decode(&encoder.finish(1)[0]);
        assert_eq!(decoded[0].2[0], i64::to_le_bytes(ticks), "{of} {us}");
    }
}

#[test]
fn texts_around_the_size_of_a_piece_are_whole() {
    let columns = [("n", Given::Int4, "Int32"), ("text", Given::Text, "String")];
    for length in (LONG_TEXT_BYTES - 2..LONG_TEXT_BYTES + 2)
        .chain(PIECE_BYTES_MAX - 12..PIECE_BYTES_MAX + 4)
        .chain([2 * PIECE_BYTES_MAX - 3, 2 * PIECE_BYTES_MAX])
    {
        for key in ["", "n"] {
            let mut encoder = NativeEncoder::new(layout_sorted(&columns, "", key), None);
            let mut expected = Vec::new();
            for (n, length) in [length, 1, 0, length, length + 1, 40_000, length]
                .iter()
                .enumerate()
            {
                // Backwards, so that a sorted block has to put them in order.
                let n = 9 - n as i32;
                let text = patterned(*length);
                push(&mut encoder, &[Some(&n.to_be_bytes()), Some(&text)]).unwrap();
                expected.push(text);
            }
            if key == "n" {
                expected.reverse();
            }
            let decoded = decode(&encoder.finish(7)[0]);
            assert!(
                decoded[1].2 == expected,
                "{length} bytes, sorted by {key:?}"
            );
        }
    }
}

#[test]
fn blocks_come_in_the_order_of_their_first_rows_and_have_a_limit() {
    let columns = [("at", Given::Timestamp, "DateTime64(6, 'UTC')")];
    let mut encoder = NativeEncoder::new(layout(&columns, "toYYYYMMDD(at)"), None);
    for day in (0..BLOCKS_MAX as i64).rev().chain(0..3) {
        assert_eq!(
            push(&mut encoder, &[Some(&timestamp(day * DAY_US))]),
            Ok(Pushed::Taken)
        );
    }
    let one_more = timestamp(99 * DAY_US);
    assert_eq!(push(&mut encoder, &[Some(&one_more)]), Ok(Pushed::NoRoom));
    // A row of a partition that is open still finds room.
    assert_eq!(
        push(&mut encoder, &[Some(&timestamp(0))]),
        Ok(Pushed::Taken)
    );
    let blocks = encoder.finish(1);
    assert_eq!(blocks.len(), BLOCKS_MAX);
    assert_eq!(blocks[0].block.partition, "19700201");
    assert_eq!(blocks[31].block.partition, "19700101");
    assert_eq!((blocks[31].block.rows, blocks[29].block.rows), (3, 2));
}

#[test]
fn types_that_are_not_written_are_refused() {
    for of in [
        "Array(UInt8)",
        "Array(Array(String))",
        "Decimal(77, 2)",
        "Decimal(9, 10)",
        "DateTime64(10)",
        "Enum8('a' = 1",
        "Nullable(Array(String))",
        "DateTime('Nowhere/Land')",
        "Map(String, String)",
    ] {
        assert_eq!(ColumnType::parse(of), None, "{of}");
    }
    let nullable = ColumnType::parse("LowCardinality(Nullable(String))").unwrap();
    assert_eq!(
        (nullable.nullable, nullable.wire.as_str()),
        (true, "Nullable(String)")
    );
}
