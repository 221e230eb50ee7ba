//! Who may do what: a publisher writes and reads nothing, a reader sees no payload, a relay needs
//! nothing but its role, PUBLIC has nothing.

use std::time::Duration;

use anyhow::{Context, Result};
use pillarbox_relay::postgres;
use pillarbox_relay::schema::registry::{self, Start};
use pillarbox_relay::schema::settings;
use pillarbox_relay::source::Session;
use pillarbox_relay::source::postgres::PostgresSource;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::outbox::{Drain, Outbox, SINK, VERSIONS, exactly_once, publish};

async fn member(outbox: &Outbox, role: &str) -> Result<Client> {
    let create = format!("create role app_{role} login; grant pillarbox_{role} to app_{role}");
    outbox.admin.batch_execute(&create).await?;
    let user = format!("app_{role}");
    outbox.server.connect_as("postgres", &user, None).await
}

async fn all_refused(client: &Client, statements: &[&str]) {
    for sql in statements {
        let refused = client.batch_execute(sql).await;
        let code = refused.as_ref().err().and_then(tokio_postgres::Error::code);
        assert_eq!(
            code,
            Some(&SqlState::INSUFFICIENT_PRIVILEGE),
            "{sql}: {refused:?}"
        );
    }
}

const WRITES: &[&str] = &[
    "truncate pillarbox.event",
    "truncate pillarbox.event_0",
    "delete from pillarbox.event",
    "update pillarbox.event set event_type = 'x'",
    "delete from pillarbox.batch",
    "delete from pillarbox.delivery",
    "update pillarbox.settings set retention = '0'",
    "update pillarbox.sink set paused = true",
    "insert into pillarbox.sink (name, fingerprint, origin, system_identifier)
         values ('x', 'x', 1, 1)",
    "insert into pillarbox.delivery (sink, number, outcome, rows, attempts, server)
         values (1, 0, 'delivered', 0, 1, 'x')",
    "select nextval('pillarbox.ring_position')",
    "select setval('pillarbox.ring_position', 2)",
    "select pillarbox.register_sink('x', 'x', 1)",
    "create table pillarbox.mine (n int)",
    "create or replace function pillarbox.event_bytes_max() returns integer
         language sql return 1",
    "insert into pillarbox.schema_version values (99)",
];

#[tokio::test]
async fn a_publisher_publishes_and_nothing_else() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let app = member(&outbox, "publisher").await?;
        publish(&app, 2).await?;
        app.query_one("select pillarbox.publish('t', '{}')", &[])
            .await?;
        let insert = "insert into pillarbox.event (event_type, event_context) values ('t', '{}')
                      returning event_id";
        app.query_one(insert, &[]).await?;
        all_refused(&app, WRITES).await;
        let column = |name: &str, value: &str| {
            format!(
                "insert into pillarbox.event ({name}, event_type, event_context)
                 values ({value}, 't', '{{}}')"
            )
        };
        let forged = [
            column("slot", "3"),
            column("tx", "'5'"),
            column("id", "5"),
            column("published_at", "now()"),
        ];
        let forged: Vec<&str> = forged.iter().map(String::as_str).collect();
        all_refused(&app, &forged).await;
        all_refused(
            &app,
            &[
                "insert into pillarbox.event (event_type, event_context) values ('t', '{}')
                     returning event_context",
                "insert into pillarbox.event_0 (event_type, event_context) values ('t', '{}')",
                "insert into pillarbox.event (event_type, event_context) values ('t', '{}')
                     on conflict do nothing returning tx",
                "select event_context from pillarbox.event",
                "select * from pillarbox.event",
                "select event_id from pillarbox.event_0",
                "copy pillarbox.event (tx, event_type, event_context) from stdin",
                "select * from pillarbox.batch",
                "select * from pillarbox.sink",
                "select * from pillarbox.settings",
                "select * from pillarbox.open_batch",
                "select * from pillarbox.undone('1:1:', '1:1:', null, null)",
                "select * from pillarbox.safe_position(1, now(), 0)",
                "select pillarbox.timeline()",
                "do 'begin lock table pillarbox.event in access exclusive mode; end'",
                "do 'begin lock table pillarbox.event_0 in access exclusive mode; end'",
                "create trigger t before insert on pillarbox.event for each row
                     execute function suppress_redundant_updates_trigger()",
                "set role pillarbox_owner",
            ],
        )
        .await;
        let count: i64 = outbox.value("select count(*) from pillarbox.event").await?;
        assert_eq!(count, 4);
    }
    Ok(())
}

#[tokio::test]
async fn a_reader_sees_where_things_stand_and_no_payload() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        outbox.publish(2).await?;
        let reader = member(&outbox, "reader").await?;
        for sql in [
            "select * from pillarbox.sink",
            "select * from pillarbox.batch",
            "select * from pillarbox.delivery",
            "select * from pillarbox.open_batch",
            "select * from pillarbox.sink_position",
            "select * from pillarbox.settings",
            "select * from pillarbox.schema_version",
            "select slot, tx, id, event_id, event_type, environment from pillarbox.event",
            "select * from pillarbox.undone('1:1:', '1:1:', null, null)",
            "select pillarbox.oldest_undone('1:1:', '1:1:', null, null)",
            "select * from pillarbox.safe_position(1, now(), 0)",
            "select pillarbox.timeline()",
        ] {
            let read = reader.batch_execute(sql).await;
            assert!(read.is_ok(), "{sql}: {read:?}");
        }
        settings::read(&reader).await?;
        assert_eq!(registry::list(&reader).await?.len(), 1);
        all_refused(&reader, WRITES).await;
        all_refused(
            &reader,
            &[
                "select event_context from pillarbox.event",
                "select e from pillarbox.event e",
                "select * from pillarbox.event_0",
                "select count(*) filter (where event_context::text like '%x%') from pillarbox.event",
                "insert into pillarbox.event (event_type, event_context) values ('t', '{}')",
                "select pillarbox.publish('t', '{}')",
            ],
        )
        .await;
    }
    Ok(())
}

