//! Publishing, in every way that a program may choose (INV-1, INV-4, INV-12).

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::SinkExt as _;
use pillarbox_relay::schema::settings::{self, Change};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use uuid::{Uuid, Version};

use crate::outbox::{Outbox, SINK, VERSIONS, exactly_once, value};

const INSERT: &str = "insert into pillarbox.event (event_type, event_context)
                      values ('test', $1::text::json)";
const FUNCTION: &str = "select pillarbox.publish('test', $1::text::json)";
const BATCH: &str = "select pillarbox.publish_batch(array['test'], array[$1::text::json])";

/// Publishes one context by `way`: a statement with one parameter, or `None` for COPY.
async fn publish_by(
    client: &Client,
    way: Option<&str>,
    context: &str,
) -> Result<(), tokio_postgres::Error> {
    if let Some(statement) = way {
        return client.query(statement, &[&context]).await.map(drop);
    }
    let copy = "copy pillarbox.event (event_type, event_context) from stdin (format csv)";
    let sink = client.copy_in::<_, Bytes>(copy).await?;
    let mut sink = std::pin::pin!(sink);
    let line = format!("test,\"{}\"\n", context.replace('"', "\"\""));
    sink.send(Bytes::from(line)).await?;
    sink.finish().await.map(drop)
}

const WAYS: [Option<&str>; 4] = [Some(INSERT), Some(FUNCTION), Some(BATCH), None];

fn sized(bytes: usize) -> String {
    format!("\"{}\"", "x".repeat(bytes - 2))
}

/// INV-1: every way, at every isolation level, as a publisher; what is rolled back is not there.
#[tokio::test]
async fn every_way_publishes_at_every_isolation_level() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let create = "create role app login in role pillarbox_publisher";
        outbox.admin.batch_execute(create).await?;
        let app = outbox.server.connect_as("postgres", "app", None).await?;
        for level in ["read committed", "repeatable read", "serializable"] {
            for way in WAYS {
                for end in ["rollback", "commit"] {
                    let begin = format!("begin isolation level {level}");
                    app.batch_execute(&begin).await?;
                    publish_by(&app, way, "{\"a\": 1}").await?;
                    publish_by(&app, way, "{\"a\": 2}").await?;
                    app.batch_execute(end).await?;
                }
            }
        }
        let committed = outbox.event_ids().await?;
        assert_eq!(committed.len(), 3 * 4 * 2);
        let mut drain = outbox.drain(SINK).await?;
        exactly_once(&committed, &drain.all(5).await?);
    }
    Ok(())
}

/// INV-1: savepoints, more subtransactions than a snapshot lists, and exception blocks.
#[tokio::test]
async fn savepoints_and_exception_blocks_keep_what_was_kept() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let script = "
            begin;
            select pillarbox.publish('kept', '1');
            savepoint a;
            select pillarbox.publish('lost', '2');
            savepoint b;
            select pillarbox.publish('lost', '3');
            release savepoint b;
            rollback to savepoint a;
            select pillarbox.publish('kept', '4');
            do $$
            begin
                for n in 1..150 loop
                    begin
                        if n % 3 = 0 then
                            insert into pillarbox.event (event_type, event_context)
                            values ('lost', '{}');
                            raise exception 'no';
                        end if;
                        insert into pillarbox.event (event_type, event_context)
                        values ('kept', to_json(n));
                    exception when raise_exception then null;
                    end;
                end loop;
            end $$;
            commit;";
        outbox.admin.batch_execute(script).await?;
        let lost = "select count(*) from pillarbox.event where event_type = 'lost'";
        assert_eq!(outbox.value::<i64>(lost).await?, 0);
        let txs = "select count(distinct tx) from pillarbox.event";
        assert_eq!(outbox.value::<i64>(txs).await?, 1, "one transaction");
        let committed = outbox.event_ids().await?;
        assert_eq!(committed.len(), 102);
        let mut drain = outbox.drain(SINK).await?;
        exactly_once(&committed, &drain.all(9).await?);
    }
    Ok(())
}

/// The limit is exact through every way; the message names both numbers, and nothing of the event
/// reaches the server's log.
#[tokio::test]
async fn the_size_limit_is_exact_and_its_message_clear() -> Result<()> {
    for version in VERSIONS {
        let mut outbox = Outbox::start(version).await?;
        // A session that has the limit of before in its plans.
        let client = outbox.server.connect().await?;
        for limit in [1_000, 1_048_576] {
            let change = Change {
                event_bytes_max: Some(limit),
                ..Change::default()
            };
            settings::change(&mut outbox.admin, &change).await?;
            let limit = usize::try_from(limit)?;
            for way in WAYS {
                publish_by(&client, way, &sized(limit)).await?;
                let secret = sized(limit + 1).replace("xxxxxxxxxxxx", "secret-token");
                let refused = publish_by(&client, way, &secret).await;
                let error = refused.err().context("one byte too many was taken")?;
                assert_eq!(error.code(), Some(&SqlState::CHECK_VIOLATION));
                let answer = error.as_db_error().context("an answer")?;
                let message = format!(
                    "event_context has {} bytes, the limit is {limit}",
                    limit + 1
                );
                assert!(answer.message().starts_with(&message), "{answer}");
                assert!(!format!("{answer:?}").contains("secret-token") || way.is_none());
            }
        }
        let log = outbox.server.log_tail();
        assert!(log.contains("the limit is 1048576"), "{log}");
        // PostgreSQL shows the first 100 characters of a line that COPY could not take.
        let shown = log.lines().filter(|line| line.contains("secret-token"));
        let not_copy: Vec<_> = shown.filter(|line| !line.contains("line 1:")).collect();
        assert!(not_copy.is_empty(), "{not_copy:?}");
    }
    Ok(())
}

