//! One connection: two lanes, and how it ends.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::TcpStream;
use tokio::sync::watch;

use super::fault::{Close, Direction, Faults};
use super::lane::{Ended, Lane};
use super::{Seen, Shared};

/// An open connection as the proxy's owner reaches it.
pub(super) struct Connection {
    id: u64,
    port: u16,
    faults: watch::Sender<Faults>,
    cut: watch::Sender<Option<Close>>,
    forwarded: [AtomicU64; 2],
}

impl Connection {
    pub(super) fn new(id: u64, port: u16, faults: Faults) -> Self {
        Self {
            id,
            port,
            faults: watch::Sender::new(faults),
            cut: watch::Sender::new(None),
            forwarded: Default::default(),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn set(&self, faults: Faults) {
        self.faults.send_replace(faults);
    }

    pub(super) fn cut(&self, close: Close) {
        self.cut.send_replace(Some(close));
    }

    pub(super) fn faults(&self) -> watch::Receiver<Faults> {
        self.faults.subscribe()
    }

    pub(super) fn note_forwarded(&self, direction: Direction, bytes: u64) {
        self.forwarded[direction as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn forwarded(&self, direction: Direction) -> u64 {
        self.forwarded[direction as usize].load(Ordering::Relaxed)
    }

    pub(super) fn seen(&self) -> Seen {
        Seen {
            id: self.id,
            server_sees_port: self.port,
            to_server: self.forwarded(Direction::ToServer),
            to_client: self.forwarded(Direction::ToClient),
        }
    }
}

/// Forwards both ways until both ends have closed, or the connection is cut.
pub(super) async fn forward(
    shared: &Shared,
    connection: &Connection,
    mut client: TcpStream,
    mut server: TcpStream,
) {
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let mut cut = connection.cut.subscribe();
    let close = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let requests = Lane::new(shared, connection, Direction::ToServer);
        let answers = Lane::new(shared, connection, Direction::ToClient);
        let both = async {
            tokio::try_join!(
                requests.run(from_client, to_server),
                answers.run(from_server, to_client),
            )
        };
        tokio::select! { biased;
            () = shared.stop.cancelled() => Some(Close::Reset),
            told = cut.wait_for(Option::is_some) => {
                shared.tally.cut.fetch_add(1, Ordering::Relaxed);
                told.ok().and_then(|told| *told)
            }
            ended = both => match ended {
                Ok(_) => None,
                Err(Ended::Cut) => {
                    shared.tally.cut.fetch_add(1, Ordering::Relaxed);
                    Some(connection.faults.borrow().close)
                }
                Err(Ended::Reset) => Some(Close::Reset),
            },
        }
    };
    if close == Some(Close::Reset) {
        let _ = client.set_zero_linger();
        let _ = server.set_zero_linger();
    }
}
