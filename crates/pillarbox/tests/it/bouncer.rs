//! Publishing behind PgBouncer in transaction mode, which gives each transaction whatever server
//! connection is free and, before 1.21, knows nothing of prepared statements.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use pillarbox::{RawEvent, publish, publish_all};
use pillarbox_testkit::servers::eventually;
use sqlx::Connection;
use tokio::process::{Child, Command};

use crate::server::Server;
use crate::session::{Session, Sqlx, TokioPostgres};

struct Bouncer {
    url: String,
    _process: Child,
    _directory: tempfile::TempDir,
}

impl Bouncer {
    async fn start(server: &Server) -> Self {
        let program = PathBuf::from("/usr/sbin/pgbouncer");
        assert!(
            program.exists(),
            "pgbouncer is missing: apt-get install pgbouncer"
        );
        let directory = tempfile::tempdir().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let upstream: tokio_postgres::Config = server.url().parse().unwrap();
        let configuration = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             ignore_startup_parameters = extra_float_digits\npool_mode = transaction\ndefault_pool_size = 2\nmin_pool_size = 2\n",
            upstream.get_ports()[0]
        );
        let file = directory.path().join("pgbouncer.ini");
        std::fs::write(&file, configuration).unwrap();
        // It refuses to run as root.
        std::fs::set_permissions(
            directory.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let mut command = Command::new(program);
        if rustix::process::getuid().is_root() {
            command.args(["-u", "nobody"]);
        }
        command
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let process = command.spawn().unwrap();
        let url = format!("postgresql://postgres@127.0.0.1:{port}/{}", server.database);
        eventually("pgbouncer to answer", Duration::from_secs(30), || async {
            Ok(tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .ok())
        })
        .await
        .unwrap();
        Self {
            url,
            _process: process,
            _directory: directory,
        }
    }
}

async fn transactions_move_between_server_connections<S: Session>() {
    let server = Server::start().await;
    let bouncer = Bouncer::start(&server).await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(S::connect(&bouncer.url).await);
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
