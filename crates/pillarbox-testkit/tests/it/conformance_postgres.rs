//! The source on real servers passes the suite that the fake passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use pillarbox_relay::schema::registry::{self, Start};
use pillarbox_relay::source::postgres::PostgresSource;
use pillarbox_relay::{postgres, schema};
use pillarbox_testkit::conformance::outbox::{Loss, Publisher, SourceWorld};
use pillarbox_testkit::conformance::source;
use pillarbox_testkit::servers::{PgVersion, Postgres};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

const SINK: &str = "events";

/// A database of its own on a server that the worlds share.
struct Database {
    server: Arc<Postgres>,
    has_own_clock: bool,
    url: String,
    admin: Client,
}

struct Transaction(Client);

async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // It ends with the client.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

impl Database {
    async fn create(server: &Arc<Postgres>, has_own_clock: bool, name: &str) -> Result<Self> {
        let url = server.create_database(name).await?;
        let mut admin = connect(&url).await?;
        schema::migrate(&mut admin).await?;
        registry::register(&admin, SINK, "test", Start::Outbox).await?;
        Ok(Self {
            server: Arc::clone(server),
            has_own_clock,
            url,
            admin,
        })
    }
}

impl Publisher for Transaction {
    async fn publish(&mut self, count: usize) -> Result<Vec<Uuid>> {
        const PUBLISH: &str = "select pillarbox.publish_batch(
            array(select 'happened' from generate_series(1, $1)),
            array(select '{}'::json from generate_series(1, $1)))";
        let rows = self.0.query(PUBLISH, &[&i32::try_from(count)?]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    async fn commit(self) -> Result<()> {
        Ok(self.0.batch_execute("commit").await?)
    }

    async fn rollback(self) -> Result<()> {
        Ok(self.0.batch_execute("rollback").await?)
    }
}

impl SourceWorld for Database {
    type Source = PostgresSource;
    type Publisher = Transaction;

    fn source(&self) -> Result<PostgresSource> {
        self.impatient(Duration::from_secs(15))
    }

    fn impatient(&self, takeover_after: Duration) -> Result<PostgresSource> {
        let config = postgres::parse_url(&self.url)?;
        Ok(PostgresSource::new(config, SINK, takeover_after))
    }

    async fn set_clock_forward(&self, by: Duration) -> Result<bool> {
        if self.has_own_clock {
            self.server.shift_clock(i64::try_from(by.as_secs())?)?;
        }
        Ok(self.has_own_clock)
    }

    async fn begin(&self) -> Result<Transaction> {
        let client = connect(&self.url).await?;
        client.batch_execute("begin").await?;
        Ok(Transaction(client))
    }

    async fn kill_sessions(&self) -> Result<()> {
        const KILL: &str = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity
            where application_name like 'pillarbox/%' and datname = current_database()";
        self.admin.query_one(KILL, &[]).await?;
        Ok(())
    }

    async fn set_paused(&self, paused: bool) -> Result<()> {
        const PAUSE: &str = "update pillarbox.sink set paused = $1";
        self.admin.execute(PAUSE, &[&paused]).await?;
        Ok(())
    }

    async fn retire(&self) -> Result<()> {
        Ok(registry::retire(&self.admin, SINK).await?)
    }

    async fn stopped_reason(&self) -> Result<Option<String>> {
        Ok(registry::find(&self.admin, SINK).await?.stopped_reason)
    }

    async fn hurry_ring(&self) -> Result<()> {
        const HURRY: &str = "update pillarbox.settings set retention = '0', leaf_bytes_max = 1";
        Ok(self.admin.batch_execute(HURRY).await?)
    }

    async fn events_held(&self) -> Result<usize> {
        const COUNT: &str = "select count(*) from pillarbox.event";
        let row = self.admin.query_one(COUNT, &[]).await?;
        usize::try_from(row.get::<_, i64>(0)).context("a count")
    }

    async fn lose_session(&self, at: Loss) -> Result<bool> {
        // A trigger ends the session of whoever writes; after a commit nobody can.
        let table = match at {
            Loss::BeforeSeal => "batch",
            Loss::BeforeConfirm => "delivery",
            Loss::AfterSeal | Loss::SealUnanswered | Loss::AfterConfirm => return Ok(false),
        };
        let kill = format!(
            "create function public.die() returns trigger language plpgsql as $$
             begin perform pg_terminate_backend(pg_backend_pid()); return new; end $$;
             create trigger die before insert on pillarbox.{table}
                 for each row execute function public.die()"
        );
        self.admin.batch_execute(&kill).await?;
        Ok(true)
    }
}

async fn conforms(version: PgVersion) -> Result<()> {
    // libfaketime is for Debian's server.
    let has_own_clock = version == PgVersion::V15;
    let builder = Postgres::builder().version(version);
    let server = match has_own_clock {
        true => builder.own_clock().start().await?,
        false => builder.start().await?,
    };
    let server = Arc::new(server);
    let count = AtomicU32::new(0);
    source::source(async || {
        let name = format!("world_{}", count.fetch_add(1, Ordering::SeqCst));
        Database::create(&server, has_own_clock, &name).await
    })
    .await
}

#[tokio::test]
async fn the_source_on_postgresql_15_conforms() -> Result<()> {
    conforms(PgVersion::V15).await
}

#[tokio::test]
async fn the_source_on_postgresql_18_conforms() -> Result<()> {
    conforms(PgVersion::V18).await
}
