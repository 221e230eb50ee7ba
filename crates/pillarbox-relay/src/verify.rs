//! Proof: what the ledger says is in a sink, against what the sink holds, block by block (INV-13).
//!
//! [`compare`] is pure; [`prove`] asks both sides, a stretch of the ledger at a time.

use std::collections::BTreeMap;
use std::time::SystemTime;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use crate::batch::{Block, NUMBER_BITS, sink_value};
use crate::sink::clickhouse::{ClickHouse, ClickHousePlan};
use crate::sink::{Terms, Trouble};

/// Batches compared with one query.
const STRETCH: i64 = 1_000;

/// Which batches to prove.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// The sink's number.
    pub sink: i32,
    /// Those sealed from then on.
    pub since: Option<SystemTime>,
    /// This one only.
    pub batch: Option<i64>,
}

/// Why nothing can be proven.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The ledger cannot be read.
    #[error("the ledger cannot be read")]
    Ledger(#[from] tokio_postgres::Error),
    /// The ledger holds something that is no block map.
    #[error("a block map of the ledger cannot be read")]
    Blocks(#[from] serde_json::Error),
    /// The sink cannot be asked.
    #[error(transparent)]
    Sink(#[from] Trouble),
}

/// How many batches there are to prove.
///
/// # Errors
/// When the ledger cannot be read.
pub async fn total(client: &Client, scope: &Scope) -> Result<u64, ProofError> {
    const TOTAL: &str = include_str!("verify/total.sql");
    let row = client
        .query_one(TOTAL, &[&scope.sink, &scope.since, &scope.batch])
        .await?;
    Ok(row.get::<_, i64>(0).unsigned_abs())
}

/// Compares every delivered batch with what the sink holds; tells `progress` how many more are done.
/// Reads only: dropping the future is safe.
///
/// # Errors
/// When the ledger cannot be read, or the sink cannot be asked or has no column `batch`.
pub async fn prove(
    client: &Client,
    sink: &ClickHouse,
    plan: &ClickHousePlan,
    scope: &Scope,
    mut progress: impl FnMut(u64),
) -> Result<Proof, ProofError> {
    const BATCHES: &str = include_str!("verify/stretch.sql");
    let mut proof = Proof::default();
    let mut after = 0_i64;
    loop {
        let given: &[&(dyn ToSql + Sync)] =
            &[&scope.sink, &after, &scope.since, &scope.batch, &STRETCH];
        let rows = client.query(BATCHES, given).await?;
        let Some(last) = rows.last() else {
            return Ok(proof);
        };
        after = last.get(0);
        let mut expected = rows.iter().map(expected).collect::<Result<Vec<_>, _>>()?;
        let mut held: Vec<Held> = Vec::new();
        // Batches of one origin lie side by side; a stretch has two of them after a failover.
        let is_alike = |a: &Expected, b: &Expected| {
            a.sink_value >> NUMBER_BITS == b.sink_value >> NUMBER_BITS && a.terms == b.terms
        };
        for stretch in expected.chunk_by_mut(is_alike) {
            let (Some(first), Some(last)) = (stretch.first(), stretch.last()) else {
                continue;
            };
            let terms = first.terms.as_ref();
            let values = first.sink_value..=last.sink_value;
            held.extend(sink.held_between(plan, terms, values).await?);
            let is_provable = plan.can_prove(terms);
            for batch in stretch {
                batch.is_provable = is_provable;
            }
        }
        proof.add(compare(&expected, &held));
        progress(expected.len() as u64);
    }
}

fn expected(row: &Row) -> Result<Expected, ProofError> {
    let (number, origin): (i64, i32) = (row.get(0), row.get(1));
    let all: Vec<Block> = serde_json::from_str(row.get(2))?;
    let taken: Option<Vec<i16>> = row.get(3);
    let is_taken = |ordinal: usize| {
        let taken = taken.as_ref();
        taken.is_none_or(|taken| taken.iter().any(|one| usize::try_from(*one) == Ok(ordinal)))
    };
    let blocks = all.into_iter().enumerate();
    Ok(Expected {
        number,
        sink_value: sink_value(origin.cast_unsigned(), number),
        blocks: blocks
            .filter(|(ordinal, _)| is_taken(*ordinal))
            .map(|(_, block)| block)
            .collect(),
        repaired: row.get(5),
        terms: row
            .get::<_, Option<&str>>(6)
            .map(serde_json::from_str)
            .transpose()?,
        is_provable: true,
    })
}

/// A batch with an outcome, as far as the sink should hold it.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Its number.
    pub number: i64,
    /// The value of the sink's column `batch`.
    pub sink_value: u64,
    /// The blocks that the sink took.
    pub blocks: Vec<Block>,
    /// Partitions whose block was delivered again, because the sink had lost it; as the ledger names them.
    pub repaired: Vec<String>,
    /// On what it was sealed.
    pub terms: Option<Terms>,
    /// Whether the sink still has every column that its digest covers.
    pub is_provable: bool,
}

/// What a sink holds of one batch in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The value of the column `batch`.
    pub sink_value: u64,
    /// The partition.
    pub partition: String,
    /// Rows.
    pub rows: u64,
    /// Sum modulo 2⁶⁴ of the row hashes.
    pub digest: u64,
}

