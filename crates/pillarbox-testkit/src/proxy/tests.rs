//! Each fault against a small server that answers each line with the same line, in capitals.

use std::io::ErrorKind;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::task::JoinSet;

use super::*;
use crate::servers::eventually;

const PATIENCE: Duration = Duration::from_secs(20);

/// Ends with its tasks when dropped.
struct Upstream {
    address: SocketAddr,
    /// What each connection has sent, in the order of their beginning.
    received: Arc<Mutex<Vec<Vec<u8>>>>,
    _tasks: JoinSet<()>,
}

impl Upstream {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let received: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let record = Arc::clone(&received);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let number = {
                    let mut received = record.lock().unwrap();
                    received.push(Vec::new());
                    received.len() - 1
                };
                open.spawn(answer(client, Arc::clone(&record), number));
            }
        });
        Ok(Self {
            address,
            received,
            _tasks: tasks,
        })
    }

    fn received(&self, number: usize) -> Vec<u8> {
        let received = self.received.lock().unwrap();
        received.get(number).cloned().unwrap_or_default()
    }

    /// Waits until one of its connections has sent `expected`.
    async fn has(&self, number: usize, expected: &[u8]) -> Result<()> {
        eventually("the server to receive it", PATIENCE, || async {
            Ok((self.received(number) == expected).then_some(()))
        })
        .await
    }
}

async fn answer(mut client: TcpStream, record: Arc<Mutex<Vec<Vec<u8>>>>, number: usize) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = client.read(&mut buffer).await {
        record.lock().unwrap()[number].extend_from_slice(&buffer[..count]);
        let capitals = buffer[..count].to_ascii_uppercase();
        if client.write_all(&capitals).await.is_err() {
            return;
        }
    }
}

async fn pair() -> Result<(Upstream, Proxy)> {
    let upstream = Upstream::start().await?;
    let proxy = Proxy::start(upstream.address)?;
    Ok((upstream, proxy))
}

async fn connect(proxy: &Proxy) -> std::io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", proxy.port())).await?;
    Ok(BufReader::new(stream))
}

/// Sends a line and gives the answer.
async fn ask(client: &mut BufReader<TcpStream>, line: &str) -> std::io::Result<String> {
    client.write_all(line.as_bytes()).await?;
    let mut answer = String::new();
    let read = tokio::time::timeout(PATIENCE, client.read_line(&mut answer)).await;
    match read.map_err(|_| std::io::Error::from(ErrorKind::TimedOut))? {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(answer),
        Err(error) => Err(error),
    }
}

/// Waits for what the proxy counts.
async fn counted(proxy: &Proxy, what: &str, has: impl Fn(&Counts) -> bool) -> Result<()> {
    eventually(what, PATIENCE, || async {
        Ok(has(&proxy.counts()).then_some(()))
    })
    .await
}

#[tokio::test]
async fn without_a_fault_it_forwards_everything_both_ways() -> Result<()> {
    let (upstream, proxy) = pair().await?;
    let mut client = connect(&proxy).await?;
    assert_eq!(ask(&mut client, "one\n").await?, "ONE\n");
    let long = "x".repeat(3_000_000);
    let (mut reading, mut writing) = client.into_inner().into_split();
    let sending = async {
        writing.write_all(long.as_bytes()).await?;
        writing.shutdown().await
    };
    let mut answer = Vec::new();
    let (sent, read) = tokio::join!(sending, reading.read_to_end(&mut answer));
    sent?;
    assert_eq!(read?, long.len());
    assert_eq!(answer, long.to_uppercase().into_bytes());
    assert_eq!(upstream.received(0).len(), 4 + long.len());
    let counts = proxy.counts();
    assert_eq!(counts.to_server, 4 + long.len() as u64);
    assert_eq!(counts.to_client, counts.to_server);
    assert_eq!(counts.accepted, 1);
    counted(&proxy, "the connection to end", |_| {
        proxy.connections().is_empty()
    })
    .await?;
    assert_eq!(proxy.counts().cut, 0, "an end is passed on");
    Ok(())
}

#[tokio::test]
async fn a_request_is_cut_at_each_byte() -> Result<()> {
    let (upstream, proxy) = pair().await?;
    let line = b"request\n";
    for at in 0..line.len() {
        let bytes = u64::try_from(at)?;
        proxy.arm(b"", Faults::cut_at(Direction::ToServer, bytes, Close::Fin));
        let mut client = connect(&proxy).await?;
        client.write_all(line).await?;
        let mut rest = Vec::new();
        // What was answered before the cut may arrive; then the connection ends.
        let _ = client.read_to_end(&mut rest).await;
        upstream.has(at, &line[..at]).await?;
    }
    assert_eq!(proxy.counts().cut, line.len() as u64);
    assert_eq!(
        ask(&mut connect(&proxy).await?, "whole\n").await?,
        "WHOLE\n"
    );
    Ok(())
}

