//! Two relays and a sink.

use pillarbox_model::deliveries::{Deliveries, Mode, NONE_DOUBLED, SEALED, Step};

use crate::visit::{breaks, holds_in_every_state};

/// INV-2, INV-3: tokens, with a look where they may be forgotten; a relay may freeze anywhere.
#[test]
fn tokens_deliver_each_event_once() {
    holds_in_every_state(Deliveries::protected(Mode::Token));
}

/// INV-2, INV-3: tokens alone; what they cannot tell stops the sink.
#[test]
fn tokens_alone_deliver_each_event_once_or_stop() {
    holds_in_every_state(Deliveries::protected(Mode::TokenWithoutLook));
}

/// INV-2, INV-3: a look alone; no relay freezes between its last check and the first byte.
#[test]
fn looks_deliver_each_event_once() {
    holds_in_every_state(Deliveries::protected(Mode::Lookup));
}

/// INV-2: the two fences of the ledger stand for one another.
#[test]
fn either_fence_of_the_ledger_is_enough() {
    for (seals_on_session, fences_numbers) in [(false, true), (true, false)] {
        holds_in_every_state(Deliveries {
            seals_on_session,
            fences_numbers,
            losses: 1,
            ..Deliveries::protected(Mode::Token)
        });
    }
}

/// NEGATIVE CONTROL of INV-2: without either fence a displaced relay seals the same events again.
#[test]
fn negative_control_without_the_fences_of_the_ledger_events_are_doubled() {
    let model = Deliveries {
        seals_on_session: false,
        fences_numbers: false,
        ..Deliveries::protected(Mode::Token)
    };
    breaks(model, NONE_DOUBLED);
}

/// NEGATIVE CONTROL of INV-3: what was sent and not sealed gets another token from the next relay.
#[test]
fn negative_control_without_seal_before_send_events_are_doubled() {
    let model = Deliveries {
        seals_before_send: false,
        ..Deliveries::protected(Mode::Token)
    };
    breaks(model.clone(), SEALED);
    breaks(model, NONE_DOUBLED);
}

/// NEGATIVE CONTROL of INV-2: a sink that ignores tokens writes what is sent again.
#[test]
fn negative_control_without_tokens_events_are_doubled() {
    let model = Deliveries {
        sink_knows_tokens: false,
        ..Deliveries::protected(Mode::Token)
    };
    breaks(model, NONE_DOUBLED);
}

/// NEGATIVE CONTROL of INV-2: the token was forgotten before the resend.
#[test]
fn negative_control_without_a_look_outside_the_window_events_are_doubled() {
    for mode in [Mode::Token, Mode::TokenWithoutLook, Mode::Lookup] {
        let model = Deliveries {
            looks_when_old: false,
            ..Deliveries::protected(mode)
        };
        breaks(model, NONE_DOUBLED);
    }
}

/// NEGATIVE CONTROL of INV-2: an insert that nobody waits for is written after the look.
#[test]
fn negative_control_without_the_fence_before_the_look_events_are_doubled() {
    let model = Deliveries {
        fences_before_look: false,
        ..Deliveries::protected(Mode::Lookup)
    };
    breaks(model, NONE_DOUBLED);
}

/// NEGATIVE CONTROL of INV-2: a refusal says nothing about the attempt before it.
#[test]
fn negative_control_without_the_doubt_that_outlives_a_refusal_events_are_doubled() {
    for mode in [Mode::Token, Mode::TokenWithoutLook] {
        let model = Deliveries {
            doubt_outlives_refusal: false,
            ..Deliveries::protected(mode)
        };
        breaks(model, NONE_DOUBLED);
    }
}

/// NEGATIVE CONTROL of INV-2: the token was certain when the relay decided, and not when it sent.
#[test]
fn negative_control_without_a_new_decision_after_a_rest_events_are_doubled() {
    let model = Deliveries {
        decides_after_rest: false,
        ..Deliveries::protected(Mode::Token)
    };
    breaks(model, NONE_DOUBLED);
}

/// NEGATIVE CONTROL of INV-2: a relay that lost its session sends what its successor looks for.
#[test]
fn negative_control_without_a_look_at_the_session_before_sending_events_are_doubled() {
    let model = Deliveries {
        checks_session: false,
        ..Deliveries::protected(Mode::Lookup)
    };
    breaks(model, NONE_DOUBLED);
}

/// The exception that INV-2 names: without tokens, what a relay sends that stood still between its last
/// look at its session and the first byte is written beside its successor's.
#[test]
fn the_exception_of_lookup_is_the_one_that_the_contract_names() {
    let model = Deliveries {
        freezes_before_send: true,
        ..Deliveries::protected(Mode::Lookup)
    };
    let way = breaks(model, NONE_DOUBLED);
    assert!(way.iter().any(|step| matches!(step, Step::Displace(_))));
}
