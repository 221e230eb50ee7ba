//! A look must not be able to be wrong, and a success after a doubt is looked at.

use std::net::SocketAddr;
use std::sync::Arc;

use pillarbox_relay::sink::clickhouse::{Compression, CreateOptions};
use pillarbox_relay::sink::{Attempt, Guarantee, Reaction, Resolution};
use pillarbox_testkit::proxy::Proxy;
use tokio::net::TcpSocket;
use tokio::time::Instant;

use super::*;

/// A server with the recommended table, its plan, and a sink that knows a replica before it, at an address
/// where nobody listens.
async fn behind_nobody() -> Result<(Server, ClickHousePlan, ClickHouse, SocketAddr)> {
    let server = Server::start(Flavour::V26).await?;
    let one = sink(&server, "events")?;
    one.create(&CreateOptions::default()).await?;
    let plan = one.prepare(&outbox()).await?;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut config = config(&server, "events");
    config.urls.insert(0, format!("http://{nobody}"));
    Ok((server, plan, ClickHouse::new(config)?, nobody))
}

#[tokio::test]
async fn a_remembered_token_without_its_rows_is_never_delivered() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    let sink = sink(&server, "events")?;
    sink.create(&CreateOptions::default()).await?;
    let plan = sink.prepare(&outbox()).await?;
    let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
    deliver(&sink, &plan, &batch, &blocks).await?;
    server
        .query("alter table events delete where 1 settings mutations_sync = 2")
        .await?;
    assert_eq!(number(&server, "select count() from events").await?, 0);
    let insert = insert(&batch, &blocks, 0);
    let resolved = sink.resolve(&plan, &insert, young()).await?;
    assert!(matches!(resolved, Resolution::Resend), "{resolved:?}");
    let Delivery::Unknown(trouble) = sink.deliver(&plan, &insert, nth(2)).await else {
        bail!("rows that are not there were delivered");
    };
    assert!(
        trouble.reason.contains("remembers their token"),
        "{trouble}"
    );
    let Resolution::Undecidable(trouble) = sink.resolve(&plan, &insert, young()).await? else {
        bail!("it was decided");
    };
    // The remedy works.
    super::doubt::paste(&server, &trouble.reason).await?;
    let plan = sink.prepare(&outbox()).await?;
    assert_eq!(plan.guarantee(), Guarantee::Lookup);
    let resolved = sink.resolve(&plan, &insert, young()).await?;
    assert!(matches!(resolved, Resolution::Resend), "{resolved:?}");
    let delivered = sink.deliver(&plan, &insert, nth(3)).await;
    assert!(matches!(delivered, Delivery::Delivered(_)), "{delivered:?}");
    assert_eq!(number(&server, "select count() from events").await?, 1);
    Ok(())
}

#[tokio::test]
async fn rows_in_another_partition_are_not_nothing() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = Server::start(flavour).await?;
        let sink = sink(&server, "events")?;
        sink.create(&CreateOptions::default()).await?;
        let plan = sink.prepare(&outbox()).await?;
        let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
        deliver(&sink, &plan, &batch, &blocks).await?;
        let mut moved = batch.clone();
        moved.blocks[0].partition = "199901".to_owned();
        let resolved = sink
            .resolve(&plan, &insert(&moved, &blocks, 0), old())
            .await?;
        let Resolution::Undecidable(trouble) = resolved else {
            bail!("{resolved:?}");
        };
        assert!(trouble.reason.contains("none were sealed"), "{trouble}");
    }
    Ok(())
}

