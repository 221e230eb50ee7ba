//! Who is active, and what ends a tenure (INV-2, INV-5).

use std::time::Duration;

use anyhow::{Context, Result};
use pillarbox_relay::postgres;
use pillarbox_relay::source::postgres::PostgresSource;
use pillarbox_relay::source::{Session, Source, SourceError, Standby};
use pillarbox_testkit::servers::{PgVersion, Postgres, eventually};

use crate::outbox::{DEADLINE, Drain, Outbox, SINK, VERSIONS, exactly_once, publish};

/// Sessions of relays in the test's server.
const SESSIONS: &str = "select count(*) from pg_stat_activity where application_name = $1";

async fn sessions(outbox: &Outbox, source: &PostgresSource) -> Result<i64> {
    let row = outbox.admin.query_one(SESSIONS, &[&source.relay()]).await?;
    Ok(row.get(0))
}

/// INV-2: one active relay per sink; its place is free when its value is dropped.
#[tokio::test]
async fn a_tenure_is_exclusive_and_ends_when_dropped() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let (one, two) = (outbox.source(SINK)?, outbox.source(SINK)?);
        assert_ne!(one.relay(), two.relay());
        let first = one.take_over(Standby::Leave).await?.context("free")?;
        assert!(two.take_over(Standby::Leave).await?.is_none());
        let waiting = tokio::spawn(async move { two.take_over(Standby::Wait).await });
        let other = Drain::of(first).await?;
        drop(other);
        let second = tokio::time::timeout(DEADLINE, waiting).await???;
        assert!(second.is_some());
        eventually("the first one's sessions to end", DEADLINE, || async {
            Ok((sessions(&outbox, &one).await? == 0).then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// INV-2: a relay that shows no life is displaced with all its sessions; its memory is void.
#[tokio::test]
async fn a_silent_relay_is_displaced_with_all_its_sessions() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let committed = outbox.publish(4).await?;
        let frozen = outbox.source(SINK)?;
        let mut silent = Drain::try_open(&frozen).await?.context("free")?;
        let sealed = silent.seal(2).await?.context("a batch")?;
        let config = postgres::parse_url(outbox.server.url())?;
        let patient = PostgresSource::new(config.clone(), SINK, Duration::from_secs(600));
        silent.session.beat().await?;
        assert!(patient.take_over(Standby::Leave).await?.is_none());
        assert_eq!(sessions(&outbox, &frozen).await?, 3);
        let successor = PostgresSource::new(config, SINK, Duration::from_millis(300));
        let taken = tokio::time::timeout(DEADLINE, successor.take_over(Standby::Wait)).await??;
        let mut next = Drain::of(taken.context("displaced")?).await?;
        eventually("its sessions to end", DEADLINE, || async {
            Ok((sessions(&outbox, &frozen).await? == 0).then_some(()))
        })
        .await?;
        let too_late = silent.session.seal(&mut sealed.batch.clone()).await;
        assert!(
            matches!(too_late, Err(SourceError::Lost(..))),
            "{too_late:?}"
        );
        assert!(silent.session.beat().await.is_err());
        assert_eq!(next.unfinished, [sealed.batch]);
        exactly_once(&committed, &next.all(10).await?);
    }
    Ok(())
}

/// INV-2: a stand-by whose own sessions do not last goes on counting for how long a relay is silent.
#[tokio::test]
async fn a_stand_by_that_loses_its_sessions_displaces_a_silent_relay() -> Result<()> {
    const SESSION: Duration = Duration::from_secs(1);
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let config = postgres::parse_url(outbox.server.url())?;
        // The server ends nothing of it by itself.
        let frozen = PostgresSource::new(config.clone(), SINK, Duration::from_secs(600));
        let silent = frozen.take_over(Standby::Leave).await?.context("free")?;
        let successor = PostgresSource::new(config, SINK, 3 * SESSION);
        let taken = eventually("the silent relay to be displaced", DEADLINE, || async {
            // Dropped, it ends the session.
            let taking = tokio::time::timeout(SESSION, successor.take_over(Standby::Wait));
            Ok(taking.await.ok().transpose()?.flatten())
        });
        let taken = taken.await?;
        taken.beat().await?;
        assert_eq!(sessions(&outbox, &frozen).await?, 0);
        assert!(silent.beat().await.is_err());
    }
    Ok(())
}

/// INV-2: a relay that beats is never displaced, whatever its sink does.
#[tokio::test]
async fn a_relay_that_beats_is_not_displaced() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let holder = outbox.drain(SINK).await?;
        let config = postgres::parse_url(outbox.server.url())?;
        let patience = Duration::from_secs(3);
        let successor = PostgresSource::new(config, SINK, patience);
        let waiting = tokio::spawn(async move { successor.take_over(Standby::Wait).await });
        let started = std::time::Instant::now();
        eventually("twice the patience to pass", DEADLINE, || async {
            holder.session.beat().await?;
            Ok((started.elapsed() > 2 * patience).then_some(()))
        })
        .await?;
        assert!(!waiting.is_finished());
        waiting.abort();
    }
    Ok(())
}

