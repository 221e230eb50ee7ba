//! Windows: whatever publishers do, each committed event is sealed once, and nothing else is
//! (INV-1, INV-2, INV-10).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use pillarbox_relay::snapshot::{Cut, Position, Snapshot, Span};
use pillarbox_relay::source::Session;
use pillarbox_testkit::servers::{PgVersion, Postgres};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::outbox::{Drain, Outbox, Sealed, VERSIONS, exactly_once, publish, value};

/// Operations of a random run; a run takes a few seconds.
const OPERATIONS: u32 = 250;

/// Random numbers from a seed (SplitMix64): a failure is repeated with `PILLARBOX_SEED`.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn new() -> Result<Self> {
        let seed = match std::env::var("PILLARBOX_SEED") {
            Ok(seed) => seed.parse()?,
            Err(_) => Uuid::new_v4().as_u64_pair().0,
        };
        println!("PILLARBOX_SEED={seed}");
        Ok(Self(seed))
    }

    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// Publishers that a random run drives, and what they committed.
struct Publishers {
    sessions: Vec<Client>,
    /// Events of the open transaction of each session.
    open: BTreeMap<usize, Vec<Uuid>>,
    prepared: BTreeMap<String, Vec<Uuid>>,
    committed: Vec<Uuid>,
    next_name: u32,
}

impl Publishers {
    async fn connect(outbox: &Outbox, count: usize) -> Result<Self> {
        let mut sessions = Vec::new();
        for _ in 0..count {
            sessions.push(outbox.server.connect().await?);
        }
        Ok(Self {
            sessions,
            open: BTreeMap::new(),
            prepared: BTreeMap::new(),
            committed: Vec::new(),
            next_name: 0,
        })
    }

    /// One random thing that one random publisher does.
    async fn act(&mut self, dice: &mut Dice) -> Result<()> {
        let who = usize::try_from(dice.roll(self.sessions.len() as u64))?;
        let session = &self.sessions[who];
        let count = i32::try_from(1 + dice.roll(9))?;
        let Some(events) = self.open.get_mut(&who) else {
            let levels = ["read committed", "repeatable read", "serializable"];
            let level = levels[usize::try_from(dice.roll(3))?];
            let begin = format!("begin isolation level {level}");
            session.batch_execute(&begin).await?;
            // Some take their transaction id at once, some when they publish.
            let events = match dice.roll(3) {
                0 => Vec::new(),
                _ => publish(session, count).await?,
            };
            self.open.insert(who, events);
            return Ok(());
        };
        match dice.roll(10) {
            0..3 => events.extend(publish(session, count).await?),
            3 => {
                session.batch_execute("savepoint s").await?;
                publish(session, count).await?;
                session.batch_execute("rollback to savepoint s").await?;
            }
            4 => {
                session.batch_execute("savepoint s").await?;
                events.extend(publish(session, count).await?);
                session.batch_execute("release savepoint s").await?;
            }
            5 | 6 => {
                session.batch_execute("rollback").await?;
                self.open.remove(&who);
            }
            7 => {
                self.next_name += 1;
                let name = format!("p{}", self.next_name);
                let prepare = format!("prepare transaction '{name}'");
                session.batch_execute(&prepare).await?;
                let events = self.open.remove(&who).context("an open transaction")?;
                self.prepared.insert(name, events);
            }
            _ => {
                session.batch_execute("commit").await?;
                let events = self.open.remove(&who).context("an open transaction")?;
                self.committed.extend(events);
            }
        }
        Ok(())
    }

    /// Settles the oldest prepared transaction.
    async fn settle(&mut self, on: &Client, dice: &mut Dice) -> Result<()> {
        let Some((name, events)) = self.prepared.pop_first() else {
            return Ok(());
        };
        if dice.roll(3) == 0 {
            on.batch_execute(&format!("rollback prepared '{name}'"))
                .await?;
        } else {
            on.batch_execute(&format!("commit prepared '{name}'"))
                .await?;
            self.committed.extend(events);
        }
        Ok(())
    }

    async fn end_all(&mut self, on: &Client, dice: &mut Dice) -> Result<()> {
        for (who, events) in std::mem::take(&mut self.open) {
            self.sessions[who].batch_execute("commit").await?;
            self.committed.extend(events);
        }
        while !self.prepared.is_empty() {
            self.settle(on, dice).await?;
        }
        Ok(())
    }
}

