use std::io::Write as _;

use proptest::prelude::*;

use super::*;

const SMALL: Bounds = Bounds {
    rows_max: 3,
    bytes_max: 8,
};

/// Lines that are there, with their numbers; large ones whole.
fn read(lines: &mut Lines) -> (Vec<(u64, Vec<u8>)>, Mark) {
    let (mut found, mut mark) = (Vec::new(), lines.mark);
    let mut large: Vec<u8> = Vec::new();
    loop {
        match lines.next().unwrap() {
            Part::End => return (found, mark),
            Part::Lines(part, after) => {
                assert!(part.len() <= 3);
                found.extend(part.into_iter().map(|line| (line.number, line.text)));
                mark = after;
            }
            Part::Piece { line, piece, end } => {
                assert!(piece.len() <= 9);
                large.extend(piece);
                if let Some(after) = end {
                    found.push((line, std::mem::take(&mut large)));
                    mark = after;
                }
            }
        }
    }
}

fn plain(text: &[u8]) -> Lines {
    Lines::new(io::Cursor::new(text.to_vec()), SMALL, 4).unwrap()
}

#[test]
fn gzip_and_zstd_are_known_by_their_first_bytes() {
    let text = b"one\ntwo\n\nthree";
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&text[..5]).unwrap();
    let mut both = gzip.finish().unwrap();
    // Two members, as `cat a.gz b.gz` gives them.
    let mut gzip = flate2::write::GzEncoder::new(both, flate2::Compression::fast());
    gzip.write_all(&text[5..]).unwrap();
    both = gzip.finish().unwrap();
    let zstd = zstd::encode_all(&text[..], 1).unwrap();
    let expected = read(&mut plain(text));
    assert_eq!(expected.0.len(), 3);
    assert_eq!(expected.0[2], (4, b"three".to_vec()));
    for compressed in [both, zstd] {
        let mut lines = Lines::new(io::Cursor::new(compressed.clone()), SMALL, 4).unwrap();
        assert_eq!(read(&mut lines), expected);
        let cut = compressed[..compressed.len() - 3].to_vec();
        let mut lines = Lines::new(io::Cursor::new(cut), SMALL, 4).unwrap();
        let ends_badly = (0..10).any(|_| lines.next().is_err());
        assert!(ends_badly, "a file that was cut off looks whole");
    }
}

proptest! {
    #[test]
    fn every_line_comes_once_from_wherever_one_goes_on(
        lines in prop::collection::vec("[a-c]{0,30}", 0..12),
        ends in any::<bool>(),
        at in 0..12_usize,
        changed in any::<bool>(),
    ) {
        let mut text = lines.join("\n");
        if ends && !lines.is_empty() {
            text.push('\n');
        }
        let written: Vec<(u64, Vec<u8>)> = (1..)
            .zip(text.lines())
            .filter(|(_, line)| !line.is_empty())
            .map(|(number, line)| (number, line.as_bytes().to_vec()))
            .collect();
        let (found, _) = read(&mut plain(text.as_bytes()));
        // An empty line that is large is no line: blank ones are left out.
        prop_assert_eq!(&found, &written);

        let before: Vec<&str> = text.lines().take(at).collect();
        let (_, mark) = read(&mut plain(before.join("\n").as_bytes()));
        let mut again = plain(text.as_bytes());
        prop_assert_eq!(again.identity().unwrap().is_none(), text.is_empty());
        if changed && !text.is_empty() && mark.lines > 0 && !before[0].is_empty() {
            let other = text.replacen(|_| true, "x", 1);
            prop_assert!(!plain(other.as_bytes()).skip(mark).unwrap());
        }
        prop_assert!(again.skip(mark).unwrap());
        let (rest, _) = read(&mut again);
        let expected: Vec<_> = written.into_iter().filter(|(n, _)| *n > mark.lines).collect();
        prop_assert_eq!(rest, expected);
        prop_assert_eq!(Mark::read(&mark.write()), Some(mark));
    }
}
