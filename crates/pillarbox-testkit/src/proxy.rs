//! A TCP proxy in front of one server, on a loopback port of its own, that does to connections what
//! networks do: cuts them, loses answers, delays, falls silent, refuses.
//!
//! It runs on a thread of its own, so that a test's runtime may be busy or frozen beside it. Dropping
//! it cuts every connection and joins the thread. Each direction of a connection holds at most
//! [`QUEUED_MAX`] pieces of [`PIECE_BYTES`].

mod connection;
mod fault;
mod lane;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::servers::Port;
use connection::Connection;
pub use fault::{Close, Direction, Fault, Faults};

/// Bytes that are read at once.
const PIECE_BYTES: usize = 16 * 1024;

/// Pieces that one direction of a connection holds back before it reads no more.
const QUEUED_MAX: usize = 16;

/// How long the server may take to accept a connection: it is on the same machine.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Between two attempts to listen again on the port.
const LISTEN_AGAIN: Duration = Duration::from_millis(10);

/// What the proxy has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that clients made.
    pub accepted: u64,
    /// Of these, closed at once because the server did not take a connection.
    pub unreachable: u64,
    /// Connections that a fault or [`Proxy::cut_all`] ended.
    pub cut: u64,
    /// Connections whose bytes were swallowed, delayed, held or slowed down, each counted once for
    /// each of the four.
    pub swallowed: u64,
    pub delayed: u64,
    pub held: u64,
    pub slowed: u64,
    /// Connections whose sender had gone while bytes of it were held back, which were dropped.
    pub orphaned: u64,
    /// Bytes forwarded.
    pub to_server: u64,
    pub to_client: u64,
}

/// An open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// For [`Proxy::set_on`].
    pub id: u64,
    /// The client's port as the server sees it.
    pub server_sees_port: u16,
    /// Bytes forwarded so far.
    pub to_server: u64,
    pub to_client: u64,
}

/// The proxy. Dropping it ends every connection.
pub struct Proxy {
    port: Port,
    shared: Arc<Shared>,
    refusing: watch::Sender<bool>,
    listening: watch::Receiver<bool>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("port", &self.port.number)
            .field("upstream", &self.shared.upstream)
            .finish_non_exhaustive()
    }
}

/// Called with the first bytes that a client sends.
type Witness = Box<dyn Fn(&[u8]) + Send + Sync>;

/// Faults for one connection, by what its first bytes hold.
struct Armed {
    when: Vec<u8>,
    faults: Faults,
}

struct Shared {
    upstream: SocketAddr,
    witness: Option<Witness>,
    stop: CancellationToken,
    state: Mutex<State>,
    tally: Tally,
}

#[derive(Default)]
struct State {
    last_id: u64,
    /// For connections to come.
    faults: Faults,
    armed: Vec<Armed>,
    /// A connection is cut in the place of forwarding this to the server.
    forbidden: Option<Vec<u8>>,
    open: BTreeMap<u64, Arc<Connection>>,
}

#[derive(Default)]
struct Tally {
    accepted: AtomicU64,
    unreachable: AtomicU64,
    cut: AtomicU64,
    swallowed: AtomicU64,
    delayed: AtomicU64,
    held: AtomicU64,
    slowed: AtomicU64,
    orphaned: AtomicU64,
    forwarded: [AtomicU64; 2],
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a connection the faults that wait for it, now that its first bytes are known.
    fn introduce(&self, connection: &Connection, first: &[u8]) {
        if let Some(witness) = &self.witness {
            witness(first);
        }
        let mut state = self.state();
        let has = |armed: &Armed| armed.when.is_empty() || contains(first, &armed.when);
        if let Some(position) = state.armed.iter().position(has) {
            connection.set(state.armed.remove(position).faults);
        }
    }