/// INV-1, INV-2: with open, rolled back, prepared and long transactions, a writer in another
/// database and a snapshot held throughout, over many small batches and some restarts.
#[tokio::test]
async fn random_publishers_are_sealed_exactly_once() -> Result<()> {
    for version in VERSIONS {
        let mut dice = Dice::new()?;
        let mut outbox = Outbox::start(version).await?;
        outbox.server.create_database("other").await?;
        let mut batches = Vec::new();
        let mut committed = Vec::new();
        for life in 0..2 {
            let other = outbox.server.connect_as("other", "postgres", None).await?;
            let writer = "begin; create temp table t (n int)";
            other.batch_execute(writer).await?;
            let reader = outbox.server.connect().await?;
            let hold = "begin isolation level repeatable read; select count(*) from pg_class";
            reader.batch_execute(hold).await?;
            let mut publishers = Publishers::connect(&outbox, 6).await?;
            let mut drain = outbox.drain("main").await?;
            batches.extend(drain.all(7).await?);
            for _ in 0..OPERATIONS {
                match dice.roll(10) {
                    0..7 => publishers.act(&mut dice).await?,
                    7 => publishers.settle(&outbox.admin, &mut dice).await?,
                    8 => {
                        let rows_max = 1 + dice.roll(7);
                        if let Some(sealed) = drain.seal(rows_max).await? {
                            // A batch that nobody confirmed is found again.
                            if dice.roll(2) == 0 {
                                drain.confirm(&sealed.batch).await?;
                                batches.push(sealed.ids());
                            } else {
                                drop(drain);
                                drain = outbox.drain("main").await?;
                                batches.extend(drain.all(100).await?);
                            }
                        }
                    }
                    _ => {
                        let slot = (outbox.slot().await? + 1) % 4;
                        if outbox.is_empty(slot).await? {
                            outbox.turn_to(slot).await?;
                        }
                        drain.session.tend().await?;
                    }
                }
            }
            drop(drain);
            if life == 0 {
                // Prepared transactions survive the restart, open ones do not.
                outbox.server.restart().await?;
                outbox.reconnect().await?;
                publishers.open.clear();
                for _ in 0..2 {
                    publishers.settle(&outbox.admin, &mut dice).await?;
                }
            }
            publishers.end_all(&outbox.admin, &mut dice).await?;
            let mut drain = outbox.drain("main").await?;
            batches.extend(drain.all(50).await?);
            committed.append(&mut publishers.committed);
        }
        println!("{} events in {} batches", committed.len(), batches.len());
        exactly_once(&committed, &batches);
    }
    Ok(())
}

/// A window cut in the middle, with one transaction running before the cut that commits during the
/// continuation.
struct CutWindow {
    outbox: Outbox,
    drain: Drain,
    committed: Vec<Uuid>,
    first: Sealed,
}

async fn cut_window(version: PgVersion) -> Result<CutWindow> {
    let outbox = Outbox::start(version).await?;
    let slow = outbox.server.connect().await?;
    slow.batch_execute("begin").await?;
    let mut committed = publish(&slow, 100).await?;
    committed.extend(outbox.publish(100).await?);
    let mut drain = outbox.drain("main").await?;
    let first = drain.seal(40).await?.context("a first batch")?;
    assert_eq!(first.events.len(), 40);
    assert!(drain.position.is_cut());
    slow.batch_execute("commit").await?;
    Ok(CutWindow {
        outbox,
        drain,
        committed,
        first,
    })
}

/// INV-2: a cut window is continued with its own snapshots.
#[tokio::test]
async fn a_cut_window_keeps_what_commits_during_its_continuation() -> Result<()> {
    for version in VERSIONS {
        let mut window = cut_window(version).await?;
        let mut batches = vec![window.first.ids()];
        batches.extend(window.drain.all(40).await?);
        exactly_once(&window.committed, &batches);
        assert_eq!(batches.len(), 6, "each window in pieces of 40, 40 and 20");
    }
    Ok(())
}

/// NEGATIVE CONTROL of INV-2: continued with a new snapshot, a cut window loses events. When this
/// test fails, the rule that a cut window keeps `from` and `to` may have lost its reason.
#[tokio::test]
async fn negative_control_a_cut_window_continued_with_a_new_snapshot_loses_events() -> Result<()> {
    let CutWindow {
        outbox: _outbox,
        mut drain,
        committed,
        first,
    } = cut_window(PgVersion::V15).await?;
    let mut batches = vec![first.ids()];
    let mut span = drain.position.next_span(Snapshot::origin());
    span.to = drain.look().await?;
    while let Some(sealed) = drain.seal_span(span, 40).await? {
        batches.push(sealed.ids());
        span = drain.position.next_span(drain.look().await?);
    }
    let delivered: usize = batches.iter().map(Vec::len).sum();
    assert_eq!(committed.len() - delivered, 100, "the slow transaction's");
    Ok(())
}

