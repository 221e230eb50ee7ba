//! INV-1 and INV-2 beside a running relay: what rolls back leaves nothing, what commits arrives once.

use anyhow::Result;
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::{Flavour, eventually};

use crate::scene::{PATIENCE, Scene};
use crate::traffic::{Event, Way, commit};

const NOON_US: i64 = 1_795_176_000_000_000;

fn events(count: u32, note: &str) -> Vec<Event> {
    let event = |nth| {
        Event::at(
            NOON_US,
            "trial",
            format!(r#"{{"n":{nth},"note":"{note}"}}"#),
        )
    };
    (0..count).map(event).collect()
}

async fn rollback_leaves_nothing(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let oracle = Oracle::new();
    let relay = scene.running()?;
    let mut client = scene.postgres.connect().await?;
    for way in Way::ALL {
        commit(&mut client, &oracle, way, &events(9, "committed")).await?;

        let undone = events(9, "rolled back");
        let tx = client.transaction().await?;
        way.publish(&tx, &undone).await?;
        tx.rollback().await?;

        // A savepoint undone inside of a transaction that commits.
        let (kept, partly) = (events(5, "kept"), events(5, "undone"));
        let mut tx = client.transaction().await?;
        way.publish(&tx, &kept).await?;
        let inner = tx.savepoint("s").await?;
        way.publish(&inner, &partly).await?;
        inner.rollback().await?;
        tx.commit().await?;

        // A session that ends without a word.
        let mut lost = scene.postgres.connect().await?;
        let abandoned = events(3, "abandoned");
        let tx = lost.transaction().await?;
        way.publish(&tx, &abandoned).await?;
        drop(tx);
        drop(lost);

        for event in undone.iter().chain(&partly).chain(&abandoned) {
            oracle.rolled_back(event.event_id);
        }
        for event in &kept {
            oracle.committed(event.published()?);
        }
    }
    let verdict = scene.holds(&oracle, relay).await?;
    assert_eq!((verdict.published, verdict.rolled_back), (56, 68));
    Ok(())
}

async fn long_transactions_delay_only_themselves(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let oracle = Oracle::new();
    let relay = scene.running()?;
    let (mut late, mut never) = (
        scene.postgres.connect().await?,
        scene.postgres.connect().await?,
    );
    let (to_come, to_go) = (events(60, "late"), events(60, "never"));
    let late_tx = late.transaction().await?;
    let never_tx = never.transaction().await?;
    let mut client = scene.postgres.connect().await?;
    let batches = "select count(*) from pillarbox.batch";
    let before = scene.number(batches).await?;
    for (nth, (early, gone)) in to_come.chunks(5).zip(to_go.chunks(5)).enumerate() {
        let way = Way::ALL[nth % 4];
        way.publish(&late_tx, early).await?;
        way.publish(&never_tx, gone).await?;
        commit(&mut client, &oracle, way, &events(6, "between")).await?;
        // Each of these is a batch of its own, past the open transactions.
        let arrived = u64::try_from(6 * (nth + 1))?;
        eventually("the events between", PATIENCE, || async {
            Ok((scene.count().await? >= arrived).then_some(()))
        })
        .await?;
    }
    assert!(scene.number(batches).await? - before >= 12);
    late_tx.commit().await?;
    never_tx.rollback().await?;
    for event in &to_come {
        oracle.committed(event.published()?);
    }
    for event in &to_go {
        oracle.rolled_back(event.event_id);
    }
    let verdict = scene.holds(&oracle, relay).await?;
    assert_eq!(verdict.published, 72 + 60);
    Ok(())
}

#[tokio::test]
async fn inv_1_rollback_leaves_nothing_on_clickhouse_18() -> Result<()> {
    rollback_leaves_nothing(Flavour::V18).await
}

#[tokio::test]
async fn inv_1_rollback_leaves_nothing_on_clickhouse_26() -> Result<()> {
    rollback_leaves_nothing(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_long_transactions_delay_only_themselves_on_clickhouse_18() -> Result<()> {
    long_transactions_delay_only_themselves(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_long_transactions_delay_only_themselves_on_clickhouse_26() -> Result<()> {
    long_transactions_delay_only_themselves(Flavour::V26).await
}
