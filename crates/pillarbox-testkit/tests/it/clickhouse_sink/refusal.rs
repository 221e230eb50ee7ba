//! What the preflight refuses, and that its remedies work when they are pasted.

use pillarbox_relay::sink::clickhouse::CreateOptions;
use pillarbox_relay::sink::{Guarantee, Reaction};

use super::doubt::paste;
use super::*;

async fn create(server: &Server, columns: &str, rest: &str) -> Result<()> {
    server.query("drop table if exists events").await?;
    server
        .query(&format!(
            "create table events ({columns}) engine = MergeTree {rest}"
        ))
        .await?;
    Ok(())
}

#[tokio::test]
async fn no_window_is_refused_and_the_remedy_mends_it() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    create(&server, FIVE_COLUMNS, "order by event_type").await?;
    let sink = sink(&server, "events")?;
    let refused = refusal(&sink).await?;
    assert_eq!(refused.reaction, Reaction::Stop);
    assert!(
        refused.reason.contains("window of default.events is 0"),
        "{refused}"
    );
    paste(&server, &refused.reason).await?;
    let plan = sink.prepare(&outbox()).await?;
    assert_eq!(plan.guarantee(), Guarantee::Token);
    assert_eq!(plan.report().window.blocks, 10_000);
    Ok(())
}

#[tokio::test]
async fn an_old_server_is_refused_without_the_column_batch() -> Result<()> {
    let server = Server::start(Flavour::V18).await?;
    create(&server, FIVE_COLUMNS, "order by event_type").await?;
    let sink = sink(&server, "events")?;
    let refused = refusal(&sink).await?;
    assert!(
        refused.reason.contains("knows no deduplication tokens"),
        "{refused}"
    );
    paste(&server, &refused.reason).await?;
    assert_eq!(
        sink.prepare(&outbox()).await?.guarantee(),
        Guarantee::Lookup
    );
    Ok(())
}

#[tokio::test]
async fn tables_that_cannot_be_a_sink_are_refused_by_name() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = Server::start(flavour).await?;
        let sink = sink(&server, "events")?;
        let missing = refusal(&sink).await?;
        assert!(
            missing.reason.contains("pillarbox sink create"),
            "{missing}"
        );
        let batch = format!("{FIVE_COLUMNS}, batch UInt64");
        let replaced = |from: &str, to: &str| batch.replace(from, to);
        let cases = [
            (
                replaced("metadata_version UInt64", "metadata_version String"),
                "order by event_type",
                "bigint",
            ),
            (
                replaced("metadata_version UInt64", "metadata_version Array(UInt8)"),
                "order by event_type",
                "Array(UInt8)",
            ),
            (
                replaced("event_date_time DateTime,", "event_date_time String,"),
                "order by event_type",
                "timestamp with time zone",
            ),
            (
                replaced("environment String, ", ""),
                "order by event_type",
                "no column environment",
            ),
            (
                replaced("batch UInt64", "batch UInt32"),
                "order by event_type",
                "column batch",
            ),
            (
                batch.clone(),
                "partition by toStartOfHour(event_date_time) order by event_type",
                "toStartOfHour",
            ),
            (
                batch.clone(),
                "partition by event_type order by event_type",
                "partition expression event_type",
            ),
            (
                format!("{batch}, trace_parent String"),
                "order by event_type",
                "Nullable(String)",
            ),
        ];
        for (columns, rest, named) in cases {
            create(&server, &columns, rest).await?;
            let refused = refusal(&sink).await?;
            assert_eq!(refused.reaction, Reaction::Stop);
            assert!(refused.reason.contains(named), "{named}: {refused}");
        }
        server.query("drop table events").await?;
        server
            .query(&format!("create table events ({batch}) engine = Memory"))
            .await?;
        assert!(refusal(&sink).await?.reason.contains("engine Memory"));
        server
            .query("create view looking as select * from events")
            .await?;
        let view = self::sink(&server, "looking")?;
        assert!(refusal(&view).await?.reason.contains("is a view"));
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_stops_and_is_never_shown() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = Server::start(flavour).await?;
        let wrong = ClickHouseConfig {
            password: "hunter2".to_owned().into(),
            ..config(&server, "events")
        };
        let shown = format!("{wrong:?}");
        let sink = ClickHouse::new(wrong)?;
        let refused = refusal(&sink).await?;
        assert_eq!(refused.reaction, Reaction::Stop, "{refused:?}");
        let in_url = server.url().replace("http://", "http://somebody:hunter2@");
        let in_url = ClickHouse::new(ClickHouseConfig {
            urls: vec![in_url],
            ..config(&server, "events")
        })?;
        let refused_too = refusal(&in_url).await?;
        for text in [
            shown,
            format!("{sink:?} {refused:?} {in_url:?} {refused_too:?}"),
        ] {
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn extra_columns_are_reported() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    let columns = format!(
        "{FIVE_COLUMNS}, trace_parent Nullable(String), published_at \
        DateTime64(3, 'UTC'), region String, tag String default 'x', day Date materialized toDate(event_date_time)"
    );
    create(
        &server,
        &columns,
        &format!("order by event_type {}", window(Flavour::V26)),
    )
    .await?;
    let sink = sink(&server, "events")?;
    let plan = sink.prepare(&outbox()).await?;
    let warnings = &plan.report().warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("region"));
    // Nobody is told when the table forgets a token.
    assert!(
        warnings[1].contains("ADD COLUMN batch UInt64"),
        "{warnings:?}"
    );
    let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US + 1)])?;
    deliver(&sink, &plan, &batch, &blocks).await?;
    let row = server
        .query("select isNull(trace_parent), toString(published_at), tag, day from events")
        .await?;
    assert_eq!(row, "1\t2026-11-20 12:00:00.000\tx\t2026-11-20\n");
    Ok(())
}

