//! What each answer of a server means for an insert. Pure. Everything not listed is *unknown*.

use super::answer::{Answer, Fault};
use super::code;
use super::payload::Sent;
use crate::sink::{Delivery, Reaction, Trouble};

/// A body damaged in transit is sent so often before the sink stops: then it is not chance.
const DAMAGED_ATTEMPTS_MAX: u32 = 3;

/// What an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// Nothing was written; try again.
    Refused(Reaction),
    /// The rows are bad and nothing was written.
    BadRows,
    /// The block is too large and nothing was written.
    TooLarge,
    /// Nobody knows.
    InDoubt(Reaction),
}

/// What became of the `attempt`-th insert of a block, which carried a token or not.
///
/// A token makes a refusal that was none harmless. Without one, an error that came after the whole
/// body is no proof that nothing was written, unless its code is raised before anything is.
pub(super) fn judge(fault: &Fault, attempt: u32, has_token: bool) -> Delivery {
    let meaning = match fault {
        Fault::Unreachable(_) => Meaning::Refused(Reaction::Backoff),
        Fault::Untrusted(_) => Meaning::Refused(Reaction::Stop),
        Fault::Foreign(_) | Fault::Lost(_) | Fault::Overdue(_) => {
            Meaning::InDoubt(Reaction::Backoff)
        }
        Fault::Answered(answer) if !has_token && may_have_written(answer) => {
            in_doubt(of_answer(answer, attempt))
        }
        Fault::Answered(answer) => of_answer(answer, attempt),
    };
    match meaning {
        Meaning::Refused(reaction) => Delivery::Retry(trouble_with(fault, reaction)),
        Meaning::BadRows => Delivery::Rejected(trouble_with(fault, Reaction::Replan)),
        Meaning::TooLarge => Delivery::Rejected(trouble_with(fault, Reaction::Halve)),
        Meaning::InDoubt(reaction) => Delivery::Unknown(trouble_with(fault, reaction)),
    }
}

/// What to do about a statement other than an insert that failed.
pub(super) fn trouble(fault: &Fault) -> Trouble {
    match judge(fault, 1, true) {
        Delivery::Retry(trouble) | Delivery::Unknown(trouble) => trouble,
        // A query has no rows to blame: it is the statement or the table that is wrong.
        Delivery::Rejected(trouble) => Trouble {
            reaction: Reaction::Stop,
            ..trouble
        },
        Delivery::Delivered(_) => trouble_with(fault, Reaction::Backoff),
    }
}

/// A refusal of our own, which only somebody can mend.
pub(super) fn refuse(reason: String) -> Trouble {
    Trouble {
        code: None,
        reason,
        reaction: Reaction::Stop,
        source: None,
    }
}

/// Whether the answer is about a materialized view: the source may hold the rows already.
pub(super) fn blames_view(fault: &Fault) -> bool {
    matches!(fault, Fault::Answered(answer) if answer.says("while pushing to view"))
}

/// Whether the error may have been raised while or after the rows were written.
pub(super) fn may_have_written(answer: &Answer) -> bool {
    let is_late = |code: u32| {
        code::CAPACITY.contains(&code)
            || code::RAISED_LATE.contains(&code)
            || code == code::MEMORY_LIMIT_EXCEEDED
            || code == code::NO_ZOOKEEPER
    };
    answer.sent == Sent::All && answer.code.is_some_and(is_late)
}

fn in_doubt(meaning: Meaning) -> Meaning {
    match meaning {
        Meaning::Refused(reaction) | Meaning::InDoubt(reaction) => Meaning::InDoubt(reaction),
        Meaning::BadRows => Meaning::InDoubt(Reaction::Backoff),
        Meaning::TooLarge => Meaning::InDoubt(Reaction::Halve),
    }
}

