//! A middlebox that repeats itself: each insert reaches its server again, or another one, and each
//! answer is given twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::{ClickHouse, Flavour, eventually};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::scene::{PATIENCE, SINK, Scene};
use crate::traffic::Traffic;

/// Lies between a relay and a server until it is dropped.
pub(crate) struct Doubling {
    address: SocketAddr,
    inserts: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Doubling {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Doubling {
    /// Forwards every request to `server`, and then each insert to the `further` ones too.
    pub(crate) async fn start(server: &ClickHouse, further: &[&ClickHouse]) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let first = server.port()?;
        let further: Result<Vec<u16>> = further.iter().map(|server| server.port()).collect();
        let further: Arc<[u16]> = further?.into();
        let inserts = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&inserts);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (further, counted) = (Arc::clone(&further), Arc::clone(&counted));
                // A connection that breaks is the relay's to notice.
                tokio::spawn(async move { serve(stream, first, &further, &counted).await });
            }
        });
        Ok(Self {
            address,
            inserts,
            task,
        })
    }

    /// Its address, with the user of `server`.
    pub(crate) fn url_with_credentials(&self, server: &ClickHouse) -> String {
        format!(
            "http://{}:{}@{}",
            server.user(),
            server.password(),
            self.address
        )
    }

    /// Inserts that it doubled.
    pub(crate) fn inserts(&self) -> u64 {
        self.inserts.load(Ordering::Relaxed)
    }
}

async fn serve(
    mut stream: TcpStream,
    first: u16,
    further: &[u16],
    inserts: &AtomicU64,
) -> Result<()> {
    let request = request(&mut stream).await?;
    let answer = exchange(first, &request).await?;
    let line = request.split(|byte| *byte == b'\n').next();
    let is_insert = String::from_utf8_lossy(line.unwrap_or_default()).contains("INSERT+INTO");
    if is_insert {
        for port in further {
            next_second().await?;
            exchange(*port, &request).await?;
        }
        inserts.fetch_add(1, Ordering::Relaxed);
    }
    stream.write_all(&answer).await?;
    stream.write_all(&answer).await?;
    Ok(())
}

/// A copy comes later than its original, by the clock of the server too.
async fn next_second() -> Result<()> {
    let second = || anyhow::Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    let first = second()?;
    eventually("the next second", PATIENCE, || async {
        Ok((second()? > first).then_some(()))
    })
    .await
}

/// One request, whole, with the end of the connection asked for.
async fn request(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut stream = BufReader::new(stream);
    let mut whole = Vec::new();
    let (mut length, mut is_chunked) = (0, false);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        is_chunked |= lower.starts_with("transfer-encoding: chunked");
        if line.trim().is_empty() {
            whole.extend_from_slice(b"connection: close\r\n\r\n");
            break;
        }
        whole.extend_from_slice(line.as_bytes());
    }
    while is_chunked {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        whole.extend_from_slice(line.as_bytes());
        let size = usize::from_str_radix(line.trim(), 16).context("the size of a chunk")?;
        take(&mut stream, &mut whole, size + 2).await?;
        is_chunked = size > 0;
    }
    take(&mut stream, &mut whole, length).await?;
    Ok(whole)
}

async fn take(
    stream: &mut BufReader<&mut TcpStream>,
    whole: &mut Vec<u8>,
    count: usize,
) -> Result<()> {
    let start = whole.len();
    whole.resize(start + count, 0);
    stream.read_exact(&mut whole[start..]).await?;
    Ok(())
}

async fn exchange(port: u16, request: &[u8]) -> Result<Vec<u8>> {
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    server.write_all(request).await?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Answers are doubled; on the engine that knows tokens, inserts too.
async fn doubled(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let again: &[_] = match flavour {
        // Nothing there tells a second request from a first one.
        Flavour::V18 => &[],
        Flavour::V26 => &[&scene.clickhouse],
    };
    let doubling = Doubling::start(&scene.clickhouse, again).await?;
    let url = doubling.url_with_credentials(&scene.clickhouse);
    let traffic = Traffic::start(&scene.postgres, 2, false).await?;
    // A copy takes a second: what piles up meanwhile is one batch.
    let relay = scene.running_with(&[("CLICKHOUSE_URL", &url), ("MAX_ROWS", "1000")])?;
    traffic.more(100).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    ensure!(doubling.inserts() > 0, "sink {SINK} sent nothing");
    Ok(())
}

#[tokio::test]
async fn inv_2_answers_of_clickhouse_18_are_doubled() -> Result<()> {
    doubled(Flavour::V18).await
}

#[tokio::test]
async fn inv_2_inserts_and_answers_of_clickhouse_26_are_doubled() -> Result<()> {
    doubled(Flavour::V26).await
}