/// A killed backend of any of its sessions loses the tenure; the next one goes on from the ledger.
#[tokio::test]
async fn a_killed_backend_loses_the_tenure_and_nothing_else() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let (mut committed, mut batches) = (Vec::new(), Vec::new());
        for victim in ["control", "reader", "ring"] {
            committed.extend(outbox.publish(10).await?);
            let source = outbox.source(SINK)?;
            let mut drain = eventually("the lock", DEADLINE, || async {
                Ok(Drain::try_open(&source).await?)
            })
            .await?;
            let sealed = drain.seal(3).await?.context("a batch")?;
            drain.confirm(&sealed.batch).await?;
            batches.push(sealed.ids());
            let nth = ["control", "reader", "ring"]
                .iter()
                .position(|v| *v == victim);
            let kill = "select pg_terminate_backend(pid, 10000) from pg_stat_activity
                    where application_name = $1 order by (pid in (
                        select pid from pg_locks where locktype = 'advisory')) desc, backend_start
                    offset $2 limit 1";
            let nth = i64::try_from(nth.context("a victim")?)?;
            outbox
                .admin
                .query_one(kill, &[&source.relay(), &nth])
                .await?;
            let lost = match victim {
                "control" => drain.seal(3).await.map(drop),
                _ => match drain.session.tend().await {
                    Err(lost) => Err(lost),
                    Ok(()) => drain.seal(3).await.map(drop),
                },
            };
            assert!(
                matches!(lost, Err(SourceError::Lost(..))),
                "{victim}: {lost:?}"
            );
            drop(drain);
            batches.extend(outbox.drain(SINK).await?.all(4).await?);
        }
        exactly_once(&committed, &batches);
    }
    Ok(())
}

/// What a DBA set for applications does not cut a relay: every limit is overridden.
#[tokio::test]
async fn settings_of_the_role_are_overridden() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let newer = match version {
            PgVersion::V15 => "",
            _ => "alter role dba_limits set transaction_timeout = '50ms';",
        };
        let role = format!(
            "create role dba_limits login superuser;
             alter role dba_limits set statement_timeout = '50ms';
             alter role dba_limits set lock_timeout = '1ms';
             alter role dba_limits set idle_in_transaction_session_timeout = '50ms';
             alter role dba_limits set idle_session_timeout = '50ms';
             alter role dba_limits set default_transaction_isolation = 'serializable';
             alter role dba_limits set default_transaction_read_only = on;
             alter role dba_limits set synchronous_commit = off;
             alter role dba_limits set search_path = 'nowhere';
             alter role dba_limits set enable_seqscan = on;
             alter role dba_limits set timezone = 'Asia/Kathmandu';
             alter role dba_limits set datestyle = 'German';
             alter role dba_limits set bytea_output = 'escape';
             {newer}"
        );
        outbox.admin.batch_execute(&role).await?;
        let url = outbox.server.url_for("postgres", "dba_limits", None)?;
        let session = postgres::connect(&postgres::parse_url(&url)?, "test").await?;
        let wrong = "
            select string_agg(name || '=' || setting, ', ') from pg_settings
            where (name like '%timeout' and context = 'user' and setting <> '0'
                   and name in ('statement_timeout', 'lock_timeout', 'idle_session_timeout',
                       'idle_in_transaction_session_timeout', 'transaction_timeout'))
                or name = 'default_transaction_isolation' and setting <> 'read committed'
                or name = 'default_transaction_read_only' and setting <> 'off'
                or name = 'synchronous_commit' and setting <> 'on'
                or name = 'search_path' and setting <> 'pg_catalog'
                or name = 'enable_seqscan' and setting <> 'off'
                or name = 'TimeZone' and setting <> 'UTC'";
        let row = session.client().query_one(wrong, &[]).await?;
        assert_eq!(row.get::<_, Option<String>>(0), None);
        let committed = outbox.publish(50).await?;
        let config = postgres::parse_url(&url)?;
        let source = PostgresSource::new(config, SINK, Duration::from_secs(600));
        let mut drain = Drain::try_open(&source).await?.context("free")?;
        exactly_once(&committed, &drain.all(7).await?);
        let idle = "select bool_and(now() - state_change > interval '300 ms')
                    from pg_stat_activity where application_name = $1";
        eventually("its sessions to have been idle", DEADLINE, || async {
            let row = outbox.admin.query_one(idle, &[&source.relay()]).await?;
            Ok(row.get::<_, Option<bool>>(0).unwrap_or(true).then_some(()))
        })
        .await?;
        let committed = outbox.publish(50).await?;
        exactly_once(&committed, &drain.all(7).await?);
        drain.session.tend().await?;
    }
    Ok(())
}

