//! What arrives is what was published, and the digest proves it.

use std::str::FromStr as _;

use pillarbox_relay::sink::Guarantee;
use pillarbox_relay::sink::clickhouse::{CreateOptions, EventFilter};

use super::*;

/// Events at the edges of what both tables can hold.
fn edge_events() -> Vec<Event> {
    let mut events = Vec::new();
    // The first and the last second of DateTime, and a fraction that is cut towards the past.
    for at in [
        0,
        999_999,
        NOON_US - 1,
        NOON_US,
        i64::from(u32::MAX) * 1_000_000,
    ] {
        events.push(Event::at(at));
    }
    for version in [0, 1, i64::from(i32::MAX), i64::MAX] {
        events.push(Event {
            metadata_version: version,
            ..Event::at(NOON_US)
        });
    }
    let every_byte: Vec<u8> = (0..=255).collect();
    for context in [
        Vec::new(),
        b"{}".to_vec(),
        every_byte,
        vec![b'x'; 3_000_000],
    ] {
        events.push(Event {
            event_context: context,
            ..Event::at(NOON_US)
        });
    }
    for text in ["", "é\u{10FFFF}", "\t\n\\'`\"", &"x".repeat(255)] {
        let (event_type, environment) = (text.to_owned(), text.to_owned());
        events.push(Event {
            event_type,
            environment,
            ..Event::at(NOON_US)
        });
    }
    for id in [Uuid::nil(), Uuid::max()] {
        events.push(Event {
            event_id: id,
            ..Event::at(NOON_US)
        });
    }
    events
}

async fn compare(server: &Server, table: &str, events: &[Event], with_id: bool) -> Result<()> {
    let fine = number(server, &format!(
        "select count() from system.columns where table = '{table}' and type like 'DateTime64(6%'"
    )).await? > 0;
    let time = if fine {
        "reinterpret(event_date_time, 'Int64')"
    } else {
        "toUInt32(event_date_time)"
    };
    let id = if with_id { "toString(event_id)" } else { "''" };
    let held = server
        .query(&format!(
            "select hex(toString(event_type)), toString({time}), hex(toString(environment)), \
         hex(event_context), toString(metadata_version), {id} from {table}"
        ))
        .await?;
    let mut held: Vec<String> = held.lines().map(str::to_owned).collect();
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02X}"))
            .collect::<String>()
    };
    let mut expected: Vec<String> = events
        .iter()
        .map(|event| {
            let time = if fine {
                event.at
            } else {
                event.at.div_euclid(1_000_000)
            };
            let id = if with_id {
                event.event_id.to_string()
            } else {
                String::new()
            };
            format!(
                "{}\t{time}\t{}\t{}\t{}\t{id}",
                hex(event.event_type.as_bytes()),
                hex(event.environment.as_bytes()),
                hex(&event.event_context),
                event.metadata_version
            )
        })
        .collect();
    held.sort();
    expected.sort();
    assert_eq!(held.len(), expected.len());
    for (held, expected) in held.iter().zip(&expected) {
        assert!(
            held == expected,
            "{}\n{}",
            &held[..held.len().min(300)],
            &expected[..expected.len().min(300)]
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_created_table_takes_every_edge_byte_for_byte() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = Server::start(flavour).await?;
        let sink = sink(&server, "events")?;
        sink.create(&CreateOptions::default()).await?;
        let plan = sink.prepare(&outbox()).await?;
        let expected = if flavour == Flavour::V18 {
            Guarantee::Lookup
        } else {
            Guarantee::Token
        };
        assert_eq!(plan.guarantee(), expected, "{:?}", plan.report());
        assert_eq!(plan.report().warnings, Vec::<String>::new());
        assert_eq!(plan.report().columns.len(), 6);
        let mut events = edge_events();
        if flavour == Flavour::V26 {
            // Before 1970, and as late as DateTime64 goes.
            events.push(Event::at(-25_567 * DAY_US));
            events.push(Event::at(120_530 * DAY_US - 1));
            events.push(Event::at(-1));
        }
        let (batch, blocks) = seal(&plan, 7, &events)?;
        deliver(&sink, &plan, &batch, &blocks).await?;
        compare(&server, "events", &events, true).await?;
        let held = held(&sink, &plan, &batch).await?;
        assert_eq!(held, (batch.rows, batch.digest), "{flavour:?}");
        assert_eq!(sink.highest_number(&plan, ORIGIN).await?, Some(7));
        assert_eq!(sink.highest_number(&plan, ORIGIN + 1).await?, None);
    }
    Ok(())
}

#[tokio::test]
async fn the_table_of_the_problem_works_as_it_is() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = Server::start(flavour).await?;
        let windows = window(flavour);
        server.query(&format!(
            "create table five ({FIVE_COLUMNS}) engine = MergeTree order by event_type {windows}"
        )).await?;
        let allowed = ClickHouseConfig {
            at_least_once_allowed: true,
            ..config(&server, "five")
        };
        let sink = ClickHouse::new(allowed)?;
        let plan = sink.prepare(&outbox()).await?;
        let expected = if flavour == Flavour::V18 {
            Guarantee::AtLeastOnce
        } else {
            Guarantee::Token
        };
        assert_eq!(plan.guarantee(), expected);
        let (batch, blocks) = seal(&plan, 1, &edge_events())?;
        assert_eq!(blocks.len(), 1);
        assert_eq!(blocks[0].block.partition, "");
        deliver(&sink, &plan, &batch, &blocks).await?;
        compare(&server, "five", &edge_events(), false).await?;
        assert!(held(&sink, &plan, &batch).await.is_err());
    }
    Ok(())
}

