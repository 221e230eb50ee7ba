//! Installing the schema, its settings, and what survives a dump.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use pillarbox_relay::postgres::{ConnectError, check_server};
use pillarbox_relay::schema::registry::{self, Start};
use pillarbox_relay::schema::settings::{self, Change};
use pillarbox_relay::schema::{self, Migrated, SchemaError};
use pillarbox_testkit::servers::{PgVersion, Postgres};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio_postgres::Client;

use crate::outbox::{DEADLINE, Outbox, VERSIONS, publish, value};

/// Everything about the schema that two installations must share: relations with their options,
/// columns with their defaults, constraints, indexes, function bodies, rights.
const DESCRIPTION: &str = "
    select string_agg(line, E'\n' order by line) from (
        select 'relation ' || c.relname || c.relkind::text || coalesce(c.reloptions::text, '')
            || coalesce(c.relacl::text, '') || pg_get_userbyid(c.relowner) as line
        from pg_class c where c.relnamespace = 'pillarbox'::regnamespace
        union all
        select 'column ' || c.relname || '.' || a.attname || format_type(a.atttypid, a.atttypmod)
            || a.attnotnull || a.attcompression::text || coalesce(a.attacl::text, '')
            || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
        from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
        left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
        where c.relnamespace = 'pillarbox'::regnamespace
        union all
        select 'constraint ' || conrelid::regclass || conname || pg_get_constraintdef(oid)
        from pg_constraint where connamespace = 'pillarbox'::regnamespace
        union all
        select 'index ' || indexdef from pg_indexes where schemaname = 'pillarbox'
        union all
        select 'function ' || pg_get_functiondef(oid) || coalesce(proacl::text, '')
        from pg_proc where pronamespace = 'pillarbox'::regnamespace
        union all
        select 'schema ' || nspacl::text from pg_namespace where nspname = 'pillarbox'
    ) lines";

async fn tool(program: &str, args: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .kill_on_drop(true)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} is not installed; run `make setup`"))?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    let (_, output) = tokio::join!(
        async {
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
        },
        child.wait_with_output()
    );
    let output = output?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {told}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn psql(url: &str, script: &str) -> Result<()> {
    let args = ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-f", "-"];
    tool("psql", &args, script).await?;
    Ok(())
}

async fn description(client: &Client) -> Result<String> {
    value(client, DESCRIPTION).await
}

#[tokio::test]
async fn a_printed_schema_is_the_installed_one() -> Result<()> {
    for version in VERSIONS {
        let server = Postgres::start(version).await?;
        let url = server.create_database("printed").await?;
        psql(&url, &schema::print(0)).await?;
        let mut client = server.connect().await?;
        assert_eq!(schema::migrate(&mut client).await?, Migrated::Installed);
        let printed = server.connect_as("printed", "postgres", None).await?;
        assert_eq!(description(&printed).await?, description(&client).await?);
        assert_eq!(schema::installed_version(&printed).await?, schema::VERSION);
    }
    Ok(())
}

