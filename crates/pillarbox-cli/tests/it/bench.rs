//! `pillarbox bench`: measures, proves, and leaves nothing behind.

use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::{ClickHouse, Flavour, PgVersion, Postgres, eventually};
use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Child;
use tokio_postgres::Client;

use crate::program::{DEADLINE, Program, connect, database, finish, says, signal, unique};

const VERSIONS: [(PgVersion, Flavour); 2] = [
    (PgVersion::V15, Flavour::V18),
    (PgVersion::V18, Flavour::V26),
];

/// Databases, tables and roles of benchmarks.
async fn left(client: &Client, clickhouse: &ClickHouse) -> Result<Vec<String>> {
    let databases =
        "select datname::text from pg_database where datname like 'pillarbox\\_bench\\_%'
        union all select rolname::text from pg_roles
        where shobj_description(oid, 'pg_authid') like '%bench%' order by 1";
    let rows = client.query(databases, &[]).await?;
    let mut left: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let tables = "select name from system.tables where name like 'pillarbox\\\\_bench\\\\_%'";
    let tables = clickhouse.query(tables).await?;
    left.extend(tables.lines().map(str::to_owned));
    Ok(left)
}

/// What a benchmark must not touch: databases, roles and tables, and what they hold.
async fn surroundings(client: &Client, clickhouse: &ClickHouse, table: &str) -> Result<String> {
    let names = "select string_agg(n, ' ' order by n) from (
        select datname::text from pg_database union all
        select rolname || ' ' || coalesce(shobj_description(oid, 'pg_authid'), '') from pg_roles union all
        select m.roleid::regrole || '>' || m.member::regrole from pg_auth_members m
    ) as names (n)";
    let names: String = client.query_one(names, &[]).await?.get(0);
    let events = "select count(*) || ' ' || coalesce(max(id), 0) || ' ' || (select count(*) from pillarbox.batch)
        from pillarbox.event";
    let events: String = client.query_one(events, &[]).await?.get(0);
    let databases = clickhouse
        .query("select database, name from system.tables where database != 'system' order by 1, 2")
        .await?;
    let rows = clickhouse
        .query(&format!("select count(), max(event_context) from {table}"))
        .await?;
    Ok([names, events, databases, rows].join("\n"))
}

