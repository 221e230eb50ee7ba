//! The bytes of an insert: kept once, and put in their order while they leave. Pure.
//!
//! A sink that sorts rows by its own key takes a block faster when they come sorted. Sorting them in
//! memory would hold a block twice; here only the order is kept beside the values.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// A stretch of a value from this size on leaves as a frame of its own, without a copy.
const OWN_FRAME_BYTES: usize = 64 * 1024;

/// The bytes of one insert. Cheap to clone.
#[derive(Clone, Default)]
pub struct Body(Arc<Vec<Part>>);

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.len())
    }
}

/// A stretch of a body.
#[derive(Debug)]
pub enum Part {
    /// As it is.
    Plain(Bytes),
    /// The same bytes so many times.
    Repeated(Box<[u8]>, usize),
    /// Values in an order of their own.
    Ordered(Values, Arc<[u32]>),
}

/// Values that lie one after the other in pieces.
#[derive(Debug)]
pub struct Values {
    /// The bytes.
    pub pieces: Vec<Bytes>,
    /// Where each value is.
    pub places: Places,
}

/// Where values lie.
#[derive(Debug)]
pub enum Places {
    /// Each takes so many bytes, and each piece but the last holds [`per_piece`] of them.
    Even(usize),
    /// The place of each.
    Listed(Vec<Place>),
}

/// Size of a piece: no value begins behind so many bytes of one.
pub const PIECE_BYTES_MAX: usize = 1 << OFFSET_BITS;
const OFFSET_BITS: u32 = 19;

/// Values of this width that a piece has room for.
pub const fn per_piece(width: usize) -> usize {
    match width {
        0 | PIECE_BYTES_MAX.. => 1,
        width => PIECE_BYTES_MAX / width,
    }
}

/// Where a value begins. It ends where the next one begins, or with the last piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u32);

impl Place {
    /// At an offset in a piece; `None` when it is further away than can be told.
    pub fn new(piece: usize, offset: usize) -> Option<Self> {
        let piece = u32::try_from(piece).ok()?;
        let offset = u32::try_from(offset).ok()?;
        let is_told = piece << OFFSET_BITS >> OFFSET_BITS == piece && offset >> OFFSET_BITS == 0;
        is_told.then_some(Self(piece << OFFSET_BITS | offset))
    }

    fn piece(self) -> usize {
        (self.0 >> OFFSET_BITS) as usize
    }

    fn offset(self) -> usize {
        self.0 as usize & (PIECE_BYTES_MAX - 1)
    }
}

impl Values {
    /// The bytes of a value, piece by piece.
    fn shared(&self, index: usize) -> VecDeque<Bytes> {
        let ((first, start), (last, end)) = match &self.places {
            Places::Even(width) => {
                let (piece, start) = (index / per_piece(*width), index % per_piece(*width) * width);
                ((piece, start), (piece, start + width))
            }
            Places::Listed(places) => (begin_of(places, index), begin_of(places, index + 1)),
        };
        let pieces = self.pieces.iter().enumerate().skip(first);
        let stretches = pieces.take_while(|(piece, _)| *piece <= last);
        let stretches = stretches.filter_map(|(piece, bytes)| {
            let from = if piece == first { start } else { 0 };
            let to = if piece == last { end } else { bytes.len() };
            (from < to && to <= bytes.len()).then(|| bytes.slice(from..to))
        });
        stretches.collect()
    }

    /// Copies values of one width; of the usual ones as numbers, which takes no call for each.
    fn copy_even(&self, order: &[u32], width: usize, to: &mut Vec<u8>) {
        match width {
            1 => self.copy_numbers::<1>(order, to),
            2 => self.copy_numbers::<2>(order, to),
            4 => self.copy_numbers::<4>(order, to),
            8 => self.copy_numbers::<8>(order, to),
            16 => self.copy_numbers::<16>(order, to),
            _ => {
                for index in order {
                    let index = *index as usize;
                    let start = index % per_piece(width) * width;
                    let piece = self.pieces.get(index / per_piece(width));
                    let value = piece.and_then(|piece| piece.get(start..start + width));
                    to.extend_from_slice(value.unwrap_or_default());
                }
            }
        }
    }

    /// A value that is not where it should be makes the body shorter than it says, which is refused.
    fn copy_numbers<const N: usize>(&self, order: &[u32], to: &mut Vec<u8>) {
        for index in order {
            let index = *index as usize;
            let start = index % const { per_piece(N) } * N;
            let rest = self.pieces.get(index / const { per_piece(N) });
            let rest = rest.and_then(|piece| piece.get(start..));
            if let Some(value) = rest.and_then(|rest| rest.first_chunk::<N>()) {
                to.extend_from_slice(value);
            }
        }
    }

