//! Events that the sink cannot take, and what becomes of their dead letters.
//!
//! Three kinds: what no encoder can represent, what the table refuses for good, and what it refuses
//! until it is mended in the middle of the run, after which retries deliver it under all the faults.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use pillarbox_relay::schema::registry;
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::stage::{SINK, Stage, TABLE};
use crate::oracle::{End, Published};
use crate::publish::Event;
use crate::servers::{ClickHouse, Flavour, Postgres};

/// One event in so many is poison of some kind in a short run. Each that the server refuses costs about
/// twenty inserts: with much more of it, nothing else is delivered.
const EVERY_MIN: u32 = 200;

/// One event in how many is poison of some kind: the longer the run, the fewer, since what is left
/// behind at its end has to be split in the time of a drain.
pub(super) fn every(duration: Duration) -> u32 {
    let seconds = u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    seconds.saturating_mul(2).max(EVERY_MIN)
}

/// What a relay may set aside within an hour: five times what the publishers can make, so that
/// poison is not taken for drift, and a relay that sets aside what is none still stops.
pub(super) const ROWS_MAX: u64 = 45_000;

/// Beyond the last time of every type of the sinks.
const FAR_US: i64 = 600 * 366 * 86_400_000_000;

/// Between two looks at whether dead letters may be retried.
const RETRY_EVERY: Duration = Duration::from_secs(2);

/// Dead letters retried at once: few, since a batch of poison alone is split to the last row, and since
/// so much of it would be drift in a batch of a hundred.
const RETRIED_MAX: i64 = 3;

/// Of what stays poison, retried once more when nothing breaks any more.
const IN_VAIN: i64 = 5;

/// How long the table may take to be mended when nothing breaks any more.
const MEND_MAX: Duration = Duration::from_secs(60);

/// What the sink does with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nature {
    /// Takes it.
    Good,
    /// Has no value for its time: found by the encoder.
    Far,
    /// Refuses it: found by splitting.
    Refused,
    /// Refuses it until the table is mended.
    Early,
}

impl Nature {
    pub(super) fn random(random: &mut StdRng, every: u32) -> Self {
        match random.random_range(0..every.saturating_mul(3)) {
            0 => Self::Far,
            1 => Self::Refused,
            2 => Self::Early,
            _ => Self::Good,
        }
    }

    /// The column `event_type`, by which the table knows it.
    pub(super) fn event_type(self) -> &'static str {
        match self {
            Self::Good => "chaos",
            Self::Far => "far",
            Self::Refused => "refused",
            Self::Early => "early",
        }
    }

    /// What is added to the time of the event.
    pub(super) fn later_us(self) -> i64 {
        if self == Self::Far { FAR_US } else { 0 }
    }
}

/// What the oracle is told of an event.
pub(super) fn published(event: &Event) -> Result<Published> {
    let is = |nature: Nature| event.event_type == nature.event_type();
    let end = match is(Nature::Far) || is(Nature::Refused) {
        true => End::DeadLetters,
        false => End::Sink,
    };
    Ok(event.published()?.must_end(end))
}

/// Names of what refuses an event, for good and until the table is mended.
const FOR_GOOD: &str = "never";
const FOR_NOW: &str = "not_yet";

/// Makes the table refuse. Only the current engine has constraints; an expression of a column does the
/// same on both.
pub(super) async fn refuse(clickhouse: &ClickHouse) -> Result<()> {
    let refusals = [(FOR_GOOD, Nature::Refused), (FOR_NOW, Nature::Early)];
    for (name, nature) in refusals {
        let event_type = nature.event_type();
        let what = match clickhouse.flavour() {
            Flavour::V26 => format!("ADD CONSTRAINT {name} CHECK event_type != '{event_type}'"),
            Flavour::V18 => {
                format!("ADD COLUMN {name} UInt8 MATERIALIZED throwIf(event_type = '{event_type}')")
            }
        };
        let statement = format!("ALTER TABLE {TABLE} {what}");
        clickhouse.query(&statement).await?;
    }
    Ok(())
}

/// Mends the table when it is time and something waits for it, and asks for dead letters to be retried
/// now and then, while things break. Never ends.
pub(super) async fn retry_now_and_then(stage: &Stage, mend_after: Duration) -> Result<()> {
    let began = Instant::now();
    let mut is_mended = false;
    loop {
        sleep(RETRY_EVERY).await;
        // What is down is asked again later.
        let is_due = began.elapsed() >= mend_after && !is_mended;
        if is_due && is_waited_for(&stage.postgres).await.unwrap_or(false) {
            is_mended = mend(&stage.clickhouse).await.is_ok();
            if is_mended {
                stage.say("the table is mended");
            }
        }
        let _ = retry_some(&stage.postgres).await;
    }
}