fn of_answer(answer: &Answer, attempt: u32) -> Meaning {
    use Meaning::{BadRows, InDoubt, Refused};
    if answer.says("while pushing to view") {
        return InDoubt(Reaction::Stop);
    }
    let Some(code) = answer.code else {
        return of_status(answer);
    };
    match code {
        code::TOO_MANY_PARTS => of_parts(answer),
        code::MEMORY_LIMIT_EXCEEDED if is_total(answer) => Refused(Reaction::Backoff),
        code::MEMORY_LIMIT_EXCEEDED => InDoubt(Reaction::Halve),
        // Without a keeper nothing starts; in the middle it would be another matter.
        code::NO_ZOOKEEPER if answer.sent < Sent::All || starts_without_keeper(answer) => {
            Refused(Reaction::Backoff)
        }
        code::CHECKSUM_DOESNT_MATCH | code::CANNOT_DECOMPRESS => {
            let stays = attempt >= DAMAGED_ATTEMPTS_MAX;
            Refused(if stays {
                Reaction::Stop
            } else {
                Reaction::Backoff
            })
        }
        code if code::REFUSED_BEFORE_EXECUTION.contains(&code) => Refused(Reaction::Backoff),
        code if code::TOO_LARGE.contains(&code) => Meaning::TooLarge,
        code if code::DATA.contains(&code) => BadRows,
        code if code::SCHEMA.contains(&code) => Refused(Reaction::Replan),
        code if code::CAPACITY.contains(&code) => Refused(Reaction::Slower),
        code if code::ACCESS.contains(&code) => Refused(Reaction::Stop),
        _ => InDoubt(Reaction::Backoff),
    }
}

/// Code 252 is two troubles; the text tells them apart.
fn of_parts(answer: &Answer) -> Meaning {
    if answer.says("too many partitions") {
        Meaning::Refused(Reaction::Stop)
    } else if answer.says("too many parts") || answer.says("too many inactive parts") {
        Meaning::Refused(Reaction::Slower)
    } else {
        Meaning::InDoubt(Reaction::Slower)
    }
}

/// The server's memory is full, not this insert's share: "Memory limit (total) exceeded", and "Total
/// memory limit exceeded" since 26.
fn is_total(answer: &Answer) -> bool {
    answer.says("(total)") || answer.says("total memory limit")
}

fn starts_without_keeper(answer: &Answer) -> bool {
    answer.says("can't get zookeeper") || answer.says("no zookeeper")
}

/// An answer without a code comes from a proxy, or from a server before it looked at the query.
fn of_status(answer: &Answer) -> Meaning {
    match answer.status {
        413 => Meaning::TooLarge,
        401 | 403 | 404 | 407 => Meaning::Refused(Reaction::Stop),
        429 => Meaning::Refused(Reaction::Slower),
        502..=504 if answer.sent == Sent::Nothing => Meaning::Refused(Reaction::Backoff),
        _ => Meaning::InDoubt(Reaction::Backoff),
    }
}

fn trouble_with(fault: &Fault, reaction: Reaction) -> Trouble {
    let remedy = remedy(fault)
        .map(|remedy| format!("; {remedy}"))
        .unwrap_or_default();
    Trouble {
        code: fault.code(),
        reason: format!("{fault}{remedy}"),
        reaction,
        source: fault.cause().map(|cause| cause as _),
    }
}

/// What a person can do about it.
fn remedy(fault: &Fault) -> Option<&'static str> {
    let Fault::Answered(answer) = fault else {
        return None;
    };
    if answer.says("while pushing to view") {
        return Some(
            "mend the materialized view or drop it, by CREATE OR REPLACE rather than ALTER where the \
             server knows it: the relay sends only the same token again, which a view that was \
             altered takes for another one",
        );
    }
    let partitions =
        answer.code == Some(code::TOO_MANY_PARTS) && answer.says("too many partitions");
    if partitions {
        return Some("raise max_partitions_per_insert_block or partition the table more coarsely");
    }
    match answer.code? {
        code::TOO_MANY_PARTS => {
            Some("its merges are behind: the relay waits and sends larger batches")
        }
        code::UNKNOWN_TABLE => Some("create the table with pillarbox sink create"),
        code::UNKNOWN_USER
        | code::WRONG_PASSWORD
        | code::REQUIRED_PASSWORD
        | code::AUTHENTICATION_FAILED => Some("check the sink's user and password"),
        code::ACCESS_DENIED => Some(
            "grant the sink's user INSERT and SELECT on the table, and SELECT on what else is named",
        ),
        code::READONLY => Some("the sink's user needs a profile with readonly = 0"),
        code::NOT_ENOUGH_SPACE => Some("free disk space on the server"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
