//! What every [`Sink`] does.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use pillarbox_relay::batch::{Batch, EncodedBlock, Kind, Row, Selection, sink_value};
use pillarbox_relay::sink::{
    Attempt, Delivery, Doubt, Encoder, Guarantee, Insert, Plan, Pushed, Resolution, Sink,
};
use pillarbox_relay::snapshot::{Cut, Position, Snapshot};
use tokio::time::Instant;
use uuid::Uuid;

use crate::fake::{FakeEvent, outbox_columns};

/// 2026-01-31 23:59:58 UTC: events two seconds apart lie in two months.
const START_S: u64 = 1_769_903_998;

/// The registration under which the suite delivers.
const ORIGIN: u32 = 0x12_3456;

/// What the spine knows about a batch that it sealed this moment.
pub(super) const FRESH: Doubt = Doubt {
    age: Duration::ZERO,
    blocks_since: 0,
    ..Doubt::NONE
};

/// So long ago, and so many blocks, that no destination remembers a token.
pub(super) const OLD: Doubt = Doubt {
    age: Duration::from_secs(400 * 86_400),
    blocks_since: 1 << 40,
    ..Doubt::NONE
};

/// A destination without rows, and what a test can do around it.
pub trait SinkWorld: Send + Sync {
    /// The implementation.
    type Sink: Sink;

    /// The sink.
    fn sink(&self) -> &Self::Sink;

    /// Whether the destination keeps the column `batch`.
    fn keeps_batch(&self) -> bool;

    /// How often each event is there, and its `event_context`.
    fn stored(&self) -> impl Future<Output = Result<BTreeMap<Uuid, (u64, Vec<u8>)>>> + Send;

    /// Makes the next insert go wrong. `false` when this world cannot do that.
    fn fail(&self, mishap: Mishap) -> impl Future<Output = Result<bool>> + Send;

    /// Ends what [`SinkWorld::fail`] began.
    fn heal(&self) -> impl Future<Output = Result<()>> + Send;
}

/// What goes wrong with an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// It is refused.
    Refused,
    /// The connection breaks before anything is written.
    LostBefore,
    /// It is written, and the answer is lost.
    LostAfter,
    /// There is no answer before the deadline.
    Unanswered,
    /// The answer is *unknown*; the rows are written later.
    Late,
}

impl Mishap {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Refused,
        Self::LostBefore,
        Self::LostAfter,
        Self::Unanswered,
        Self::Late,
    ];
}

/// Runs the suite, each part on a world of its own.
///
/// # Errors
/// What the sink does not do, with the part.
pub async fn sink<W, F>(mut factory: F) -> Result<()>
where
    W: SinkWorld,
    F: AsyncFnMut() -> Result<W>,
{
    blocks_are_partitions(&factory().await?)
        .await
        .context("blocks are partitions")?;
    a_block_is_delivered_once(&factory().await?)
        .await
        .context("a block is delivered once")?;
    batches_of_every_size_arrive(&factory().await?)
        .await
        .context("batches of every size arrive")?;
    what_is_unknown_is_resolved(&factory().await?)
        .await
        .context("what is unknown is resolved")?;
    the_highest_number_is_found(&factory().await?)
        .await
        .context("the highest number is found")?;
    a_dropped_delivery_is_unknown(&factory().await?)
        .await
        .context("a dropped delivery is unknown")?;
    for mishap in Mishap::ALL {
        mishaps_double_nothing(&factory().await?, mishap)
            .await
            .with_context(|| format!("mishaps double nothing: {mishap:?}"))?;
    }
    Ok(())
}

/// A sealed batch and what goes onto the wire.
#[derive(Debug)]
pub struct Parcel {
    /// The batch.
    pub batch: Batch,
    /// Its blocks.
    pub blocks: Vec<EncodedBlock>,
}

impl Parcel {
    /// Block `ordinal`, as the spine gives it to a sink.
    pub fn insert(&self, ordinal: usize) -> Insert<'_> {
        Insert {
            batch: &self.batch,
            ordinal,
            body: &self.blocks[ordinal].body,
        }
    }
}

/// The `number`-th attempt, of a relay that may send now.
pub fn nth(number: u32) -> Attempt {
    Attempt::new(number, Instant::now())
}

