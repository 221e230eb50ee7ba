//! Negative controls: each kind of finding is found, and nothing else.

use uuid::Uuid;

use super::{Content, End, Finding, Found, Oracle, Precision, Published, Verdict};

const TIME_US: i64 = 1_795_168_800_123_456;

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn content(event_context: &str) -> Content<'_> {
    Content {
        event_type: "user_created",
        environment: "production",
        event_context: event_context.as_bytes(),
        metadata_version: 1,
    }
}

fn published(n: u128) -> Published {
    Published::new(id(n), &content("{}"), TIME_US)
}

fn found(n: u128) -> Found {
    Found::new(id(n), &content("{}"), TIME_US, Precision::Micros)
}

/// Three committed events, one that was rolled back.
fn oracle() -> Oracle {
    let oracle = Oracle::new();
    (1..=3).for_each(|n| oracle.committed(published(n)));
    oracle.rolled_back(id(9));
    oracle
}

fn one(n: u128) -> Finding {
    Finding {
        count: 1,
        sample: vec![id(n)],
    }
}

fn good(delivered: u64) -> Verdict {
    Verdict {
        published: 3,
        delivered,
        rolled_back: 1,
        ..Verdict::default()
    }
}

#[test]
fn all_there_once_holds() {
    let verdict = oracle().verdict(&[found(3), found(1), found(2)], &[]);
    assert_eq!(verdict, good(3));
    assert!(verdict.holds());
    assert_eq!(verdict.explain(), "");
    assert_eq!(
        verdict.to_string(),
        "published=3 delivered=3 dead=0 lost=0 duplicated=0 phantom=0 altered=0"
    );
}

#[test]
fn a_missing_event_is_lost() {
    let verdict = oracle().verdict(&[found(1), found(3)], &[]);
    let lost = one(2);
    assert_eq!(verdict, Verdict { lost, ..good(2) });
    assert!(!verdict.holds());
    assert_eq!(verdict.explain(), format!("lost 1: {}\n", id(2)));
}

#[test]
fn a_dead_letter_is_not_lost() {
    let verdict = oracle().verdict(&[found(1), found(3)], &[found(2)]);
    let dead = 1;
    assert_eq!(verdict, Verdict { dead, ..good(2) });
    assert!(verdict.holds());
}

#[test]
fn a_second_copy_is_duplicated_also_in_the_dead_letters() {
    let all = [found(1), found(2), found(3)];
    let duplicated = one(2);
    let wanted = Verdict {
        duplicated,
        ..good(3)
    };
    let twice: Vec<Found> = all.into_iter().chain([found(2)]).collect();
    assert_eq!(oracle().verdict(&twice, &[]), wanted);
    assert_eq!(oracle().verdict(&all, &[found(2)]), wanted);
    assert!(!wanted.holds());
}

#[test]
fn a_dead_letter_that_differs_is_altered() {
    let letter = Found::new(id(2), &content("{ }"), TIME_US, Precision::Micros);
    let verdict = oracle().verdict(&[found(1), found(3)], &[letter]);
    let (altered, dead) = (one(2), 1);
    let wanted = Verdict {
        altered,
        dead,
        ..good(2)
    };
    assert_eq!(verdict, wanted);
    assert!(!verdict.holds());
}

#[test]
fn poison_in_the_sink_and_a_good_event_in_the_dead_letters_are_misplaced() {
    let oracle = oracle();
    oracle.committed(published(1).must_end(End::Sink));
    oracle.committed(published(2).must_end(End::DeadLetters));
    assert!(oracle.verdict(&[found(1), found(3)], &[found(2)]).holds());
    let dead = [found(1), found(2), found(3)];
    for (rows, letters, wrong) in [(&dead[..], &[][..], 2), (&[], &dead, 1)] {
        let verdict = oracle.verdict(rows, letters);
        assert_eq!(verdict.misplaced, one(wrong));
        assert!(!verdict.holds());
        assert!(verdict.to_string().ends_with(" altered=0 misplaced=1"));
    }
}

#[test]
fn what_never_committed_is_phantom() {
    for n in [9, 77] {
        let all = [found(1), found(2), found(3), found(n)];
        let verdict = oracle().verdict(&all, &[]);
        let phantom = one(n);
        assert_eq!(verdict, Verdict { phantom, ..good(3) });
        assert!(!verdict.holds());
    }
}

