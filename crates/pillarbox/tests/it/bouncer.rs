//! Publishing behind PgBouncer in transaction mode, which gives each transaction whatever server
//! connection is free and, before 1.21, knows nothing of prepared statements.

use pillarbox::{RawEvent, publish, publish_all};
use pillarbox_testkit::servers::{PgBouncer, PoolMode};
use sqlx::Connection;

use crate::server::Server;
use crate::session::{Session, Sqlx, TokioPostgres};

async fn transactions_move_between_server_connections<S: Session>() {
    let server = Server::start().await;
    let bouncer = PgBouncer::start(&server.postgres, PoolMode::Transaction, 2, "postgres");
    let bouncer = bouncer.await.unwrap();
    let url = bouncer.url(&server.database);
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(S::connect(&url).await);
    }
    let event = RawEvent::new("t", "{}").unwrap();
    for round in 0..4 {
        // The first session's open transaction pushes the others to the other connection in turn.
        sessions.rotate_left(round);
        let [first, others @ ..] = &mut sessions[..] else {
            unreachable!()
        };
        let mut held = first.begin().await;
        publish(&mut held, &event).await.unwrap();
        for session in others {
            let mut tx = session.begin().await;
            publish(&mut tx, &event).await.unwrap();
            publish_all(&mut tx, &[event.clone(), event.clone()])
                .await
                .unwrap();
            S::commit(tx).await;
        }
        S::commit(held).await;
    }
    assert_eq!(server.events().await.len(), 4 * (1 + 2 * 3));
}

#[tokio::test]
async fn tokio_postgres_publishes_behind_pgbouncer() {
    transactions_move_between_server_connections::<TokioPostgres>().await;
}

#[tokio::test]
async fn sqlx_publishes_behind_pgbouncer() {
    transactions_move_between_server_connections::<Sqlx>().await;
}

#[tokio::test]
async fn sqlx_prepares_a_named_statement_only_where_the_application_does() {
    let server = Server::start().await;
    let mut session = Sqlx::connect(&server.url()).await;
    let event = RawEvent::new("t", "{}").unwrap();
    let mut tx = session.begin().await;
    publish(&mut tx, &event).await.unwrap();
    assert_eq!(tx.cached_statements_size(), 0);
    sqlx::query("select $1::int")
        .bind(1)
        .execute(&mut *tx)
        .await
        .unwrap();
    publish(&mut tx, &event).await.unwrap();
    publish(&mut tx, &event).await.unwrap();
    assert_eq!(tx.cached_statements_size(), 2);
    Sqlx::commit(tx).await;
    assert_eq!(server.events().await.len(), 3);
}
