//! The ledger: what is sealed is durable, of one author, and kept as long as it is needed (INV-2,
//! INV-3).

use std::sync::Arc;

use anyhow::{Context, Result};
use pillarbox_relay::snapshot::Snapshot;
use pillarbox_relay::source::{Session, Source, SourceError, Standby};
use pillarbox_testkit::servers::{Postgres, eventually};

use crate::outbox::{DEADLINE, Outbox, SINK, VERSIONS, exactly_once, publish};

/// INV-2: the ledger's key is the second fence: a number is sealed once, and the loser leaves no
/// trace.
#[tokio::test]
async fn a_number_is_sealed_once() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        outbox.publish(5).await?;
        let mut drain = outbox.drain(SINK).await?;
        let span = drain.position.next_span(drain.look().await?);
        let (mut draft, _) = drain.draft(span, 2).await?.context("a draft")?;
        let winner = drain.seal(3).await?.context("a batch")?;
        let fenced = drain.session.seal(&mut draft).await;
        assert!(matches!(fenced, Err(SourceError::Fenced(1))), "{fenced:?}");
        drop(drain);
        let drain = outbox.drain(SINK).await?;
        assert_eq!(drain.unfinished, [winner.batch]);
    }
    Ok(())
}

/// The first outcome of a batch wins.
#[tokio::test]
async fn the_first_outcome_wins() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        outbox.publish(5).await?;
        let mut drain = outbox.drain(SINK).await?;
        let mut sealed = drain.seal(9).await?.context("a batch")?;
        drain.confirm(&sealed.batch).await?;
        sealed.batch.rows = 99;
        drain.confirm(&sealed.batch).await?;
        let rows: i64 = outbox
            .value("select sum(rows)::bigint from pillarbox.delivery")
            .await?;
        assert_eq!(rows, 5);
    }
    Ok(())
}

/// INV-3: a seal that stopped waiting for its synchronous standby must not be sent, neither by the
/// tenure that made it nor by the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_seal_that_is_not_durable_is_not_sent() -> Result<()> {
    for version in VERSIONS {
        let mut outbox = Outbox::start(version).await?;
        let committed = outbox.publish(5).await?;
        let drain = Arc::new(outbox.drain(SINK).await?);
        let span = drain.position.next_span(drain.look().await?);
        let (mut batch, _) = drain.draft(span, 9).await?.context("a draft")?;
        require_standby(&outbox, "missing").await?;
        let sealing = tokio::spawn({
            let drain = Arc::clone(&drain);
            async move { drain.session.seal(&mut batch).await }
        });
        cancel_wait(&outbox).await?;
        let lost = tokio::time::timeout(DEADLINE, sealing).await??;
        let Err(SourceError::Lost(text, _)) = lost else {
            anyhow::bail!("{lost:?}");
        };
        assert!(text.contains("not durable"), "{text}");
        drop(Arc::into_inner(drain));
        // The seal is in the ledger all the same: the next tenure makes sure of it before it acts.
        let source = outbox.source(SINK)?;
        let standing = tokio::spawn(async move {
            let taken = source.take_over(Standby::Wait).await?;
            match taken {
                Some(session) => session.standing().await.map(drop),
                None => Ok(()),
            }
        });
        cancel_wait(&outbox).await?;
        let lost = tokio::time::timeout(DEADLINE, standing).await??;
        assert!(matches!(lost, Err(SourceError::Lost(..))), "{lost:?}");
        require_standby(&outbox, "").await?;
        outbox.reconnect().await?;
        let mut drain = outbox.drain(SINK).await?;
        assert_eq!(drain.unfinished.len(), 1);
        exactly_once(&committed, &drain.all(9).await?);
    }
    Ok(())
}

async fn require_standby(outbox: &Outbox, name: &str) -> Result<()> {
    outbox
        .admin
        .batch_execute("set synchronous_commit = local")
        .await?;
    let set = format!("alter system set synchronous_standby_names = '{name}'");
    outbox.admin.batch_execute(&set).await?;
    outbox
        .admin
        .batch_execute("select pg_reload_conf()")
        .await?;
    eventually("the setting to hold", DEADLINE, || async {
        let shown: String = outbox.value("show synchronous_standby_names").await?;
        Ok((shown == name).then_some(()))
    })
    .await?;
    if name.is_empty() {
        return Ok(());
    }
    // A COMMIT waits from when the checkpointer has seen the setting too: try until one does.
    let committer = outbox.server.connect().await?;
    eventually("a COMMIT that waits", DEADLINE, || async {
        tokio::select! { biased;
            committed = committer.batch_execute("select pg_logical_emit_message(true, 'test', '')") => {
                committed?;
                Ok(None)
            }
            cancelled = cancel_wait(outbox) => cancelled.map(Some),
        }
    })
    .await?;
    // The cancelled one has ended before the next is looked for.
    committer.batch_execute("select 1").await?;
    Ok(())
}