    /// Copies values until one has no room, is large or lies in several pieces; how many.
    fn copy_listed(&self, order: &[u32], places: &[Place], room: usize, to: &mut Vec<u8>) -> usize {
        let full = to.len() + room;
        for (copied, index) in order.iter().enumerate() {
            let Some(value) = self.within_a_piece(places, *index as usize) else {
                return copied;
            };
            if value.len() >= OWN_FRAME_BYTES || to.len() + value.len() > full {
                return copied;
            }
            to.extend_from_slice(value);
        }
        order.len()
    }

    /// A listed value, unless it lies in several pieces.
    fn within_a_piece(&self, places: &[Place], index: usize) -> Option<&[u8]> {
        let place = places.get(index)?;
        let piece = self.pieces.get(place.piece())?;
        let end = match places.get(index + 1) {
            Some(next) if next.piece() == place.piece() => next.offset(),
            Some(next) if next.piece() == place.piece() + 1 && next.offset() == 0 => piece.len(),
            None if place.piece() + 1 == self.pieces.len() => piece.len(),
            _ => return None,
        };
        piece.get(place.offset()..end)
    }

    fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
}

/// Piece and offset where a listed value begins; behind the last one, no piece.
fn begin_of(places: &[Place], index: usize) -> (usize, usize) {
    let place = places.get(index);
    place.map_or((usize::MAX, 0), |place| (place.piece(), place.offset()))
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Plain(bytes) => bytes.len(),
            Self::Repeated(bytes, count) => bytes.len() * count,
            Self::Ordered(values, _) => values.len(),
        }
    }
}

impl From<Vec<Part>> for Body {
    fn from(parts: Vec<Part>) -> Self {
        Self(Arc::new(parts))
    }
}

impl From<Vec<Bytes>> for Body {
    fn from(pieces: Vec<Bytes>) -> Self {
        Self::from(pieces.into_iter().map(Part::Plain).collect::<Vec<_>>())
    }
}

impl Body {
    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.0.iter().map(Part::len).sum()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it.
    pub fn concat(&self) -> Vec<u8> {
        let mut whole = Vec::with_capacity(self.len());
        for frame in Frames::of(self, OWN_FRAME_BYTES) {
            whole.extend_from_slice(&frame);
        }
        whole
    }
}

/// A body as it leaves, frame by frame.
#[derive(Debug)]
pub struct Frames {
    body: Body,
    frame_bytes: usize,
    part: usize,
    /// Values of the part that are gone.
    at: usize,
    /// Bytes that come next, before the rest of the part.
    next: VecDeque<Bytes>,
    left: usize,
}