#[tokio::test]
async fn a_view_that_missed_its_rows_gets_the_token_again() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    let sink = sink(&server, "events")?;
    sink.create(&CreateOptions::default()).await?;
    server.query("create table totals (event_type String, k UInt64) engine = SummingMergeTree order by event_type settings non_replicated_deduplication_window = 100").await?;
    server.query("create materialized view counting to totals as select event_type, count() as k from events group by event_type").await?;
    let plan = sink.prepare(&outbox()).await?;
    // The smallest window of all tables counts.
    assert_eq!(plan.report().window.blocks, 100);
    let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
    let insert = insert(&batch, &blocks, 0);
    deliver(&sink, &plan, &batch, &blocks).await?;
    let resolved = sink.resolve(&plan, &insert, young()).await?;
    assert!(matches!(resolved, Resolution::Resend), "{resolved:?}");
    let delivered = sink.deliver(&plan, &insert, nth(2)).await;
    assert!(matches!(delivered, Delivery::Delivered(_)), "{delivered:?}");
    assert_eq!(number(&server, "select sum(k) from totals").await?, 1);
    let resolved = sink.resolve(&plan, &insert, old()).await?;
    assert!(matches!(resolved, Resolution::Delivered(_)), "{resolved:?}");
    server
        .query("create table log (event_type String) engine = Log")
        .await?;
    server
        .query("create materialized view logging to log as select event_type from events")
        .await?;
    let refused = refusal(&sink).await?;
    assert!(refused.reason.contains("engine Log"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn without_the_column_other_writers_and_own_blocks_count() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    server
        .query(&format!(
            "create table five ({FIVE_COLUMNS}) engine = MergeTree order by event_type \
             settings non_replicated_deduplication_window = 100"
        ))
        .await?;
    let sink = sink(&server, "five")?;
    let plan = sink.prepare(&outbox()).await?;
    let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
    let insert = insert(&batch, &blocks, 0);
    for (age, blocks_since, is_remembered) in [
        (1, 0, true),
        (48, 0, true),
        (49, 0, false),
        (0, 48, true),
        (0, 49, false),
    ] {
        let doubt = Doubt {
            age: Duration::from_secs(age),
            blocks_since,
            ..Doubt::NONE
        };
        let resolved = sink.resolve(&plan, &insert, doubt).await?;
        let is_resent = matches!(resolved, Resolution::Resend);
        assert_eq!(is_resent, is_remembered, "{doubt:?}: {resolved:?}");
    }
    Ok(())
}

/// Of two replicas one is dead. What it may still do with an earlier attempt, a remembered token
/// undoes; without one, it has to be asked.
#[tokio::test]
async fn inv_2_a_dead_replica_is_waited_for_only_without_a_token() -> Result<()> {
    let (server, plan, both, nobody) = behind_nobody().await?;
    let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
    let insert = insert(&batch, &blocks, 0);
    let resolved = both.resolve(&plan, &insert, young()).await?;
    assert!(matches!(resolved, Resolution::Resend), "{resolved:?}");
    let trouble = both.resolve(&plan, &insert, old()).await.err();
    let trouble = trouble.context("it was decided without the dead replica")?;
    assert!(trouble.reason.contains(&nobody.to_string()), "{trouble}");
    let delivered = both.deliver(&plan, &insert, nth(1)).await;
    assert!(matches!(delivered, Delivery::Delivered(_)), "{delivered:?}");
    let resolved = both.resolve(&plan, &insert, young()).await?;
    assert!(matches!(resolved, Resolution::Delivered(_)), "{resolved:?}");
    assert_eq!(number(&server, "select count() from events").await?, 1);
    Ok(())
}

/// A replica that was passed over comes back before one looks: it is not looked at, as it may lag.
#[tokio::test]
async fn inv_2_a_replica_that_the_fence_missed_is_not_looked_at() -> Result<()> {
    let (lagging, holding) =
        tokio::try_join!(Server::start(Flavour::V26), Server::start(Flavour::V26))?;
    let address = |server: &Server| Ok::<_, anyhow::Error>(([127, 0, 0, 1], server.port()?).into());
    let away = Arc::new(Proxy::start(address(&lagging)?)?);
    for server in [&lagging, &holding] {
        sink(server, "events")?
            .create(&CreateOptions::default())
            .await?;
    }
    let one = sink(&holding, "events")?;
    let plan = one.prepare(&outbox()).await?;
    let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
    deliver(&one, &plan, &batch, &blocks).await?;
    let returns = Arc::clone(&away);
    // The fence comes to this one when it has passed the other one over.
    let reached = Proxy::start_watched(address(&holding)?, move |first| {
        if String::from_utf8_lossy(first).contains("system.processes") {
            heal(&returns);
        }
    })?;
    let mut config = config(&holding, "events");
    config.urls = vec![away.url(lagging.url())?, reached.url(holding.url())?];
    let both = ClickHouse::new(config)?;
    away.refuse().await?;
    let resolved = both
        .resolve(&plan, &insert(&batch, &blocks, 0), young())
        .await?;
    assert!(matches!(resolved, Resolution::Delivered(_)), "{resolved:?}");
    Ok(())
}

/// Ends what is wrong with a proxy, on the thread of another one.
fn heal(proxy: &Arc<Proxy>) {
    let proxy = Arc::clone(proxy);
    let healing = std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(proxy.heal())
    });
    let healed = healing.join().expect("no panic");
    healed.expect("the proxy listens again");
}