/// Waits for a session that waits for a standby, and cancels its COMMIT.
async fn cancel_wait(outbox: &Outbox) -> Result<()> {
    let cancel = "select count(pg_cancel_backend(pid)) from pg_stat_activity
                  where wait_event = 'SyncRep'";
    eventually("a COMMIT to wait for the standby", DEADLINE, || async {
        let count: i64 = outbox.value(cancel).await?;
        Ok((count > 0).then_some(()))
    })
    .await
}

/// INV-2: publishers that commit asynchronously and a killed server: what a durable seal covers is
/// there, no stored snapshot is ahead of the transaction counter, and nothing is lost or doubled.
#[tokio::test]
async fn a_seal_makes_asynchronous_commits_durable() -> Result<()> {
    for version in VERSIONS {
        let server = Postgres::builder()
            .version(version)
            .durable()
            .setting("wal_writer_delay", "10s")
            .setting("wal_writer_flush_after", "1GB")
            .start()
            .await?;
        let mut outbox = Outbox::on(server).await?;
        let mut batches = Vec::new();
        let mut lost = 0;
        for _ in 0..3 {
            let publisher = outbox.server.connect().await?;
            let off = "set synchronous_commit = off";
            publisher.batch_execute(off).await?;
            let open = outbox.server.connect().await?;
            open.batch_execute("begin").await?;
            publish(&open, 2).await?;
            for _ in 0..20 {
                publish(&publisher, 3).await?;
            }
            let mut drain = outbox.drain(SINK).await?;
            batches.extend(drain.all(1_000).await?);
            let covered = outbox.event_ids().await?;
            for _ in 0..20 {
                lost += publish(&publisher, 3).await?.len();
            }
            // Remembered, never sealed: it may be ahead of the counter after the crash.
            let remembered = drain.look().await?;
            outbox.server.kill()?;
            drop(drain);
            outbox.server.restart().await?;
            outbox.reconnect().await?;
            let there = outbox.event_ids().await?;
            assert!(
                covered.iter().all(|id| there.contains(id)),
                "a covered event is gone"
            );
            lost -= there.len() - covered.len();
            let drain = outbox.drain(SINK).await?;
            let now: Snapshot = {
                let text: String = outbox.value("select pg_current_snapshot()::text").await?;
                text.parse()?
            };
            assert!(
                drain.position.to.xmax() <= now.xmax(),
                "{:?} {now}",
                drain.position
            );
            println!("counter {} after {remembered}", now.xmax());
        }
        println!("{lost} asynchronous events were lost by PostgreSQL");
        let mut drain = outbox.drain(SINK).await?;
        batches.extend(drain.all(1_000).await?);
        exactly_once(&outbox.event_ids().await?, &batches);
    }
    Ok(())
}

/// Ledger rows go after their retention, but never the position nor what is open or after it.
#[tokio::test]
async fn old_ledger_rows_are_forgotten_below_the_safe_position() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let mut drain = outbox.drain(SINK).await?;
        for _ in 0..6 {
            outbox.publish(1).await?;
            let sealed = drain.seal(9).await?.context("a batch")?;
            // Batch 5 stays open.
            if sealed.batch.number != 5 {
                drain.confirm(&sealed.batch).await?;
            }
        }
        outbox.turn_to(1).await?;
        let keep = "update pillarbox.batch set sealed_at = sealed_at - interval '1 year'
                    where number <> 2";
        outbox.admin.batch_execute(keep).await?;
        drain.session.tend().await?;
        let numbers = "select array_agg(number order by number) from pillarbox.batch";
        let left: Vec<i64> = outbox.value(numbers).await?;
        assert_eq!(left, [2, 4, 5, 6], "young, safe, open and after it");
        let outcomes = "select array_agg(number order by number) from pillarbox.delivery";
        let left: Vec<i64> = outbox.value(outcomes).await?;
        assert_eq!(left, [2, 4, 6]);
        drop(drain);
        let drain = outbox.drain(SINK).await?;
        assert_eq!((drain.last_number, drain.unfinished.len()), (6, 1));
    }
    Ok(())
}