/// INV-10: what committed before another transaction began is never sealed after it.
#[tokio::test]
async fn what_commits_first_is_sealed_no_later() -> Result<()> {
    for version in VERSIONS {
        let mut dice = Dice::new()?;
        let outbox = Outbox::start(version).await?;
        let mut drain = outbox.drain("main").await?;
        let slow = outbox.server.connect().await?;
        let mut order = Vec::new();
        let mut batch_of: BTreeMap<Uuid, i64> = BTreeMap::new();
        let mut late = Vec::new();
        for _ in 0..60 {
            match dice.roll(4) {
                0 if late.is_empty() => {
                    slow.batch_execute("begin").await?;
                    late = publish(&slow, 3).await?;
                }
                0 => {
                    slow.batch_execute("commit").await?;
                    // Committed last, whatever its transaction id says; compared with later ones.
                    order.append(&mut late);
                }
                1 | 2 => order.extend(outbox.publish(2).await?),
                _ => {
                    if let Some(sealed) = drain.seal(3).await? {
                        let number = sealed.batch.number;
                        batch_of.extend(sealed.ids().into_iter().map(|id| (id, number)));
                    }
                }
            }
        }
        slow.batch_execute("rollback").await?;
        while let Some(sealed) = drain.seal(3).await? {
            let number = sealed.batch.number;
            batch_of.extend(sealed.ids().into_iter().map(|id| (id, number)));
        }
        assert_eq!(batch_of.len(), order.len());
        // Each pair where A was committed before B's transaction took its id.
        let began_late = outbox
            .admin
            .query(
                "select a.event_id, b.event_id from pillarbox.event a
             join pillarbox.event b on b.tx > a.tx and b.published_at > a.published_at",
                &[],
            )
            .await?;
        let place: BTreeMap<_, _> = order.iter().enumerate().map(|(at, id)| (*id, at)).collect();
        for row in &began_late {
            let (a, b): (Uuid, Uuid) = (row.get(0), row.get(1));
            if place.get(&a) < place.get(&b) {
                assert!(batch_of[&a] <= batch_of[&b], "{a} after {b}");
            }
        }
        assert!(!began_late.is_empty());
    }
    Ok(())
}

/// INV-2, INV-3: one transaction larger than many batches; each batch reads again as it was sealed.
#[tokio::test]
async fn a_giant_transaction_is_cut_into_batches_that_can_be_rebuilt() -> Result<()> {
    for version in VERSIONS {
        const EVENTS: i32 = 300_000;
        let outbox = Outbox::start(version).await?;
        outbox.publish(5).await?;
        outbox.publish(EVENTS).await?;
        outbox.publish(5).await?;
        let mut drain = outbox.drain("main").await?;
        let mut sealed = Vec::new();
        let mut last = None;
        while let Some(next) = drain.seal(23_000).await? {
            assert!(next.events.is_sorted_by(|a, b| a.0 < b.0));
            assert!(last < next.events.first().map(|event| event.0));
            last = next.events.last().map(|event| event.0);
            sealed.push(next.batch);
        }
        assert_eq!(sealed.len(), 14);
        let rows: u64 = sealed.iter().map(|batch| batch.rows).sum();
        assert_eq!(rows, EVENTS as u64 + 10);
        drop(drain);
        let drain = outbox.drain("main").await?;
        assert_eq!(drain.unfinished.len(), sealed.len());
        let mut batches = Vec::new();
        for (stored, batch) in drain.unfinished.iter().zip(&sealed) {
            assert_eq!(stored.span, batch.span);
            assert_eq!(stored.blocks, batch.blocks);
            let again = drain.read_again(stored).await?;
            assert_eq!(again.events.len() as u64, batch.rows);
            assert_eq!(again.digest(), batch.digest);
            assert_eq!(again.cut(), None, "nothing follows inside of the span");
            batches.push(again.events.iter().map(|(_, id)| *id).collect());
        }
        exactly_once(&outbox.event_ids().await?, &batches);
    }
    Ok(())
}