#[tokio::test]
async fn a_whole_run_measures_proves_and_leaves_nothing() -> Result<()> {
    for (version, flavour) in VERSIONS {
        let (_postgres, program, url) = database(version).await?;
        let clickhouse = ClickHouse::start(flavour).await?;
        let program = program.with_clickhouse(&clickhouse)?;
        program.done(&["migrate"]).await?;
        program.done(&["sink", "create"]).await?;
        program.done(&["publish", "login", "{\"n\": 1}"]).await?;
        program.done(&["relay", "--once"]).await?;
        program.done(&["publish", "login", "{\"n\": 2}"]).await?;
        let client = connect(&url).await?;
        let before = surroundings(&client, &clickhouse, &program.table).await?;

        let brief = ["bench", "--events", "2000", "--seconds", "1"];
        let figures = program.json(&brief).await?;
        for path in [
            "/publish/heap_tps",
            "/publish/insert_tps",
            "/publish/function_tps",
            "/publish/insert_of_heap",
            "/publish/function_of_heap",
            "/drain/events_per_s",
            "/drain/context_bytes_per_s",
            "/drain/batches",
            "/drain/relay_cpu_s",
            "/latency/p50_ms",
            "/latency/p99_ms",
        ] {
            let value = figures.pointer(path).and_then(Value::as_f64);
            ensure!(value > Some(0.0), "{path} of {figures}");
        }
        assert_eq!(figures["drain"]["events"], 2000, "{figures}");
        assert_eq!(figures["latency"]["events"], 100, "{figures}");
        let verify = &figures["verify"];
        assert_eq!(verify["published"], 2100, "{figures}");
        assert_eq!(verify["delivered"], 2100, "{figures}");
        for wrong in ["lost", "duplicated", "altered", "unprovable"] {
            assert_eq!(verify[wrong], 0, "{figures}");
        }
        assert_eq!(
            surroundings(&client, &clickhouse, &program.table).await?,
            before
        );

        if flavour == Flavour::V18 {
            continue;
        }
        let brief = [&brief[..], &["--bytes", "5000", "--clients", "2"]].concat();
        let shown = program.done(&brief).await?;
        let closing = "bench: published=2100 delivered=2100 lost=0 duplicated=0 altered=0";
        assert_eq!(shown.lines().last(), Some(closing), "{shown}");
        for word in ["publish function", "MB/s", "p99", "disk and network"] {
            assert!(shown.contains(word), "{shown}");
        }
        assert_eq!(
            surroundings(&client, &clickhouse, &program.table).await?,
            before
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_cluster_without_the_schema_keeps_no_role_of_it() -> Result<()> {
    let (postgres, program, _url) = database(PgVersion::V18).await?;
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    // No superuser: what the help says is needed is enough.
    let user = unique("app");
    let create = format!("create role {user} login createdb createrole");
    postgres.execute(&create).await?;
    let url = postgres.url_for("postgres", &user, None)?;
    let program = program
        .with_clickhouse(&clickhouse)?
        .with("DATABASE_URL", &url)
        .with("RUST_LOG", "trace");
    let brief = ["bench", "--events", "200", "--seconds", "1"];
    let ran = program.run(&brief).await?;
    let proven = "published=300 delivered=300 lost=0";
    assert!(ran.code == 0 && ran.out.contains(proven), "{}", ran.out);
    for text in [&ran.out, &ran.err] {
        let has_secret = text.contains(&format!(":{}@", clickhouse.password()))
            || text.contains(&format!("\"{}\"", clickhouse.password()));
        assert!(!has_secret, "the password is printed");
    }
    let client = postgres.connect().await?;
    let roles = "select count(*) from pg_roles where rolname like 'pillarbox%'";
    assert_eq!(client.query_one(roles, &[]).await?.get::<_, i64>(0), 0);
    assert_eq!(left(&client, &clickhouse).await?, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn what_a_user_lacks_is_named_with_the_remedy() -> Result<()> {
    let (postgres, program, _url) = database(PgVersion::V15).await?;
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    let user = unique("app");
    postgres
        .execute(&format!("create role {user} login"))
        .await?;
    let url = postgres.url_for("postgres", &user, None)?;
    let program = program
        .with_clickhouse(&clickhouse)?
        .with("DATABASE_URL", &url);
    let refused = async |remedy: String| -> Result<()> {
        let ran = program.run(&["bench"]).await?;
        ensure!(ran.code == 3 && ran.err.contains(&remedy), "{ran:?}");
        ensure!(ran.out.is_empty(), "{ran:?}");
        Ok(())
    };
    refused(format!("alter role \"{user}\" createdb")).await?;
    postgres
        .execute(&format!("alter role {user} createdb"))
        .await?;
    refused(format!("alter role \"{user}\" createrole")).await?;
    postgres
        .execute("create role pillarbox_owner nologin")
        .await?;
    refused(format!("grant pillarbox_owner to \"{user}\"")).await?;
    let client = postgres.connect().await?;
    assert_eq!(left(&client, &clickhouse).await?, [""; 0]);

    let absent = format!("{}/absent", clickhouse.url_with_credentials()?);
    let absent = program
        .with("CLICKHOUSE_URL", &absent)
        .with("DATABASE_URL", postgres.url());
    let ran = absent.run(&["bench"]).await?;
    assert!(
        ran.code == 3 && ran.err.contains("has no database absent"),
        "{ran:?}"
    );
    assert_eq!(left(&client, &clickhouse).await?, [""; 0]);
    Ok(())
}

/// Starts a benchmark that takes long, and waits until it has said `text`.
async fn started(program: &Program, text: &str, options: &[&str]) -> Result<Child> {
    let mut child = program.start(&[&["bench"], options].concat())?;
    let mut stderr = child.stderr.take().context("standard error")?;
    says(&mut stderr, text).await?;
    // Nothing reads on, and what it says from now on fits into the pipe.
    child.stderr = Some(stderr);
    Ok(child)
}

#[tokio::test]
async fn a_signal_in_any_step_leaves_nothing() -> Result<()> {
    let (postgres, program, _url) = database(PgVersion::V15).await?;
    let clickhouse = ClickHouse::start(Flavour::V18).await?;
    let program = program.with_clickhouse(&clickhouse)?;
    let client = postgres.connect().await?;
    let steps: [(&str, &[&str], Signal); 5] = [
        ("bench: works in", &[], Signal::TERM),
        ("publish: three ways", &["--seconds", "60"], Signal::TERM),
        (
            "into the outbox",
            &["--seconds", "1", "--events", "10000000"],
            Signal::INT,
        ),
        (
            "delivering them",
            &["--seconds", "1", "--events", "50000"],
            Signal::TERM,
        ),
        (
            "latency:",
            &["--seconds", "5", "--events", "100"],
            Signal::INT,
        ),
    ];
    for (step, options, given) in steps {
        let child = started(&program, step, options).await?;
        signal(&child, given)?;
        let ran = finish(child).await?;
        assert!(
            ran.code == 1 && ran.err.contains("nothing is left"),
            "{step}: {ran:?}"
        );
        assert_eq!(left(&client, &clickhouse).await?, [""; 0], "{step}");
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_dropped_is_named_with_its_statement() -> Result<()> {
    let (postgres, program, _url) = database(PgVersion::V15).await?;
    let clickhouse = ClickHouse::start(Flavour::V18).await?;
    let program = program.with_clickhouse(&clickhouse)?;
    let client = postgres.connect().await?;
    let child = started(&program, "publish: three ways", &["--seconds", "60"]).await?;
    clickhouse.stop().await?;
    signal(&child, Signal::TERM)?;
    let ran = finish(child).await?;
    assert_eq!(ran.code, 1, "{ran:?}");
    clickhouse.restart().await?;
    let tables = left(&client, &clickhouse).await?;
    assert_eq!(tables.len(), 1, "{tables:?}");
    let statement = format!("DROP TABLE `default`.`{}`", tables[0]);
    assert!(ran.err.contains(&statement), "{ran:?}");
    clickhouse.query(&statement).await?;
    assert_eq!(left(&client, &clickhouse).await?, [""; 0]);
    Ok(())
}

/// A table of another PostgreSQL's benchmark that began a moment ago.
fn of_another() -> Result<String> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(format!("pillarbox_bench_{:08x}01234567", since.as_secs()))
}

/// Databases and tables whose names only look like those of a benchmark, and `of_another`.
async fn make_lookalikes(client: &Client, clickhouse: &ClickHouse, of_another: &str) -> Result<()> {
    let lookalikes = [
        "pillarbox_bench_results",
        "pillarbox_bench_0123456789abcdef0",
        "pillarbox_bench_0123456789ab",
    ];
    for name in lookalikes {
        client
            .batch_execute(&format!("create database {name}"))
            .await?;
    }
    for name in lookalikes.into_iter().chain([of_another]) {
        clickhouse
            .query(&format!("create table {name} (n UInt8) engine = Memory"))
            .await?;
    }
    Ok(())
}

/// Names in the answer of `--clean`, and whether each was dropped.
fn outcomes(cleaned: &Value) -> Vec<(String, bool)> {
    let listed = cleaned.as_array().into_iter().flatten();
    let outcome = |one: &Value| {
        let name = one["name"].as_str().unwrap_or_default().to_owned();
        (name, one["is_dropped"] == true)
    };
    listed.map(outcome).collect()
}

#[tokio::test]
async fn clean_drops_what_a_kill_left_and_nothing_else() -> Result<()> {
    for (version, flavour) in VERSIONS {
        let postgres = Postgres::start(version).await?;
        let clickhouse = ClickHouse::start(flavour).await?;
        let program = Program::on(postgres.url())?.with_clickhouse(&clickhouse)?;
        let client = postgres.connect().await?;
        let of_another = of_another()?;
        make_lookalikes(&client, &clickhouse, &of_another).await?;
        let others = left(&client, &clickhouse).await?;
        let abandoned = "pillarbox_bench_0000000101234567";
        clickhouse
            .query(&format!(
                "create table {abandoned} (n UInt8) engine = Memory"
            ))
            .await?;
        let cleaned = outcomes(&program.json(&["bench", "--clean"]).await?);
        let expected = [(abandoned.to_owned(), true), (of_another.clone(), false)];
        assert_eq!(cleaned, expected);

        let long = ["--seconds", "60"];
        let killed = started(&program, "publish: three ways", &long).await?;
        let alive = started(&program, "publish: three ways", &long).await?;
        signal(&killed, Signal::KILL)?;
        finish(killed).await?;
        // Two databases, two tables, and the roles, which they share.
        let both = left(&client, &clickhouse).await?;
        assert_eq!(both.len(), others.len() + 4 + 4, "{both:?}");
        // The server may take a moment to see that the killed one has gone.
        let cleaned = eventually("the end of the killed sessions", DEADLINE, || async {
            let cleaned = outcomes(&program.json(&["bench", "--clean"]).await?);
            let dropped = cleaned.iter().filter(|(_, is_dropped)| *is_dropped);
            Ok((dropped.count() > 0).then_some(cleaned))
        });
        let cleaned = cleaned.await?;
        // Both of the killed one, and neither those of the one alive nor the other's.
        let dropped = cleaned.iter().filter(|(_, is_dropped)| *is_dropped);
        assert_eq!((cleaned.len(), dropped.count()), (5, 2), "{cleaned:?}");
        let now = left(&client, &clickhouse).await?;
        assert_eq!(now.len(), others.len() + 2 + 4, "{now:?}");

        signal(&alive, Signal::TERM)?;
        let ran = finish(alive).await?;
        assert!(ran.err.contains("nothing is left"), "{ran:?}");
        assert_eq!(left(&client, &clickhouse).await?, others);
        let shown = program.done(&["bench", "--clean"]).await?;
        assert!(
            shown.contains("stays: its database is not here") && shown.contains("dropped 0 of 1"),
            "{shown}"
        );
        assert_eq!(left(&client, &clickhouse).await?, others);
    }
    Ok(())
}