/// How a block differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// None of its rows is there.
    Missing,
    /// Fewer rows are there.
    Fewer,
    /// More rows are there, or rows where none should be.
    Surplus,
    /// As many rows are there, but with other values.
    Altered,
}

impl Difference {
    /// The word in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Fewer => "fewer",
            Self::Surplus => "surplus",
            Self::Altered => "altered",
        }
    }
}

/// A block that is not in the sink as the ledger says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The batch.
    pub number: i64,
    /// The partition.
    pub partition: String,
    /// How it differs.
    pub difference: Difference,
    /// Rows that should be there.
    pub expected_rows: u64,
    /// Rows that are there.
    pub held_rows: u64,
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// Batches compared.
    pub batches: u64,
    /// Rows that are there as the ledger says.
    pub rows: u64,
    /// Blocks that cannot be proven: they were sealed without the column `batch`, or the sink no longer
    /// has a column that their digest covers, so that only their rows can be counted.
    pub unprovable: u64,
    /// Everything else.
    pub findings: Vec<Finding>,
}

impl Proof {
    /// Adds another stretch.
    pub fn add(&mut self, other: Self) {
        self.batches += other.batches;
        self.rows += other.rows;
        self.unprovable += other.unprovable;
        self.findings.extend(other.findings);
    }
}

