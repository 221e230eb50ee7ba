//! Start and stop: the pool, the table, the listener.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;
use tracing::info;

use crate::users::Users;
use crate::{Config, http};

/// Sessions with PostgreSQL: two for each of the usual 4 to 8 cores of a database.
const CONNECTIONS_MAX: u32 = 16;
/// How long a request may wait for a session; less than a request may take.
const ACQUIRE_DEADLINE: Duration = Duration::from_secs(5);
/// How long open requests may go on after a stop; above what a request may take.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// Keeps two starting processes from creating the table at once. Any fixed number will do.
const START_LOCK: i64 = 0x75_73_65_72_73;

/// The application, ready to serve.
#[derive(Debug)]
pub struct Server {
    pool: PgPool,
    listener: TcpListener,
    users: Users,
}

impl Server {
    /// Connects, creates the table `users` where it is missing, and takes the address. Several
    /// may start at once. Dropping the future is safe.
    ///
    /// # Errors
    ///
    /// When PostgreSQL does not answer, has no outbox, or the address is taken.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        ensure!(
            (0.0..=1.0).contains(&config.fail_rate),
            "USERS_FAIL_RATE is {}; use a number from 0 to 1",
            config.fail_rate
        );
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(ACQUIRE_DEADLINE)
            .connect(&config.database_url)
            .await
            .context("cannot connect to postgresql; check DATABASE_URL")?;
        create_table(&pool)
            .await
            .context("cannot create the table users")?;
        let outbox: Option<String> =
            sqlx::query_scalar("select pg_catalog.to_regclass('pillarbox.event')::text")
                .fetch_one(&pool)
                .await?;
        ensure!(
            outbox.is_some(),
            "the database has no outbox; run `pillarbox migrate`"
        );
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}; set LISTEN", config.listen))?;
        let users = Users::new(pool.clone(), config.fail_rate);
        Ok(Self {
            pool,
            listener,
            users,
        })
    }

    /// The address it listens on.
    ///
    /// # Errors
    ///
    /// When the system does not tell.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is ready, then lets open requests finish. Dropping the future ends
    /// them; their transactions are rolled back.
    ///
    /// # Errors
    ///
    /// When open requests do not finish in time.
    pub async fn serve(
        self,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let (stopping, stopped) = tokio::sync::oneshot::channel();
        let stop = async move {
            stop.await;
            info!("stopping");
            // Nobody listens any more where serving has already ended.
            let _ = stopping.send(());
        };
        let served = axum::serve(self.listener, http::router(self.users));
        let late = async move {
            match stopped.await {
                Ok(()) => tokio::time::sleep(STOP_DEADLINE).await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            served = served.with_graceful_shutdown(stop).into_future() => served?,
            () = late => anyhow::bail!("open requests did not finish within {STOP_DEADLINE:?}"),
        }
        self.pool.close().await;
        Ok(())
    }
}

async fn create_table(pool: &PgPool) -> sqlx::Result<()> {
    let mut tx = pool.begin().await?;
    sqlx::query("select pg_catalog.pg_advisory_xact_lock($1)")
        .bind(START_LOCK)
        .execute(&mut *tx)
        .await?;
    sqlx::query(include_str!("sql/create_table.sql"))
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}