/// INV-12: the outbox keeps every kind of JSON byte for byte.
#[tokio::test]
async fn every_kind_of_json_is_kept_byte_for_byte() -> Result<()> {
    let nested = format!("{}1{}", "[".repeat(500), "]".repeat(500));
    let large = sized(1_048_576);
    let contexts = [
        "1",
        "null",
        "true",
        "\"\"",
        "{}",
        "[]",
        " \t\r\n{ \"b\" : 1 ,\n \"a\":2, \"b\":3 } ",
        "{\"a\":1,\"a\":2,\"a\":1}",
        "18446744073709551616",
        "-0.0000000000000000000000000000000000001e-400",
        "123456789012345678901234567890.123456789012345678901234567890",
        "1E400",
        r#""\u0000""#,
        r#""\ud83d\ude00 \n \/ \\ \" \u00e9""#,
        "\"é 漢字 🎉 \u{200d}\u{feff}\"",
        "\"\u{7f}\u{85}\u{2028}\"",
        nested.as_str(),
        large.as_str(),
    ];
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        for context in contexts {
            for way in WAYS {
                let published = publish_by(&outbox.admin, way, context).await;
                published.with_context(|| format!("{way:?}: {:.80}", context))?;
            }
        }
        let sql = "select event_context::text from pillarbox.event order by id";
        let rows = outbox.admin.query(sql, &[]).await?;
        assert_eq!(rows.len(), contexts.len() * WAYS.len());
        for (row, n) in rows.iter().zip(0..) {
            let context = contexts[n / WAYS.len()];
            assert!(row.get::<_, &str>(0) == context, "{context:.80}");
        }
    }
    Ok(())
}

/// What is not an event is refused by every way, with a message that says why.
#[tokio::test]
async fn what_is_not_an_event_is_refused() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let broken = [
            "",
            "{",
            "{'a': 1}",
            "{\"a\": 1} x",
            "NaN",
            "\"\u{1}\"",
            "01",
            r#""\ud83""#,
        ];
        for context in broken {
            for way in WAYS {
                let refused = publish_by(&outbox.admin, way, context).await;
                assert!(refused.is_err(), "{way:?} took {context:?}");
            }
        }
        for (column, value, message) in [
            (
                "event_type",
                "''",
                "event_type has 0 characters; give it 1 to 255",
            ),
            (
                "event_type",
                "repeat('é', 256)",
                "event_type has 256 characters",
            ),
            (
                "event_date_time",
                "'-infinity'",
                "event_date_time is infinite; give it a time",
            ),
            (
                "metadata_version",
                "-1",
                "metadata_version is -1; it must not be negative",
            ),
            (
                "trace_parent",
                "repeat('a', 256)",
                "trace_parent has more than 255 characters",
            ),
        ] {
            let others = match column {
                "event_type" => ("event_context", "'{}'"),
                _ => ("event_type, event_context", "'t', '{}'"),
            };
            let sql = format!(
                "insert into pillarbox.event ({column}, {}) values ({value}, {})",
                others.0, others.1
            );
            let refused = outbox.admin.batch_execute(&sql).await;
            let error = refused.err().context(column)?;
            let answer = error.as_db_error().context("an answer")?;
            assert!(answer.message().starts_with(message), "{answer}");
            assert_eq!(answer.detail(), None, "the row is not shown");
        }
        let longest = "insert into pillarbox.event (event_type, event_context, metadata_version)
                   values (repeat('é', 255), '{}', 0)";
        outbox.admin.batch_execute(longest).await?;
        assert_eq!(outbox.event_ids().await?.len(), 1);
    }
    Ok(())
}

/// What a publisher puts before the server's own operators and types is not used to check its events.
#[tokio::test]
async fn a_search_path_does_not_get_around_the_checks() -> Result<()> {
    const SHADOWS: &str = "
        create schema shadow;
        create function shadow.yes(integer, integer) returns boolean immutable language sql return true;
        create operator shadow.<= (leftarg = integer, rightarg = integer, function = shadow.yes);
        create function shadow.length(text) returns integer immutable language sql return 1;
        create function shadow.octet_length(text) returns integer immutable language sql return 1;
        create domain shadow.text as pg_catalog.text;
        set search_path = shadow, pg_catalog";
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        outbox.admin.batch_execute(SHADOWS).await?;
        for (event_type, event_context) in [
            ("repeat('a', 256)", "'{}'"),
            ("'test'", "to_json(repeat('a', 1048576))"),
        ] {
            let sql = format!(
                "insert into pillarbox.event (event_type, event_context)
                 values ({event_type}, {event_context})"
            );
            let refused = outbox.admin.batch_execute(&sql).await;
            let error = refused.err().context("got around")?;
            assert_eq!(error.code(), Some(&SqlState::CHECK_VIOLATION));
        }
    }
    Ok(())
}