/// Compares one stretch of the ledger with what the sink holds of it.
///
/// `held` may hold batches that are not in `expected`: they have no outcome yet, or another stretch has
/// them.
pub fn compare(expected: &[Expected], held: &[Held]) -> Proof {
    let mut found: BTreeMap<(u64, &str), &Held> = BTreeMap::new();
    for held in held.iter().filter(|held| held.rows > 0) {
        found.insert((held.sink_value, &held.partition), held);
    }
    let mut proof = Proof::default();
    for batch in expected {
        proof.batches += 1;
        for block in &batch.blocks {
            let there = found.remove(&(batch.sink_value, block.partition.as_str()));
            let is_repaired = batch.repaired.contains(&block.partition);
            if !block.is_numbered {
                proof.unprovable += 1;
                continue;
            }
            let is_same = |held: &Held| held.digest == block.digest || !batch.is_provable;
            let difference = match there {
                None if is_repaired => None,
                // It was lost once and delivered again: this copy is one too many.
                Some(_) if is_repaired => Some(Difference::Surplus),
                None => Some(Difference::Missing),
                Some(held) if held.rows == block.rows && is_same(held) => None,
                Some(held) if held.rows < block.rows => Some(Difference::Fewer),
                Some(held) if held.rows > block.rows => Some(Difference::Surplus),
                Some(_) => Some(Difference::Altered),
            };
            let Some(difference) = difference else {
                match (is_repaired, batch.is_provable) {
                    (true, _) => {}
                    (false, true) => proof.rows += block.rows,
                    (false, false) => proof.unprovable += 1,
                }
                continue;
            };
            proof.findings.push(Finding {
                number: batch.number,
                partition: block.partition.clone(),
                difference,
                expected_rows: if is_repaired { 0 } else { block.rows },
                held_rows: there.map_or(0, |held| held.rows),
            });
        }
    }
    let numbers: BTreeMap<u64, i64> = expected
        .iter()
        .map(|batch| (batch.sink_value, batch.number))
        .collect();
    for ((sink_value, partition), held) in found {
        if let Some(number) = numbers.get(&sink_value) {
            proof.findings.push(Finding {
                number: *number,
                partition: partition.to_owned(),
                difference: Difference::Surplus,
                expected_rows: 0,
                held_rows: held.rows,
            });
        }
    }
    proof
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(partition: &str, rows: u64, digest: u64) -> Block {
        Block {
            partition: partition.to_owned(),
            rows,
            digest,
            is_numbered: true,
        }
    }

    fn held(sink_value: u64, partition: &str, rows: u64, digest: u64) -> Held {
        Held {
            sink_value,
            partition: partition.to_owned(),
            rows,
            digest,
        }
    }

    fn batch(blocks: Vec<Block>, repaired: &[&str]) -> Expected {
        Expected {
            number: 7,
            sink_value: 70,
            blocks,
            repaired: repaired.iter().map(|name| (*name).to_owned()).collect(),
            terms: None,
            is_provable: true,
        }
    }

    fn differences(expected: &Expected, held: &[Held]) -> Vec<(Difference, u64, u64)> {
        let proof = compare(std::slice::from_ref(expected), held);
        let of = |finding: &Finding| {
            let Finding {
                difference,
                expected_rows,
                held_rows,
                ..
            } = finding;
            (*difference, *expected_rows, *held_rows)
        };
        proof.findings.iter().map(of).collect()
    }

    #[test]
    fn inv_13_every_difference_is_named() {
        use Difference::{Altered, Fewer, Missing, Surplus};
        let one = batch(vec![block("a", 3, 9)], &[]);
        for (there, expected) in [
            (vec![held(70, "a", 3, 9)], vec![]),
            (vec![], vec![(Missing, 3, 0)]),
            (vec![held(70, "a", 2, 9)], vec![(Fewer, 3, 2)]),
            (vec![held(70, "a", 6, 18)], vec![(Surplus, 3, 6)]),
            (vec![held(70, "a", 3, 8)], vec![(Altered, 3, 3)]),
            (
                vec![held(70, "a", 3, 9), held(70, "b", 1, 1)],
                vec![(Surplus, 0, 1)],
            ),
            (
                vec![held(70, "b", 3, 9)],
                vec![(Missing, 3, 0), (Surplus, 0, 3)],
            ),
            // Somebody else's batch, or one without an outcome yet.
            (vec![held(70, "a", 3, 9), held(71, "a", 5, 5)], vec![]),
        ] {
            assert_eq!(differences(&one, &there), expected, "{there:?}");
        }
    }

    #[test]
    fn a_repaired_block_is_gone_for_good() {
        let repaired = batch(vec![block("a", 3, 9)], &["a"]);
        assert_eq!(differences(&repaired, &[]), []);
        let back = differences(&repaired, &[held(70, "a", 3, 9)]);
        assert_eq!(back, [(Difference::Surplus, 0, 3)]);
    }

    #[test]
    fn a_batch_whose_columns_are_gone_cannot_be_proven() {
        let mut gone = batch(vec![block("a", 3, 9)], &[]);
        gone.is_provable = false;
        let proof = compare(std::slice::from_ref(&gone), &[held(70, "a", 3, 8)]);
        assert_eq!((proof.unprovable, proof.findings.len()), (1, 0));
        let lost = differences(&gone, &[held(70, "a", 2, 8)]);
        assert_eq!(lost, [(Difference::Fewer, 3, 2)]);
        assert_eq!(differences(&gone, &[]), [(Difference::Missing, 3, 0)]);
    }

    #[test]
    fn a_block_without_numbers_cannot_be_proven() {
        let mut unnumbered = block("a", 3, 9);
        unnumbered.is_numbered = false;
        let proof = compare(&[batch(vec![unnumbered], &[])], &[]);
        assert_eq!((proof.unprovable, proof.findings.len()), (1, 0));
    }
}
