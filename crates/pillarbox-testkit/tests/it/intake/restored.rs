//! A Redis that comes back as it was some time ago shows again what was taken since, and gives ids again
//! that were taken: nothing is doubled, and nothing new is taken for old.

use anyhow::{Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::Persistence;

use super::queue::{Event, KEY, Kind, Queue};

async fn is_empty_and_holds(queue: &Queue, oracle: &Oracle) -> Result<()> {
    ensure!(
        queue.waiting().await? == 0,
        "{:?}: something is left",
        queue.kind
    );
    assert_eq!(queue.drain().await?, [0, 0, 0], "{:?}", queue.kind);
    queue.outbox_holds(oracle).await?;
    Ok(())
}

#[tokio::test]
async fn inv_14_what_comes_back_with_a_snapshot_is_not_taken_again() -> Result<()> {
    for kind in Kind::BOTH {
        let queue = Queue::start(kind, Persistence::Rdb).await?;
        let oracle = Oracle::new();
        queue.push_many(3, &oracle).await?;
        queue.drain().await?;
        queue.push_many(45, &oracle).await?;
        queue.redis.save().await?;
        queue.push_many(7, &oracle).await?;
        assert_eq!(queue.drain().await?, [52, 0, 0]);
        queue.push_many(2, &oracle).await?;
        assert_eq!(queue.drain().await?, [2, 0, 0]);
        // Twice to the same snapshot, and then to one that was written in between.
        for _ in 0..2 {
            queue.restart_redis().await?;
            queue.push_many(30, &oracle).await?;
            assert_eq!(queue.drain().await?, [30, 0, 45], "{kind:?}");
        }
        queue.push_many(25, &oracle).await?;
        queue.redis.save().await?;
        assert_eq!(queue.drain().await?, [25, 0, 0], "{kind:?}");
        queue.restart_redis().await?;
        assert_eq!(queue.drain().await?, [0, 0, 25], "{kind:?}");
        is_empty_and_holds(&queue, &oracle).await?;
    }
    Ok(())
}

/// The snapshot is from before the list was renamed, and the chunk was taken in part only.
#[tokio::test]
async fn inv_14_a_chunk_that_was_taken_in_part_comes_back_as_a_list() -> Result<()> {
    for at in ["intake-renamed", "intake-recorded", "intake-committed"] {
        let queue = Queue::start(Kind::List, Persistence::Rdb).await?;
        let oracle = Oracle::new();
        queue.push_many(50, &oracle).await?;
        queue.redis.save().await?;
        let intake = queue.spawn(queue.intake("drain", &format!("{at}=return")))?;
        intake.killed(at).await?;
        queue.restart_redis().await?;
        queue.push_many(5, &oracle).await?;
        let taken = if at == "intake-committed" { 20 } else { 0 };
        assert_eq!(queue.drain().await?, [55 - taken, 0, taken], "{at}");
        is_empty_and_holds(&queue, &oracle).await?;
    }
    Ok(())
}

/// The snapshot holds the renamed chunk itself.
#[tokio::test]
async fn inv_14_a_renamed_chunk_comes_back_with_its_name() -> Result<()> {
    for at in ["intake-renamed", "intake-written", "intake-committed"] {
        let queue = Queue::start(Kind::List, Persistence::Rdb).await?;
        let oracle = Oracle::new();
        queue.push_many(50, &oracle).await?;
        let intake = queue.spawn(queue.intake("drain", &format!("{at}=return")))?;
        intake.killed(at).await?;
        queue.push_many(5, &oracle).await?;
        queue.redis.save().await?;
        let taken = if at == "intake-committed" { 20 } else { 0 };
        assert_eq!(queue.drain().await?, [55 - taken, 0, 0], "{at}");
        queue.restart_redis().await?;
        queue.push_many(5, &oracle).await?;
        // The chunk is recorded as done, and only deleted; the list behind it begins as one did.
        assert_eq!(queue.drain().await?, [5, 0, 5], "{at}");
        is_empty_and_holds(&queue, &oracle).await?;
    }
    Ok(())
}

#[tokio::test]
async fn inv_14_ids_below_the_position_are_taken_when_they_are_new() -> Result<()> {
    let queue = Queue::start(Kind::Stream, Persistence::Rdb).await?;
    let oracle = Oracle::new();
    let add = async |id: &str| {
        let event = Event::new(0);
        oracle.committed(event.published());
        queue.push_at(id, &event).await
    };
    add("5-1").await?;
    add("5-2").await?;
    queue.redis.save().await?;
    // Far beyond any clock, and beyond what a number of Lua holds.
    add("99999999999999-18446744073709551610").await?;
    assert_eq!(queue.drain().await?, [3, 0, 0]);
    queue.restart_redis().await?;
    // Producers were faster than the intake: one of these ids was given before, to another entry.
    add("5-3").await?;
    add("6-0").await?;
    add("99999999999998-7").await?;
    assert_eq!(queue.drain().await?, [3, 0, 2]);
    // From now on ids go on above the position, whatever the clock says.
    queue.push_many(3, &oracle).await?;
    assert_eq!(queue.drain().await?, [3, 0, 0]);

    // The key is deleted while Redis goes on.
    queue.redis.command(&format!("del {KEY}")).await?;
    add("7-0").await?;
    assert_eq!(queue.drain().await?, [1, 0, 0]);
    queue.redis.command("flushall").await?;
    assert_eq!(queue.drain().await?, [0, 0, 0]);
    queue.push_many(3, &oracle).await?;
    assert_eq!(queue.drain().await?, [3, 0, 0]);
    is_empty_and_holds(&queue, &oracle).await
}

#[tokio::test]
async fn inv_14_an_id_that_was_given_twice_to_different_entries_is_two_events() -> Result<()> {
    let queue = Queue::start(Kind::Stream, Persistence::None).await?;
    let oracle = Oracle::new();
    for _ in 0..2 {
        let event = Event::new(0);
        queue.push_at("5-1", &event).await?;
        oracle.committed(event.published());
        assert_eq!(queue.drain().await?, [1, 0, 0]);
        queue.restart_redis().await?;
    }
    is_empty_and_holds(&queue, &oracle).await
}

/// What is older than the memory may have been taken or not: a person decides.
#[tokio::test]
async fn inv_14_what_nobody_remembers_becomes_dead_letters() -> Result<()> {
    let forgetful = [("REMEMBER_S", "0")];
    for kind in Kind::BOTH {
        let queue = Queue::start(kind, Persistence::Rdb).await?;
        let oracle = Oracle::new();
        queue.push_many(1, &oracle).await?;
        queue.drain_with(&forgetful).await?;
        queue.push_many(10, &oracle).await?;
        queue.redis.save().await?;
        queue.drain_with(&forgetful).await?;
        queue.push_many(1, &oracle).await?;
        queue.drain_with(&forgetful).await?;
        queue.restart_redis().await?;
        assert_eq!(queue.drain_with(&forgetful).await?, [0, 10, 0], "{kind:?}");
        for reason in queue.reasons().await? {
            ensure!(reason.contains("taken before"), "{reason}");
        }
        queue.push_many(2, &oracle).await?;
        assert_eq!(queue.drain_with(&forgetful).await?, [2, 0, 0], "{kind:?}");
        is_empty_and_holds(&queue, &oracle).await?;
    }
    Ok(())
}

/// A list of a Redis that has lost everything begins like the first one ever: with an identity that is
/// the same event, without one nobody can know.
#[tokio::test]
async fn inv_14_equal_entries_after_a_loss_are_told_apart_by_their_identity() -> Result<()> {
    let queue = Queue::start(Kind::List, Persistence::None).await?;
    let oracle = Oracle::new();
    let ping = br#"{"event_type":"ping","event_context":{}}"#;
    let same = Event::new(1);
    oracle.committed(same.published());
    queue.push(&same).await?;
    queue.push_bytes(ping).await?;
    assert_eq!(queue.drain().await?, [2, 0, 0]);
    queue.restart_redis().await?;
    queue.push(&same).await?;
    queue.push_bytes(ping).await?;
    queue.push_bytes(ping).await?;
    assert_eq!(queue.drain().await?, [1, 1, 1]);
    ensure!(queue.reasons().await?[0].contains("looks the same"));
    queue
        .postgres
        .execute(
            "delete from pillarbox.event where event_type = 'ping';
        update pillarbox.intake set taken = taken - 2",
        )
        .await?;
    is_empty_and_holds(&queue, &oracle).await
}

#[tokio::test]
async fn inv_14_chunks_that_another_consumer_left_are_taken() -> Result<()> {
    let queue = Queue::start(Kind::List, Persistence::None).await?;
    let oracle = Oracle::new();
    for id in [
        "6fa459ea-ee8a-4ca4-894e-db77e160355e",
        "ffffffff-ffff-4fff-bfff-ffffffffffff",
    ] {
        queue.push_many(30, &oracle).await?;
        queue
            .redis
            .command(&format!("rename {KEY} {KEY}:{id}"))
            .await?;
    }
    queue.redis.command(&format!("set {KEY}:notes x")).await?;
    queue.push_many(30, &oracle).await?;
    assert_eq!(queue.drain_with(&[("REMEMBER_S", "0")]).await?, [90, 0, 0]);
    queue.push_many(30, &oracle).await?;
    assert_eq!(queue.drain_with(&[("REMEMBER_S", "0")]).await?, [30, 0, 0]);
    assert_eq!(queue.redis.command(&format!("del {KEY}:notes")).await?, "1");
    is_empty_and_holds(&queue, &oracle).await
}
