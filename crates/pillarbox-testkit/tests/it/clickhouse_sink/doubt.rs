//! Tokens, unknown outcomes, and what is decided about them.

use pillarbox_relay::sink::clickhouse::CreateOptions;
use pillarbox_relay::sink::{Guarantee, Reaction, Resolution};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

#[tokio::test]
async fn the_same_token_inserts_once_and_without_one_twice() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    let sink = sink(&server, "events")?;
    sink.create(&CreateOptions::default()).await?;
    let plan = sink.prepare(&outbox()).await?;
    let (batch, blocks) = seal(
        &plan,
        1,
        &[Event::at(NOON_US), Event::at(NOON_US + 40 * DAY_US)],
    )?;
    assert_eq!(blocks.len(), 2);
    for _ in 0..3 {
        deliver(&sink, &plan, &batch, &blocks).await?;
    }
    assert_eq!(number(&server, "select count() from events").await?, 2);
    // The negative control: the same blocks without a window.
    server
        .query("alter table events modify setting non_replicated_deduplication_window = 0")
        .await?;
    let plan = sink.prepare(&outbox()).await?;
    assert_eq!(plan.guarantee(), Guarantee::Lookup);
    let (batch, blocks) = seal(&plan, 2, &[Event::at(NOON_US)])?;
    for _ in 0..2 {
        deliver(&sink, &plan, &batch, &blocks).await?;
    }
    assert_eq!(number(&server, "select count() from events").await?, 4);
    Ok(())
}

#[tokio::test]
async fn a_lookup_finds_all_nothing_or_part() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = Server::start(flavour).await?;
        let sink = sink(&server, "events")?;
        sink.create(&CreateOptions::default()).await?;
        let plan = sink.prepare(&outbox()).await?;
        let events = [
            Event::at(NOON_US),
            Event::at(NOON_US + 1),
            Event::at(NOON_US - 40 * DAY_US),
        ];
        let (batch, blocks) = seal(&plan, 3, &events)?;
        let resolved = async |batch: &Batch, ordinal: usize| {
            let insert = Insert {
                batch,
                ordinal,
                body: &blocks[ordinal].body,
            };
            sink.resolve(&plan, &insert, old()).await
        };
        assert!(matches!(resolved(&batch, 0).await?, Resolution::Resend));
        let sent = send(&sink, &plan, &batch, &blocks, 0).await;
        assert!(matches!(sent, Delivery::Delivered(_)), "{sent:?}");
        assert!(matches!(
            resolved(&batch, 0).await?,
            Resolution::Delivered(_)
        ));
        // The other partition of the same batch is a matter of its own.
        assert!(matches!(resolved(&batch, 1).await?, Resolution::Resend));
        let mut more = batch.clone();
        more.blocks[0].rows += 1;
        let Resolution::Undecidable(trouble) = resolved(&more, 0).await? else {
            bail!("a partial block was decided");
        };
        assert_eq!(trouble.reaction, Reaction::Stop);
        assert!(trouble.reason.contains("holds 2 rows"), "{trouble}");
        let mut other = batch.clone();
        other.blocks[0].digest ^= 1;
        assert!(matches!(
            resolved(&other, 0).await?,
            Resolution::Undecidable(_)
        ));
        if flavour == Flavour::V26 {
            let insert = insert(&batch, &blocks, 0);
            assert!(matches!(
                sink.resolve(&plan, &insert, young()).await?,
                Resolution::Delivered(_)
            ));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_forgotten_token_without_the_column_batch_is_undecidable() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    let sink = five(&server).await?;
    let plan = sink.prepare(&outbox()).await?;
    let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
    let insert = insert(&batch, &blocks, 0);
    assert!(matches!(
        sink.resolve(&plan, &insert, young()).await?,
        Resolution::Resend
    ));
    let Resolution::Undecidable(trouble) = sink.resolve(&plan, &insert, old()).await? else {
        bail!("it was decided");
    };
    assert!(
        trouble.reason.contains("ADD COLUMN batch UInt64"),
        "{trouble}"
    );
    Ok(())
}

