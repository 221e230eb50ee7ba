//! Windows and cuts beside a crash of PostgreSQL.

use pillarbox_model::windows::{ALL_SENT, DONE_IS_SEALED, NO_PHANTOM, NONE_DOUBLED, Windows};

use crate::visit::{breaks, holds_in_every_state};

/// INV-1, INV-2, INV-3, INV-10: in every interleaving of three transactions with a relay and a crash.
#[test]
fn each_committed_event_is_sealed_once() {
    holds_in_every_state(Windows::protected());
}

/// NEGATIVE CONTROL of INV-2: continued with a new snapshot, a cut window loses the events of a
/// transaction that was running before the cut.
#[test]
fn negative_control_without_the_cut_rule_events_are_lost() {
    let model = Windows {
        keeps_cut_window: false,
        crashes: 0,
        ..Windows::protected()
    };
    breaks(model.clone(), DONE_IS_SEALED);
    breaks(model, ALL_SENT);
}

/// NEGATIVE CONTROL of INV-2: a crash takes the seal of a batch that was sent.
#[test]
fn negative_control_without_a_durable_seal_events_are_doubled() {
    let model = Windows {
        seal_is_durable: false,
        ..Windows::protected()
    };
    breaks(model.clone(), NONE_DOUBLED);
    breaks(model, NO_PHANTOM);
}

/// NEGATIVE CONTROL of INV-2: a crash gives the id of a transaction that was rolled back, which the
/// window's end saw, to another one. The relay's ledger must lie in the database of the outbox.
#[test]
fn negative_control_without_an_id_of_its_own_a_seal_takes_later_events_for_done() {
    let model = Windows {
        seal_takes_id: false,
        ..Windows::protected()
    };
    breaks(model, DONE_IS_SEALED);
}

/// NEGATIVE CONTROL of INV-2: after a crash transaction ids are given out again; a snapshot from before
/// it takes their events for done.
#[test]
fn negative_control_a_snapshot_that_outlives_its_session_loses_events() {
    let model = Windows {
        snapshot_dies_with_session: false,
        ..Windows::protected()
    };
    breaks(model, DONE_IS_SEALED);
}
