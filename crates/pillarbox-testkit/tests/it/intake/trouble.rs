//! Servers that are away, full, read-only, of another kind or behind a password: waited for, or refused
//! with a remedy, and never the entries' fault.

use anyhow::{Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::{Persistence, PgVersion, Postgres, Redis, eventually};

use super::queue::{KEY, Kind, Load, PATIENCE, Queue};

#[tokio::test]
async fn a_key_of_another_type_is_refused_with_the_remedy() -> Result<()> {
    for kind in Kind::BOTH {
        let queue = Queue::start(kind, Persistence::None).await?;
        let other = if kind == Kind::Stream {
            "lpush"
        } else {
            "sadd"
        };
        queue.redis.command(&format!("{other} {KEY} x")).await?;
        let log = queue.refusal().await?;
        ensure!(
            log.contains("of another type (WRONGTYPE); name the right key"),
            "{log}"
        );
        ensure!(
            queue.redis.command(&format!("exists {KEY}")).await? == "1",
            "the key was moved"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_and_missing_rights_are_refused_and_not_shown() -> Result<()> {
    let postgres = Postgres::start(PgVersion::V15).await?;
    let redis = Redis::with(Persistence::None, &[("requirepass", "right")]).await?;
    let queue = Queue::on(postgres, Kind::Stream, redis).await?;
    let oracle = Oracle::new();
    queue.push_many(1, &oracle).await?;
    let port = queue.redis.port();
    for user in ["", ":hidden-word@", "nobody:hidden-word@"] {
        let url = format!("redis://{user}127.0.0.1:{port}");
        let log = queue.refusal_with(&[("REDIS_URL", &url)]).await?;
        ensure!(log.contains("redis refuses user or password"), "{log}");
        ensure!(!log.contains("hidden-word"), "{log}");
    }
    queue
        .redis
        .command("acl setuser reader on >word ~* +@read +@connection")
        .await?;
    let url = format!("redis://reader:word@127.0.0.1:{port}");
    let log = queue.refusal_with(&[("REDIS_URL", &url)]).await?;
    ensure!(
        log.contains("(NOPERM); as its administrator: ACL SETUSER"),
        "{log}"
    );
    // What the remedy says is enough.
    let remedy = "resetkeys ~events* +@read +@write +@scripting +@connection +scan +time";
    queue
        .redis
        .command(&format!("acl setuser reader {remedy}"))
        .await?;
    assert_eq!(queue.drain_with(&[("REDIS_URL", &url)]).await?, [1, 0, 0]);
    queue.outbox_holds(&oracle).await?;
    Ok(())
}

/// The intake is what makes room: it must not need any.
#[tokio::test]
async fn inv_14_a_redis_out_of_memory_is_emptied() -> Result<()> {
    for kind in Kind::BOTH {
        let queue = Queue::start(kind, Persistence::None).await?;
        let oracle = Oracle::new();
        queue.push_many(50, &oracle).await?;
        queue.redis.command("config set maxmemory 1").await?;
        ensure!(queue.push_many(1, &oracle).await.is_err(), "it is not full");
        assert_eq!(queue.drain().await?, [50, 0, 0], "{kind:?}");
        queue.outbox_holds(&oracle).await?;
    }
    Ok(())
}

#[tokio::test]
async fn inv_14_a_replica_is_waited_for_until_it_is_promoted() -> Result<()> {
    for kind in Kind::BOTH {
        let primary = Redis::start(Persistence::None).await?;
        let replica = Redis::replica_of(&primary, Persistence::None).await?;
        let postgres = Postgres::start(PgVersion::V15).await?;
        let mut queue = Queue::on(postgres, kind, primary).await?;
        let oracle = Oracle::new();
        queue.push_many(50, &oracle).await?;
        assert_eq!(queue.drain().await?, [50, 0, 0]);
        queue.push_many(50, &oracle).await?;
        let primary = std::mem::replace(&mut queue.redis, replica);
        eventually("the replica to catch up", PATIENCE, || async {
            Ok((queue.waiting().await? == 50).then_some(()))
        })
        .await?;
        let intake = queue.running()?;
        intake.says("READONLY").await?;
        primary.kill()?;
        queue.redis.command("replicaof no one").await?;
        queue.push_many(50, &oracle).await?;
        eventually("rows", PATIENCE, || async {
            Ok((queue.rows().await? >= 150).then_some(()))
        })
        .await?;
        intake.stop().await?;
        queue.drain().await?;
        queue.outbox_holds(&oracle).await?;
    }
    Ok(())
}

#[tokio::test]
async fn inv_14_postgresql_is_killed_beneath_an_intake() -> Result<()> {
    for kind in Kind::BOTH {
        let postgres = Postgres::builder().durable().start().await?;
        let redis = Redis::start(Persistence::AppendAlways).await?;
        let queue = Queue::on(postgres, kind, redis).await?;
        let load = Load::start(&queue, 2);
        let intake = queue.running()?;
        for _ in 0..3 {
            load.more(100).await?;
            queue.postgres.kill()?;
            load.more(1).await?;
            queue.postgres.restart().await?;
        }
        load.more(300).await?;
        let oracle = load.finish(Persistence::AppendAlways).await?;
        intake.stop().await?;
        queue.drain().await?;
        queue.outbox_holds(&oracle).await?;
        ensure!(queue.reasons().await?.is_empty(), "entries were blamed");
    }
    Ok(())
}

#[tokio::test]
async fn inv_14_trouble_with_the_table_or_with_rights_is_no_fault_of_entries() -> Result<()> {
    for kind in Kind::BOTH {
        let queue = Queue::start(kind, Persistence::None).await?;
        let oracle = Oracle::new();
        queue.push_many(30, &oracle).await?;
        let add = "alter table pillarbox.event add column tenant text not null";
        queue.postgres.execute(add).await?;
        let log = queue.refusal().await?;
        ensure!(
            log.contains("SQLSTATE 23502, column tenant; mend the table"),
            "{log}"
        );
        let remove = "alter table pillarbox.event drop column tenant";
        queue.postgres.execute(remove).await?;
        queue.postgres.execute("create role app login").await?;
        let url = queue.postgres.url_for("postgres", "app", None)?;
        let as_app = [("DATABASE_URL", url.as_str())];
        let log = queue.refusal_with(&as_app).await?;
        ensure!(
            log.contains(
                "pillarbox grant USER --as publisher, and pillarbox grant USER --as relay"
            ),
            "{log}"
        );
        ensure!(queue.reasons().await?.is_empty(), "entries were blamed");
        // What the remedy says is enough.
        queue
            .postgres
            .execute("grant pillarbox_relay, pillarbox_publisher to app")
            .await?;
        queue.push_bytes(b"no event").await?;
        assert_eq!(queue.drain_with(&as_app).await?, [30, 1, 0], "{kind:?}");
        queue.outbox_holds(&oracle).await?;
    }
    Ok(())
}