/// The token is remembered and its rows are not to be seen: as long as a replica is passed over, they
/// may be there. The sink waits for it, and stops only when it has been asked.
#[tokio::test]
async fn inv_2_rows_that_a_dead_replica_may_hold_are_not_lost() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    let one = sink(&server, "events")?;
    one.create(&CreateOptions::default()).await?;
    let plan = one.prepare(&outbox()).await?;
    let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
    deliver(&one, &plan, &batch, &blocks).await?;
    // What a replica that lags shows.
    server
        .query("alter table events delete where 1 settings mutations_sync = 2")
        .await?;
    let other = Proxy::start(([127, 0, 0, 1], server.port()?).into())?;
    let name = other.url(server.url())?;
    let mut config = config(&server, "events");
    config.urls.push(name.clone());
    let both = ClickHouse::new(config)?;
    let insert = insert(&batch, &blocks, 0);
    other.refuse().await?;
    for number in 1..=2 {
        let resolved = both.resolve(&plan, &insert, young()).await?;
        assert!(matches!(resolved, Resolution::Resend), "{resolved:?}");
        let Delivery::Unknown(trouble) = both.deliver(&plan, &insert, nth(number)).await else {
            bail!("rows that were not seen were delivered");
        };
        assert_eq!(trouble.reaction, Reaction::Backoff, "{trouble}");
        let says = &trouble.reason;
        assert!(says.contains(&name) && says.contains("start it"), "{says}");
    }
    other.heal().await?;
    let Delivery::Unknown(trouble) = both.deliver(&plan, &insert, nth(3)).await else {
        bail!("rows that are not there were delivered");
    };
    assert_eq!(trouble.reaction, Reaction::Stop, "{trouble}");
    let says = &trouble.reason;
    assert!(says.contains("remembers their token"), "{says}");
    Ok(())
}

/// A replica takes connections and says nothing: the token lets it be passed over.
#[tokio::test]
async fn inv_2_a_silent_replica_is_waited_for_only_without_a_token() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    let one = sink(&server, "events")?;
    one.create(&CreateOptions::default()).await?;
    let plan = one.prepare(&outbox()).await?;
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let name = format!("http://{}", silent.local_addr()?);
    let mut config = config(&server, "events");
    config.urls.insert(0, name.clone());
    config.insert_timeout = Duration::from_secs(2);
    config.query_timeout = Duration::from_secs(8);
    let both = ClickHouse::new(config)?;
    let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
    let insert = insert(&batch, &blocks, 0);
    let first = both.deliver(&plan, &insert, nth(1)).await;
    assert!(matches!(first, Delivery::Unknown(_)), "{first:?}");
    let trouble = both.resolve(&plan, &insert, old()).await.err();
    let trouble = trouble.context("it was decided without the silent replica")?;
    assert!(trouble.reason.contains(&name), "{trouble}");
    let resolved = both.resolve(&plan, &insert, young()).await?;
    assert!(matches!(resolved, Resolution::Resend), "{resolved:?}");
    // The other one gets it.
    let delivered = both.deliver(&plan, &insert, nth(2)).await;
    assert!(matches!(delivered, Delivery::Delivered(_)), "{delivered:?}");
    assert_eq!(number(&server, "select count() from events").await?, 1);
    Ok(())
}

