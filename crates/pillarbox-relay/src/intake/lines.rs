//! The lines of a file or of standard input, in batches of bounded size. Plain, gzip or zstd, which their
//! first bytes tell.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Bounds;

/// What is read from the system at once.
const BUFFER: usize = 256 * 1024;

/// First bytes of gzip (RFC 1952) and of zstd (RFC 8878).
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A line that is not blank.
#[derive(Debug)]
pub(crate) struct Line {
    /// From 1.
    pub(crate) number: u64,
    pub(crate) text: Vec<u8>,
}

/// How far the lines were read: everything before has this hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) lines: u64,
    pub(crate) bytes: u64,
    pub(crate) hash: u64,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Part {
    /// Whole lines, up to the mark.
    Lines(Vec<Line>, Mark),
    /// A piece of a line that is larger than what is held at once; the mark with the last one.
    Piece {
        line: u64,
        piece: Vec<u8>,
        end: Option<Mark>,
    },
    End,
}

/// Reads lines.
pub(crate) struct Lines {
    from: Box<dyn BufRead + Send>,
    raw: Arc<AtomicU64>,
    bounds: Bounds,
    piece_max: usize,
    mark: Mark,
    /// A line that did not fit into the last batch, or whose rest comes in pieces.
    held: Option<Held>,
}

#[derive(Debug)]
enum Held {
    Whole(Line, Mark),
    Piece(Vec<u8>),
    Rest,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines")
            .field("mark", &self.mark)
            .finish_non_exhaustive()
    }
}

/// Counts what passes.
struct Counting<R> {
    from: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Lines {
    pub(crate) fn new(
        mut from: impl Read + Send + 'static,
        bounds: Bounds,
        piece_max: usize,
    ) -> io::Result<Self> {
        let raw = Arc::new(AtomicU64::new(0));
        let mut start = [0; ZSTD.len()];
        let mut known = 0;
        while known < start.len() {
            match from.read(&mut start[known..])? {
                0 => break,
                read => known += read,
            }
        }
        let whole = io::Cursor::new(start).take(known as u64).chain(from);
        let counted = Counting {
            from: whole,
            count: Arc::clone(&raw),
        };
        let from: Box<dyn BufRead + Send> = match start[..known] {
            [a, b, ..] if [a, b] == GZIP => {
                let decoder = flate2::bufread::MultiGzDecoder::new(buffered(counted));
                Box::new(buffered(decoder))
            }
            ref start if *start == ZSTD => {
                Box::new(buffered(zstd::stream::read::Decoder::new(counted)?))
            }
            _ => Box::new(buffered(counted)),
        };
        Ok(Self {
            from,
            raw,
            bounds,
            piece_max,
            mark: Mark::default(),
            held: None,
        })
    }

    /// Bytes that were read from the file, compressed as they are there.
    pub(crate) fn raw(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.raw)
    }

    /// What tells these lines from others, also when more have come behind them: the hash of the first
    /// one. `None` when there is none.
    pub(crate) fn identity(&mut self) -> io::Result<Option<u64>> {
        self.held = self.line(self.mark)?;
        Ok(match &self.held {
            Some(Held::Whole(line, _)) => Some(ch_cityhash102::cityhash64(&line.text)),
            Some(Held::Piece(begun)) => Some(ch_cityhash102::cityhash64(begun)),
            Some(Held::Rest) | None => None,
        })
    }

    /// Passes over what was read before, and tells whether it was the same.
    pub(crate) fn skip(&mut self, until: Mark) -> io::Result<bool> {
        while self.mark.lines < until.lines {
            match self.held.take() {
                Some(Held::Whole(_, after)) => self.mark = after,
                Some(held) => {
                    self.held = Some(held);
                    self.piece()?;
                }
                None => match self.line(self.mark)? {
                    None => return Ok(false),
                    Some(Held::Whole(_, after)) => self.mark = after,
                    begun => self.held = begun,
                },
            }
        }
        Ok((self.mark.lines, self.mark.hash) == (until.lines, until.hash))
    }