    /// Whether these bytes hold what the server is not to receive; the next ones may.
    fn is_forbidden(&self, bytes: &[u8]) -> bool {
        let forbidden = &mut self.state().forbidden;
        forbidden
            .take_if(|forbidden| contains(bytes, forbidden))
            .is_some()
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

impl Proxy {
    /// Listens on a free loopback port and forwards to `upstream`.
    pub fn start(upstream: SocketAddr) -> Result<Self> {
        Self::start_with(upstream, None)
    }

    /// The same; `witness` is called with the first bytes, up to 16 KiB, that each client sends.
    pub fn start_watched(
        upstream: SocketAddr,
        witness: impl Fn(&[u8]) + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::start_with(upstream, Some(Box::new(witness)))
    }

    fn start_with(upstream: SocketAddr, witness: Option<Witness>) -> Result<Self> {
        let port = Port::lease()?;
        let shared = Arc::new(Shared {
            upstream,
            witness,
            stop: CancellationToken::new(),
            state: Mutex::default(),
            tally: Tally::default(),
        });
        let (refusing, refused) = watch::channel(false);
        let (announce, listening) = watch::channel(false);
        let acceptor = Acceptor {
            address: SocketAddr::from(([127, 0, 0, 1], port.number)),
            shared: Arc::clone(&shared),
            refused,
            announce,
        };
        let first = std::net::TcpListener::bind(acceptor.address)
            .with_context(|| format!("listening on {}", acceptor.address))?;
        first.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name(format!("proxy-{}", port.number))
            .spawn(move || runtime.block_on(acceptor.run(first)))?;
        Ok(Self {
            port,
            shared,
            refusing,
            listening,
            thread: Some(thread),
        })
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// `url` with the proxy in the place of its host and port.
    pub fn url(&self, url: &str) -> Result<String> {
        let mut url = url::Url::parse(url).context("the url of the server")?;
        url.set_host(Some("127.0.0.1"))?;
        if url.set_port(Some(self.port())).is_err() {
            bail!("the url takes no port");
        }
        Ok(url.as_str().trim_end_matches('/').to_owned())
    }

    /// Sets the faults of every connection, open or to come.
    pub fn set(&self, faults: Faults) {
        let mut state = self.shared.state();
        state.faults = faults;
        for connection in state.open.values() {
            connection.set(faults);
        }
    }

    /// Sets the faults of one open connection; nothing happens if it has ended.
    pub fn set_on(&self, id: u64, faults: Faults) {
        if let Some(connection) = self.shared.state().open.get(&id) {
            connection.set(faults);
        }
    }

    /// Sets the faults of the next connection whose first bytes hold `when` (all do if it is empty),
    /// and of that one alone. Further calls wait behind it.
    pub fn arm(&self, when: &[u8], faults: Faults) {
        let when = when.to_vec();
        self.shared.state().armed.push(Armed { when, faults });
    }

    /// Faults that were armed and have not met their connection.
    pub fn armed(&self) -> usize {
        self.shared.state().armed.len()
    }

    /// Cuts the next connection that would forward `bytes` to the server, which receives nothing of the
    /// request that holds them: clients send that at once.
    pub fn cut_before(&self, bytes: &[u8]) {
        self.shared.state().forbidden = Some(bytes.to_vec());
    }

    /// Cuts every open connection now.
    pub fn cut_all(&self, close: Close) {
        for connection in self.shared.state().open.values() {
            connection.cut(close);
        }
    }

    /// Cuts one now.
    pub fn cut(&self, id: u64, close: Close) {
        if let Some(connection) = self.shared.state().open.get(&id) {
            connection.cut(close);
        }
    }

    /// Refuses connections from now on; open ones go on. In force when this returns.
    pub async fn refuse(&self) -> Result<()> {
        self.refusing.send_replace(true);
        self.is_listening(false).await
    }

    /// No more faults, for all connections; those that lost bytes are cut. In force when this returns.
    pub async fn heal(&self) -> Result<()> {
        self.shared.state().armed.clear();
        self.set(Faults::default());
        self.refusing.send_replace(false);
        self.is_listening(true).await
    }

    async fn is_listening(&self, expected: bool) -> Result<()> {
        let mut listening = self.listening.clone();
        let is_so = listening.wait_for(|listening| *listening == expected);
        is_so.await.context("the proxy's thread has ended")?;
        Ok(())
    }

    /// The connections that are open.
    pub fn connections(&self) -> Vec<Seen> {
        let state = self.shared.state();
        state.open.values().map(|open| open.seen()).collect()
    }

    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        let tally = &self.shared.tally;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            accepted: of(&tally.accepted),
            unreachable: of(&tally.unreachable),
            cut: of(&tally.cut),
            swallowed: of(&tally.swallowed),
            delayed: of(&tally.delayed),
            held: of(&tally.held),
            slowed: of(&tally.slowed),
            orphaned: of(&tally.orphaned),
            to_server: of(&tally.forwarded[Direction::ToServer as usize]),
            to_client: of(&tally.forwarded[Direction::ToClient as usize]),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was shown on standard error.
            let _ = thread.join();
        }
    }
}

/// What runs on the thread.
struct Acceptor {
    address: SocketAddr,
    shared: Arc<Shared>,
    refused: watch::Receiver<bool>,
    announce: watch::Sender<bool>,
}

impl Acceptor {
    async fn run(mut self, first: std::net::TcpListener) {
        let connections = TaskTracker::new();
        let stop = self.shared.stop.clone();
        tokio::select! { biased;
            () = stop.cancelled() => {}
            () = self.accept(first, &connections) => {}
        }
        connections.close();
        connections.wait().await;
    }

    async fn accept(&mut self, first: std::net::TcpListener, connections: &TaskTracker) {
        let mut listener = TcpListener::from_std(first).ok();
        loop {
            if *self.refused.borrow_and_update() {
                listener = None;
                self.announce.send_replace(false);
                if self.refused.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let Some(open) = &listener else {
                // Only a listener that was closed a moment ago can stand in the way.
                listener = TcpListener::bind(self.address).await.ok();
                if listener.is_none() {
                    tokio::time::sleep(LISTEN_AGAIN).await;
                }
                continue;
            };
            self.announce.send_replace(true);
            tokio::select! {
                changed = self.refused.changed() => if changed.is_err() { return },
                accepted = open.accept() => if let Ok((client, _)) = accepted {
                    connections.spawn(serve(Arc::clone(&self.shared), client));
                }
            }
        }
    }
}

/// Takes one client to the server and back.
async fn serve(shared: Arc<Shared>, client: TcpStream) {
    shared.tally.accepted.fetch_add(1, Ordering::Relaxed);
    let connecting = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(shared.upstream));
    let server = tokio::select! { biased;
        () = shared.stop.cancelled() => return,
        connected = connecting => match connected {
            Ok(Ok(server)) => server,
            Ok(Err(_)) | Err(_) => {
                shared.tally.unreachable.fetch_add(1, Ordering::Relaxed);
                let _ = client.set_zero_linger();
                return;
            }
        },
    };
    let Ok(port) = server.local_addr().map(|address| address.port()) else {
        return;
    };
    let connection = {
        let mut state = shared.state();
        state.last_id += 1;
        let id = state.last_id;
        let connection = Arc::new(Connection::new(id, port, state.faults));
        state.open.insert(id, Arc::clone(&connection));
        connection
    };
    connection::forward(&shared, &connection, client, server).await;
    shared.state().open.remove(&connection.id());
}