#[tokio::test]
async fn a_table_changed_under_the_plan_asks_for_another_plan() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = Server::start(flavour).await?;
        let sink = sink(&server, "events")?;
        sink.create(&CreateOptions::default()).await?;
        let plan = sink.prepare(&outbox()).await?;
        let (batch, blocks) = seal(&plan, 1, &[Event::at(NOON_US)])?;
        server
            .query("alter table events drop column event_id")
            .await?;
        let result = send(&sink, &plan, &batch, &blocks, 0).await;
        let Delivery::Retry(trouble) = &result else {
            bail!("{result:?}")
        };
        assert_eq!(trouble.reaction, Reaction::Replan, "{trouble:?}");
        server.query("drop table events").await?;
        let result = send(&sink, &plan, &batch, &blocks, 0).await;
        let Delivery::Retry(trouble) = &result else {
            bail!("{result:?}")
        };
        assert_eq!(trouble.reaction, Reaction::Replan, "{trouble:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_asynchronous_table_is_refused_and_the_remedy_mends_it() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    let rest =
        "order by event_type settings non_replicated_deduplication_window = 100, async_insert = 1";
    create(&server, FIVE_COLUMNS, rest).await?;
    let sink = sink(&server, "events")?;
    let refused = refusal(&sink).await?;
    assert_eq!(refused.reaction, Reaction::Stop);
    assert!(refused.reason.contains("async_insert = 1"), "{refused}");
    paste(&server, &refused.reason).await?;
    let plan = sink.prepare(&outbox()).await?;
    assert_eq!(plan.guarantee(), Guarantee::Token);
    Ok(())
}

#[tokio::test]
async fn two_batches_of_the_same_content_both_arrive() -> Result<()> {
    let server = Server::start(Flavour::V26).await?;
    // A view without a window: only at-least-once is left, while the table deduplicates.
    create(
        &server,
        FIVE_COLUMNS,
        &format!("order by event_type {}", window(Flavour::V26)),
    )
    .await?;
    server
        .query("create table totals (event_type String) engine = MergeTree order by event_type")
        .await?;
    server
        .query("create materialized view copying to totals as select event_type from events")
        .await?;
    let sink = ClickHouse::new(ClickHouseConfig {
        at_least_once_allowed: true,
        ..config(&server, "events")
    })?;
    let plan = sink.prepare(&outbox()).await?;
    assert_eq!(plan.guarantee(), Guarantee::AtLeastOnce);
    let event = Event::at(NOON_US);
    for number in [1, 2] {
        let (batch, blocks) = seal(&plan, number, std::slice::from_ref(&event))?;
        deliver(&sink, &plan, &batch, &blocks).await?;
    }
    assert_eq!(number(&server, "select count() from events").await?, 2);
    Ok(())
}
