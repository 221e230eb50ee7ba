//! Turning and emptying the ring.

use pillarbox_model::leaves::{KEPT, REBUILT, Ring};

use crate::visit::{breaks, holds_in_every_state};

/// INV-8: one sink, three publishers.
#[test]
fn nothing_is_truncated_that_is_needed() {
    holds_in_every_state(Ring::protected());
}

/// INV-8: a slow sink keeps what a fast one has had.
#[test]
fn every_sink_keeps_what_it_has_not_had() {
    holds_in_every_state(Ring {
        transactions: 2,
        sinks: 2,
        ..Ring::protected()
    });
}

/// INV-8: what was delivered stays for the retention; a replay reads it again meanwhile.
#[test]
fn what_is_retained_can_be_replayed() {
    holds_in_every_state(Ring {
        transactions: 2,
        has_retention: true,
        has_replay: true,
        ..Ring::protected()
    });
}

/// NEGATIVE CONTROL of INV-8: what commits between the check and the lock goes unseen.
#[test]
fn negative_control_without_the_check_under_the_lock_events_are_lost() {
    let model = Ring {
        checks_under_lock: false,
        ..Ring::protected()
    };
    breaks(model, KEPT);
}

/// NEGATIVE CONTROL of INV-8: what is sealed is not delivered yet.
#[test]
fn negative_control_without_the_safe_position_a_batch_in_flight_loses_its_events() {
    let model = Ring {
        uses_safe_position: false,
        open_batches_pin: false,
        ..Ring::protected()
    };
    breaks(model.clone(), REBUILT);
    breaks(model, KEPT);
}

/// NEGATIVE CONTROL of INV-8: the other sink has not had the events.
#[test]
fn negative_control_without_asking_every_sink_events_are_lost() {
    let model = Ring {
        transactions: 2,
        sinks: 2,
        asks_every_sink: false,
        ..Ring::protected()
    };
    breaks(model, KEPT);
}

/// NEGATIVE CONTROL of INV-8: what was delivered a moment ago is gone.
#[test]
fn negative_control_without_the_retention_events_go_too_early() {
    let model = Ring {
        transactions: 2,
        has_retention: true,
        minds_retention: false,
        ..Ring::protected()
    };
    breaks(model, KEPT);
}

/// NEGATIVE CONTROL of INV-8: a replay's events are done at every position.
#[test]
fn negative_control_without_the_pin_of_open_batches_a_replay_cannot_be_rebuilt() {
    let model = Ring {
        transactions: 2,
        has_replay: true,
        open_batches_pin: false,
        ..Ring::protected()
    };
    breaks(model, REBUILT);
}

/// NEGATIVE CONTROL of INV-3: between the reading and the seal of a replay nothing pins its events.
#[test]
fn negative_control_without_the_lock_of_the_ring_a_replay_cannot_be_rebuilt() {
    let model = Ring {
        transactions: 2,
        has_replay: true,
        replay_holds_ring: false,
        ..Ring::protected()
    };
    breaks(model, REBUILT);
}