#[tokio::test]
async fn installing_again_changes_nothing() -> Result<()> {
    let mut outbox = Outbox::start(PgVersion::V15).await?;
    outbox.publish(2).await?;
    let before = description(&outbox.admin).await?;
    assert_eq!(
        schema::migrate(&mut outbox.admin).await?,
        Migrated::UpToDate
    );
    assert_eq!(description(&outbox.admin).await?, before);
    let kept: i64 = outbox.value("select count(*) from pillarbox.event").await?;
    assert_eq!(kept, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_installations_end_well() -> Result<()> {
    for version in VERSIONS {
        let server = Postgres::start(version).await?;
        let mut databases = vec!["postgres".to_owned(); 8];
        for n in 0..4 {
            server.create_database(&format!("db{n}")).await?;
            databases.extend(vec![format!("db{n}"); 2]);
        }
        let mut running = Vec::new();
        for database in &databases {
            let mut client = server.connect_as(database, "postgres", None).await?;
            running.push(tokio::spawn(
                async move { schema::migrate(&mut client).await },
            ));
        }
        let mut installed = 0;
        for migration in running {
            let migrated = tokio::time::timeout(DEADLINE, migration).await???;
            installed += i32::from(migrated == Migrated::Installed);
        }
        assert_eq!(installed, 5, "once in each database");
    }
    Ok(())
}

#[tokio::test]
async fn a_newer_schema_is_refused() -> Result<()> {
    let mut outbox = Outbox::start(PgVersion::V15).await?;
    let newer = "insert into pillarbox.schema_version values (99)";
    outbox.admin.batch_execute(newer).await?;
    let refused = schema::migrate(&mut outbox.admin).await;
    assert!(matches!(refused, Err(SchemaError::Newer { found: 99 })));
    let refused = schema::check_version(&outbox.admin).await;
    assert!(matches!(refused, Err(SchemaError::Newer { found: 99 })));
    assert!(outbox.drain("main").await.is_err(), "a relay took over");
    Ok(())
}

#[tokio::test]
async fn a_missing_schema_names_the_remedy() -> Result<()> {
    let server = Postgres::start(PgVersion::V15).await?;
    let client = server.connect().await?;
    let missing = schema::installed_version(&client).await;
    let text = missing.err().context("it was found")?.to_string();
    assert!(text.contains("pillarbox migrate"), "{text}");
    Ok(())
}

#[tokio::test]
async fn createrole_and_create_are_enough_to_install() -> Result<()> {
    for version in VERSIONS {
        let server = Postgres::start(version).await?;
        server.create_database("other").await?;
        server
            .execute(
                "create role installer login createrole;
                 grant create on database postgres, other to installer",
            )
            .await?;
        for database in ["postgres", "other"] {
            let mut client = server.connect_as(database, "installer", None).await?;
            let migrated = schema::migrate(&mut client).await?;
            assert_eq!(migrated, Migrated::Installed, "{version:?} {database}");
            // The installer manages what it installed.
            let change = Change {
                environment: Some("staging".to_owned()),
                ..Change::default()
            };
            settings::change(&mut client, &change).await?;
            registry::register(&client, "main", "test", Start::Outbox).await?;
            publish(&client, 1).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn without_rights_the_remedy_is_named() -> Result<()> {
    for version in VERSIONS {
        let server = Postgres::start(version).await?;
        server
            .execute(
                "create role no_roles login; grant create on database postgres to no_roles;
                 create role no_create login createrole",
            )
            .await?;
        for user in ["no_roles", "no_create"] {
            let mut client = server.connect_as("postgres", user, None).await?;
            let refused = schema::migrate(&mut client).await;
            let Err(error @ SchemaError::Rights { .. }) = refused else {
                anyhow::bail!("{user} on {version:?}: {refused:?}");
            };
            let text = error.to_string();
            assert!(text.contains("pillarbox migrate --print | psql"), "{text}");
        }
        let left: i64 = value(
            &server.connect().await?,
            "select count(*) from pg_namespace where nspname = 'pillarbox'",
        )
        .await?;
        assert_eq!(left, 0, "nothing is left behind");
    }
    Ok(())
}

#[tokio::test]
async fn a_database_that_is_not_utf8_is_refused() -> Result<()> {
    let server = Postgres::builder().encoding("LATIN1").start().await?;
    let mut client = server.connect().await?;
    let refused = schema::migrate(&mut client).await;
    let text = refused.err().context("it was accepted")?.to_string();
    assert!(text.contains("LATIN1") && text.contains("UTF8"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_standby_is_refused() -> Result<()> {
    let outbox = Outbox::start(PgVersion::V15).await?;
    let standby = Postgres::standby_of(&outbox.server).await?;
    let refused = check_server(&standby.connect().await?).await;
    let Err(ConnectError::Unsuitable(text)) = refused else {
        anyhow::bail!("{refused:?}");
    };
    assert!(text.contains("primary"), "{text}");
    Ok(())
}

#[tokio::test]
async fn settings_take_effect_beside_an_open_publisher() -> Result<()> {
    for version in VERSIONS {
        let mut outbox = Outbox::start(version).await?;
        let publisher = outbox.server.connect().await?;
        let context = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
        let insert = publisher
            .prepare(
                "insert into pillarbox.event (event_type, event_context)
                 values ('test', $1::text::json) returning environment",
            )
            .await?;
        // A cached generic plan must see the change as well.
        publisher
            .batch_execute("set plan_cache_mode = force_generic_plan; begin")
            .await?;
        let row = publisher.query_one(&insert, &[&context(100)]).await?;
        assert_eq!(row.get::<_, &str>(0), "production");
        let change = Change {
            environment: Some("it's \\ \"staging\"".to_owned()),
            event_bytes_max: Some(50),
            retention: Some("2 days".to_owned()),
            ledger_retention: Some("90 days".to_owned()),
            leaf_bytes_max: Some(1_000_000),
            leaf_age_max: Some("00:01:00".to_owned()),
        };
        outbox
            .admin
            .batch_execute("set lock_timeout = '1s'")
            .await?;
        let settings = settings::change(&mut outbox.admin, &change).await?;
        assert_eq!(settings.environment, "it's \\ \"staging\"");
        assert_eq!(settings.event_bytes_max, 50);
        assert_eq!(settings.retention, "2 days");
        assert_eq!(settings.ledger_retention, "90 days");
        assert_eq!(settings.leaf_bytes_max, 1_000_000);
        assert_eq!(settings.leaf_age_max, "00:01:00");
        // PostgreSQL looks for changed functions when a transaction begins.
        publisher.batch_execute("commit; begin").await?;
        let row = publisher.query_one(&insert, &[&context(50)]).await?;
        assert_eq!(row.get::<_, &str>(0), "it's \\ \"staging\"");
        let refused = publisher.query_one(&insert, &[&context(51)]).await;
        assert!(refused.is_err(), "the new limit does not hold");
    }
    Ok(())
}

#[tokio::test]
async fn bad_settings_are_refused_as_a_whole() -> Result<()> {
    let mut outbox = Outbox::start(PgVersion::V15).await?;
    let before = settings::read(&outbox.admin).await?;
    let some = |text: &str| Some(text.to_owned());
    let good = || Change {
        environment: some("staging"),
        ..Change::default()
    };
    let bad = [
        Change {
            event_bytes_max: Some(0),
            ..good()
        },
        Change {
            event_bytes_max: Some(settings::EVENT_BYTES_CEILING + 1),
            ..good()
        },
        Change {
            retention: some("-1 hour"),
            ..good()
        },
        Change {
            retention: some("soon"),
            ..good()
        },
        Change {
            ledger_retention: some("-1 second"),
            ..good()
        },
        Change {
            leaf_bytes_max: Some(0),
            ..good()
        },
        Change {
            leaf_age_max: some("0"),
            ..good()
        },
        Change {
            environment: some(""),
            ..Change::default()
        },
    ];
    for change in bad {
        let refused = settings::change(&mut outbox.admin, &change).await;
        assert!(refused.is_err(), "{change:?}");
    }
    assert_eq!(settings::read(&outbox.admin).await?, before);
    Ok(())
}

#[tokio::test]
async fn a_dump_with_events_can_be_restored() -> Result<()> {
    // Debian brings tools of version 15 only.
    let mut outbox = Outbox::start(PgVersion::V15).await?;
    let change = Change {
        environment: Some("staging".to_owned()),
        event_bytes_max: Some(5_000),
        ..Change::default()
    };
    settings::change(&mut outbox.admin, &change).await?;
    let ids = outbox.publish(100).await?;
    outbox.turn_to(2).await?;
    outbox.publish(1).await?;
    let mut drain = outbox.drain("main").await?;
    drain.seal(10).await?.context("a batch")?;
    drop(drain);
    let dump = tool("pg_dump", &["-d", outbox.server.url()], "").await?;
    let url = outbox.server.create_database("restored").await?;
    psql(&url, &dump).await?;
    let client = outbox
        .server
        .connect_as("restored", "postgres", None)
        .await?;
    let events: i64 = value(&client, "select count(*) from pillarbox.event").await?;
    assert_eq!(events, ids.len() as i64 + 1);
    assert_eq!(
        description(&client).await?,
        description(&outbox.admin).await?
    );
    let slot: i16 = value(&client, "select pillarbox.ring_slot()").await?;
    assert_eq!(slot, 2, "the ring stands where it stood");
    let batches: i64 = value(&client, "select count(*) from pillarbox.batch").await?;
    assert_eq!(batches, 2);
    publish(&client, 1).await?;
    let forged = "insert into pillarbox.event (tx, event_type, event_context)
                  values ('5', 'test', '{}')";
    assert!(client.batch_execute(forged).await.is_err(), "a forged tx");
    Ok(())
}

#[tokio::test]
async fn the_ring_is_read_outside_of_mvcc_and_with_select_alone() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        outbox
            .admin
            .batch_execute("create role app login in role pillarbox_publisher")
            .await?;
        let app = outbox.server.connect_as("postgres", "app", None).await?;
        app.batch_execute("begin isolation level repeatable read")
            .await?;
        publish(&app, 1).await?;
        outbox.turn_to(1).await?;
        publish(&app, 1).await?;
        app.batch_execute("commit").await?;
        let slots: Vec<i16> = outbox
            .value("select array_agg(slot order by id) from pillarbox.event")
            .await?;
        assert_eq!(slots, [0, 1], "a long transaction moves on with the ring");
    }
    Ok(())
}

#[tokio::test]
async fn contexts_are_compressed_with_lz4_where_the_server_has_it() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        let has_lz4: bool = outbox
            .value(
                "select 'lz4' = any (enumvals) from pg_settings
                 where name = 'default_toast_compression'",
            )
            .await?;
        let insert = "insert into pillarbox.event (event_type, event_context)
                      values ('test', json_build_object('a', repeat('pillarbox', 10000)))";
        outbox.admin.batch_execute(insert).await?;
        let used: String = outbox
            .value("select pg_column_compression(event_context) from pillarbox.event")
            .await?;
        assert_eq!(used, if has_lz4 { "lz4" } else { "pglz" }, "{version:?}");
        let leaves: i64 = outbox
            .value(
                "select count(*) from pg_class where relnamespace = 'pillarbox'::regnamespace
                     and relkind = 'r' and relname ~ '^event_[0-3]$'
                     and reloptions @> '{autovacuum_enabled=off,fillfactor=100}'",
            )
            .await?;
        assert_eq!(leaves, 4);
    }
    Ok(())
}

#[test]
fn the_oldest_server_is_14() {
    // No older server is installed; the threshold itself is what can be checked.
    let source = include_str!("../../../pillarbox-relay/src/postgres.rs");
    assert!(source.contains("const SERVER_VERSION_MIN: i32 = 140_000;"));
}
