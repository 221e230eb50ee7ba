use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Puts each row into the block that its first byte names, of `blocks_max` at most.
#[derive(Debug, Default)]
struct Blocks {
    blocks_max: usize,
    blocks: Vec<(u8, u64)>,
}

impl Encoder for Blocks {
    fn push(&mut self, row: &Row<'_>) -> Result<Pushed, RowError> {
        let key = row.fields[0].unwrap()[0];
        let is_full = self.blocks.len() == self.blocks_max;
        match self.blocks.iter_mut().find(|(known, _)| *known == key) {
            Some((_, rows)) => *rows += 1,
            None if is_full => return Ok(Pushed::NoRoom),
            None => self.blocks.push((key, 1)),
        }
        Ok(Pushed::Taken)
    }

    fn finish(self, _: u64) -> Vec<EncodedBlock> {
        let encoded = |(key, rows): (u8, u64)| EncodedBlock {
            block: Block {
                partition: key.to_string(),
                rows,
                digest: u64::MAX - u64::from(key),
                is_numbered: true,
            },
            body: Body::default(),
        };
        self.blocks.into_iter().map(encoded).collect()
    }
}

proptest! {
    /// INV-7: a batch keeps its limits, but takes one row however large; it is cut only where a row
    /// was refused, and takes each row before the cut.
    #[test]
    fn inv_7_a_builder_stops_at_the_first_limit(
        rows in vec((0_u8..6, 1_usize..200), 0..60),
        rows_max in 1_u64..40,
        bytes_max in 1_u64..4000,
        blocks_max in 1_usize..5,
    ) {
        let encoder = Blocks { blocks_max, ..Blocks::default() };
        let mut builder = Builder::new(encoder, Limits { rows_max, bytes_max });
        let (mut taken, mut bytes, mut refused) = (0_u64, 0_u64, false);
        for (id, (key, length)) in rows.iter().enumerate() {
            let field = vec![*key; *length];
            let at = Cut { tx: 9, id: id as i64 };
            let row = Row { at, fields: &[Some(&field), None] };
            if builder.push(&row).unwrap() == Pushed::NoRoom {
                refused = true;
                break;
            }
            taken += 1;
            bytes += *length as u64;
        }
        let draft = builder.finish(7);
        prop_assert_eq!((draft.rows, draft.bytes), (taken, bytes));
        prop_assert!(taken <= rows_max);
        prop_assert!(taken <= 1 || bytes <= bytes_max);
        prop_assert!(draft.blocks.len() <= blocks_max);
        prop_assert!(rows.is_empty() || taken >= 1);
        let cut = refused.then(|| Cut { tx: 9, id: taken as i64 - 1 });
        prop_assert_eq!(draft.cut, cut);
        prop_assert_eq!(draft.block_map().iter().map(|block| block.rows).sum::<u64>(), taken);
        let digests = draft.block_map();
        let sum = digests.iter().fold(0, |sum: u64, block| sum.wrapping_add(block.digest));
        prop_assert_eq!(draft.digest(), sum);
    }

    #[test]
    fn a_block_map_survives_its_json(partition in ".*", rows in any::<u64>(), digest in any::<u64>()) {
        let block = Block { partition, rows, digest, is_numbered: rows % 2 == 0 };
        let text = serde_json::to_string(&block).unwrap();
        let hex = format!("{digest:016x}");
        prop_assert!(text.contains(&hex), "{}", text);
        prop_assert_eq!(serde_json::from_str::<Block>(&text).unwrap(), block);
    }

    #[test]
    fn a_sink_value_tells_registration_and_number(
        origin in 1_u32..1 << 23,
        number in 0_i64..1 << NUMBER_BITS,
    ) {
        let value = sink_value(origin, number);
        prop_assert_eq!(value >> NUMBER_BITS, u64::from(origin));
        prop_assert_eq!(value & ((1 << NUMBER_BITS) - 1), number.cast_unsigned());
        prop_assert!(value < 1 << 63, "it is negative as a signed number");
    }
}
