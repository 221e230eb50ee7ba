//! Any answer of a server, or of something that is none: no panic, nothing taken for success that may
//! not be one, and no value of a column in what is logged.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pillarbox_relay::fuzzing::read_answer;

#[derive(Arbitrary, Debug)]
struct Given<'a> {
    status: u16,
    header: Option<&'a str>,
    body: &'a [u8],
    has_token: bool,
    /// What a violated constraint shows of a row, behind the body.
    values: Option<&'a str>,
}

fuzz_target!(|given: Given<'_>| {
    let mut body = given.body.to_vec();
    if let Some(values) = given.values {
        body.extend(b"Column values: ");
        body.extend(values.as_bytes());
    }
    let Some(read) = read_answer(given.status, given.header, &body, given.has_token) else {
        assert_eq!(given.status, 200, "a failure taken for success");
        assert_eq!(given.header, None, "an exception taken for success");
        let text = String::from_utf8_lossy(&body);
        assert!(!text.contains("DB::Exception") && !text.contains("__exception__"));
        return;
    };
    assert!(!read.is_delivered);
    // Status 200 and an exception: the rows were read, and who knows how many were written.
    if given.status == 200 && read.code.is_none() {
        assert!(read.is_unknown, "{read:?}");
    }
    assert!(read.text.len() <= 1000);
    assert!(!read.text.contains("Column values:"));
    let header = given.header.and_then(|header| header.trim().parse().ok());
    assert!(header.is_none() || read.code == header, "the header's code outranks the text");
});