/// A cut at each row of each transaction, and at the edge between two, loses and doubles nothing.
#[tokio::test]
async fn every_cut_of_a_window_is_whole() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let slow = outbox.server.connect().await?;
        slow.batch_execute("begin").await?;
        let mut committed = publish(&slow, 3).await?;
        committed.extend(outbox.publish(3).await?);
        let mut drain = outbox.drain("main").await?;
        let first = drain.seal(100).await?.context("a batch")?;
        slow.batch_execute("commit").await?;
        committed.extend(outbox.publish(2).await?);
        committed.extend(outbox.publish(1).await?);
        let now = drain.look().await?;
        for first_cut in 1..=6 {
            let mut span = drain.position.next_span(now.clone());
            let mut batches = vec![first.ids()];
            let mut rows_max = first_cut;
            while let Some((batch, events)) = drain.draft(span.clone(), rows_max).await? {
                batches.push(events.iter().map(|(_, id)| *id).collect());
                let Some(_) = batch.span.until else { break };
                span = Position::from(&batch.span).next_span(Snapshot::origin());
                rows_max = 1;
            }
            exactly_once(&committed, &batches);
        }
    }
    Ok(())
}

/// The SQL predicate, the list by index and the Rust predicate say the same (DESIGN: one predicate
/// serves sealing, truncation, lag and accounting).
#[tokio::test]
async fn is_done_undone_and_the_position_agree() -> Result<()> {
    for version in VERSIONS {
        let mut dice = Dice::new()?;
        let outbox = Outbox::start(version).await?;
        let publishers = [
            outbox.server.connect().await?,
            outbox.server.connect().await?,
            outbox.server.connect().await?,
        ];
        let mut open = [false; 3];
        let mut snapshots: Vec<Snapshot> = vec![Snapshot::origin()];
        for _ in 0..120 {
            let who = usize::try_from(dice.roll(3))?;
            let publisher = &publishers[who];
            match (open[who], dice.roll(3)) {
                (false, _) => {
                    publisher.batch_execute("begin").await?;
                    publish(publisher, 2).await?;
                    open[who] = true;
                }
                (true, 0) => {
                    publish(publisher, 1).await?;
                }
                (true, how) => {
                    let end = if how == 1 { "commit" } else { "rollback" };
                    publisher.batch_execute(end).await?;
                    open[who] = false;
                }
            }
            let now: String = outbox.value("select pg_current_snapshot()::text").await?;
            snapshots.push(now.parse()?);
        }
        let rows = "select tx::text, id from pillarbox.event order by tx, id";
        let rows = outbox.admin.query(rows, &[]).await?;
        let read = |row: &tokio_postgres::Row| -> Result<Cut> {
            Ok(Cut {
                tx: row.get::<_, &str>(0).parse()?,
                id: row.get(1),
            })
        };
        let events = rows.iter().map(read).collect::<Result<Vec<_>>>()?;
        assert!(events.len() > 20);
        for _ in 0..150 {
            let at = usize::try_from(dice.roll(snapshots.len() as u64))?;
            let later = at + usize::try_from(dice.roll((snapshots.len() - at) as u64))?;
            let mut position = Position {
                from: snapshots[at].clone(),
                to: snapshots[later].clone(),
                until: None,
            };
            let span = Span {
                from: position.from.clone(),
                to: position.to.clone(),
                after: None,
                until: None,
            };
            let inside: Vec<_> = events.iter().filter(|at| span.contains(**at)).collect();
            if !inside.is_empty() && dice.roll(3) > 0 {
                position.until = Some(*inside[usize::try_from(dice.roll(inside.len() as u64))?]);
            }
            agree(&outbox.admin, &events, &position).await?;
        }
    }
    Ok(())
}

async fn agree(client: &Client, events: &[Cut], position: &Position) -> Result<()> {
    const DENIED: &str = "
        select e.tx::text, e.id from pillarbox.event e
        where not pillarbox.is_done(
            e.tx, e.id, $1::text::pg_snapshot, $2::text::pg_snapshot, $3::text::xid8, $4
        )
        order by e.tx, e.id";
    const UNDONE: &str = "
        select u.tx::text, u.id from pillarbox.undone(
            $1::text::pg_snapshot, $2::text::pg_snapshot, $3::text::xid8, $4
        ) u
        order by u.tx, u.id";
    let expected: Vec<(String, i64)> = events
        .iter()
        .filter(|at| !position.is_done(**at))
        .map(|at| (at.tx.to_string(), at.id))
        .collect();
    let (from, to) = (position.from.to_string(), position.to.to_string());
    let tx = position.until.map(|until| until.tx.to_string());
    let id = position.until.map(|until| until.id);
    for sql in [DENIED, UNDONE] {
        let rows = client.query(sql, &[&from, &to, &tx, &id]).await?;
        let found: Vec<(String, i64)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
        assert_eq!(found, expected, "{position:?}: {sql}");
    }
    Ok(())
}

