//! Connections: one request each, few at once, none for long.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// More than every probe and scraper of one relay together; further ones wait in the system's queue.
pub(crate) const CONNECTIONS_MAX: usize = 32;

/// From accepting to the last byte of the answer; answers are made from memory in microseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// After a connection could not be accepted: most often there are no file handles left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Answers until it is dropped, which ends every connection.
pub(crate) async fn serve(listener: TcpListener, router: Router) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! { biased;
            // An ended one makes room before a new one is taken.
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(error = &error as &dyn std::error::Error, "an answer failed");
                }
            }
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(answer(stream, router.clone()));
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the console cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn answer(stream: TcpStream, router: Router) {
    let mut http = http1::Builder::new();
    http.keep_alive(false);
    let service = TowerToHyperService::new(router);
    let answering = http.serve_connection(TokioIo::new(stream), service);
    // A client that went away, or was too slow, is its own business.
    let _ = tokio::time::timeout(ANSWER_TIMEOUT, answering).await;
}