/// A whole life of a relay as a login user with nothing but `pillarbox_relay`.
#[tokio::test]
async fn a_relay_needs_nothing_but_its_role() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let client = member(&outbox, "relay").await?;
        registry::register(&client, "second", "test", Start::Now).await?;
        registry::retire(&client, "second").await?;
        settings::read(&client).await?;
        let mut committed = outbox.publish(20).await?;
        let url = outbox.server.url_for("postgres", "app_relay", None)?;
        let config = postgres::parse_url(&url)?;
        let source = PostgresSource::new(config.clone(), SINK, Duration::from_millis(100));
        let mut drain = Drain::try_open(&source).await?.context("free")?;
        assert!(drain.session.outbox_columns().await?.len() > 10);
        let mut batches = Vec::new();
        let first = drain.seal(7).await?.context("a batch")?;
        drain.session.report(Some("a test")).await?;
        drain.session.beat().await?;
        drain.session.renew_origin().await?;
        // Another relay of the same user finds it frozen, displaces it and goes on.
        let next = PostgresSource::new(config, SINK, Duration::from_millis(100));
        let mut drain = pillarbox_testkit::servers::eventually(
            "the first relay to be displaced",
            crate::outbox::DEADLINE,
            || async { Ok(Drain::try_open(&next).await?) },
        )
        .await?;
        assert_eq!(drain.unfinished, [first.batch]);
        drain.session.report(None).await?;
        batches.extend(drain.all(7).await?);
        let due = "update pillarbox.settings set leaf_bytes_max = 1, ledger_retention = '0'";
        outbox.admin.batch_execute(due).await?;
        drain.session.tend().await?;
        assert_eq!(outbox.slot().await?, 1, "turned");
        committed.extend(outbox.publish(1).await?);
        batches.extend(drain.all(7).await?);
        drain.session.tend().await?;
        assert!(outbox.is_empty(0).await?, "emptied");
        let batch = "select count(*) from pillarbox.batch where sink = 1 and number = 0";
        assert_eq!(outbox.value::<i64>(batch).await?, 0, "pruned");
        exactly_once(&committed, &batches);
        all_refused(
            &client,
            &[
                "insert into pillarbox.event (event_type, event_context) values ('t', '{}')",
                "update pillarbox.event set event_type = 'x'",
                "delete from pillarbox.event",
                "update pillarbox.batch set rows = 0",
                "update pillarbox.delivery set rows = 0",
                "truncate pillarbox.batch, pillarbox.delivery",
                "update pillarbox.settings set retention = '0'",
                "delete from pillarbox.sink",
                "insert into pillarbox.schema_version values (99)",
                "create table pillarbox.mine (n int)",
                "drop table pillarbox.event",
                "set role pillarbox_owner",
            ],
        )
        .await;
    }
    Ok(())
}

#[tokio::test]
async fn public_has_nothing() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        outbox
            .admin
            .batch_execute("create role nobody_special login")
            .await?;
        let nobody = outbox
            .server
            .connect_as("postgres", "nobody_special", None)
            .await?;
        all_refused(&nobody, WRITES).await;
        all_refused(
            &nobody,
            &[
                "select event_id from pillarbox.event",
                "select pillarbox.publish('t', '{}')",
                "select pillarbox.uuid_v7()",
                "insert into pillarbox.event (event_type, event_context) values ('t', '{}')",
                "select * from pillarbox.sink",
            ],
        )
        .await;
        // Also where somebody was given USAGE on the schema by mistake.
        let usage = "grant usage on schema pillarbox to nobody_special";
        outbox.admin.batch_execute(usage).await?;
        let open = "
            select string_agg(what, ', ') from (
                select p.oid::regprocedure::text as what from pg_proc p
                where p.pronamespace = 'pillarbox'::regnamespace
                    and has_function_privilege('nobody_special', p.oid, 'execute')
                union all
                select c.oid::regclass::text from pg_class c
                where c.relnamespace = 'pillarbox'::regnamespace and c.relkind in ('r', 'p', 'v')
                    and (has_table_privilege('nobody_special', c.oid,
                            'select, insert, update, delete, truncate, references, trigger')
                        or has_any_column_privilege('nobody_special', c.oid,
                            'select, insert, update, references'))
                union all
                select c.oid::regclass::text from pg_class c
                where c.relnamespace = 'pillarbox'::regnamespace
                    and case when c.relkind = 'S' then has_sequence_privilege(
                        'nobody_special', c.oid, 'usage, select, update') else false end
            ) open";
        assert_eq!(outbox.value::<Option<String>>(open).await?, None);
    }
    Ok(())
}
