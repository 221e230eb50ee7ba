//! What the conformance suite needs of a client: transactions and savepoints.

use pillarbox::Outbox;
use sqlx::{Acquire, Connection};

pub(crate) trait Session: Sized + 'static {
    type Tx<'a>: Outbox
    where
        Self: 'a;

    async fn connect(url: &str) -> Self;
    async fn begin(&mut self) -> Self::Tx<'_>;
    async fn savepoint<'a>(tx: &'a mut Self::Tx<'_>) -> Self::Tx<'a>;
    async fn commit(tx: Self::Tx<'_>);
    async fn rollback(tx: Self::Tx<'_>);
    /// What the server answers to a statement, with its SQLSTATE.
    async fn execute(tx: &mut Self::Tx<'_>, sql: &'static str) -> Result<(), String>;
    /// SQLSTATE and message of a database error of this client.
    fn server_error(error: &(dyn std::error::Error + 'static)) -> Option<(String, String)>;
}

pub(crate) struct TokioPostgres(pub(crate) tokio_postgres::Client);

impl Session for TokioPostgres {
    type Tx<'a> = tokio_postgres::Transaction<'a>;

    async fn connect(url: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        Self(client)
    }

    async fn begin(&mut self) -> Self::Tx<'_> {
        self.0.transaction().await.unwrap()
    }

    async fn savepoint<'a>(tx: &'a mut Self::Tx<'_>) -> Self::Tx<'a> {
        tx.transaction().await.unwrap()
    }

    async fn commit(tx: Self::Tx<'_>) {
        tx.commit().await.unwrap();
    }

    async fn rollback(tx: Self::Tx<'_>) {
        tx.rollback().await.unwrap();
    }

    async fn execute(tx: &mut Self::Tx<'_>, sql: &'static str) -> Result<(), String> {
        let done = tx.batch_execute(sql).await;
        done.map_err(|error| Self::server_error(&error).unwrap().0)
    }

    fn server_error(error: &(dyn std::error::Error + 'static)) -> Option<(String, String)> {
        let error = error
            .downcast_ref::<tokio_postgres::Error>()?
            .as_db_error()?;
        Some((error.code().code().to_owned(), error.message().to_owned()))
    }
}

pub(crate) struct Sqlx(pub(crate) sqlx::PgConnection);

impl Session for Sqlx {
    type Tx<'a> = sqlx::Transaction<'a, sqlx::Postgres>;

    async fn connect(url: &str) -> Self {
        Self(sqlx::PgConnection::connect(url).await.unwrap())
    }

    async fn begin(&mut self) -> Self::Tx<'_> {
        Connection::begin(&mut self.0).await.unwrap()
    }

    async fn savepoint<'a>(tx: &'a mut Self::Tx<'_>) -> Self::Tx<'a> {
        Acquire::begin(&mut **tx).await.unwrap()
    }

    async fn commit(tx: Self::Tx<'_>) {
        tx.commit().await.unwrap();
    }

    async fn rollback(tx: Self::Tx<'_>) {
        tx.rollback().await.unwrap();
    }

    async fn execute(tx: &mut Self::Tx<'_>, sql: &'static str) -> Result<(), String> {
        let done = sqlx::raw_sql(sql).execute(&mut **tx).await;
        done.map(drop)
            .map_err(|error| Self::server_error(&error).unwrap().0)
    }

    fn server_error(error: &(dyn std::error::Error + 'static)) -> Option<(String, String)> {
        let error = error.downcast_ref::<sqlx::Error>()?.as_database_error()?;
        Some((error.code()?.into_owned(), error.message().to_owned()))
    }
}
