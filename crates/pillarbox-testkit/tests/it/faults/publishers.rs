//! What publishers do to a relay that runs: transactions that are open, prepared, nested, rolled back
//! or in the way, over many batches (INV-1, INV-2).

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::{Flavour, eventually};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::scene::{PATIENCE, Running, Scene};
use crate::traffic::{Event, Traffic, Way, commit};

const NOON_US: i64 = 1_795_176_000_000_000;

/// Rounds of events, each a batch or more of its own.
const ROUNDS: usize = 6;

fn events(count: u32, note: &str) -> Vec<Event> {
    let event = |nth| {
        let context = format!(r#"{{"n":{nth},"note":"{note}"}}"#);
        Event::at(NOON_US + i64::from(nth), "trial", context)
    };
    (0..count).map(event).collect()
}

fn record(oracle: &Oracle, events: &[Event], is_committed: bool) -> Result<()> {
    for event in events {
        match is_committed {
            true => oracle.committed(event.published()?),
            false => oracle.rolled_back(event.event_id),
        }
    }
    Ok(())
}

/// Commits a round of events and waits until all committed ones are in the table: whatever else is
/// open, they pass it.
async fn a_round_passes(scene: &Scene, client: &mut Client, oracle: &Oracle) -> Result<()> {
    commit(client, oracle, Way::Batch, &events(5, "between")).await?;
    let published = oracle.published();
    eventually("the events between", PATIENCE, || async {
        Ok((scene.count().await? >= published).then_some(()))
    })
    .await
}

async fn on(flavour: Flavour) -> Result<(Scene, Oracle, Running)> {
    let scene = Scene::start(flavour).await?;
    let relay = scene.running()?;
    Ok((scene, Oracle::new(), relay))
}

/// Prepared in one batch, decided many batches and a restart later.
async fn prepared_across_batches(flavour: Flavour) -> Result<()> {
    let (scene, oracle, relay) = on(flavour).await?;
    let mut prepared = Vec::new();
    for life in 0..2 {
        let mut client = scene.postgres.connect().await?;
        for round in 0..ROUNDS {
            let name = format!("p_{life}_{round}");
            let events = events(7, &name);
            let tx = client.transaction().await?;
            Way::ALL[round % 4].publish(&tx, &events).await?;
            let prepare = format!("prepare transaction '{name}'");
            tx.batch_execute(&prepare).await?;
            // Its drop rolls back nothing: the session is outside of a transaction.
            drop(tx);
            prepared.push((name, events));
            a_round_passes(&scene, &mut client, &oracle).await?;
        }
        if life == 0 {
            scene.postgres.restart().await?;
        }
    }
    let mut client = scene.postgres.connect().await?;
    for (nth, (name, events)) in prepared.iter().enumerate() {
        let is_committed = nth % 3 != 1;
        let end = if is_committed { "commit" } else { "rollback" };
        client
            .batch_execute(&format!("{end} prepared '{name}'"))
            .await?;
        record(&oracle, events, is_committed)?;
        a_round_passes(&scene, &mut client, &oracle).await?;
    }
    let verdict = scene.holds(&oracle, relay).await?;
    ensure!(verdict.rolled_back == 4 * 7, "{verdict}");
    Ok(())
}

/// Publishes each event in a block of its own; every third one is undone by an exception.
const NESTED: &str = "
    create function nested(ids uuid[], contexts text[], at timestamptz) returns void
        language plpgsql
    as $$
    begin
        for n in 1..cardinality(ids) loop
            begin
                perform pillarbox.publish('trial', contexts[n]::json, at, event_id => ids[n]);
                if n % 3 = 0 then
                    raise exception 'undone';
                end if;
            exception when raise_exception then null;
            end;
        end loop;
    end $$";

/// More subtransactions than a snapshot lists (64), as exception blocks and as savepoints within each
/// other, in transactions that stay open across batches.
async fn subtransactions(flavour: Flavour) -> Result<()> {
    const DEPTH: u32 = 130;
    let (scene, oracle, relay) = on(flavour).await?;
    scene.postgres.execute(NESTED).await?;
    let mut between = scene.postgres.connect().await?;
    for is_committed in [true, false, true] {
        let blocks = scene.postgres.connect().await?;
        blocks.batch_execute("begin").await?;
        let inside = events(200, "block");
        let ids: Vec<Uuid> = inside.iter().map(|event| event.event_id).collect();
        let contexts: Vec<&str> = inside.iter().map(|event| event.context.as_str()).collect();
        let sql = "select nested($1, $2, $3)";
        blocks
            .execute(sql, &[&ids, &contexts, &inside[0].at])
            .await?;

        let mut savepoints = scene.postgres.connect().await?;
        let tx = savepoints.transaction().await?;
        let stacked = events(DEPTH, "savepoint");
        for (depth, event) in stacked.iter().enumerate() {
            tx.batch_execute(&format!("savepoint s{depth}")).await?;
            let way = Way::ALL[depth % 4];
            way.publish(&tx, std::slice::from_ref(event)).await?;
        }
        a_round_passes(&scene, &mut between, &oracle).await?;
        tx.batch_execute("rollback to savepoint s50; release savepoint s20")
            .await?;
        let last = events(3, "after");
        Way::Insert.publish(&tx, &last).await?;
        a_round_passes(&scene, &mut between, &oracle).await?;

        let end = if is_committed { "commit" } else { "rollback" };
        blocks.batch_execute(end).await?;
        tx.batch_execute(end).await?;
        drop(tx);
        for (nth, event) in inside.iter().enumerate() {
            // Its time is the one that all of them were given.
            let event = Event {
                at: inside[0].at,
                ..event.clone()
            };
            record(&oracle, &[event], is_committed && (nth + 1) % 3 != 0)?;
        }
        record(&oracle, &stacked[..50], is_committed)?;
        record(&oracle, &stacked[50..], false)?;
        record(&oracle, &last, is_committed)?;
        a_round_passes(&scene, &mut between, &oracle).await?;
    }
    scene.holds(&oracle, relay).await?;
    Ok(())
}

/// How a transaction ends without its events.
#[derive(Clone, Copy)]
enum Undone {
    /// ROLLBACK.
    Asked,
    /// A deferred constraint fails the COMMIT.
    AtCommit,
    /// A statement fails; the COMMIT says ROLLBACK.
    ByAnError,
    /// The session is gone.
    BySessionEnd,
}

const UNDONE: [Undone; 4] = [
    Undone::Asked,
    Undone::AtCommit,
    Undone::ByAnError,
    Undone::BySessionEnd,
];

async fn undo(client: &mut Client, events: &[Event], way: Way, how: Undone) -> Result<()> {
    let tx = client.transaction().await?;
    way.publish(&tx, events).await?;
    match how {
        Undone::Asked => tx.rollback().await?,
        Undone::AtCommit => {
            tx.batch_execute("insert into business values (1), (1)")
                .await?;
            ensure!(tx.commit().await.is_err(), "a doubled key was committed");
        }
        Undone::ByAnError => {
            ensure!(tx.batch_execute("select 1 / 0").await.is_err());
            tx.commit().await?;
        }
        Undone::BySessionEnd => {
            let end = "select pg_terminate_backend(pg_backend_pid())";
            ensure!(tx.batch_execute(end).await.is_err());
        }
    }
    Ok(())
}

/// Of forty transactions of each of four publishers, 5, 20, 35 and 50 % are rolled back.
async fn rolled_back_in_part(flavour: Flavour) -> Result<()> {
    let (scene, oracle, relay) = on(flavour).await?;
    let table = "create table business (id integer unique deferrable initially deferred)";
    scene.postgres.execute(table).await?;
    let oracle = &oracle;
    let publisher = async |share: u32| {
        let mut client = scene.postgres.connect().await?;
        let mut undone = 0;
        for round in 0..40_u32 {
            let way = Way::ALL[(round % 4) as usize];
            let events = events(1 + round % 5, &format!("{share} {round}"));
            // So many of forty, spread: 17 and 40 have no common divisor.
            if round * 17 % 40 * 100 < share * 40 {
                undone += 1;
                let how = UNDONE[undone % UNDONE.len()];
                record(oracle, &events, false)?;
                undo(&mut client, &events, way, how).await?;
                if matches!(how, Undone::BySessionEnd) {
                    client = scene.postgres.connect().await?;
                }
            } else {
                commit(&mut client, oracle, way, &events).await?;
            }
        }
        anyhow::Ok(undone)
    };
    let (a, b, c, d) = tokio::join!(publisher(5), publisher(20), publisher(35), publisher(50));
    let undone = [a?, b?, c?, d?];
    ensure!(undone == [2, 8, 14, 20], "{undone:?}");
    scene.holds(oracle, relay).await?;
    Ok(())
}

/// Writers in another database, prepared ones too, readers with a snapshot and a transaction that has
/// an id and does nothing, all open from beginning to end: events pass them, and space returns.
async fn beside_long_transactions(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    scene.postgres.create_database("other").await?;
    let other = async || {
        scene
            .postgres
            .connect_as("other", "postgres", None)
            .await
            .context("the other database")
    };
    let (writer, preparer) = (other().await?, other().await?);
    writer.batch_execute("create table t (n int)").await?;
    writer
        .batch_execute("begin; insert into t values (1)")
        .await?;
    preparer
        .batch_execute("begin; insert into t values (2); prepare transaction 'elsewhere'")
        .await?;
    let (reader, idler) = (
        scene.postgres.connect().await?,
        scene.postgres.connect().await?,
    );
    reader
        .batch_execute("begin isolation level repeatable read; select count(*) from pg_class")
        .await?;
    idler
        .batch_execute("begin; select pg_current_xact_id()")
        .await?;
    let relay = scene.running()?;
    let traffic = Traffic::start(&scene.postgres, 3, false).await?;
    for _ in 0..ROUNDS {
        writer.batch_execute("insert into t values (3)").await?;
        traffic.more(50).await?;
    }
    relay.says("a leaf of the ring was emptied").await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    let verdict = scene.holds(&oracle, relay).await?;
    ensure!(verdict.published > 300, "{verdict}");
    let rows = scene.number("select count(*) from pillarbox.event").await?;
    ensure!(
        u64::try_from(rows)? < verdict.published / 2,
        "{rows} of {} events still take space",
        verdict.published
    );
    for client in [&writer, &reader, &idler] {
        client.batch_execute("commit").await?;
    }
    preparer
        .batch_execute("commit prepared 'elsewhere'")
        .await?;
    Ok(())
}

#[tokio::test]
async fn inv_1_prepared_transactions_cross_batches_and_a_restart_on_clickhouse_18() -> Result<()> {
    prepared_across_batches(Flavour::V18).await
}

#[tokio::test]
async fn inv_1_prepared_transactions_cross_batches_and_a_restart_on_clickhouse_26() -> Result<()> {
    prepared_across_batches(Flavour::V26).await
}

#[tokio::test]
async fn inv_1_hundreds_of_subtransactions_on_clickhouse_18() -> Result<()> {
    subtransactions(Flavour::V18).await
}

#[tokio::test]
async fn inv_1_hundreds_of_subtransactions_on_clickhouse_26() -> Result<()> {
    subtransactions(Flavour::V26).await
}

#[tokio::test]
async fn inv_1_5_to_50_percent_are_rolled_back_on_clickhouse_18() -> Result<()> {
    rolled_back_in_part(Flavour::V18).await
}

#[tokio::test]
async fn inv_1_5_to_50_percent_are_rolled_back_on_clickhouse_26() -> Result<()> {
    rolled_back_in_part(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_long_transactions_elsewhere_delay_nothing_on_clickhouse_18() -> Result<()> {
    beside_long_transactions(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_long_transactions_elsewhere_delay_nothing_on_clickhouse_26() -> Result<()> {
    beside_long_transactions(Flavour::V26).await
}
