//! Each row of the table of answers, with texts of 18.16.1 and 26.9.2 where they could be provoked.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::super::answer::Strange;
use super::*;

fn answered(text: &str) -> Fault {
    Fault::Answered(Answer::failure(500, None, text.as_bytes(), Sent::All).unwrap())
}

fn of_code(code: u32) -> Fault {
    let header = code.to_string();
    Fault::Answered(Answer::failure(500, Some(&header), b"", Sent::All).unwrap())
}

fn of_status(status: u16, sent: Sent) -> Fault {
    Fault::Answered(Answer::failure(status, None, b"<html>", sent).unwrap())
}

/// The result by name, and the reaction.
fn told(fault: &Fault) -> (&'static str, Reaction) {
    match judge(fault, 1, true) {
        Delivery::Delivered(_) => ("delivered", Reaction::Backoff),
        Delivery::Retry(trouble) => ("retry", trouble.reaction),
        Delivery::Rejected(trouble) => ("rejected", trouble.reaction),
        Delivery::Unknown(trouble) => ("unknown", trouble.reaction),
    }
}

#[test]
fn every_code_of_the_table() {
    use Reaction::{Backoff, Halve, Replan, Slower, Stop};
    let rows: [(&[u32], (&str, Reaction)); 9] = [
        (
            &[202, 203, 242, 341, 373, 439, 517, 745],
            ("retry", Backoff),
        ),
        (&[40, 271], ("retry", Backoff)),
        (&[201, 243], ("retry", Slower)),
        (&[164, 192, 193, 194, 291, 497, 516, 574], ("retry", Stop)),
        (
            &[
                8, 10, 16, 20, 36, 44, 47, 48, 60, 62, 81, 115, 218, 344, 741,
            ],
            ("retry", Replan),
        ),
        (
            &[
                6, 26, 27, 32, 33, 38, 41, 53, 69, 70, 72, 117, 130, 131, 190, 321, 349, 376, 395,
                407, 441, 469, 675, 676, 691,
            ],
            ("rejected", Replan),
        ),
        (&[307, 396], ("rejected", Halve)),
        (
            &[
                3, 23, 24, 95, 159, 209, 210, 236, 279, 285, 286, 319, 394, 425, 999, 1000, 1001,
                1002,
            ],
            ("unknown", Backoff),
        ),
        // In no row: 49 is LOGICAL_ERROR, 225 does not say whether it was at the start.
        (&[49, 225, 12345], ("unknown", Backoff)),
    ];
    for (codes, expected) in rows {
        for code in codes {
            assert_eq!(told(&of_code(*code)), expected, "code {code}");
        }
    }
}

#[test]
fn texts_of_both_engines() {
    use Reaction::{Backoff, Halve, Replan, Slower, Stop};
    let rows = [
        (
            "Code: 252, e.displayText() = DB::Exception: Too many parts (1). Merges are processing significantly slower than inserts., e.what() = DB::Exception",
            ("retry", Slower),
        ),
        (
            "Code: 252. DB::Exception: Too many parts (1 with average size of 350.00 B) in table 'default.mt'. Merges are processing significantly slower than inserts. (TOO_MANY_PARTS)",
            ("retry", Slower),
        ),
        (
            "Code: 252. DB::Exception: Too many partitions for single INSERT block (more than 100). The limit is controlled by 'max_partitions_per_insert_block' setting. (TOO_MANY_PARTS)",
            ("retry", Stop),
        ),
        (
            "Code: 395, e.displayText() = DB::Exception: Value passed to 'throwIf' function is non zero: while pushing to view default.mv1, e.what() = DB::Exception",
            ("unknown", Stop),
        ),
        (
            "Code: 395. DB::Exception: Value passed to 'throwIf' function is non-zero: while pushing to view default.mv1. (FUNCTION_THROW_IF_VALUE_IS_NON_ZERO)",
            ("unknown", Stop),
        ),
        (
            "Code: 60. DB::Exception: Table default.target does not exist: while pushing to view default.mv1. (UNKNOWN_TABLE)",
            ("unknown", Stop),
        ),
        (
            "Code: 241. DB::Exception: Memory limit (total) exceeded: would use 9.31 GiB, maximum: 9.00 GiB. (MEMORY_LIMIT_EXCEEDED)",
            ("retry", Backoff),
        ),
        (
            "Code: 241. DB::Exception: Memory limit (for query) exceeded: would use 9.31 GiB, maximum: 9.00 GiB. (MEMORY_LIMIT_EXCEEDED)",
            ("unknown", Halve),
        ),
        (
            "Code: 241. DB::Exception: Query memory limit exceeded: would use 2.09 MiB, maximum: 976.56 KiB. (MEMORY_LIMIT_EXCEEDED)",
            ("unknown", Halve),
        ),
        (
            "Code: 193, e.displayText() = DB::Exception: Wrong password for user default, e.what() = DB::Exception",
            ("retry", Stop),
        ),
        (
            "Code: 192, e.displayText() = DB::Exception: Unknown user nobody, e.what() = DB::Exception",
            ("retry", Stop),
        ),
        (
            "Code: 516. DB::Exception: default: Authentication failed: password is incorrect, or there is no user with such name. (AUTHENTICATION_FAILED)",
            ("retry", Stop),
        ),
        (
            "Code: 164, e.displayText() = DB::Exception: Cannot insert into table in readonly mode, e.what() = DB::Exception",
            ("retry", Stop),
        ),
        (
            "Code: 60, e.displayText() = DB::Exception: Table default.nope doesn't exist., e.what() = DB::Exception",
            ("retry", Replan),
        ),
        (
            "Code: 60. DB::Exception: Table default.nope does not exist. Maybe you meant system.one?. (UNKNOWN_TABLE)",
            ("retry", Replan),
        ),
        (
            "Code: 16. DB::Exception: No such column zz in table default.t. (NO_SUCH_COLUMN_IN_TABLE)",
            ("retry", Replan),
        ),
        (
            "Code: 115. DB::Exception: Code: 115. DB::Exception: Unknown setting 'nope'. (UNKNOWN_SETTING)",
            ("retry", Replan),
        ),
        (
            "Code: 33, e.displayText() = DB::Exception: Cannot read all data in NativeBlockInputStream. Rows read: 0. Rows expected: 1., e.what() = DB::Exception",
            ("rejected", Replan),
        ),
        (
            "Code: 225. DB::Exception: Can't get ZooKeeper for distributed DDL. (NO_ZOOKEEPER)",
            ("retry", Backoff),
        ),
        ("no code at all, but a DB::Exception", ("unknown", Backoff)),
    ];
    for (text, expected) in rows {
        assert_eq!(told(&answered(text)), expected, "{text}");
    }
}

