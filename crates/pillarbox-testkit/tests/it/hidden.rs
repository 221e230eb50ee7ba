//! What could hide events from the relay, or from the check before a TRUNCATE (INV-2, INV-8).

use anyhow::{Context as _, Result};
use pillarbox_relay::source::{Session as _, SourceError};
use pillarbox_testkit::servers::eventually;

use crate::outbox::{DEADLINE, Drain, Outbox, SINK, VERSIONS, exactly_once, publish};

/// Whether some session waits for a lock on the outbox.
async fn somebody_waits(outbox: &Outbox) -> Result<Option<()>> {
    let waits = "select exists (select from pg_locks where not granted)";
    Ok(outbox.value::<bool>(waits).await?.then_some(()))
}

/// INV-2: a COPY takes its snapshot before its lock. Behind an ALTER that rewrites the outbox it would
/// see nothing, and a batch of singles and a range would be sealed without the singles.
#[tokio::test]
async fn inv_2_a_rewrite_of_the_outbox_hides_no_events() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let mut writer = outbox.server.connect().await?;
        let late = writer.transaction().await?;
        let mut published = publish(late.client(), 3).await?;
        published.append(&mut outbox.publish(2).await?);
        let mut drain = outbox.drain(SINK).await?;
        let first = drain.seal(100).await?.context("a first batch")?;
        late.commit().await?;
        published.append(&mut outbox.publish(4).await?);
        let now = drain.look().await?;
        let span = drain.position.next_span(now);
        assert!(!span.singles().is_empty() && !span.range().is_empty());

        let mut owner = outbox.server.connect().await?;
        let rewrite = owner.transaction().await?;
        rewrite
            .batch_execute(
                "alter table pillarbox.event add column token uuid default gen_random_uuid()",
            )
            .await?;
        let reading = drain.seal_span(span, 100);
        let committing = async {
            eventually("the reader waits", DEADLINE, || somebody_waits(&outbox)).await?;
            rewrite.commit().await?;
            anyhow::Ok(())
        };
        let (second, committed) = tokio::join!(reading, committing);
        committed?;
        let second = second?.context("a second batch")?;
        exactly_once(&published, &[first.ids(), second.ids()]);
    }
    Ok(())
}

/// INV-8: a ledger that does not reach back as far as the retention says nothing about a leaf.
#[tokio::test]
async fn inv_8_a_short_ledger_keeps_its_leaf() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let mut drain = outbox.drain(SINK).await?;
        for _ in 0..3 {
            outbox.publish(2).await?;
            let sealed = drain.seal(100).await?.context("a batch")?;
            drain.confirm(&sealed.batch).await?;
        }
        outbox.publish(5).await?;
        outbox.turn_to(1).await?;
        // What a prune leaves when the retention is raised after it.
        outbox
            .admin
            .batch_execute(
                "delete from pillarbox.delivery where number < 3;
             delete from pillarbox.batch where number < 3;
             update pillarbox.settings set retention = '20 days'",
            )
            .await?;
        drain.session.tend().await?;
        assert!(
            !outbox.is_empty(0).await?,
            "undelivered events were truncated"
        );
    }
    Ok(())
}

/// INV-8: what a row-level policy hides is neither delivered nor truncated; it is an error.
#[tokio::test]
async fn inv_8_row_level_security_is_an_error() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        outbox.publish(5).await?;
        outbox.turn_to(1).await?;
        let role = "create role courier login in role pillarbox_relay";
        outbox.admin.batch_execute(role).await?;
        let url = outbox.server.url_for("postgres", "courier", None)?;
        let config = pillarbox_relay::postgres::parse_url(&url)?;
        let source = pillarbox_relay::source::postgres::PostgresSource::new(config, SINK, DEADLINE);
        let drain = Drain::try_open(&source)
            .await?
            .context("the lock is free")?;
        let policy = "alter table pillarbox.event enable row level security;
                      alter table pillarbox.event_0 enable row level security";
        outbox.admin.batch_execute(policy).await?;
        let probed = drain.look().await;
        assert!(probed.is_err(), "the probe saw an empty outbox: {probed:?}");
        assert!(drain.session.tend().await.is_err());
        assert!(!outbox.is_empty(0).await?, "hidden events were truncated");
        drop(drain);
        let again = Drain::try_open(&source).await;
        assert!(again.is_err(), "the next tenure saw an empty outbox");
    }
    Ok(())
}

/// A plan reads the columns that it was made for, of the types that it was made for.
#[tokio::test]
async fn a_changed_outbox_is_planned_again() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        outbox.publish(1).await?;
        let mut drain = outbox.drain(SINK).await?;
        drain.session.outbox_columns().await?;
        outbox
            .admin
            .batch_execute("alter table pillarbox.event add column tenant text")
            .await?;
        let sealed = drain.seal(100).await;
        assert!(matches!(sealed, Err(SourceError::Changed)), "{sealed:?}");
        drain.session.outbox_columns().await?;
        assert!(drain.seal(100).await?.is_some());
    }
    Ok(())
}