/// The relay does not take a window for what it was when it planned.
#[tokio::test]
async fn a_window_that_was_narrowed_is_noticed_before_a_token_decides() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    let sink = five(&server).await?;
    let plan = sink.prepare(&outbox()).await?;
    let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
    let insert = insert(&batch, &blocks, 0);
    server
        .query("alter table five modify setting non_replicated_deduplication_window = 1")
        .await?;
    let Err(trouble) = sink.resolve(&plan, &insert, young()).await else {
        bail!("it was decided");
    };
    assert_eq!(trouble.reaction, Reaction::Replan, "{trouble}");
    let plan = sink.prepare(&outbox()).await?;
    assert!(matches!(
        sink.resolve(&plan, &insert, young()).await?,
        Resolution::Undecidable(_)
    ));
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_down_is_a_retry() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = Server::start(flavour).await?;
        let sink = sink(&server, "events")?;
        sink.create(&CreateOptions::default()).await?;
        let plan = sink.prepare(&outbox()).await?;
        let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
        server.kill()?;
        let Delivery::Retry(trouble) = send(&sink, &plan, &batch, &blocks, 0).await else {
            bail!("not a retry");
        };
        assert_eq!(trouble.reaction, Reaction::Backoff);
        assert_eq!(refusal(&sink).await?.reaction, Reaction::Backoff);
        server.restart().await?;
        deliver(&sink, &plan, &batch, &blocks).await?;
        assert_eq!(number(&server, "select count() from events").await?, 1);
    }
    Ok(())
}

/// Takes some bytes of a request and closes, or never answers.
async fn rude_server(takes: usize, answers: Option<&'static str>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut taken = 0;
            let mut buffer = vec![0; 64 * 1024];
            while taken < takes {
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(read) => taken += read,
                }
            }
            match answers {
                Some(text) => {
                    let _ = stream.write_all(text.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
                None => tokio::time::sleep(Duration::from_secs(60)).await,
            }
        }
    });
    Ok(url)
}

#[tokio::test]
async fn a_connection_cut_after_the_first_byte_is_unknown() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    let real = sink(&server, "events")?;
    real.create(&CreateOptions::default()).await?;
    let plan = real.prepare(&outbox()).await?;
    let large = Event {
        event_context: vec![b'x'; 20_000_000],
        ..Event::at(NOON_US)
    };
    let (batch, blocks) = seal(&plan, 1, &[large])?;
    let via = |url: String| {
        let timeout = Duration::from_millis(500);
        ClickHouse::new(ClickHouseConfig {
            urls: vec![url],
            insert_timeout: timeout,
            ..config(&server, "events")
        })
    };
    for (takes, answers) in [
        (100_000, Some("")),
        (1, Some("")),
        (100_000, None),
        (1, Some("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf")),
        (
            1,
            Some("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"),
        ),
        (1, Some("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")),
        (1, Some("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nlogin")),
        (
            1,
            Some("HTTP/1.1 200 OK\r\nx-clickhouse-summary: {}\r\ncontent-length: 3\r\n\r\nOk."),
        ),
        (
            1,
            Some(
                "HTTP/1.1 200 OK\r\nx-clickhouse-exception-code: 319\r\ncontent-length: 0\r\n\r\n",
            ),
        ),
        (
            1,
            Some(
                "HTTP/1.1 200 OK\r\ncontent-length: 41\r\n\r\nCode: 999. DB::Exception: keeper went off",
            ),
        ),
    ] {
        let sink = via(rude_server(takes, answers).await?)?;
        let result = send(&sink, &plan, &batch, &blocks, 0).await;
        assert!(
            matches!(result, Delivery::Unknown(_)),
            "{takes} {answers:?}: {result:?}"
        );
    }
    assert_eq!(number(&server, "select count() from events").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_replica_that_refuses_hands_over_to_the_next() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    let real = sink(&server, "events")?;
    real.create(&CreateOptions::default()).await?;
    let plan = real.prepare(&outbox()).await?;
    let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        format!("http://{}", listener.local_addr()?)
    };
    let readonly =
        "HTTP/1.1 500 E\r\nx-clickhouse-exception-code: 242\r\ncontent-length: 0\r\n\r\n";
    let urls = vec![
        "http://nowhere.invalid:8123".to_owned(),
        closed,
        rude_server(1, Some(readonly)).await?,
        server.url().to_owned(),
    ];
    let sink = ClickHouse::new(ClickHouseConfig {
        urls,
        ..config(&server, "events")
    })?;
    deliver(&sink, &plan, &batch, &blocks).await?;
    // Several addresses of a table that is not replicated would share no tokens.
    assert!(refusal(&sink).await?.reason.contains("not replicated"));
    Ok(())
}

