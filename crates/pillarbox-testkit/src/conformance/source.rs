//! What every [`Source`] and [`Session`] does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pillarbox_relay::source::{Session, Source, SourceError, Standby};
use uuid::Uuid;

use super::outbox::{Loss, Publisher, SourceWorld};
use super::reader::{COLUMNS, Sealer, batch, outcome, read};

/// How long the end of a session may take to be noticed.
const NOTICE_MAX: Duration = Duration::from_secs(30);

/// Runs the suite, each part on a world of its own.
///
/// # Errors
/// What the source does not do, with the part.
pub async fn source<W, F>(mut factory: F) -> Result<()>
where
    W: SourceWorld,
    F: AsyncFnMut() -> Result<W>,
{
    one_relay_is_active(&factory().await?)
        .await
        .context("one relay is active")?;
    a_relay_that_lives_is_not_displaced(&factory().await?)
        .await
        .context("a relay that lives is not displaced")?;
    a_new_sink_stands_on_genesis(&factory().await?)
        .await
        .context("a new sink stands on genesis")?;
    a_probe_sees_what_is_committed(&factory().await?)
        .await
        .context("a probe sees what is committed")?;
    windows_cover_each_event_once(factory().await?)
        .await
        .context("windows cover each event once")?;
    reads_end_where_there_is_no_room(&factory().await?)
        .await
        .context("reads end where there is no room")?;
    seals_are_fenced(&factory().await?)
        .await
        .context("seals are fenced")?;
    what_is_unfinished_is_found_again(&factory().await?)
        .await
        .context("what is unfinished is found again")?;
    switches_and_reports(&factory().await?)
        .await
        .context("switches and reports")?;
    the_ring_keeps_what_is_not_done(&factory().await?)
        .await
        .context("the ring keeps what is not done")?;
    a_killed_session_is_lost(&factory().await?)
        .await
        .context("a killed session is lost")?;
    for loss in Loss::ALL {
        the_ledger_alone_says_where_sealing_stands(&factory().await?, loss)
            .await
            .with_context(|| format!("the ledger alone says where sealing stands: {loss:?}"))?;
    }
    Ok(())
}

/// Publishes events in a transaction of their own.
async fn publish<W: SourceWorld>(world: &W, count: usize) -> Result<Vec<Uuid>> {
    let mut publisher = world.begin().await?;
    let events = publisher.publish(count).await?;
    publisher.commit().await?;
    Ok(events)
}