/// Whether dead letters can only be delivered once the table is mended.
async fn is_waited_for(postgres: &Postgres) -> Result<bool> {
    const WAITS: &str = "select exists (select from pillarbox.dead_letter where event_type = $1)";
    let rows = postgres
        .query(WAITS, &[&Nature::Early.event_type()])
        .await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

/// Mends the table if that is still to be done, and retries what must be delivered then and a little of
/// what must not; says whether there was anything. For when nothing breaks any more.
pub(super) async fn retry_the_rest(stage: &Stage) -> Result<bool> {
    let began = Instant::now();
    while let Err(error) = mend(&stage.clickhouse).await {
        if began.elapsed() > MEND_MAX {
            return Err(error).context("the table cannot be mended");
        }
        sleep(RETRY_EVERY / 10).await;
    }
    const REST: &str = "
        select dead_letter from pillarbox.dead_letter where event_type = $1 and state = 'dead'
        union all
        (
            select dead_letter from pillarbox.dead_letter
            where event_type <> $1 and state = 'dead'
            limit $2
        )";
    let early = Nature::Early.event_type();
    let rows = stage.postgres.query(REST, &[&early, &IN_VAIN]).await?;
    let numbers: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    request(&stage.postgres, &numbers).await?;
    Ok(!numbers.is_empty())
}

/// The table no longer refuses what it refused for now.
async fn mend(clickhouse: &ClickHouse) -> Result<()> {
    let shown = clickhouse
        .query(&format!("SHOW CREATE TABLE {TABLE}"))
        .await?;
    if !shown.contains(FOR_NOW) {
        return Ok(());
    }
    let what = match clickhouse.flavour() {
        Flavour::V26 => "CONSTRAINT",
        Flavour::V18 => "COLUMN",
    };
    let statement = format!("ALTER TABLE {TABLE} DROP {what} {FOR_NOW}");
    clickhouse.query(&statement).await?;
    Ok(())
}

/// Has a few dead letters retried when none is being retried.
async fn retry_some(postgres: &Postgres) -> Result<()> {
    const SOME: &str = "
        select dead_letter from pillarbox.dead_letter
        where state = 'dead'
            and not exists (
                select from pillarbox.dead_letter where state in ('requested', 'retrying')
            )
        order by random()
        limit $1";
    let rows = postgres.query(SOME, &[&RETRIED_MAX]).await?;
    let numbers: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    request(postgres, &numbers).await
}

/// As `pillarbox dead-letters retry` does.
async fn request(postgres: &Postgres, numbers: &[i64]) -> Result<()> {
    const RETRY: &str =
        include_str!("../../../pillarbox-cli/src/command/sql/dead_letters_retry.sql");
    let client = postgres.connect().await?;
    let sink = registry::find(&client, SINK).await?.sink;
    client.execute(RETRY, &[&sink, &false, &numbers]).await?;
    Ok(())
}

/// How dead letters came and went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Letters {
    /// Set aside because the encoder cannot represent them.
    pub(super) unrepresentable: u64,
    /// Set aside because the server refuses them.
    pub(super) refused: u64,
    /// Retried, and set aside again.
    pub(super) in_vain: u64,
    /// Retried and delivered.
    pub(super) delivered: u64,
    /// Neither dead nor delivered.
    pub(super) unsettled: u64,
}

impl Letters {
    pub(super) async fn count(postgres: &Postgres) -> Result<Self> {
        const COUNT: &str = "
            select count(*) filter (where code is null), count(*) filter (where code is not null),
                count(*) filter (where state = 'dead' and decided_at is not null),
                count(*) filter (where state = 'delivered'),
                count(*) filter (where state not in ('dead', 'delivered'))
            from pillarbox.dead_letter";
        let rows = postgres.query(COUNT, &[]).await?;
        let row = rows.first().context("no count")?;
        let of = |index: usize| row.get::<_, i64>(index).cast_unsigned();
        Ok(Self {
            unrepresentable: of(0),
            refused: of(1),
            in_vain: of(2),
            delivered: of(3),
            unsettled: of(4),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn each_kind_comes_and_most_events_are_good() {
        let mut random = StdRng::seed_from_u64(7);
        let all: Vec<Nature> = (0..10_000)
            .map(|_| Nature::random(&mut random, EVERY_MIN))
            .collect();
        let count = |nature| all.iter().filter(|one| **one == nature).count();
        for nature in [Nature::Far, Nature::Refused, Nature::Early] {
            assert!((5..40).contains(&count(nature)), "{nature:?}");
        }
    }

    #[test]
    fn what_is_too_far_is_beyond_what_any_type_holds() -> Result<()> {
        let last = 10_413_791_999;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let later = Nature::Far.later_us().unsigned_abs() / 1_000_000;
        // Some events are dated back by two months.
        assert!(now - 62 * 86_400 + later > last);
        Ok(())
    }
}