#[tokio::test]
async fn a_failing_view_is_its_own_class() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = Server::start(flavour).await?;
        let sink = sink(&server, "events")?;
        sink.create(&CreateOptions::default()).await?;
        let windows = window(flavour);
        server.query(&format!(
            "create table totals (event_type String, k UInt64) engine = SummingMergeTree order by event_type {windows}"
        )).await?;
        server.query(
            "create materialized view failing to totals as select event_type, \
             toUInt64(count() + throwIf(max(metadata_version) = 13)) as k from events group by event_type",
        ).await?;
        let plan = sink.prepare(&outbox()).await?;
        assert_eq!(plan.report().views.len(), 1);
        let good = [Event::at(NOON_US)];
        let (batch, blocks) = seal(&plan, 1, &good)?;
        deliver(&sink, &plan, &batch, &blocks).await?;
        let bad = [Event {
            metadata_version: 13,
            ..Event::at(NOON_US)
        }];
        let (batch, blocks) = seal(&plan, 2, &bad)?;
        for _ in 0..5 {
            let Delivery::Unknown(trouble) = send(&sink, &plan, &batch, &blocks, 0).await else {
                bail!("rows were blamed for a view");
            };
            assert!(
                trouble.reason.contains("while pushing to view"),
                "{trouble}"
            );
        }
        let insert = insert(&batch, &blocks, 0);
        let resolution = sink.resolve(&plan, &insert, young()).await?;
        assert!(
            matches!(resolution, Resolution::Undecidable(_)),
            "{resolution:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_view_with_a_window_counts_a_resend_once() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    let sink = sink(&server, "events")?;
    sink.create(&CreateOptions::default()).await?;
    server.query("create table totals (event_type String, k UInt64) engine = SummingMergeTree order by event_type").await?;
    server.query("create materialized view counting to totals as select event_type, count() as k from events group by event_type").await?;
    server.query("create materialized view inner_one engine = SummingMergeTree order by event_type settings non_replicated_deduplication_window = 100 as select event_type, count() as k from totals group by event_type").await?;
    let refused = refusal(&sink).await?;
    assert!(
        refused.reason.contains("`totals` MODIFY SETTING"),
        "{refused}"
    );
    paste(&server, &refused.reason).await?;
    let plan = sink.prepare(&outbox()).await?;
    assert_eq!(plan.report().views.len(), 2, "{:?}", plan.report());
    let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US), Event::at(NOON_US)])?;
    for _ in 0..3 {
        deliver(&sink, &plan, &batch, &blocks).await?;
    }
    assert_eq!(number(&server, "select sum(k) from totals").await?, 2);
    // Narrowed beneath the plan: no token completes what a view may lack.
    let insert = insert(&batch, &blocks, 0);
    let resend = sink.resolve(&plan, &insert, young()).await?;
    assert!(matches!(resend, Resolution::Resend), "{resend:?}");
    server
        .query("alter table events modify setting non_replicated_deduplication_window = 1")
        .await?;
    let there = sink.resolve(&plan, &insert, young()).await?;
    assert!(matches!(there, Resolution::Delivered(_)), "{there:?}");
    Ok(())
}

/// Runs the statement that a refusal proposes.
pub(super) async fn paste(server: &Server, reason: &str) -> Result<()> {
    let start = reason.find("ALTER TABLE").context("no remedy")?;
    let remedy = reason[start..].split(';').next().unwrap_or_default();
    server.query(remedy).await?;
    Ok(())
}
