//! What an intake of either kind does while nothing fails.

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::{Persistence, eventually};

use super::queue::{Event, Kind, Load, PATIENCE, Queue};

#[tokio::test]
async fn inv_14_entries_become_events_in_their_order() -> Result<()> {
    for kind in Kind::BOTH {
        let queue = Queue::start(kind, Persistence::None).await?;
        let oracle = Oracle::new();
        let mut ids = Vec::new();
        for nth in 0..95 {
            let event = Event::new(nth);
            queue.push(&event).await?;
            oracle.committed(event.published());
            ids.push(event.event_id);
        }
        assert_eq!(queue.drain().await?, [95, 0, 0], "{kind:?}");
        assert_eq!(queue.drain().await?, [0, 0, 0], "{kind:?}");
        queue.outbox_holds(&oracle).await?;
        let rows = queue
            .postgres
            .query("select event_id from pillarbox.event order by tx, id", &[]);
        let found: Vec<uuid::Uuid> = rows.await?.iter().map(|row| row.get(0)).collect();
        ensure!(found == ids, "{kind:?}: the order is another");
        ensure!(
            queue.waiting().await? == 0,
            "{kind:?}: something is left in redis"
        );
    }
    Ok(())
}

#[tokio::test]
async fn inv_14_what_is_no_event_is_set_aside_and_stops_nobody() -> Result<()> {
    const CONSTRAINT: &str = "alter table pillarbox.event add constraint no_secret
        check (event_type <> 'forbidden') not valid";
    for kind in Kind::BOTH {
        let queue = Queue::start(kind, Persistence::None).await?;
        queue.postgres.execute(CONSTRAINT).await?;
        let oracle = Oracle::new();
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        let huge = "x".repeat(2_000_000);
        let bad: Vec<(Vec<u8>, &str)> = vec![
            (b"not json \xff\0".to_vec(), "it is not utf-8, from byte 9"),
            (b"{}".to_vec(), "event_context is missing"),
            (
                br#"{"event_type":"t","event_context":1,"event_id":"x"}"#.to_vec(),
                "event_id is not a uuid",
            ),
            (
                format!(r#"{{"event_type":"t","event_context":{deep}}}"#).into_bytes(),
                "postgresql refuses it: SQLSTATE 54001",
            ),
            (
                format!(r#"{{"event_type":"t","event_context":"{huge}"}}"#).into_bytes(),
                "event_context has 2000002 bytes, the limit is 1048576; publish less, or raise it with: \
                 pillarbox settings --event-bytes-max N",
            ),
            (
                br#"{"event_type":"forbidden","event_context":{}}"#.to_vec(),
                "postgresql refuses it: 23514, constraint no_secret",
            ),
        ];
        for (nth, (bytes, _)) in (0..).zip(&bad) {
            let event = Event::new(nth);
            queue.push(&event).await?;
            oracle.committed(event.published());
            queue.push_bytes(bytes).await?;
        }
        assert_eq!(queue.drain().await?, [6, 6, 0], "{kind:?}");
        queue.outbox_holds(&oracle).await?;
        let expected: Vec<&str> = bad.iter().map(|(_, reason)| *reason).collect();
        assert_eq!(queue.reasons().await?, expected, "{kind:?}");
        let sql =
            "select p.entry from pillarbox.intake_letter_piece p order by p.dead_letter, p.piece";
        let pieces = queue.postgres.query(sql, &[]).await?;
        for (row, (bytes, _)) in pieces.iter().zip(&bad) {
            let kept: &[u8] = row.get(0);
            match kind {
                Kind::List => ensure!(kept == bytes, "the bytes have changed"),
                Kind::Stream => {
                    let head = format!("*2\r\n$5\r\nevent\r\n${}\r\n", bytes.len());
                    let whole = [head.as_bytes(), bytes, b"\r\n"].concat();
                    ensure!(kept == whole, "the bytes have changed");
                }
            }
        }
    }
    Ok(())
}

/// An entry above `max_bytes` is never held; its bytes are kept all the same.
#[tokio::test]
async fn inv_7_and_14_an_entry_too_large_to_be_held_is_kept_in_pieces() -> Result<()> {
    for kind in Kind::BOTH {
        let queue = Queue::start(kind, Persistence::None).await?;
        let oracle = Oracle::new();
        let large = [br#"{"event_type":""#.to_vec(), vec![0xfe; 3_500_000]].concat();
        for nth in 0..3 {
            let event = Event::new(nth);
            queue.push(&event).await?;
            oracle.committed(event.published());
            queue.push_bytes(&large).await?;
        }
        let bounds = [("MAX_BYTES", "100000")];
        assert_eq!(queue.drain_with(&bounds).await?, [3, 3, 0], "{kind:?}");
        queue.outbox_holds(&oracle).await?;
        let sql = "select l.bytes, count(*), string_agg(p.entry, ''::bytea order by p.piece)
                   from pillarbox.intake_letter l join pillarbox.intake_letter_piece p using (dead_letter)
                   group by l.dead_letter, l.bytes";
        let letters = queue.postgres.query(sql, &[]).await?;
        ensure!(letters.len() == 3);
        for row in letters {
            let (bytes, pieces, entry): (i64, i64, &[u8]) = (row.get(0), row.get(1), row.get(2));
            ensure!(
                bytes == i64::try_from(entry.len())? && pieces == 4,
                "{bytes} in {pieces}"
            );
            ensure!(
                entry.windows(large.len()).any(|part| part == large),
                "the bytes have changed"
            );
        }
        ensure!(queue.waiting().await? == 0);
    }
    Ok(())
}

#[tokio::test]
async fn inv_14_a_second_process_stands_by_and_takes_over() -> Result<()> {
    for kind in Kind::BOTH {
        let queue = Queue::start(kind, Persistence::AppendAlways).await?;
        let first = queue.running()?;
        first.says("intake active").await?;
        let second = queue.running()?;
        second.says("standing by").await?;
        ensure!(
            queue
                .refusal()
                .await?
                .contains("another process is active for the intake trial")
        );
        let load = Load::start(&queue, 2);
        load.more(100).await?;
        first.kill().await?;
        second.says("intake active").await?;
        load.more(100).await?;
        let oracle = load.finish(Persistence::AppendAlways).await?;
        second.stop().await?;
        queue.drain().await?;
        queue.outbox_holds(&oracle).await?;
    }
    Ok(())
}

/// INV-11 is for intakes, too.
#[tokio::test]
async fn inv_11_an_idle_intake_writes_nothing() -> Result<()> {
    for kind in Kind::BOTH {
        let queue = Queue::start(kind, Persistence::None).await?;
        queue.push(&Event::new(1)).await?;
        let intake = queue.running()?;
        eventually("the event", PATIENCE, || async {
            Ok((queue.rows().await? == 1).then_some(()))
        })
        .await?;
        let xid = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
        let before = queue.number(xid).await?;
        let seen = intake.log().len();
        // Fifty looks, as Redis counts them.
        let calls = || async {
            let stats = queue.redis.command("info commandstats").await?;
            let of = stats
                .lines()
                .find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
            let count = of.and_then(|rest| rest.split(',').next()?.parse::<u64>().ok());
            count.context("no scripts were run")
        };
        let start = calls().await?;
        eventually("fifty looks", PATIENCE, || async {
            Ok((calls().await? > start + 50).then_some(()))
        })
        .await?;
        ensure!(
            queue.number(xid).await? == before,
            "{kind:?}: a transaction id was drawn"
        );
        ensure!(
            intake.log().len() == seen,
            "{kind:?}: it talks while it is idle"
        );
        intake.stop().await?;
    }
    Ok(())
}