/// A batch that is full ends its read by a cancellation; the session goes on with the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_batch_leaves_the_session_usable() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let committed = outbox.publish(3_000).await?;
        let mut drain = outbox.drain("main").await?;
        for rows in [1, 2, 100, 1_500, 2_990, 2_999] {
            for _ in 0..8 {
                let span = drain.position.next_span(drain.look().await?);
                let columns = ["event_id".to_owned()];
                // Full before the read's own limit, as when the bytes are used up.
                let mut read = crate::outbox::Read::new(rows);
                drain
                    .session
                    .read(&span, &columns, 1_000_000, &mut read)
                    .await?;
                assert_eq!(read.events.len() as u64, rows);
            }
        }
        exactly_once(&committed, &drain.all(500).await?);
    }
    Ok(())
}

/// A transaction that only began before the probe is in no batch, and its end needs no new event to
/// be noticed: the probe finds it.
#[tokio::test]
async fn a_late_commit_is_noticed_without_a_new_event() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let slow = outbox.server.connect().await?;
        slow.batch_execute("begin").await?;
        publish(&slow, 1).await?;
        outbox.publish(1).await?;
        let mut drain = outbox.drain("main").await?;
        assert_eq!(drain.all(10).await?.len(), 1);
        let idle = drain.session.probe(&drain.position).await?;
        assert_eq!(idle.waiting, None);
        slow.batch_execute("commit").await?;
        let probe = drain.session.probe(&drain.position).await?;
        assert!(probe.waiting.is_some());
        assert_eq!(drain.all(10).await?.len(), 1);
    }
    Ok(())
}

/// A clock that was set back does not hold events up: one from the future has waited.
#[tokio::test]
async fn events_from_the_future_count_as_waiting() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let future = "insert into pillarbox.event (event_type, event_context, published_at)
                  values ('test', '{}', now() + interval '1 hour')";
        outbox.admin.batch_execute(future).await?;
        let drain = outbox.drain("main").await?;
        let probe = drain.session.probe(&drain.position).await?;
        let waiting = probe.waiting.context("an event waits")?;
        assert!(waiting > Duration::from_secs(3_000), "{waiting:?}");
    }
    Ok(())
}

/// INV-2: events of a batch that was read but not sealed when the session was lost are read again.
#[tokio::test]
async fn an_unsealed_batch_leaves_no_trace() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let committed = outbox.publish(10).await?;
        let drain = outbox.drain("main").await?;
        let span = drain.position.next_span(drain.look().await?);
        drain.draft(span, 5).await?.context("a draft")?;
        drop(drain);
        let mut drain = outbox.drain("main").await?;
        assert_eq!((drain.last_number, drain.unfinished.len()), (0, 0));
        exactly_once(&committed, &drain.all(4).await?);
        let left: i64 = value(&outbox.admin, "select count(*) from pillarbox.open_batch").await?;
        assert_eq!(left, 0);
    }
    Ok(())
}

/// More subtransactions than a snapshot holds, and a thousand open transactions' worth of holes.
#[tokio::test]
async fn many_subtransactions_and_many_running_transactions() -> Result<()> {
    for version in VERSIONS {
        let server = Postgres::builder()
            .version(version)
            .setting("max_connections", "160")
            .start()
            .await?;
        let outbox = Outbox::on(server).await?;
        let slow = outbox.server.connect().await?;
        slow.batch_execute("begin").await?;
        let nested = "do $$
        begin
            for n in 1..200 loop
                begin
                    perform pillarbox.publish('test', '{}');
                    if n % 2 = 0 then raise 'no'; end if;
                exception when raise_exception then null;
                end;
            end loop;
        end $$";
        slow.batch_execute(nested).await?;
        let mut running = Vec::new();
        let mut committed = Vec::new();
        for _ in 0..100 {
            let client = outbox.server.connect().await?;
            client.batch_execute("begin").await?;
            committed.extend(publish(&client, 2).await?);
            running.push(client);
        }
        let mut drain = outbox.drain("main").await?;
        committed.extend(outbox.publish(3).await?);
        let mut batches = drain.all(2).await?;
        for client in running.iter().rev() {
            client.batch_execute("commit").await?;
            batches.extend(drain.all(1).await?);
        }
        slow.batch_execute("commit").await?;
        batches.extend(drain.all(64).await?);
        let all: i64 = outbox.value("select count(*) from pillarbox.event").await?;
        assert_eq!(all, 100 + 200 + 3);
        let sql = "select event_id from pillarbox.event order by tx, id";
        let rows = outbox.admin.query(sql, &[]).await?;
        let stored: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
        exactly_once(&stored, &batches);
        assert!(committed.iter().all(|id| stored.contains(id)));
    }
    Ok(())
}