/// `publish_batch` keeps order, fills in what is null, and refuses arrays of different lengths.
#[tokio::test]
async fn a_batch_keeps_its_order_and_fills_what_is_null() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let given = Uuid::now_v7();
        let sql = "select pillarbox.publish_batch(
            array(select 't' || n from generate_series(1, 1000) n),
            array(select to_json(n) from generate_series(1, 1000) n),
            metadata_versions => array[null, 7] || array_fill(null::bigint, array[998]),
            event_ids => array[null, $1::uuid] || array_fill(null::uuid, array[998]))";
        let rows = outbox.admin.query(sql, &[&given]).await?;
        let returned: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(returned.len(), 1_000);
        assert_eq!(returned[1], given);
        let stored = outbox
            .admin
            .query(
                "select event_id, event_type, event_context::text, metadata_version, environment
                 from pillarbox.event order by id",
                &[],
            )
            .await?;
        for (n, row) in stored.iter().enumerate() {
            assert_eq!(row.get::<_, Uuid>(0), returned[n]);
            assert_eq!(row.get::<_, String>(1), format!("t{}", n + 1));
            assert_eq!(row.get::<_, String>(2), format!("{}", n + 1));
            assert_eq!(row.get::<_, i64>(3), if n == 1 { 7 } else { 1 });
            assert_eq!(row.get::<_, &str>(4), "production");
        }
        for uneven in [
            "select pillarbox.publish_batch(array['a', 'b'], array['1']::json[])",
            "select pillarbox.publish_batch(array['a'], array['1', '2']::json[])",
            "select pillarbox.publish_batch(array['a'], null)",
            "select pillarbox.publish_batch(array['a'], array['1']::json[], environments => '{}')",
            "select pillarbox.publish_batch(array['a'], array['1']::json[],
                 trace_parents => array['x', 'y'])",
        ] {
            let refused = outbox.admin.batch_execute(uneven).await;
            let error = refused.err().context(uneven)?;
            assert!(
                format!("{error:?}").contains("differ in length"),
                "{error:?}"
            );
        }
        let none = "select count(*) from pillarbox.publish_batch('{}', '{}')";
        assert_eq!(outbox.value::<i64>(none).await?, 0);
        let null = "select pillarbox.publish_batch(array['a', null], array['1', '2']::json[])";
        assert!(outbox.admin.batch_execute(null).await.is_err());
        assert_eq!(outbox.event_ids().await?.len(), 1_000);
    }
    Ok(())
}

/// Identities are UUIDs of version 7 whose time is the server's and never runs back.
#[tokio::test]
async fn identities_are_version_7_and_in_order_of_time() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let before: i64 = outbox
            .value("select (extract(epoch from clock_timestamp()) * 1000)::bigint")
            .await?;
        for _ in 0..5 {
            outbox.publish(500).await?;
        }
        let after: i64 = value(
            &outbox.admin,
            "select (extract(epoch from clock_timestamp()) * 1000)::bigint",
        )
        .await?;
        let ids = outbox.event_ids().await?;
        let mut last = before;
        for id in &ids {
            assert_eq!(id.get_version(), Some(Version::SortRand));
            assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
            let ms = i64::try_from(id.as_u128() >> 80)?;
            assert!((last..=after).contains(&ms), "{ms} after {last}");
            last = ms;
        }
        let distinct = "select count(distinct event_id) from pillarbox.event";
        assert_eq!(outbox.value::<i64>(distinct).await?, 2_500);
    }
    Ok(())
}

/// An event belongs to the transaction that inserts it, whoever inserts; a doubled key is refused.
#[tokio::test]
async fn a_transaction_id_cannot_be_forged_nor_a_key_doubled() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let forged = "insert into pillarbox.event (tx, event_type, event_context)
                      values ('3', 'test', '{}')";
        let refused = outbox.admin.batch_execute(forged).await;
        assert_eq!(
            refused.err().context("forged")?.code(),
            Some(&SqlState::CHECK_VIOLATION)
        );
        let doubled = "insert into pillarbox.event (id, event_type, event_context)
                       values (5, 'test', '{}'), (5, 'test', '{}')";
        let refused = outbox.admin.batch_execute(doubled).await;
        assert_eq!(
            refused.err().context("doubled")?.code(),
            Some(&SqlState::UNIQUE_VIOLATION)
        );
        assert!(outbox.event_ids().await?.is_empty());
    }
    Ok(())
}