#[test]
fn any_changed_column_is_altered() {
    let plain = content("{}");
    let changed = [
        Content {
            event_type: "user_deleted",
            ..plain
        },
        Content {
            environment: "staging",
            ..plain
        },
        Content {
            event_context: b"{ }",
            ..plain
        },
        Content {
            metadata_version: 2,
            ..plain
        },
        // The same bytes, cut elsewhere.
        Content {
            event_type: "user_create",
            environment: "dproduction",
            ..plain
        },
    ];
    let mut rows: Vec<Found> = changed
        .iter()
        .map(|content| Found::new(id(2), content, TIME_US, Precision::Micros))
        .collect();
    rows.push(Found::new(id(2), &plain, TIME_US + 1, Precision::Micros));
    for row in rows {
        let verdict = oracle().verdict(&[found(1), row, found(3)], &[]);
        let altered = one(2);
        assert_eq!(verdict, Verdict { altered, ..good(3) });
        assert!(!verdict.holds());
    }
}

#[test]
fn a_time_is_compared_as_finely_as_the_column_holds_it() {
    let row = |time_us| Found::new(id(1), &content("{}"), time_us, Precision::Seconds);
    let oracle = Oracle::new();
    oracle.committed(published(1));
    let second = TIME_US - 123_456;
    assert!(oracle.verdict(&[row(second)], &[]).holds());
    for other in [second - 1_000_000, second + 1_000_000] {
        assert_eq!(oracle.verdict(&[row(other)], &[]).altered, one(1));
    }
    oracle.committed(Published::between(
        id(1),
        &content("{}"),
        TIME_US,
        TIME_US + 1_000_000,
    ));
    assert!(oracle.verdict(&[row(second)], &[]).holds());
    assert!(oracle.verdict(&[row(second + 1_000_000)], &[]).holds());
    assert_eq!(
        oracle.verdict(&[row(second - 1_000_000)], &[]).altered,
        one(1)
    );
    assert_eq!(
        oracle.verdict(&[row(second + 2_000_000)], &[]).altered,
        one(1)
    );
}

#[test]
fn an_unanswered_commit_is_resolved_by_a_look() {
    let oracle = oracle();
    oracle.unanswered(published(4));
    oracle.unanswered(published(5));
    let all = [found(1), found(2), found(3), found(4)];
    let verdict = oracle.verdict(&all, &[]);
    assert_eq!(verdict.unresolved.count, 2);
    assert!(!verdict.holds());
    assert!(verdict.to_string().ends_with(" unresolved=2"));

    let mut unresolved = oracle.unresolved();
    unresolved.sort();
    assert_eq!(unresolved, [id(4), id(5)]);
    oracle.resolve(id(4), true);
    oracle.resolve(id(5), false);
    oracle.resolve(id(1), false);
    assert!(oracle.verdict(&all, &[]).holds());
    assert_eq!(oracle.published(), 4);
    assert_eq!(oracle.verdict(&all[..3], &[]).lost, one(4));
    assert_eq!(oracle.verdict(&[found(5)], &[]).phantom, one(5));
}

#[test]
fn a_sample_is_bounded_and_the_count_is_not() {
    let oracle = Oracle::new();
    (0..1_000).for_each(|n| oracle.committed(published(n)));
    let verdict = oracle.verdict(&[], &[]);
    assert_eq!(verdict.lost.count, 1_000);
    assert_eq!(verdict.lost.sample.len(), 10);
}

#[test]
fn any_changed_byte_of_a_context_changes_the_hash() {
    let text = "0123456789abcdefghijk";
    let plain = content(text).hash();
    for at in 0..text.len() {
        let mut bytes = text.as_bytes().to_vec();
        bytes[at] ^= 1;
        let changed = Content {
            event_context: &bytes,
            ..content(text)
        };
        assert_ne!(changed.hash(), plain, "byte {at}");
        assert_ne!(content(&text[..at]).hash(), plain, "cut at {at}");
    }
    assert_ne!(content("ab\0").hash(), content("ab").hash());
    assert_ne!(
        content("8765432112345678").hash(),
        content("1234567887654321").hash()
    );
}
