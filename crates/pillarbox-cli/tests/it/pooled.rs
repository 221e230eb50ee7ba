//! The program behind a connection pooler: refused, and nothing of it stays in the pool.

use anyhow::Result;
use pillarbox_testkit::servers::{PgBouncer, PgVersion, PoolMode, Postgres, eventually};
use tokio_postgres::SimpleQueryMessage;

use crate::program::{DEADLINE, Program, connect};

const COMMANDS: [&[&str]; 5] = [
    &["relay"],
    &["relay", "--once"],
    &["status"],
    &["publish", "x", "{}"],
    &["migrate"],
];

/// What every server connection of the pool has for these settings.
async fn settings(url: &str) -> Result<Vec<Option<String>>> {
    let client = connect(url).await?;
    let mut values = Vec::new();
    for name in [
        "search_path",
        "statement_timeout",
        "enable_sort",
        "application_name",
    ] {
        for message in client.simple_query(&format!("show {name}")).await? {
            if let SimpleQueryMessage::Row(row) = message {
                values.push(row.get(0).map(str::to_owned));
            }
        }
    }
    // PgBouncer keeps the application's name right by itself.
    values.pop();
    Ok(values)
}

#[tokio::test]
async fn a_transaction_pooler_is_refused_and_left_as_it_was() -> Result<()> {
    for version in [PgVersion::V15, PgVersion::V18] {
        let postgres = Postgres::start(version).await?;
        Program::on(postgres.url())?.done(&["migrate"]).await?;
        let untouched = settings(postgres.url()).await?;
        for connections in [1, 3] {
            for command in COMMANDS {
                // Cold: the first command finds no server connection in the pool.
                let bouncer =
                    PgBouncer::start(&postgres, PoolMode::Transaction, connections, "postgres")
                        .await?;
                let url = bouncer.url("postgres");
                let program = Program::on(&url)?.with("CLICKHOUSE_URL", "http://127.0.0.1:1");
                let text = program.refusal(3, command).await?;
                assert!(text.contains("connection pooler"), "{command:?}: {text}");
                assert!(text.contains("address of the server itself"), "{text}");
                assert_eq!(
                    settings(&url).await?,
                    untouched,
                    "{command:?} left settings"
                );
            }
        }
    }
    Ok(())
}

/// A warm connection of a session pooler is older than the session, and shows itself.
#[tokio::test]
async fn a_warm_session_pooler_is_refused() -> Result<()> {
    let postgres = Postgres::start(PgVersion::V15).await?;
    let bouncer = PgBouncer::start(&postgres, PoolMode::Session, 4, "postgres").await?;
    let url = bouncer.url("postgres");
    drop(connect(&url).await?);
    settings(&url).await?;
    let client = postgres.connect().await?;
    let warm = "select count(*) from pg_stat_activity
                where pid <> pg_backend_pid() and backend_type = 'client backend'
                    and clock_timestamp() - backend_start > interval '3 seconds'";
    eventually("a server connection to be old", DEADLINE, || async {
        Ok((client.query_one(warm, &[]).await?.get::<_, i64>(0) > 0).then_some(()))
    })
    .await?;
    let text = Program::on(&url)?.refusal(3, &["status"]).await?;
    assert!(text.contains("connection pooler"), "{text}");
    Ok(())
}