/// Takes over as soon as the one before is noticed to be gone.
async fn take_over<W: SourceWorld>(world: &W) -> Result<<W::Source as Source>::Session> {
    let source = world.source()?;
    let began = Instant::now();
    loop {
        if let Ok(Some(session)) = source.take_over(Standby::Leave).await {
            return Ok(session);
        }
        ensure!(began.elapsed() < NOTICE_MAX, "the lock was never free");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn one_relay_is_active<W: SourceWorld>(world: &W) -> Result<()> {
    let first = world.source()?.take_over(Standby::Wait).await?;
    let first = first.context("waiting gave nothing")?;
    let other = world.source()?;
    let none = other.take_over(Standby::Leave).await?;
    ensure!(none.is_none(), "two relays are active");
    {
        let waiting = std::pin::pin!(other.take_over(Standby::Wait));
        let early = tokio::time::timeout(Duration::from_millis(700), waiting).await;
        ensure!(early.is_err(), "a stand-by did not wait");
        // Dropped while it waits: it must leave nothing behind.
    }
    first.beat().await?;
    let waiting = std::pin::pin!(other.take_over(Standby::Wait));
    drop(first);
    let second = tokio::time::timeout(NOTICE_MAX, waiting).await??;
    let second = second.context("waiting gave nothing")?;
    let none = world.source()?.take_over(Standby::Leave).await?;
    ensure!(none.is_none(), "two relays are active after a take-over");
    second.beat().await?;
    drop(second);
    take_over(world).await?;
    Ok(())
}

/// Whatever the clock of the database says; and one that shows no life for as long as that is.
async fn a_relay_that_lives_is_not_displaced<W: SourceWorld>(world: &W) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(3);
    const BEAT: Duration = Duration::from_millis(200);
    let holder = take_over(world).await?;
    let other = world.impatient(PATIENCE)?;
    let mut waiting = std::pin::pin!(other.take_over(Standby::Wait));
    let began = tokio::time::Instant::now();
    while began.elapsed() < 2 * PATIENCE {
        holder.beat().await?;
        let early = tokio::time::timeout(BEAT, &mut waiting).await;
        ensure!(early.is_err(), "a live relay was displaced");
    }
    // All that the last beat had to do is done: its sign of life is one of the old time.
    world.set_clock_forward(PATIENCE * 1_000).await?;
    let early = tokio::time::timeout(PATIENCE / 3, &mut waiting).await;
    ensure!(early.is_err(), "it was displaced when the clock was set");
    let silent = tokio::time::Instant::now();
    holder.beat().await?;
    let none = world.impatient(PATIENCE)?.take_over(Standby::Leave).await?;
    ensure!(none.is_none(), "two relays are active");
    let second = tokio::time::timeout(NOTICE_MAX, waiting).await??;
    second.context("waiting gave nothing")?.beat().await?;
    let silence = silent.elapsed();
    ensure!(silence >= PATIENCE, "displaced after {silence:?}");
    let lost = holder.beat().await;
    ensure!(matches!(lost, Err(SourceError::Lost(..))), "{lost:?}");
    Ok(())
}

async fn a_new_sink_stands_on_genesis<W: SourceWorld>(world: &W) -> Result<()> {
    let session = take_over(world).await?;
    let standing = session.standing().await?;
    ensure!(standing.last_number == 0, "{standing:?}");
    ensure!(standing.unfinished.is_empty(), "{standing:?}");
    ensure!(!standing.timeline_changed, "{standing:?}");
    ensure!(!standing.position.is_cut(), "{standing:?}");
    ensure!((1..1 << 23).contains(&standing.origin), "{standing:?}");
    let columns = session.outbox_columns().await?;
    for name in COLUMNS {
        let found = columns.iter().find(|column| column.name == name);
        let found = found.with_context(|| format!("there is no column {name}"))?;
        ensure!(found.not_null == (name != "trace_parent"), "{found:?}");
    }
    let again = session.standing().await?;
    ensure!(again.origin == standing.origin, "the origin changed");
    Ok(())
}

async fn a_probe_sees_what_is_committed<W: SourceWorld>(world: &W) -> Result<()> {
    let session = take_over(world).await?;
    let position = session.standing().await?.position;
    let empty = session.probe(&position).await?;
    ensure!(empty.waiting.is_none(), "{empty:?}");
    let mut publisher = world.begin().await?;
    publisher.publish(2).await?;
    let open = session.probe(&position).await?;
    ensure!(open.waiting.is_none(), "it sees an open transaction");
    publisher.commit().await?;
    let committed = session.probe(&position).await?;
    let waiting = committed.waiting.context("it sees no committed event")?;
    ensure!(waiting < Duration::from_secs(60), "{waiting:?}");
    ensure!(committed.outbox_bytes > 0, "{committed:?}");
    let mut sealer = Sealer::open(&session).await?;
    sealer.seal_all(&session, 100).await?;
    let done = session.probe(&sealer.position).await?;
    ensure!(done.waiting.is_none(), "it sees what is sealed");
    Ok(())
}

/// Long transactions, rollbacks, cuts of every size: in the end each committed event was sealed once.
async fn windows_cover_each_event_once<W: SourceWorld>(world: W) -> Result<()> {
    let session = take_over(&world).await?;
    let mut sealer = Sealer::open(&session).await?;
    let mut expected = Vec::new();
    for (turn, room) in [3, 1, 2, 7, 100, 1].into_iter().enumerate() {
        let mut long = world.begin().await?;
        let mut late = long.publish(3).await?;
        let mut undone = world.begin().await?;
        undone.publish(2).await?;
        expected.extend(publish(&world, 4).await?);
        sealer.seal(&session, room).await?;
        expected.extend(publish(&world, 2).await?);
        late.extend(long.publish(2).await?);
        let while_open = sealer.seal_all(&session, room).await?;
        ensure!(
            !while_open.is_empty(),
            "an open transaction holds others up"
        );
        ensure!(
            late.iter().all(|event| !sealer.events.contains(event)),
            "it saw an open transaction"
        );
        undone.rollback().await?;
        if turn % 2 == 0 {
            long.commit().await?;
            expected.extend(late);
        } else {
            long.rollback().await?;
        }
        sealer.seal_all(&session, room).await?;
        let mut sealed = sealer.events.clone();
        sealed.sort_unstable();
        expected.sort_unstable();
        ensure!(sealed == expected, "turn {turn}: not each event once");
    }
    Ok(())
}

async fn reads_end_where_there_is_no_room<W: SourceWorld>(world: &W) -> Result<()> {
    let session = take_over(world).await?;
    let events = publish(world, 20).await?;
    let position = session.standing().await?.position;
    let now = session.probe(&position).await?.snapshot;
    let span = position.next_span(now);
    for room in [1, 7, 19, 20, 21] {
        // Cut by the taker, with more rows on their way.
        let cut = read(&session, &span, 1000, room).await?;
        let most = usize::try_from(room)?.min(events.len());
        ensure!(cut.events() == events[..most], "room {room}: {cut:?}");
        ensure!(cut.cut().is_some() == (room < 20), "room {room}: {cut:?}");
        // What was read once is read again the same, whatever was published in between (INV-3).
        publish(world, 1).await?;
        let mut sealed = span.clone();
        sealed.until = cut.cut();
        let again = read(&session, &sealed, room + 1, room + 1).await?;
        ensure!(
            again.rows == cut.rows,
            "room {room}: it reads otherwise now"
        );
        ensure!(again.cut().is_none(), "room {room}: rows were added");
        if let Some(after) = cut.cut() {
            sealed.after = Some(after);
            sealed.until = None;
            let rest = read(&session, &sealed, 1000, 1000).await?;
            ensure!(rest.events() == events[most..], "room {room}: the rest");
        }
    }
    Ok(())
}

async fn seals_are_fenced<W: SourceWorld>(world: &W) -> Result<()> {
    let session = take_over(world).await?;
    publish(world, 1).await?;
    let mut sealer = Sealer::open(&session).await?;
    let first = sealer.seal(&session, 10).await?.context("nothing sealed")?;
    let is_set = first.sealed_at > std::time::SystemTime::UNIX_EPOCH;
    ensure!(is_set, "sealed_at is not set: {first:?}");
    let mut second = batch(first.number, first.origin, first.span.clone(), 1);
    match session.seal(&mut second).await {
        Err(SourceError::Fenced(number)) if number == first.number => {}
        other => bail!("the number was sealed twice: {other:?}"),
    }
    drop(session);
    let session = take_over(world).await?;
    let unfinished = session.standing().await?.unfinished;
    ensure!(unfinished.len() == 1, "{unfinished:?}");
    ensure!(
        unfinished[0].batch.batch_id == first.batch_id,
        "the second won"
    );
    Ok(())
}

async fn what_is_unfinished_is_found_again<W: SourceWorld>(world: &W) -> Result<()> {
    let session = take_over(world).await?;
    publish(world, 7).await?;
    let mut sealer = Sealer::open(&session).await?;
    let batches = sealer.seal_all(&session, 2).await?;
    ensure!(batches.len() == 4, "{batches:?}");
    session.confirm(&outcome(2, "a")).await?;
    session.confirm(&outcome(2, "b")).await?;
    drop(session);
    let session = take_over(world).await?;
    let standing = session.standing().await?;
    ensure!(standing.last_number == 4, "{standing:?}");
    ensure!(standing.position == sealer.position, "{standing:?}");
    let found = standing.unfinished.iter().map(|open| &open.batch);
    let expected = batches.iter().filter(|batch| batch.number != 2);
    ensure!(found.eq(expected), "{:?}", standing.unfinished);
    let since: Vec<u64> = standing
        .unfinished
        .iter()
        .map(|open| open.blocks_since)
        .collect();
    ensure!(since == [6, 2, 0], "blocks since: {since:?}");
    for open in &standing.unfinished {
        let rows = open.batch.rows;
        let rebuilt = read(&session, &open.batch.span, rows + 1, rows + 1).await?;
        ensure!(rebuilt.rows.len() as u64 == rows, "it cannot be rebuilt");
        session.confirm(&outcome(open.batch.number, "a")).await?;
    }
    let standing = session.standing().await?;
    ensure!(standing.unfinished.is_empty(), "{standing:?}");
    Ok(())
}

async fn switches_and_reports<W: SourceWorld>(world: &W) -> Result<()> {
    let session = take_over(world).await?;
    let switches = session.beat().await?;
    ensure!(!switches.paused && !switches.retired, "{switches:?}");
    world.set_paused(true).await?;
    ensure!(session.beat().await?.paused, "it does not see the pause");
    world.set_paused(false).await?;
    ensure!(!session.beat().await?.paused, "it does not see the resume");

    ensure!(world.stopped_reason().await?.is_none());
    session.report(Some("it is \"broken\"")).await?;
    session.report(Some("it is 'still' broken")).await?;
    let reason = world.stopped_reason().await?;
    ensure!(
        reason.as_deref() == Some("it is 'still' broken"),
        "{reason:?}"
    );
    session.report(None).await?;
    ensure!(world.stopped_reason().await?.is_none());

    let before = session.standing().await?;
    let origin = session.renew_origin().await?;
    let after = session.standing().await?;
    ensure!(
        after.origin == origin && origin != before.origin,
        "{after:?}"
    );
    ensure!((1..1 << 23).contains(&origin), "{origin}");
    ensure!(after.last_number == before.last_number, "{after:?}");

    world.retire().await?;
    ensure!(session.beat().await?.retired, "it does not see the end");
    drop(session);
    let refused = world.source()?.take_over(Standby::Leave).await;
    ensure!(
        matches!(refused, Err(SourceError::Refused(_))),
        "a retired sink was taken over"
    );
    Ok(())
}

/// INV-8, with a writer in flight, with batches that are sealed or delivered but not confirmed.
async fn the_ring_keeps_what_is_not_done<W: SourceWorld>(world: &W) -> Result<()> {
    world.hurry_ring().await?;
    let session = take_over(world).await?;
    let mut writer = world.begin().await?;
    writer.publish(1).await?;
    publish(world, 10).await?;
    tend(&session).await?;
    publish(world, 5).await?;
    tend(&session).await?;
    ensure!(world.events_held().await? == 15, "emptied, not sealed");
    let mut sealer = Sealer::open(&session).await?;
    let batches = sealer.seal_all(&session, 4).await?;
    tend(&session).await?;
    ensure!(world.events_held().await? == 15, "emptied, not confirmed");
    for batch in batches.iter().rev().skip(1) {
        session.confirm(&outcome(batch.number, "a")).await?;
    }
    // The writer has begun before the ring turned: its leaf is not free, and its event not sealed.
    tend(&session).await?;
    ensure!(world.events_held().await? >= 13, "emptied under a writer");
    writer.commit().await?;
    tend(&session).await?;
    ensure!(world.events_held().await? >= 14, "emptied, committed late");
    let last = sealer.seal_all(&session, 100).await?;
    ensure!(last.iter().map(|batch| batch.rows).sum::<u64>() == 1);
    for batch in batches.iter().chain(&last) {
        session.confirm(&outcome(batch.number, "a")).await?;
    }
    // The last leaf may still be the current one.
    let began = Instant::now();
    while world.events_held().await? > 5 {
        ensure!(began.elapsed() < NOTICE_MAX, "space never returns");
        tend(&session).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn tend<S: Session>(session: &S) -> Result<()> {
    for _ in 0..4 {
        session.tend().await?;
    }
    Ok(())
}

async fn a_killed_session_is_lost<W: SourceWorld>(world: &W) -> Result<()> {
    let session = take_over(world).await?;
    publish(world, 1).await?;
    let sealer = Sealer::open(&session).await?;
    let now = session.probe(&sealer.position).await?.snapshot;
    let span = sealer.position.next_span(now);
    world.kill_sessions().await?;
    let mut unsealed = batch(1, sealer.origin, span.clone(), 1);
    for answer in [
        session.beat().await.err(),
        session.seal(&mut unsealed).await.err(),
        session.probe(&sealer.position).await.err(),
        session.confirm(&outcome(1, "a")).await.err(),
        session.standing().await.err(),
    ] {
        ensure!(matches!(answer, Some(SourceError::Lost(..))), "{answer:?}");
    }
    ensure!(
        read(&session, &span, 10, 10).await.is_err(),
        "it still reads"
    );
    let successor = take_over(world).await?;
    ensure!(
        successor.standing().await?.last_number == 0,
        "it was sealed"
    );
    drop(session);
    successor.beat().await?;
    Ok(())
}

async fn the_ledger_alone_says_where_sealing_stands<W: SourceWorld>(
    world: &W,
    loss: Loss,
) -> Result<()> {
    let session = take_over(world).await?;
    publish(world, 2).await?;
    let mut sealer = Sealer::open(&session).await?;
    if matches!(loss, Loss::BeforeConfirm | Loss::AfterConfirm) {
        sealer.seal(&session, 10).await?;
    }
    if !world.lose_session(loss).await? {
        return Ok(());
    }
    let lost = match loss {
        Loss::BeforeConfirm | Loss::AfterConfirm => session.confirm(&outcome(1, "a")).await.err(),
        _ => sealer
            .seal(&session, 10)
            .await
            .err()
            .and_then(|error| error.downcast::<SourceError>().ok()),
    };
    ensure!(matches!(lost, Some(SourceError::Lost(..))), "{lost:?}");
    drop(session);
    let standing = take_over(world).await?.standing().await?;
    let (number, open) = match loss {
        Loss::BeforeSeal => (0, 0),
        Loss::AfterConfirm => (1, 0),
        Loss::AfterSeal | Loss::SealUnanswered | Loss::BeforeConfirm => (1, 1),
    };
    ensure!(standing.last_number == number, "{standing:?}");
    ensure!(standing.unfinished.len() == open, "{standing:?}");
    Ok(())
}