/// Events `seconds` apart, the first one two seconds before a month ends.
pub fn events(count: usize, seconds: u64) -> Vec<FakeEvent> {
    let event = |number: usize| {
        let after = Duration::from_secs(START_S + number as u64 * seconds);
        let context = format!("{{\"n\": {number}, \"n\":  \"\\u00e4\\n\u{e4}\" }}");
        FakeEvent::new(Uuid::now_v7(), SystemTime::UNIX_EPOCH + after, context)
    };
    (0..count).map(event).collect()
}

/// Encodes events as batch `number`, as the spine does.
///
/// # Errors
/// When the encoder refuses one.
pub fn seal<P: Plan>(plan: &P, number: i64, events: &[FakeEvent]) -> Result<Parcel> {
    let mut encoder = plan.encoder(None, None);
    for (id, event) in events.iter().enumerate() {
        let published_at = event.event_date_time;
        let owned = plan.columns().iter();
        let owned: Vec<_> = owned.map(|name| event.field(name, published_at)).collect();
        let fields: Vec<_> = owned.iter().map(Option::as_deref).collect();
        let at = Cut {
            tx: 700,
            id: i64::try_from(id)?,
        };
        let row = Row {
            at,
            fields: &fields,
        };
        ensure!(encoder.push(&row)? == Pushed::Taken, "no room for {id}");
    }
    let blocks = encoder.finish(sink_value(ORIGIN, number));
    let map: Vec<_> = blocks.iter().map(|one| one.block.clone()).collect();
    let digests = map.iter().map(|block| block.digest);
    let batch = Batch {
        number,
        batch_id: Uuid::new_v4(),
        origin: ORIGIN,
        kind: Kind::Window,
        parent: None,
        root: None,
        selection: Selection::default(),
        terms: Some(plan.terms().clone()),
        span: Position::genesis(Snapshot::origin()).next_span(Snapshot::origin()),
        rows: events.len() as u64,
        bytes: 0,
        digest: digests.fold(0, u64::wrapping_add),
        blocks: map,
        sealed_at: SystemTime::now(),
    };
    Ok(Parcel { batch, blocks })
}

pub(super) async fn plan<W: SinkWorld>(world: &W) -> Result<<W::Sink as Sink>::Plan> {
    Ok(world.sink().prepare(&outbox_columns()).await?)
}

async fn deliver<W: SinkWorld>(
    world: &W,
    plan: &<W::Sink as Sink>::Plan,
    parcel: &Parcel,
) -> Result<()> {
    for ordinal in 0..parcel.blocks.len() {
        let insert = parcel.insert(ordinal);
        match world.sink().deliver(plan, &insert, nth(1)).await {
            Delivery::Delivered(_) => {}
            other => bail!("block {ordinal} was not delivered: {other:?}"),
        }
    }
    Ok(())
}

/// Each event is there once, byte for byte, and nothing else.
pub(super) async fn holds<W: SinkWorld>(world: &W, events: &[FakeEvent]) -> Result<()> {
    let stored = world.stored().await?;
    let once = |event: &FakeEvent| (event.event_id, (1, event.event_context.clone()));
    let expected: BTreeMap<_, _> = events.iter().map(once).collect();
    let counts: Vec<u64> = stored.values().map(|(count, _)| *count).collect();
    ensure!(
        stored == expected,
        "{} events expected once each, found {counts:?}",
        expected.len()
    );
    Ok(())
}

