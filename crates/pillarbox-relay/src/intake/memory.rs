//! What was taken, remembered as hashes: a Redis that comes back as it was some time ago shows it again.

use std::collections::HashMap;

use futures_util::TryStreamExt as _;
use tokio_postgres::Transaction;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::tenure::Tenure;
use super::trouble::{IntakeError, in_time, timed};

/// Bytes of a hash.
const WIDTH: usize = 16;

/// 128 bits: of a thousand million entries, two have the same by chance once in 10²⁰ cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Hash([u8; WIDTH]);

impl Hash {
    /// Of these bytes; CityHash 1.0.2 (Geoff Pike and Jyrki Alakuijala, github.com/google/cityhash).
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(u128::from(ch_cityhash102::cityhash128(bytes)).to_be_bytes())
    }
}

/// Entries of a stream, from an id to an id, or of a chunk, from a place to a place.
#[derive(Debug)]
pub(crate) struct Stretch<'a> {
    pub(crate) chunk: Option<Uuid>,
    pub(crate) low: &'a [u8],
    pub(crate) high: &'a [u8],
}

impl Stretch<'_> {
    pub(crate) async fn remember(
        &self,
        transaction: &Transaction<'_>,
        intake: i32,
        hashes: impl Iterator<Item = Hash>,
    ) -> Result<(), IntakeError> {
        const REMEMBER: &str = include_str!("sql/remember.sql");
        let hashes: Vec<u8> = hashes.flat_map(|hash| hash.0).collect();
        let given: &[&(dyn ToSql + Sync)] = &[&intake, &self.chunk, &self.low, &self.high, &hashes];
        in_time(transaction.execute(REMEMBER, given)).await?;
        Ok(())
    }

    /// Gives each remembered piece to `look`: its first id or place, and its hashes in order.
    async fn each(
        &self,
        tenure: &Tenure,
        mut look: impl FnMut(&[u8], Vec<Hash>),
    ) -> Result<(), IntakeError> {
        const REMEMBERED: &str = include_str!("sql/remembered.sql");
        let given: [&(dyn ToSql + Sync); 4] = [&tenure.intake, &self.chunk, &self.low, &self.high];
        // One piece at a time: there may be any number of them.
        let rows = in_time(tenure.client().query_raw(REMEMBERED, given)).await?;
        let mut rows = std::pin::pin!(rows);
        while let Some(row) = timed(async { Ok(rows.try_next().await?) }).await? {
            let (low, hashes): (&[u8], &[u8]) = (row.get(0), row.get(1));
            let hashes = hashes.as_chunks::<WIDTH>().0;
            look(low, hashes.iter().copied().map(Hash).collect());
        }
        Ok(())
    }

    /// Which of these are remembered in it.
    pub(crate) async fn known(
        &self,
        tenure: &Tenure,
        hashes: &[Hash],
    ) -> Result<Vec<bool>, IntakeError> {
        let mut places: HashMap<Hash, usize> = HashMap::with_capacity(hashes.len());
        places.extend(hashes.iter().copied().zip(0..));
        let mut known = vec![false; hashes.len()];
        self.each(tenure, |_, found| {
            for place in found.iter().filter_map(|hash| places.get(hash)) {
                if let Some(known) = known.get_mut(*place) {
                    *known = true;
                }
            }
        })
        .await?;
        Ok(known)
    }
}

/// How many of `hashes`, the entries of a list from place `from` on, are those of `chunk` at the same
/// places.
pub(crate) async fn common(
    tenure: &Tenure,
    chunk: Uuid,
    from: u64,
    hashes: &[Hash],
) -> Result<u64, IntakeError> {
    let end = from + hashes.len() as u64;
    let stretch = Stretch {
        chunk: Some(chunk),
        low: &from.to_be_bytes(),
        high: &(end.max(1) - 1).to_be_bytes(),
    };
    let mut equal = 0_usize;
    let mut is_broken = false;
    stretch
        .each(tenure, |low, found| {
            let Ok(low) = <[u8; 8]>::try_from(low) else {
                return;
            };
            for (place, hash) in (u64::from_be_bytes(low)..).zip(found) {
                if place < from || place >= end || is_broken {
                    continue;
                }
                let expected = usize::try_from(place - from).ok();
                match expected == Some(equal) && hashes.get(equal) == Some(&hash) {
                    true => equal += 1,
                    false => is_broken = true,
                }
            }
        })
        .await?;
    Ok(equal as u64)
}