#[tokio::test]
async fn one_block_for_each_partition_is_one_part() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = Server::start(flavour).await?;
        let sink = sink(&server, "events")?;
        sink.create(&CreateOptions::default()).await?;
        server.query("system stop merges").await?;
        let plan = sink.prepare(&outbox()).await?;
        let month_end = 1_793_491_200_000_000; // 2026-11-01 00:00:00 UTC
        let events: Vec<Event> = (0..1000)
            .map(|n| Event::at(month_end + (n % 7 - 3) * 1_000_000 - n))
            .collect();
        let (batch, blocks) = seal(&plan, 1, &events)?;
        let partitions: Vec<_> = batch
            .blocks
            .iter()
            .map(|block| block.partition.as_str())
            .collect();
        assert_eq!(partitions, ["202610", "202611"]);
        deliver(&sink, &plan, &batch, &blocks).await?;
        let parts = server.query(
            "select partition, toString(rows) from system.parts where table = 'events' order by partition",
        ).await?;
        let expected: Vec<_> = batch
            .blocks
            .iter()
            .map(|block| format!("{}\t{}", block.partition, block.rows))
            .collect();
        assert_eq!(parts.lines().collect::<Vec<_>>(), expected);
    }
    Ok(())
}

/// Every supported expression and zone, around the hours of a century, against the engine's own.
#[tokio::test]
async fn partitions_are_the_servers() -> Result<()> {
    let zones = [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Asia/Kolkata",
        "Pacific/Auckland",
    ];
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    for flavour in Flavour::ALL {
        let server = Server::start(flavour).await?;
        let sink = sink(&server, "parted")?;
        let mut times = vec![("DateTime".to_owned(), "toDateTime(x)".to_owned())];
        for zone in zones {
            times.push((
                format!("DateTime('{zone}')"),
                format!("toDateTime(x, '{zone}')"),
            ));
            if flavour == Flavour::V26 {
                let of_ticks = format!("fromUnixTimestamp64Milli(toInt64(x) * 1000, '{zone}')");
                times.push((format!("DateTime64(3, '{zone}')"), of_ticks));
            }
        }
        for function in ["toYYYYMM", "toYYYYMMDD", "toDate", "toMonday"] {
            for (of, expression) in &times {
                let columns = FIVE_COLUMNS
                    .replace("event_date_time DateTime", &format!("event_date_time {of}"));
                server.query(&format!(
                    "create table parted ({columns}, batch UInt64) engine = MergeTree partition by \
                     {function}(event_date_time) order by event_type {}", window(flavour)
                )).await?;
                let plan = sink.prepare(&outbox()).await?;
                let instants = instants(seed);
                let list: Vec<String> = instants.iter().map(ToString::to_string).collect();
                let theirs = server.query(&format!(
                    "select x, toString({function}({expression})) from (select arrayJoin([{}]) as x)",
                    list.join(",")
                )).await?;
                assert_eq!(theirs.lines().count(), instants.len());
                for line in theirs.lines() {
                    let (x, theirs) = line.split_once('\t').context("no tab")?;
                    let event = Event::at(x.parse::<i64>()? * 1_000_000 + 999_999);
                    let (batch, _) = seal(&plan, 1, &[event])?;
                    assert_eq!(
                        batch.blocks[0].partition, theirs,
                        "{function} of {of} at {x}"
                    );
                }
                server.query("drop table parted").await?;
            }
        }
    }
    Ok(())
}

/// Seconds since 1970: the first days, and around full hours of the years that DateTime has.
fn instants(mut seed: u64) -> Vec<u32> {
    let mut instants: Vec<u32> = (0..8)
        .flat_map(|day| [day * 86_400, day * 86_400 + 86_399])
        .collect();
    for _ in 0..400 {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // Up to 2037: beyond, 18.16 knows no rules of summer time.
        let hour = u32::try_from(seed >> 40).unwrap_or_default() % 587_000 + 24;
        instants.extend([hour * 3600 - 1, hour * 3600, hour * 3600 + 1]);
    }
    instants
}

#[tokio::test]
async fn events_are_read_back() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = Server::start(flavour).await?;
        let sink = sink(&server, "events")?;
        sink.create(&CreateOptions::default()).await?;
        let plan = sink.prepare(&outbox()).await?;
        let events: Vec<Event> = (0..10)
            .map(|n| Event {
                event_type: format!("type'{n}"),
                event_context: format!("{{\"n\": \"needle-{n}\"}}").into_bytes(),
                ..Event::at(NOON_US + n * 1_000_000)
            })
            .collect();
        let (batch, blocks) = seal(&plan, 1, &events)?;
        deliver(&sink, &plan, &batch, &blocks).await?;
        let all = sink.read_events(&EventFilter::default()).await?;
        assert_eq!(all.len(), 10);
        assert_eq!(all[0].event_type, "type'9");
        let id = all[0].event_id.as_deref().context("no event_id")?;
        assert_eq!(Uuid::from_str(id)?, events[9].event_id);
        assert_eq!(all[0].batch, Some(batch.sink_value().to_string()));
        let one = EventFilter {
            since: Some("2026-11-20T12:00:03Z".to_owned()),
            until: Some("2026-11-20T12:00:08Z".to_owned()),
            event_type: Some("type'4".to_owned()),
            environment: Some("test".to_owned()),
            event_id: Some(events[4].event_id.to_string()),
            contains: Some("needle-4".to_owned()),
            limit: 5,
        };
        let found = sink.read_events(&one).await?;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].event_context.as_bytes(), events[4].event_context);
        assert!(found[0].event_date_time.starts_with("2026-11-20 12:00:04"));
        let early = EventFilter {
            until: Some("2026-11-20T12:00:03Z".to_owned()),
            ..one
        };
        assert!(sink.read_events(&early).await?.is_empty());
    }
    Ok(())
}