/// Settles a block as the spine does.
pub(super) async fn settle<W: SinkWorld>(
    world: &W,
    plan: &<W::Sink as Sink>::Plan,
    insert: &Insert<'_>,
    mut is_unknown: bool,
) -> Result<()> {
    for attempt in 2..40 {
        if is_unknown {
            match world.sink().resolve(plan, insert, FRESH).await {
                Ok(Resolution::Delivered(_)) => return Ok(()),
                Ok(Resolution::Resend) => {}
                Ok(Resolution::Undecidable(trouble)) => bail!("undecidable: {trouble}"),
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            }
        }
        match world.sink().deliver(plan, insert, nth(attempt)).await {
            Delivery::Delivered(_) => return Ok(()),
            Delivery::Rejected(trouble) => bail!("rejected: {trouble}"),
            Delivery::Retry(_) => {}
            Delivery::Unknown(_) => is_unknown = true,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("never delivered")
}

async fn blocks_are_partitions<W: SinkWorld>(world: &W) -> Result<()> {
    let plan = plan(world).await?;
    let outbox = outbox_columns();
    for column in plan.columns() {
        ensure!(outbox.iter().any(|one| one.name == *column), "{column}");
    }
    let again = world.sink().prepare(&outbox).await?;
    ensure!(again.columns() == plan.columns(), "the plan is not stable");
    ensure!(again.guarantee() == plan.guarantee(), "nor the guarantee");

    let events = events(6, 1);
    let parcel = seal(&plan, 1, &events)?;
    let map = &parcel.batch.blocks;
    ensure!(map.len() == 2, "two months: {map:?}");
    ensure!((map[0].rows, map[1].rows) == (2, 4), "{map:?}");
    ensure!(map[0].partition != map[1].partition, "{map:?}");
    let same = seal(&plan, 1, &events)?;
    ensure!(same.batch.blocks == *map, "it does not come out the same");
    let bytes = |parcel: &Parcel| -> Vec<Vec<u8>> {
        let blocks = parcel.blocks.iter();
        blocks.map(|one| one.body.concat()).collect()
    };
    ensure!(bytes(&same) == bytes(&parcel), "other bytes");
    let mut other = events.clone();
    other[0].event_context.push(b' ');
    let other = seal(&plan, 1, &other)?;
    ensure!(other.batch.blocks[0].digest != map[0].digest, "digest");
    ensure!(other.batch.blocks[1].digest == map[1].digest, "digest");
    let empty = plan.encoder(None, None).finish(sink_value(ORIGIN, 2));
    ensure!(empty.is_empty(), "no rows, but blocks: {empty:?}");
    ensure!(world.stored().await?.is_empty(), "encoding wrote rows");
    Ok(())
}

async fn a_block_is_delivered_once<W: SinkWorld>(world: &W) -> Result<()> {
    let plan = plan(world).await?;
    let sent = events(6, 1);
    let parcel = seal(&plan, 1, &sent)?;
    let first = world.sink().deliver(&plan, &parcel.insert(0), nth(1)).await;
    ensure!(matches!(first, Delivery::Delivered(_)), "{first:?}");
    holds(world, &sent[..2]).await?;
    let second = world.sink().deliver(&plan, &parcel.insert(1), nth(1)).await;
    ensure!(matches!(second, Delivery::Delivered(_)), "{second:?}");
    holds(world, &sent).await?;
    if plan.guarantee() == Guarantee::Token {
        // The same token again is written once, however often it comes.
        for ordinal in [0, 1, 0] {
            let again = world
                .sink()
                .deliver(&plan, &parcel.insert(ordinal), nth(2))
                .await;
            ensure!(matches!(again, Delivery::Delivered(_)), "{again:?}");
        }
        holds(world, &sent).await?;
        // The same rows under another token are other rows.
        let twin = seal(&plan, 2, &sent)?;
        deliver(world, &plan, &twin).await?;
        let stored = world.stored().await?;
        ensure!(stored.values().all(|(count, _)| *count == 2), "{stored:?}");
    }
    Ok(())
}

async fn batches_of_every_size_arrive<W: SinkWorld>(world: &W) -> Result<()> {
    let plan = plan(world).await?;
    let mut all = Vec::new();
    for (number, count) in [(1, 1), (2, 2), (3, 5000)] {
        let mut sent = events(count, 0);
        if count == 2 {
            sent[0].event_context = format!("\"{}\"", "\u{20ac}".repeat(400_000)).into_bytes();
            sent[1].event_context = b"0".to_vec();
        }
        deliver(world, &plan, &seal(&plan, number, &sent)?).await?;
        all.extend(sent);
    }
    holds(world, &all).await
}

async fn what_is_unknown_is_resolved<W: SinkWorld>(world: &W) -> Result<()> {
    let plan = plan(world).await?;
    let mut all = Vec::new();
    // A table that cannot be looked into leaves it to people once its tokens are forgotten.
    let can_look = world.keeps_batch() && plan.guarantee() != Guarantee::AtLeastOnce;
    let doubts = if can_look {
        &[FRESH, OLD][..]
    } else {
        &[FRESH]
    };
    for (number, doubt) in (1..).step_by(3).zip(doubts) {
        let absent = events(3, 0);
        let parcel = seal(&plan, number, &absent)?;
        let insert = parcel.insert(0);
        let nothing = world.sink().resolve(&plan, &insert, *doubt).await?;
        ensure!(matches!(nothing, Resolution::Resend), "{nothing:?}");
        deliver(world, &plan, &parcel).await?;
        all.extend(absent);

        let whole = world.sink().resolve(&plan, &insert, *doubt).await?;
        match whole {
            Resolution::Delivered(_) => {}
            Resolution::Resend if plan.guarantee() == Guarantee::Token => {
                deliver(world, &plan, &parcel).await?;
            }
            other => bail!("it is there: {other:?}"),
        }
        holds(world, &all).await?;
    }
    if can_look {
        let sent = events(4, 0);
        let sealed = seal(&plan, 20, &sent)?;
        let mut half = seal(&plan, 20, &sent[..2])?;
        half.batch.batch_id = sealed.batch.batch_id;
        deliver(world, &plan, &half).await?;
        let partly = world.sink().resolve(&plan, &sealed.insert(0), OLD).await?;
        ensure!(matches!(partly, Resolution::Undecidable(_)), "{partly:?}");
    }
    Ok(())
}

async fn the_highest_number_is_found<W: SinkWorld>(world: &W) -> Result<()> {
    let plan = plan(world).await?;
    if !world.keeps_batch() {
        let blind = world.sink().highest_number(&plan, ORIGIN).await;
        ensure!(blind.is_err(), "it cannot tell: {blind:?}");
        return Ok(());
    }
    let none = world.sink().highest_number(&plan, ORIGIN).await?;
    ensure!(none.is_none(), "{none:?}");
    let last = (1 << 40) - 1;
    for number in [3, last, 7] {
        deliver(world, &plan, &seal(&plan, number, &events(1, 0))?).await?;
    }
    let highest = world.sink().highest_number(&plan, ORIGIN).await?;
    ensure!(highest == Some(last), "{highest:?}");
    for other in [ORIGIN - 1, ORIGIN + 1] {
        let none = world.sink().highest_number(&plan, other).await?;
        ensure!(none.is_none(), "origin {other}: {none:?}");
    }
    Ok(())
}

async fn a_dropped_delivery_is_unknown<W: SinkWorld>(world: &W) -> Result<()> {
    let plan = plan(world).await?;
    let mut all = Vec::new();
    for (number, micros) in (1..).zip([0, 300, 1000, 3000, 10_000]) {
        let sent = events(2000, 0);
        let parcel = seal(&plan, number, &sent)?;
        let insert = parcel.insert(0);
        let delivery = world.sink().deliver(&plan, &insert, nth(1));
        let cut = tokio::time::timeout(Duration::from_micros(micros), delivery).await;
        match cut {
            Ok(Delivery::Delivered(_)) => {}
            Ok(other) => bail!("{other:?}"),
            Err(_) => settle(world, &plan, &insert, true).await?,
        }
        all.extend(sent);
        holds(world, &all).await?;
    }
    Ok(())
}

async fn mishaps_double_nothing<W: SinkWorld>(world: &W, mishap: Mishap) -> Result<()> {
    let plan = plan(world).await?;
    let sent = events(3, 0);
    let parcel = seal(&plan, 1, &sent)?;
    let insert = parcel.insert(0);
    if !world.fail(mishap).await? {
        return Ok(());
    }
    let delivery = world.sink().deliver(&plan, &insert, nth(1)).await;
    world.heal().await?;
    let is_unknown = match delivery {
        Delivery::Delivered(_) => return holds(world, &sent).await,
        Delivery::Retry(_) => {
            ensure!(world.stored().await?.is_empty(), "retry, but written");
            false
        }
        Delivery::Unknown(_) => true,
        Delivery::Rejected(trouble) => bail!("blamed on rows: {trouble}"),
    };
    ensure!(is_unknown || mishap == Mishap::Refused || mishap == Mishap::LostBefore);
    settle(world, &plan, &insert, is_unknown).await?;
    holds(world, &sent).await
}