#[tokio::test]
async fn an_answer_is_cut_at_each_byte_after_the_server_had_the_request() -> Result<()> {
    let (upstream, proxy) = pair().await?;
    let line = b"answer\n";
    for at in 0..line.len() {
        let bytes = u64::try_from(at)?;
        proxy.arm(b"", Faults::cut_at(Direction::ToClient, bytes, Close::Fin));
        let mut client = connect(&proxy).await?;
        client.write_all(line).await?;
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await?;
        assert_eq!(answer, line[..at].to_ascii_uppercase());
        upstream.has(at, line).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_connection_is_cut_before_one_request() -> Result<()> {
    let (upstream, proxy) = pair().await?;
    let mut client = connect(&proxy).await?;
    assert_eq!(ask(&mut client, "before\n").await?, "BEFORE\n");
    proxy.cut_before(b"commit");
    assert_eq!(ask(&mut client, "another\n").await?, "ANOTHER\n");
    assert!(ask(&mut client, "the commit\n").await.is_err());
    assert_eq!(upstream.received(0), b"before\nanother\n");
    let mut client = connect(&proxy).await?;
    assert_eq!(ask(&mut client, "commit\n").await?, "COMMIT\n", "once");
    assert_eq!(proxy.counts().cut, 1);
    Ok(())
}

#[tokio::test]
async fn a_reset_is_seen_as_one() -> Result<()> {
    let (_upstream, proxy) = pair().await?;
    proxy.arm(b"", Faults::cut_at(Direction::ToClient, 0, Close::Reset));
    let error = ask(&mut connect(&proxy).await?, "line\n")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    Ok(())
}

#[tokio::test]
async fn a_lost_answer_leaves_the_client_waiting_until_it_is_over() -> Result<()> {
    let (upstream, proxy) = pair().await?;
    proxy.set(Faults::answers_lost());
    let mut client = connect(&proxy).await?;
    client.write_all(b"request\n").await?;
    upstream.has(0, b"request\n").await?;
    counted(&proxy, "the answer to be swallowed", |counts| {
        counts.swallowed == 1
    })
    .await?;
    let mut byte = [0];
    assert!(
        client
            .get_ref()
            .try_read(&mut byte)
            .is_err_and(|e| e.kind() == ErrorKind::WouldBlock),
        "the client waits"
    );
    proxy.heal().await?;
    let error = ask(&mut client, "").await.unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::ConnectionReset,
        "bytes are missing"
    );
    assert_eq!(ask(&mut connect(&proxy).await?, "new\n").await?, "NEW\n");
    Ok(())
}

#[tokio::test]
async fn a_half_open_connection_goes_on_when_it_is_healed() -> Result<()> {
    let (upstream, proxy) = pair().await?;
    let mut client = connect(&proxy).await?;
    assert_eq!(ask(&mut client, "before\n").await?, "BEFORE\n");
    proxy.set(Faults::half_open());
    client.write_all(b"held\n").await?;
    counted(&proxy, "the request to be held", |counts| counts.held == 1).await?;
    assert_eq!(upstream.received(0), b"before\n");
    proxy.heal().await?;
    assert_eq!(ask(&mut client, "").await?, "HELD\n");
    Ok(())
}

#[tokio::test]
async fn a_held_request_arrives_without_its_sender_or_dies_with_it() -> Result<()> {
    let (upstream, proxy) = pair().await?;
    for (number, dies_with_sender) in [false, true].into_iter().enumerate() {
        let mut faults = Faults::half_open();
        faults.to_server.dies_with_sender = dies_with_sender;
        proxy.set(faults);
        let mut client = connect(&proxy).await?;
        client.write_all(b"orphan\n").await?;
        let held = u64::try_from(number)? + 1;
        counted(&proxy, "the request to be held", |counts| {
            counts.held == held
        })
        .await?;
        drop(client);
        if dies_with_sender {
            counted(&proxy, "it to be dropped", |counts| counts.orphaned == 1).await?;
            assert_eq!(proxy.connections().len(), 1, "the server knows nothing yet");
        }
        proxy.heal().await?;
        let expected: &[u8] = if dies_with_sender { b"" } else { b"orphan\n" };
        counted(&proxy, "the end", |_| proxy.connections().is_empty()).await?;
        upstream.has(number, expected).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_full_lane_notices_that_its_sender_has_gone() -> Result<()> {
    let (_upstream, proxy) = pair().await?;
    let mut faults = Faults::half_open();
    faults.to_server.dies_with_sender = true;
    proxy.set(faults);
    let client = connect(&proxy).await?;
    // A little more than the lane holds. Were it much more, the end would not fit into the socket.
    let more_than_it_holds = vec![b'x'; PIECE_BYTES * (QUEUED_MAX + 1) + 10_000];
    let mut left = &more_than_it_holds[..];
    while !left.is_empty() {
        client.get_ref().writable().await?;
        if let Ok(written) = client.get_ref().try_write(left) {
            left = &left[written..];
        }
    }
    drop(client);
    counted(&proxy, "the bytes to be dropped", |counts| {
        counts.orphaned == 1
    })
    .await
}

#[tokio::test]
async fn a_delay_lets_everything_arrive_later() -> Result<()> {
    let (_upstream, proxy) = pair().await?;
    let delay = Duration::from_millis(80);
    for direction in [Direction::ToServer, Direction::ToClient] {
        proxy.set(Faults::late(direction, delay));
        let began = std::time::Instant::now();
        assert_eq!(ask(&mut connect(&proxy).await?, "late\n").await?, "LATE\n");
        assert!(began.elapsed() >= delay);
    }
    assert!(proxy.counts().delayed >= 2);
    Ok(())
}

#[tokio::test]
async fn a_narrow_line_takes_its_time() -> Result<()> {
    let (_upstream, proxy) = pair().await?;
    proxy.set(Faults::narrow(10_000));
    let line = format!("{}\n", "y".repeat(999));
    let began = std::time::Instant::now();
    assert_eq!(
        ask(&mut connect(&proxy).await?, &line).await?,
        line.to_uppercase()
    );
    assert!(began.elapsed() >= Duration::from_millis(90));
    assert!(proxy.counts().slowed == 2, "both ways");
    Ok(())
}

#[tokio::test]
async fn refused_connections_are_refused_and_open_ones_go_on() -> Result<()> {
    let (_upstream, proxy) = pair().await?;
    let mut open = connect(&proxy).await?;
    assert_eq!(ask(&mut open, "one\n").await?, "ONE\n");
    for _ in 0..3 {
        proxy.refuse().await?;
        let refused = connect(&proxy).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(ask(&mut open, "two\n").await?, "TWO\n");
        proxy.heal().await?;
        assert_eq!(ask(&mut connect(&proxy).await?, "new\n").await?, "NEW\n");
    }
    Ok(())
}

#[tokio::test]
async fn armed_faults_meet_the_connection_they_are_for() -> Result<()> {
    let (_upstream, proxy) = pair().await?;
    proxy.arm(
        b"insert",
        Faults::cut_at(Direction::ToClient, 0, Close::Reset),
    );
    let mut other = connect(&proxy).await?;
    assert_eq!(ask(&mut other, "select\n").await?, "SELECT\n");
    assert_eq!(proxy.armed(), 1);
    assert!(
        ask(&mut connect(&proxy).await?, "an insert\n")
            .await
            .is_err()
    );
    assert_eq!(proxy.armed(), 0);
    assert_eq!(
        ask(&mut connect(&proxy).await?, "insert\n").await?,
        "INSERT\n"
    );
    assert_eq!(ask(&mut other, "on\n").await?, "ON\n");
    Ok(())
}

#[tokio::test]
async fn one_of_two_connections_is_cut_and_then_all_are() -> Result<()> {
    let (_upstream, proxy) = pair().await?;
    let (mut first, mut second) = (connect(&proxy).await?, connect(&proxy).await?);
    assert_eq!(ask(&mut first, "one\n").await?, "ONE\n");
    assert_eq!(ask(&mut second, "two\n").await?, "TWO\n");
    let open = proxy.connections();
    assert_eq!(
        (open.len(), open[0].to_server, open[1].to_client),
        (2, 4, 4)
    );
    let after = open[0].to_server + 2;
    proxy.set_on(
        open[0].id,
        Faults::cut_at(Direction::ToServer, after, Close::Fin),
    );
    assert!(ask(&mut first, "cut\n").await.is_err());
    assert_eq!(ask(&mut second, "two\n").await?, "TWO\n");
    proxy.cut_all(Close::Reset);
    assert!(ask(&mut second, "three\n").await.is_err());
    assert_eq!(proxy.counts().cut, 2);
    Ok(())
}

#[tokio::test]
async fn the_witness_sees_what_each_client_sends_first() -> Result<()> {
    let upstream = Upstream::start().await?;
    let seen: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let told = Arc::clone(&seen);
    let proxy = Proxy::start_watched(upstream.address, move |first| {
        told.lock().unwrap().push(first.to_vec());
    })?;
    let mut client = connect(&proxy).await?;
    ask(&mut client, "first\n").await?;
    ask(&mut client, "second\n").await?;
    assert_eq!(*seen.lock().unwrap(), [b"first\n"]);
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_down_closes_the_connection() -> Result<()> {
    let nobody = Port::lease()?;
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], nobody.number)))?;
    assert!(ask(&mut connect(&proxy).await?, "line\n").await.is_err());
    assert_eq!(proxy.counts().unreachable, 1);
    Ok(())
}

#[tokio::test]
async fn dropped_it_ends_every_connection_and_frees_its_port() -> Result<()> {
    let (_upstream, proxy) = pair().await?;
    let (mut client, mut held) = (connect(&proxy).await?, connect(&proxy).await?);
    assert_eq!(ask(&mut client, "one\n").await?, "ONE\n");
    proxy.set(Faults::half_open());
    held.write_all(b"held\n").await?;
    counted(&proxy, "the request to be held", |counts| counts.held >= 1).await?;
    let port = proxy.port();
    drop(proxy);
    assert!(ask(&mut client, "two\n").await.is_err());
    assert!(ask(&mut held, "two\n").await.is_err());
    let refused = TcpStream::connect(("127.0.0.1", port)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    Ok(())
}
