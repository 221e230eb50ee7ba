//! A database with an outbox, and what is in it.

use pillarbox::Uuid;
use pillarbox_testkit::servers::{PgVersion, Postgres};
use tokio_postgres::Client;

/// A row of the outbox.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    pub(crate) event_id: Uuid,
    pub(crate) event_type: String,
    pub(crate) event_context: String,
    pub(crate) environment: String,
    pub(crate) metadata_version: i64,
    pub(crate) trace_parent: Option<String>,
    /// Microseconds since the Unix epoch.
    pub(crate) event_date_time_us: i64,
    /// Microseconds from `event_date_time` to `published_at`.
    pub(crate) shift_us: i64,
}

pub(crate) struct Server {
    pub(crate) postgres: Postgres,
    pub(crate) database: String,
    admin: Client,
}

impl Server {
    /// Starts PostgreSQL and installs the outbox into a database of its own.
    pub(crate) async fn start() -> Self {
        let server = Self::without_outbox().await;
        let mut client = server.connect_as("postgres").await;
        pillarbox_relay::schema::migrate(&mut client).await.unwrap();
        server
    }

    pub(crate) async fn without_outbox() -> Self {
        let postgres = Postgres::start(PgVersion::V15).await.unwrap();
        let database = format!("publisher_{}", Uuid::now_v7().simple());
        postgres.create_database(&database).await.unwrap();
        let admin = postgres
            .connect_as(&database, "postgres", None)
            .await
            .unwrap();
        Self {
            postgres,
            database,
            admin,
        }
    }

    pub(crate) fn url(&self) -> String {
        self.postgres
            .url_for(&self.database, "postgres", None)
            .unwrap()
    }

    pub(crate) async fn connect_as(&self, user: &str) -> Client {
        self.postgres
            .connect_as(&self.database, user, None)
            .await
            .unwrap()
    }

    pub(crate) async fn execute(&self, sql: &str) {
        self.admin.batch_execute(sql).await.unwrap();
    }

    /// All committed events in the order of publishing.
    pub(crate) async fn events(&self) -> Vec<Stored> {
        let sql = "select event_id, event_type, event_context::text, environment, \
                   metadata_version, trace_parent, \
                   (extract(epoch from event_date_time) * 1000000)::bigint, \
                   (extract(epoch from published_at - event_date_time) * 1000000)::bigint \
                   from pillarbox.event order by tx, id";
        let rows = self.admin.query(sql, &[]).await.unwrap();
        rows.iter()
            .map(|row| Stored {
                event_id: row.get(0),
                event_type: row.get(1),
                event_context: row.get(2),
                environment: row.get(3),
                metadata_version: row.get(4),
                trace_parent: row.get(5),
                event_date_time_us: row.get(6),
                shift_us: row.get(7),
            })
            .collect()
    }
}