impl Frames {
    /// In frames of up to so many bytes.
    pub fn of(body: &Body, frame_bytes: usize) -> Self {
        Self {
            body: body.clone(),
            frame_bytes: frame_bytes.max(OWN_FRAME_BYTES),
            part: 0,
            at: 0,
            next: VecDeque::new(),
            left: body.len(),
        }
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Copies what comes next behind `gathered`, as far as there is room; whether there was.
    fn gather(&mut self, gathered: &mut Vec<u8>) -> bool {
        let frame_bytes = self.frame_bytes;
        let room = |gathered: &Vec<u8>| frame_bytes - gathered.len();
        if let Some(next) = self.next.front_mut() {
            let some = next.split_to(next.len().min(room(gathered)));
            gathered.extend_from_slice(&some);
            return self.next.pop_front_if(|next| next.is_empty()).is_some();
        }
        let parts = Arc::clone(&self.body.0);
        match parts.get(self.part) {
            None => return false,
            Some(Part::Plain(bytes)) => self.next.push_back(bytes.clone()),
            Some(Part::Repeated(bytes, count)) => {
                while self.at < *count {
                    if bytes.len() > room(gathered) {
                        return false;
                    }
                    gathered.extend_from_slice(bytes);
                    self.at += 1;
                }
            }
            Some(Part::Ordered(values, order)) => {
                let left = order.get(self.at..).unwrap_or(&[]);
                let free = room(gathered);
                let copied = match &values.places {
                    Places::Even(width) => {
                        let count = left.len().min(free / (*width).max(1));
                        values.copy_even(&left[..count], *width, gathered);
                        count
                    }
                    Places::Listed(places) => values.copy_listed(left, places, free, gathered),
                };
                self.at += copied;
                if let Some(index) = left.get(copied) {
                    let value = values.shared(*index as usize);
                    let length: usize = value.iter().map(Bytes::len).sum();
                    if length < OWN_FRAME_BYTES && length > room(gathered) {
                        return false;
                    }
                    self.next = value;
                    self.at += 1;
                    return true;
                }
            }
        }
        self.part += 1;
        self.at = 0;
        true
    }
}

impl Iterator for Frames {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut gathered = Vec::new();
        loop {
            if let Some(next) = self.next.front_mut()
                && next.len() >= OWN_FRAME_BYTES
            {
                if gathered.is_empty() {
                    let frame = next.split_to(next.len().min(self.frame_bytes));
                    self.left -= frame.len();
                    return Some(frame);
                }
                break;
            }
            if gathered.capacity() == 0 {
                gathered.reserve_exact(self.left.min(self.frame_bytes));
            }
            if !self.gather(&mut gathered) {
                break;
            }
        }
        self.left -= gathered.len();
        (!gathered.is_empty()).then(|| Bytes::from(gathered))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Values in pieces of their own number, each as long as it says; the last of each goes on in the next
    /// piece, or in the next two.
    fn values(pieces: &[Vec<usize>], overhang: usize) -> (Values, Vec<Vec<u8>>) {
        let (mut laid, mut places, mut each) = (Vec::new(), Vec::new(), Vec::new());
        let mut bytes = Vec::new();
        for lengths in pieces {
            for length in lengths {
                places.push(Place::new(laid.len(), bytes.len()).unwrap());
                let value: Vec<u8> = (0..*length).map(|at| (each.len() * 7 + at) as u8).collect();
                bytes.extend_from_slice(&value);
                each.push(value);
            }
            let last = lengths.last().copied().unwrap_or_default();
            let rest = bytes.split_off(bytes.len() - overhang.min(last));
            laid.push(Bytes::from(std::mem::replace(&mut bytes, rest)));
            if overhang % 2 == 1 {
                let rest = bytes.split_off(bytes.len() / 2);
                laid.push(Bytes::from(std::mem::replace(&mut bytes, rest)));
            }
        }
        laid.push(Bytes::from(bytes));
        let places = Places::Listed(places);
        let values = Values {
            pieces: laid,
            places,
        };
        (values, each)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn frames_are_the_body_in_its_order(
            lengths in vec(vec(prop_oneof![0_usize..40, 60_000_usize..100_000], 0..5), 0..5),
            overhang in prop_oneof![Just(0), 0_usize..40, 0_usize..100_000],
            head in 0_usize..100_000,
            repeated in 0_usize..3000,
            seed: u64,
            frame_bytes in 1_usize..300_000,
        ) {
            let (values, each) = values(&lengths, overhang);
            let mut order: Vec<u32> = (0..u32::try_from(each.len()).unwrap()).collect();
            order.sort_by_key(|index| u64::from(*index).wrapping_mul(seed | 1));
            let mut expected = vec![b'h'; head];
            expected.extend(b"abcdefgh".repeat(repeated));
            for index in &order {
                expected.extend_from_slice(&each[*index as usize]);
            }
            let body = Body::from(vec![
                Part::Plain(Bytes::from(vec![b'h'; head])),
                Part::Repeated(b"abcdefgh".as_slice().into(), repeated),
                Part::Ordered(values, order.into()),
            ]);
            prop_assert_eq!(body.len(), expected.len());
            let mut frames = Frames::of(&body, frame_bytes);
            let mut whole = Vec::new();
            while let Some(frame) = frames.next() {
                prop_assert!(!frame.is_empty() && frame.len() <= frame_bytes.max(OWN_FRAME_BYTES));
                whole.extend_from_slice(&frame);
                prop_assert_eq!(frames.left(), expected.len() - whole.len());
            }
            prop_assert!(whole == expected);
            prop_assert!(body.concat() == expected);
        }
    }

    #[test]
    fn even_values_are_found_in_every_piece() {
        for width in [1, 4, 7] {
            let count = per_piece(width) + 3;
            let value = |index: usize| vec![(index % 251) as u8; width];
            let all: Vec<u8> = (0..count).flat_map(value).collect();
            let (first, last) = all.split_at(per_piece(width) * width);
            let pieces = [first, last].map(Bytes::copy_from_slice).to_vec();
            let places = Places::Even(width);
            let backwards = (0..count as u32).rev().collect();
            let body = Body::from(vec![Part::Ordered(Values { pieces, places }, backwards)]);
            let expected: Vec<u8> = (0..count).rev().flat_map(value).collect();
            assert!(body.concat() == expected, "{width}");
        }
    }
}
