//! The body of a request: the encoded pieces, framed and compressed as they leave.
//!
//! LZ4 frames: a CityHash128 (1.0.2) of what follows, the method, both sizes, the LZ4 block
//! (clickhouse.com/docs/interfaces/specs/NativeFormat#frame-format).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::body::{self, Frames};

/// Bytes in one compressed frame before compression; ClickHouse's own client uses 1 MiB.
const FRAME_BYTES: usize = 1024 * 1024;
const CHECKSUM_BYTES: usize = 16;
const HEADER_BYTES: usize = 9;
const LZ4: u8 = 0x82;

/// How much of a body left: nobody asked for it, some, or its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sent {
    Nothing,
    Some,
    All,
}

/// Watches how much of a body left.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter(Arc<AtomicU8>);

/// Nothing left, and nothing will.
const GIVEN_UP: u8 = 3;

impl Meter {
    pub(super) fn sent(&self) -> Sent {
        match self.0.load(Ordering::Acquire) {
            0 | GIVEN_UP => Sent::Nothing,
            1 => Sent::Some,
            _ => Sent::All,
        }
    }

    /// Keeps the body back for good, unless some of it has left: then `false`.
    pub(super) fn give_up(&self) -> bool {
        self.moves(GIVEN_UP)
    }

    /// Whether the body may leave; from now on it counts as leaving.
    fn begins(&self) -> bool {
        self.moves(1) || self.0.load(Ordering::Acquire) != GIVEN_UP
    }

    fn moves(&self, to: u8) -> bool {
        let moved = self
            .0
            .compare_exchange(0, to, Ordering::AcqRel, Ordering::Acquire);
        moved.is_ok()
    }
}

/// When a body may leave. A process that was held up does not send what is out of date.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leave {
    /// Its first byte leaves by then, or none.
    pub(super) begins_by: Instant,
    /// Its last byte leaves by then, or the body is cut.
    pub(super) ends_by: Instant,
}

/// A body that was held up.
#[derive(Debug, thiserror::Error)]
#[error("this process was held up for so long that the request is out of date")]
pub(super) struct HeldUp;

/// A body that is framed and compressed as it leaves, so that no second copy of it exists.
#[derive(Debug)]
pub(super) struct Payload {
    frames: Frames,
    is_compressed: bool,
    meter: Meter,
    leave: Leave,
}

impl Payload {
    pub(super) fn new(body: &body::Body, is_compressed: bool, meter: Meter, leave: Leave) -> Self {
        Self {
            frames: Frames::of(body, FRAME_BYTES),
            is_compressed,
            meter,
            leave,
        }
    }

    fn next_frame(&mut self) -> Option<Bytes> {
        let frame = self.frames.next()?;
        Some(match self.is_compressed {
            true => compressed(&frame),
            false => frame,
        })
    }
}

fn compressed(plain: &[u8]) -> Bytes {
    let start = CHECKSUM_BYTES + HEADER_BYTES;
    let most = lz4_flex::block::get_maximum_output_size(plain.len());
    let mut frame = vec![0; start + most];
    // The output has the size that LZ4 asks for at most: this cannot fail.
    let size = lz4_flex::block::compress_into(plain, &mut frame[start..]).unwrap_or_default();
    frame.truncate(start + size);
    let (checksum, rest) = frame.split_at_mut(CHECKSUM_BYTES);
    // A frame is 1 MiB, far below 4 GiB.
    let (inner, outer) = ((size + HEADER_BYTES) as u32, plain.len() as u32);
    rest[0] = LZ4;
    rest[1..5].copy_from_slice(&inner.to_le_bytes());
    rest[5..9].copy_from_slice(&outer.to_le_bytes());
    let hash = u128::from(ch_cityhash102::cityhash128(rest));
    checksum.copy_from_slice(&hash.to_le_bytes());
    Bytes::from(frame)
}

impl Body for Payload {
    type Data = Bytes;
    type Error = HeldUp;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HeldUp>>> {
        let leaves_by = match self.meter.sent() {
            Sent::Nothing => self.leave.begins_by.min(self.leave.ends_by),
            Sent::Some | Sent::All => self.leave.ends_by,
        };
        let is_late = Instant::now() > leaves_by;
        if self.frames.left() > 0 && (is_late || !self.meter.begins()) {
            return Poll::Ready(Some(Err(HeldUp)));
        }
        let frame = self.next_frame();
        let sent = if self.frames.left() == 0 { 2 } else { 1 };
        self.meter.0.fetch_max(sent, Ordering::AcqRel);
        Poll::Ready(frame.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        match self.is_compressed {
            true => SizeHint::default(),
            false => SizeHint::with_exact(self.frames.left() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn in_time() -> Leave {
        let later = Instant::now() + Duration::from_secs(60);
        Leave {
            begins_by: later,
            ends_by: later,
        }
    }

    fn poll(payload: &mut Payload) -> Option<Result<Frame<Bytes>, HeldUp>> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        match Pin::new(payload).poll_frame(&mut context) {
            Poll::Ready(frame) => frame,
            Poll::Pending => None,
        }
    }

    #[test]
    fn inv_2_what_is_out_of_date_does_not_leave() {
        let body = body::Body::from(vec![Bytes::from(vec![b'x'; 3 * FRAME_BYTES])]);
        let meter = Meter::default();
        let mut leave = in_time();
        leave.begins_by = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        let mut late = Payload::new(&body, false, meter.clone(), leave);
        assert!(matches!(poll(&mut late), Some(Err(HeldUp))));
        assert_eq!(meter.sent(), Sent::Nothing);
        let given_up = Meter::default();
        let mut kept = Payload::new(&body, true, given_up.clone(), in_time());
        assert!(given_up.give_up());
        assert!(matches!(poll(&mut kept), Some(Err(HeldUp))));
        assert_eq!(given_up.sent(), Sent::Nothing);
        let mut held_up = Payload::new(&body, true, meter.clone(), in_time());
        assert!(matches!(poll(&mut held_up), Some(Ok(_))));
        assert!(!meter.give_up());
        held_up.leave.ends_by = leave.begins_by;
        assert!(matches!(poll(&mut held_up), Some(Err(HeldUp))));
        assert_eq!(meter.sent(), Sent::Some);
    }

    #[test]
    fn frames_decompress_to_the_pieces_and_the_meter_follows() {
        let big = Bytes::from(vec![b'x'; 3 * FRAME_BYTES + 17]);
        let pieces = [
            Bytes::from_static(b"head"),
            Bytes::new(),
            big.clone(),
            Bytes::from_static(b"tail"),
        ];
        let meter = Meter::default();
        let body = body::Body::from(pieces.to_vec());
        let mut payload = Payload::new(&body, true, meter.clone(), in_time());
        assert_eq!(meter.sent(), Sent::Nothing);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut whole = Vec::new();
        while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut payload).poll_frame(&mut context) {
            let frame = frame.into_data().unwrap();
            let size = u32::from_le_bytes(frame[21..25].try_into().unwrap()) as usize;
            whole.extend(lz4_flex::block::decompress(&frame[25..], size).unwrap());
            assert!(meter.sent() >= Sent::Some);
        }
        assert_eq!(meter.sent(), Sent::All);
        assert_eq!(whole, pieces.concat());
    }
}
