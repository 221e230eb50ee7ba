//! The servers that every other test stands on: they start, survive and end as promised.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pillarbox_testkit::servers::{Persistence, PgVersion, Postgres, Redis, eventually};

const DEADLINE: Duration = Duration::from_secs(30);

const POSTGRES: [PgVersion; 2] = [PgVersion::V15, PgVersion::V18];

#[tokio::test]
async fn postgres_starts_with_the_requested_version_and_settings() -> Result<()> {
    for version in POSTGRES {
        let started = Instant::now();
        let postgres = Postgres::builder()
            .version(version)
            .setting("work_mem", "7MB")
            .start()
            .await?;
        println!(
            "postgresql {} started in {:?}",
            version.number(),
            started.elapsed()
        );
        let sql = "select current_setting('server_version_num')::int / 10000,
                   current_setting('work_mem'), current_setting('server_encoding')";
        let row = postgres.query(sql, &[]).await?.remove(0);
        assert_eq!(row.get::<_, i32>(0), version.number() as i32);
        assert_eq!(row.get::<_, &str>(1), "7MB");
        assert_eq!(row.get::<_, &str>(2), "UTF8");
    }
    Ok(())
}

#[tokio::test]
async fn postgres_keeps_what_was_committed_across_kill_and_stop() -> Result<()> {
    for version in POSTGRES {
        let postgres = Postgres::builder()
            .version(version)
            .durable()
            .start()
            .await?;
        let url = postgres.url().to_owned();
        let held = postgres.connect().await?;
        held.batch_execute("create table t (n int); insert into t values (1)")
            .await?;
        postgres.kill()?;
        assert!(postgres.pid().is_none());
        assert!(
            held.simple_query("select 1").await.is_err(),
            "the session died with the server"
        );
        postgres.restart().await?;
        postgres.execute("insert into t values (2)").await?;
        postgres.stop().await?;
        postgres.restart().await?;
        let row = postgres.query("select sum(n) from t", &[]).await?.remove(0);
        assert_eq!(row.get::<_, i64>(0), 3);
        assert_eq!(postgres.url(), url, "a restart keeps the port");
    }
    Ok(())
}

#[tokio::test]
async fn a_paused_postgres_answers_only_after_resume() -> Result<()> {
    let postgres = Postgres::start(PgVersion::V15).await?;
    let client = postgres.connect().await?;
    postgres.pause()?;
    let answer = client.simple_query("select 1");
    tokio::pin!(answer);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut answer).await;
    assert!(early.is_err(), "a frozen backend answered");
    postgres.resume()?;
    tokio::time::timeout(DEADLINE, answer).await??;
    Ok(())
}

#[tokio::test]
async fn a_standby_follows_and_can_be_promoted() -> Result<()> {
    for version in POSTGRES {
        let primary = Postgres::start(version).await?;
        primary
            .execute("create table t (n int); insert into t values (1)")
            .await?;
        let standby = Postgres::standby_of(&primary).await?;
        primary.execute("insert into t values (2)").await?;
        standby.caught_up_with(&primary).await?;
        let row = standby
            .query("select sum(n), pg_is_in_recovery() from t", &[])
            .await?
            .remove(0);
        assert_eq!(row.get::<_, i64>(0), 3);
        assert!(row.get::<_, bool>(1));
        primary.kill()?;
        standby.promote().await?;
        standby.execute("insert into t values (3)").await?;
    }
    Ok(())
}

#[tokio::test]
async fn encodings_passwords_and_identifiers_are_options() -> Result<()> {
    let latin = Postgres::builder()
        .encoding("LATIN1")
        .own_identifier()
        .start()
        .await?;
    let shown = latin.query("show server_encoding", &[]).await?;
    assert_eq!(shown[0].get::<_, &str>(0), "LATIN1");

    let postgres = Postgres::builder()
        .password_method("scram-sha-256")
        .start()
        .await?;
    postgres
        .execute("create role app login password 'right @ : / ?'")
        .await?;
    postgres.create_database("odd \" name").await?;
    postgres
        .connect_as("odd \" name", "app", Some("right @ : / ?"))
        .await?;
    assert!(
        postgres
            .connect_as("postgres", "app", Some("wrong"))
            .await
            .is_err()
    );

    let sql = "select system_identifier from pg_control_system()";
    let other: i64 = latin.query(sql, &[]).await?[0].get(0);
    let shared: i64 = postgres.query(sql, &[]).await?[0].get(0);
    assert_ne!(other, shared);
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_of_a_dropped_postgres() -> Result<()> {
    let postgres = Postgres::start(PgVersion::V15).await?;
    let _session = postgres.connect().await?;
    let (pid, dir) = (postgres.pid().context("a pid")?, postgres.data_dir()?);
    postgres.pause()?;
    drop(postgres);
    all_gone(pid, &dir).await
}

#[tokio::test]
async fn a_bad_setting_fails_at_once_with_the_log() -> Result<()> {
    let started = Instant::now();
    let failed = Postgres::builder()
        .setting("no_such_setting", "1")
        .start()
        .await;
    let text = format!("{:#}", failed.err().context("it started")?);
    ensure!(
        text.contains("no_such_setting"),
        "the log is not in: {text}"
    );
    ensure!(started.elapsed() < DEADLINE, "it waited for the deadline");
    Ok(())
}

#[tokio::test]
async fn redis_keeps_across_a_kill_what_its_persistence_says() -> Result<()> {
    for (persistence, kept) in [
        (Persistence::None, ""),
        (Persistence::Rdb, "saved"),
        (Persistence::AppendAlways, "last"),
        (Persistence::AppendEverySecond, "last"),
    ] {
        let redis = Redis::start(persistence).await?;
        let url = redis.url();
        redis.command("set key saved").await?;
        if persistence == Persistence::Rdb {
            redis.save().await?;
        }
        redis.command("set key last").await?;
        redis.kill()?;
        assert!(redis.pid().is_none());
        redis.restart().await?;
        assert_eq!(redis.command("get key").await?, kept, "{persistence:?}");
        assert_eq!(redis.url(), url, "a restart keeps the port");
    }
    Ok(())
}

#[tokio::test]
async fn a_redis_has_a_password_a_replica_and_leaves_nothing() -> Result<()> {
    let redis = Redis::with(Persistence::None, &[("requirepass", "secret")]).await?;
    assert!(redis.url().contains(":secret@"));
    let (pid, dir) = (redis.pid().context("a pid")?, redis.dir().to_owned());
    redis.pause()?;
    drop(redis);
    all_gone(pid, &dir).await?;

    let primary = Redis::start(Persistence::None).await?;
    primary.command("set key value").await?;
    let replica = Redis::replica_of(&primary, Persistence::None).await?;
    primary.kill()?;
    assert_eq!(replica.command("get key").await?, "value");
    let refused = replica.command("set key other").await.unwrap_err();
    assert!(format!("{refused:#}").contains("READONLY"), "{refused:#}");
    replica.command("replicaof no one").await?;
    replica.command("set key other").await?;
    Ok(())
}

/// Waits until the process and its directory are gone.
async fn all_gone(pid: u32, dir: &Path) -> Result<()> {
    let proc = format!("/proc/{pid}");
    eventually("the server to vanish", DEADLINE, || async {
        Ok((!Path::new(&proc).exists() && !dir.exists()).then_some(()))
    })
    .await
}