#[test]
fn status_connection_and_deadline() {
    use Reaction::{Backoff, Slower, Stop};
    let cause = || Arc::new(std::io::Error::other("gone"));
    for (fault, expected) in [
        (Fault::Unreachable(cause()), ("retry", Backoff)),
        (Fault::Untrusted(cause()), ("retry", Stop)),
        (Fault::Lost(cause()), ("unknown", Backoff)),
        (Fault::Overdue(Duration::from_secs(1)), ("unknown", Backoff)),
        (of_status(502, Sent::Nothing), ("retry", Backoff)),
        (of_status(504, Sent::Some), ("unknown", Backoff)),
        (of_status(503, Sent::All), ("unknown", Backoff)),
        (of_status(413, Sent::Some), ("rejected", Reaction::Halve)),
        (of_status(403, Sent::All), ("retry", Stop)),
        (of_status(429, Sent::All), ("retry", Slower)),
        (of_status(500, Sent::All), ("unknown", Backoff)),
    ] {
        assert_eq!(told(&fault), expected, "{fault:?}");
    }
}

#[test]
fn success_is_status_header_and_text_together() {
    let failure =
        |status, header, body: &str| Answer::failure(status, header, body.as_bytes(), Sent::All);
    assert_eq!(failure(200, None, ""), None);
    assert!(failure(200, Some("319"), "").is_some());
    assert!(failure(500, None, "").is_some());
    let late = failure(200, None, "Code: 999. DB::Exception: Session expired").unwrap();
    assert_eq!(late.code, Some(999));
}

#[test]
fn a_success_is_clickhouses_own() {
    let named = HeaderMap::from_iter([(
        HeaderName::from_static("x-clickhouse-server-display-name"),
        HeaderValue::from_static("ch1"),
    )]);
    let nameless = HeaderMap::new();
    assert_eq!(Strange::of(&named, b"", true), None);
    assert_eq!(Strange::of(&named, b"1\n", false), None);
    assert_eq!(Strange::of(&named, b"<html>", true), Some(Strange::Wordy));
    assert_eq!(Strange::of(&nameless, b"", true), Some(Strange::Nameless));
    assert_eq!(Strange::of(&nameless, b"1", false), Some(Strange::Nameless));
    let fault = Fault::Foreign(Strange::Nameless);
    assert_eq!(told(&fault), ("unknown", Reaction::Backoff));
    assert!(fault.to_string().contains("between relay and server"));
}

#[test]
fn damage_in_transit_stops_after_two_resends() {
    let reactions = [1, 2, 3].map(|attempt| match judge(&of_code(40), attempt, true) {
        Delivery::Retry(trouble) => trouble.reaction,
        other => panic!("{other:?}"),
    });
    assert_eq!(
        reactions,
        [Reaction::Backoff, Reaction::Backoff, Reaction::Stop]
    );
}

#[test]
fn without_a_token_a_late_error_is_no_proof() {
    let told = |fault: &Fault| match judge(fault, 1, false) {
        Delivery::Retry(_) => "retry",
        Delivery::Rejected(_) => "rejected",
        Delivery::Unknown(_) => "unknown",
        Delivery::Delivered(_) => "delivered",
    };
    for code in [201, 225, 241, 242, 243, 341, 439, 517] {
        assert_eq!(told(&of_code(code)), "unknown", "code {code}");
    }
    let total = "Code: 241. DB::Exception: Memory limit (total) exceeded: would use 9.31 GiB.";
    assert_eq!(told(&answered(total)), "unknown");
    // Raised before execution or while parsing, whoever reads them.
    for code in [202, 203, 373, 745, 40, 60, 16, 115, 164, 193, 516] {
        assert_eq!(told(&of_code(code)), "retry", "code {code}");
    }
    for code in [33, 53, 117] {
        assert_eq!(told(&of_code(code)), "rejected", "code {code}");
    }
    let early = Answer::failure(500, Some("243"), b"", Sent::Some).unwrap();
    assert_eq!(told(&Fault::Answered(early)), "retry");
}

#[test]
fn values_of_a_violated_constraint_are_not_kept() {
    let fault = answered(
        "Code: 469. DB::Exception: Constraint `pos` for table default.t is violated at row 1. \
         Expression: (d > 3). Column values: d = 'secret'. (VIOLATED_CONSTRAINT)",
    );
    let Delivery::Rejected(trouble) = judge(&fault, 1, true) else {
        panic!("not rejected")
    };
    assert!(trouble.reason.contains("Constraint `pos`") && !trouble.reason.contains("secret"));
}

#[test]
fn a_query_is_never_a_matter_of_rows() {
    assert_eq!(trouble(&of_code(53)).reaction, Reaction::Stop);
    assert_eq!(trouble(&of_code(159)).reaction, Reaction::Backoff);
}