/// INV-5: between two steps, as while a sink hangs, no session of a relay is in a transaction.
#[tokio::test]
async fn no_transaction_is_open_between_two_steps() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        outbox.publish(1_000).await?;
        let source = outbox.source(SINK)?;
        let mut drain = Drain::try_open(&source).await?.context("free")?;
        drain.session.probe(&drain.position).await?;
        closed(&outbox, &source).await?;
        // Cut by rows, cut by the reader, and closed.
        let span = drain.position.next_span(drain.look().await?);
        let mut read = crate::outbox::Read::new(10);
        let columns = ["event_id".to_owned()];
        drain
            .session
            .read(&span, &columns, 100_000, &mut read)
            .await?;
        closed(&outbox, &source).await?;
        for rows_max in [10, 100_000] {
            let sealed = drain.seal(rows_max).await?.context("a batch")?;
            closed(&outbox, &source).await?;
            drain.confirm(&sealed.batch).await?;
            closed(&outbox, &source).await?;
        }
        outbox.turn_to(1).await?;
        drain.session.tend().await?;
        closed(&outbox, &source).await?;
    }
    Ok(())
}

async fn closed(outbox: &Outbox, source: &PostgresSource) -> Result<()> {
    let open = "select count(*), count(*) filter (
                    where xact_start is not null or backend_xmin is not null or state <> 'idle')
                from pg_stat_activity where application_name = $1";
    let row = outbox.admin.query_one(open, &[&source.relay()]).await?;
    // A reader for which a cancellation is on its way is given up, and opened anew when it is needed.
    let (sessions, open): (i64, i64) = (row.get(0), row.get(1));
    assert!((2..=3).contains(&sessions), "{sessions} sessions");
    assert_eq!(open, 0);
    Ok(())
}

/// A promoted server has another timeline, and the first tenure there is told so.
#[tokio::test]
async fn a_promotion_is_noticed() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let mut committed = outbox.publish(5).await?;
        let mut drain = outbox.drain(SINK).await?;
        assert!(!drain.timeline_changed);
        let mut batches = drain.all(3).await?;
        let old_origin = drain.origin;
        let standby = Postgres::standby_of(&outbox.server).await?;
        let config = postgres::parse_url(standby.url())?;
        let source = PostgresSource::new(config, SINK, Duration::from_secs(600));
        let refused = source.take_over(Standby::Leave).await;
        assert!(
            matches!(refused, Err(SourceError::Refused(_))),
            "{refused:?}"
        );
        standby.caught_up_with(&outbox.server).await?;
        outbox.server.kill()?;
        standby.promote().await?;
        let mut drain = Drain::try_open(&source).await?.context("free")?;
        assert!(drain.timeline_changed);
        assert_eq!(drain.last_number, 2);
        let origin = drain.session.renew_origin().await?;
        assert_ne!(origin, old_origin);
        drain.origin = origin;
        committed.extend(publish(&standby.connect().await?, 5).await?);
        batches.extend(drain.all(3).await?);
        exactly_once(&committed, &batches);
        drop(drain);
        let drain = eventually("the lock", DEADLINE, || async {
            Ok(Drain::try_open(&source).await?)
        })
        .await?;
        assert!(
            !drain.timeline_changed,
            "its own batches are of this timeline"
        );
        assert_eq!(drain.origin, origin);
    }
    Ok(())
}

/// A ledger of another cluster says nothing about this one's transaction ids.
#[tokio::test]
async fn another_clusters_ledger_is_refused() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let other = "update pillarbox.sink set system_identifier = system_identifier + 1";
        outbox.admin.batch_execute(other).await?;
        let refused = outbox.source(SINK)?.take_over(Standby::Leave).await;
        let Err(SourceError::Refused(text)) = refused else {
            anyhow::bail!("{refused:?}");
        };
        assert!(text.contains("pillarbox recover"), "{text}");
    }
    Ok(())
}

/// An unknown and a retired sink are refused with the remedy.
#[tokio::test]
async fn a_sink_that_is_not_registered_is_refused() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let refused = outbox.source("nobody")?.take_over(Standby::Leave).await;
        let text = refused.err().context("it was accepted")?.to_string();
        assert!(text.contains("pillarbox sink create nobody"), "{text}");
        pillarbox_relay::schema::registry::retire(&outbox.admin, SINK).await?;
        let refused = outbox.source(SINK)?.take_over(Standby::Leave).await;
        assert!(
            matches!(refused, Err(SourceError::Refused(_))),
            "{refused:?}"
        );
    }
    Ok(())
}