    /// The next part. A large line comes by itself.
    pub(crate) fn next(&mut self) -> io::Result<Part> {
        if matches!(self.held, Some(Held::Piece(_) | Held::Rest)) {
            return self.piece();
        }
        let (mut lines, mut bytes, mut mark) = (Vec::new(), 0_u64, self.mark);
        let start = mark.lines;
        while mark.lines - start < self.bounds.rows_max {
            let (line, after) = match self.held.take() {
                Some(Held::Whole(line, after)) => (line, after),
                _ => match self.line(mark)? {
                    None => break,
                    Some(Held::Whole(line, after)) => (line, after),
                    Some(begun) => {
                        self.held = Some(begun);
                        break;
                    }
                },
            };
            let size = line.text.len() as u64;
            if bytes > 0 && bytes + size > self.bounds.bytes_max {
                self.held = Some(Held::Whole(line, after));
                break;
            }
            (bytes, mark) = (bytes + size, after);
            if !line.text.trim_ascii().is_empty() {
                lines.push(line);
            }
        }
        let is_start_of_large = matches!(self.held, Some(Held::Piece(_))) && mark == self.mark;
        if is_start_of_large {
            return self.piece();
        }
        if mark == self.mark {
            return Ok(Part::End);
        }
        self.mark = mark;
        Ok(Part::Lines(lines, mark))
    }

    /// One line; what there is of it when it is too large.
    fn line(&mut self, before: Mark) -> io::Result<Option<Held>> {
        let mut text = Vec::new();
        // One more than allowed, and the end of the line.
        let limit = self.bounds.bytes_max + 1;
        let read = (&mut self.from).take(limit).read_until(b'\n', &mut text)? as u64;
        if read == 0 {
            return Ok(None);
        }
        if read == limit && text.last() != Some(&b'\n') {
            return Ok(Some(Held::Piece(text)));
        }
        text.pop_if(|last| *last == b'\n');
        let mut after = before.after(&text, true);
        after.bytes = before.bytes + read;
        let number = after.lines;
        Ok(Some(Held::Whole(Line { number, text }, after)))
    }

    fn piece(&mut self) -> io::Result<Part> {
        let mut text = match self.held.take() {
            Some(Held::Piece(text)) => text,
            _ => Vec::new(),
        };
        let (mut is_end, mut read) = (false, text.len() as u64);
        if text.is_empty() {
            let limit = self.piece_max as u64;
            read = (&mut self.from).take(limit).read_until(b'\n', &mut text)? as u64;
            is_end = read < limit || text.last() == Some(&b'\n');
        }
        text.pop_if(|last| *last == b'\n');
        let bytes = self.mark.bytes + read;
        self.mark = self.mark.after(&text, is_end);
        self.mark.bytes = bytes;
        let line = self.mark.lines + u64::from(!is_end);
        self.held = (!is_end).then_some(Held::Rest);
        let end = is_end.then_some(self.mark);
        Ok(Part::Piece {
            line,
            piece: text,
            end,
        })
    }
}

fn buffered<R: Read>(from: R) -> BufReader<R> {
    BufReader::with_capacity(BUFFER, from)
}

impl Mark {
    /// After this text, whose bytes are not counted yet.
    fn after(self, text: &[u8], is_line: bool) -> Self {
        let hash = ch_cityhash102::cityhash64(text);
        let both = [self.hash.to_be_bytes(), hash.to_be_bytes()].concat();
        Self {
            lines: self.lines + u64::from(is_line),
            bytes: self.bytes,
            hash: ch_cityhash102::cityhash64(&both),
        }
    }

    /// As PostgreSQL keeps it.
    pub(crate) fn write(self) -> String {
        format!("{} {} {:016x}", self.lines, self.bytes, self.hash)
    }

    pub(crate) fn read(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let mark = Self {
            lines: parts.next()?.parse().ok()?,
            bytes: parts.next()?.parse().ok()?,
            hash: u64::from_str_radix(parts.next()?, 16).ok()?,
        };
        parts.next().is_none().then_some(mark)
    }
}

#[cfg(test)]
mod tests;