/// There was no time left for the replica that lives, twice: the next attempt begins with it.
#[tokio::test]
async fn a_replica_that_was_come_to_too_late_is_asked_first() -> Result<()> {
    let (server, plan, both, nobody) = behind_nobody().await?;
    let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
    let insert = insert(&batch, &blocks, 0);
    for number in 1..=2 {
        let begins_by = Instant::now() - Duration::from_secs(1);
        let late = Attempt { number, begins_by };
        let refused = both.deliver(&plan, &insert, late).await;
        assert!(matches!(refused, Delivery::Retry(_)), "{refused:?}");
    }
    assert_eq!(number(&server, "select count() from events").await?, 0);
    let first = std::net::TcpListener::bind(nobody)?;
    first.set_nonblocking(true)?;
    let delivered = both.deliver(&plan, &insert, nth(3)).await;
    assert!(matches!(delivered, Delivery::Delivered(_)), "{delivered:?}");
    assert!(first.accept().is_err(), "the dead one was asked first");
    Ok(())
}

/// A replica takes connections and never finishes the handshake of TLS: it counts as one without a
/// connection, and there is time left for the other one.
#[tokio::test]
async fn a_handshake_that_hangs_is_no_connection() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    let one = sink(&server, "events")?;
    one.create(&CreateOptions::default()).await?;
    let plan = one.prepare(&outbox()).await?;
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let mut config = config(&server, "events");
    config
        .urls
        .insert(0, format!("https://{}", silent.local_addr()?));
    config.connect_timeout = Duration::from_secs(1);
    let both = ClickHouse::new(config)?;
    let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
    let delivered = both
        .deliver(&plan, &insert(&batch, &blocks, 0), nth(1))
        .await;
    assert!(matches!(delivered, Delivery::Delivered(_)), "{delivered:?}");
    Ok(())
}

/// What the kernel has not sent when an insert is given up does not arrive after the fence.
#[tokio::test]
async fn inv_2_an_insert_that_is_given_up_is_not_sent_to_its_end() -> Result<()> {
    let server = Server::start(Flavour::V18).await?;
    let one = sink(&server, "events")?;
    one.create(&CreateOptions::default()).await?;
    let plan = one.prepare(&outbox()).await?;
    // The kernel takes megabytes for a reader that does not read, if one lets it.
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(64 << 10)?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    let silent = socket.listen(1)?;
    let mut config = config(&server, "events");
    config.urls = vec![format!("http://{}", silent.local_addr()?)];
    config.insert_timeout = Duration::from_secs(1);
    config.compression = Compression::None;
    let cut_off = ClickHouse::new(config)?;
    let mut event = Event::at(NOON_US);
    event.event_context = vec![b'x'; 16 << 20];
    let (batch, blocks) = seal(&plan, 1, &[event])?;
    let delivered = cut_off
        .deliver(&plan, &insert(&batch, &blocks, 0), nth(1))
        .await;
    assert!(matches!(delivered, Delivery::Unknown(_)), "{delivered:?}");
    let (mut stream, _) = silent.accept().await?;
    let read = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    let kind = read.as_ref().err().map(std::io::Error::kind);
    assert_eq!(kind, Some(std::io::ErrorKind::ConnectionReset), "{read:?}");
    Ok(())
}

#[tokio::test]
async fn a_block_sealed_without_the_number_is_not_looked_for_by_it() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    let sink = five(&server).await?;
    let plan = sink.prepare(&outbox()).await?;
    let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
    deliver(&sink, &plan, &batch, &blocks).await?;
    server
        .query("alter table five add column batch UInt64")
        .await?;
    let plan = sink.prepare(&outbox()).await?;
    let insert = insert(&batch, &blocks, 0);
    let Resolution::Undecidable(trouble) = sink.resolve(&plan, &insert, old()).await? else {
        bail!("it was decided");
    };
    assert!(trouble.reason.contains("without a number"), "{trouble}");
    // As long as the table remembers the token, the token decides.
    let resolved = sink.resolve(&plan, &insert, young()).await?;
    assert!(matches!(resolved, Resolution::Resend), "{resolved:?}");
    deliver(&sink, &plan, &batch, &blocks).await?;
    assert_eq!(number(&server, "select count() from five").await?, 1);
    Ok(())
}
