//! One direction of a connection: read, held back as the fault says, written.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::fault::{Direction, Fault, Faults};
use super::{PIECE_BYTES, QUEUED_MAX, Shared};

/// How often a full lane looks whether its sender is still there.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Pieces a second in which a narrow line forwards.
const PIECES_PER_SECOND: u32 = 20;

/// Why a lane ended before both ends had closed.
pub(super) enum Ended {
    /// By a fault.
    Cut,
    /// By one of the ends.
    Reset,
}

/// What was read, and when.
struct Piece {
    bytes: Bytes,
    at: Instant,
}

pub(super) struct Lane<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
    direction: Direction,
    faults: watch::Receiver<Faults>,
    /// The sender closed its end.
    gone: CancellationToken,
    marks: Marks,
}

/// What was counted already for this connection.
#[derive(Default)]
struct Marks {
    swallowed: AtomicBool,
    delayed: AtomicBool,
    held: AtomicBool,
    slowed: AtomicBool,
}

impl<'a> Lane<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        connection: &'a Connection,
        direction: Direction,
    ) -> Self {
        Self {
            shared,
            connection,
            direction,
            faults: connection.faults(),
            gone: CancellationToken::new(),
            marks: Marks::default(),
        }
    }

    /// Forwards until the sender has closed and that was passed on.
    pub(super) async fn run(self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> Result<(), Ended> {
        let (send, receive) = mpsc::channel(QUEUED_MAX);
        let reading = self.read(from, send);
        let writing = self.write(receive, to);
        let (read, written) = tokio::join!(reading, writing);
        written.and(read)
    }

    async fn read(&self, mut from: ReadHalf<'_>, send: mpsc::Sender<Piece>) -> Result<(), Ended> {
        let mut is_first = self.direction == Direction::ToServer;
        loop {
            let place = tokio::select! { biased;
                place = send.reserve() => match place {
                    Ok(place) => place,
                    // The other half has ended, and says why.
                    Err(_) => return Ok(()),
                },
                () = has_closed(&from), if !self.gone.is_cancelled() => {
                    self.gone.cancel();
                    continue;
                }
            };
            let mut bytes = BytesMut::with_capacity(PIECE_BYTES);
            let read = tokio::select! { biased;
                () = send.closed() => return Ok(()),
                read = from.read_buf(&mut bytes) => read,
            };
            match read {
                Ok(0) => {
                    self.gone.cancel();
                    return Ok(());
                }
                Ok(_) if std::mem::take(&mut is_first) => {
                    self.shared.introduce(self.connection, &bytes);
                }
                Ok(_) => {}
                Err(_) => {
                    self.gone.cancel();
                    return Err(Ended::Reset);
                }
            }
            place.send(Piece {
                bytes: bytes.freeze(),
                at: Instant::now(),
            });
        }
    }

    async fn write(
        &self,
        mut pieces: mpsc::Receiver<Piece>,
        mut to: WriteHalf<'_>,
    ) -> Result<(), Ended> {
        while let Some(piece) = self.next(&mut pieces).await? {
            let fault = self.wait_until_due(piece.at).await?;
            if fault.swallows {
                self.count(&self.marks.swallowed, &self.shared.tally.swallowed);
            } else {
                self.forward(piece.bytes, fault, &mut to).await?;
            }
        }
        // The end is as late as bytes are, and lost where they are.
        let mut faults = self.faults.clone();
        while self.wait_until_due(Instant::now()).await?.swallows {
            if faults.changed().await.is_err() {
                break;
            }
        }
        if self.marks.swallowed.load(Ordering::Relaxed) {
            return Err(Ended::Cut);
        }
        // The other end may have gone; then there is nobody to tell.
        let _ = to.shutdown().await;
        Ok(())
    }

    /// The next piece; the end of a connection that lost some, once it would lose no more.
    async fn next(&self, pieces: &mut mpsc::Receiver<Piece>) -> Result<Option<Piece>, Ended> {
        let mut faults = self.faults.clone();
        let is_over = |faults: &Faults| {
            let has_lost = self.marks.swallowed.load(Ordering::Relaxed);
            has_lost && !faults.of(self.direction).swallows
        };
        tokio::select! { biased;
            Ok(_) = faults.wait_for(is_over) => Err(Ended::Cut),
            piece = pieces.recv() => Ok(piece),
        }
    }

    /// Waits while the direction is held, and for the delay of what was read at `at`.
    async fn wait_until_due(&self, at: Instant) -> Result<Fault, Ended> {
        let mut faults = self.faults.clone();
        loop {
            let fault = faults.borrow_and_update().of(self.direction);
            let due = at + fault.delay;
            if fault.is_held {
                self.count(&self.marks.held, &self.shared.tally.held);
            } else if due > Instant::now() {
                self.count(&self.marks.delayed, &self.shared.tally.delayed);
            } else {
                return Ok(fault);
            }
            if fault.dies_with_sender && self.gone.is_cancelled() {
                return self.orphaned(&mut faults).await;
            }
            tokio::select! { biased;
                _ = faults.changed() => {}
                () = self.gone.cancelled(), if fault.dies_with_sender => {}
                () = sleep_until(due), if !fault.is_held => {}
            }
        }
    }

    /// The sender has gone. The receiver learns of it when the line is free again.
    async fn orphaned(&self, faults: &mut watch::Receiver<Faults>) -> Result<Fault, Ended> {
        self.shared.tally.orphaned.fetch_add(1, Ordering::Relaxed);
        let is_free = |faults: &Faults| !faults.of(self.direction).is_held;
        // An error is a proxy that ends.
        let _ = faults.wait_for(is_free).await;
        Err(Ended::Reset)
    }

    async fn forward(
        &self,
        mut bytes: Bytes,
        fault: Fault,
        to: &mut WriteHalf<'_>,
    ) -> Result<(), Ended> {
        if self.direction == Direction::ToServer && self.shared.is_forbidden(&bytes) {
            return Err(Ended::Cut);
        }
        let forwarded = self.connection.forwarded(self.direction);
        let left = fault.cut_at.map(|at| at.saturating_sub(forwarded));
        let left = left.filter(|left| *left < bytes.len() as u64);
        if let Some(left) = left {
            bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        while let (Some(rate), false) = (self.rate(), bytes.is_empty()) {
            self.count(&self.marks.slowed, &self.shared.tally.slowed);
            let size = (rate / PIECES_PER_SECOND).max(1) as usize;
            sleep(Duration::from_secs(1) / PIECES_PER_SECOND).await;
            if fault.dies_with_sender && self.gone.is_cancelled() {
                self.shared.tally.orphaned.fetch_add(1, Ordering::Relaxed);
                return Err(Ended::Reset);
            }
            self.put(&bytes.split_to(size.min(bytes.len())), to).await?;
        }
        self.put(&bytes, to).await?;
        match left {
            Some(_) => Err(Ended::Cut),
            None => Ok(()),
        }
    }

    fn rate(&self) -> Option<u32> {
        self.faults.borrow().of(self.direction).bytes_per_second
    }

    async fn put(&self, bytes: &[u8], to: &mut WriteHalf<'_>) -> Result<(), Ended> {
        // Before: whoever has the bytes finds them counted.
        let count = bytes.len() as u64;
        self.connection.note_forwarded(self.direction, count);
        let forwarded = &self.shared.tally.forwarded[self.direction as usize];
        forwarded.fetch_add(count, Ordering::Relaxed);
        to.write_all(bytes).await.map_err(|_| Ended::Reset)
    }

    /// Counts this connection once.
    fn count(&self, mark: &AtomicBool, counter: &AtomicU64) {
        if !mark.swap(true, Ordering::Relaxed) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Returns when the sender has closed its end, though bytes of its are still unread.
async fn has_closed(from: &ReadHalf<'_>) {
    loop {
        match from.ready(Interest::READABLE).await {
            Ok(ready) if ready.is_read_closed() => return,
            Ok(_) => sleep(LOOK_EVERY).await,
            Err(_) => return,
        }
    }
}
