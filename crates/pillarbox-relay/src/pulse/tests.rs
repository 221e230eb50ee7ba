use super::*;
use crate::batch::{Kind, Selection};
use crate::snapshot::{Snapshot, Span};

const STUCK_AFTER: Duration = Duration::from_secs(900);

fn pulse() -> (Pulse, Instant) {
    let now = Instant::now();
    (Pulse::new("clickhouse", STUCK_AFTER, now), now)
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn snapshot() -> Snapshot {
    "10:10:".parse().expect("a snapshot")
}

fn batch(number: i64) -> Batch {
    Batch {
        number,
        batch_id: uuid::Uuid::nil(),
        origin: 1,
        kind: Kind::Window,
        parent: None,
        root: None,
        selection: Selection::default(),
        terms: None,
        span: Span {
            from: snapshot(),
            to: snapshot(),
            after: None,
            until: None,
        },
        rows: 3,
        bytes: 30,
        digest: 0,
        blocks: Vec::new(),
        sealed_at: std::time::SystemTime::UNIX_EPOCH,
    }
}

fn probe(waiting: Option<u64>) -> Probe {
    Probe {
        trace_parent: None,
        snapshot: snapshot(),
        waiting: waiting.map(seconds),
        outbox_bytes: 8192,
    }
}

#[test]
fn a_starting_relay_is_alive_but_not_ready() {
    let (pulse, start) = pulse();
    let vitals = pulse.vitals(start + seconds(100_000));
    assert!(vitals.is_alive && !vitals.is_ready, "{vitals:?}");
    assert_eq!(vitals.role, Role::Standby);
    assert!(vitals.reason.expect("one").contains("starting"));
}

#[test]
fn a_stand_by_is_ready_once_it_must_have_reached_postgresql_and_alive_for_ever() {
    let (pulse, start) = pulse();
    pulse.asking(start);
    assert!(!pulse.vitals(start + seconds(14)).is_ready);
    let vitals = pulse.vitals(start + STUCK_AFTER * 2);
    assert!(vitals.is_ready && vitals.is_alive, "{vitals:?}");
    assert_eq!((vitals.role, vitals.reason), (Role::Standby, None));
}

#[test]
fn an_active_relay_that_makes_no_step_for_longer_than_any_deadline_is_not_alive() {
    let (pulse, start) = pulse();
    pulse.took_over(start);
    pulse.standing(&[], start);
    assert!(pulse.vitals(start + STUCK_AFTER).is_alive);
    let late = start + STUCK_AFTER + seconds(1);
    let vitals = pulse.vitals(late);
    assert!(!vitals.is_alive, "{vitals:?}");
    assert_eq!(vitals.progress_age, STUCK_AFTER + seconds(1));
    pulse.moved(late);
    assert!(pulse.vitals(late).is_alive);
}

#[test]
fn readiness_follows_the_plan_the_stop_and_the_loss_of_the_session() {
    let (pulse, now) = pulse();
    let reason = |pulse: &Pulse| pulse.vitals(now).reason.unwrap_or_default();
    pulse.took_over(now);
    assert!(!pulse.vitals(now).is_ready);
    pulse.not_ready("connection refused".to_owned(), now);
    assert!(reason(&pulse).contains("connection refused"));
    pulse.planned(Guarantee::Lookup);
    pulse.standing(&[], now);
    let vitals = pulse.vitals(now);
    assert!(vitals.is_ready, "{vitals:?}");
    assert_eq!(vitals.guarantee, Some(Guarantee::Lookup));

    pulse.stopped("the table is gone", now);
    pulse.not_ready("connection refused".to_owned(), now);
    let vitals = pulse.vitals(now);
    assert_eq!((vitals.role, vitals.is_ready), (Role::Stopped, false));
    assert!(reason(&pulse).contains("the table is gone"));
    let unfinished = [Unfinished {
        batch: batch(7),
        age: seconds(0),
        blocks_since: 0,
        family_rows: 3,
    }];
    pulse.standing(&unfinished, now);
    assert_eq!(
        pulse.vitals(now).role,
        Role::Stopped,
        "7 may be refused again"
    );
    pulse.delivered(&batch(7), &Outcome::delivered(7, 3), now, now);
    assert!(pulse.vitals(now).is_ready);

    pulse.set_back("the connection broke".to_owned(), now);
    let vitals = pulse.vitals(now);
    assert_eq!((vitals.role, vitals.is_ready), (Role::Standby, false));
    pulse.ended("it was retired".to_owned(), now);
    let vitals = pulse.vitals(now + STUCK_AFTER * 2);
    assert!(vitals.is_alive && !vitals.is_ready, "{vitals:?}");
}

#[test]
fn lag_is_the_age_of_the_oldest_event_that_is_not_delivered() {
    let (pulse, start) = pulse();
    let start = start + seconds(1000);
    let lag = |at: u64| pulse.vitals(start + seconds(at)).lag;
    pulse.took_over(start);
    pulse.standing(&[], start);
    pulse.probed(&probe(None), start);
    assert_eq!(lag(50), seconds(0));
    pulse.probed(&probe(Some(2)), start);
    assert_eq!(lag(3), seconds(5));
    pulse.sealed(&batch(1), start, start + seconds(3));
    pulse.probed(&probe(None), start + seconds(4));
    assert_eq!(lag(4), seconds(6), "sealed is not delivered");
    pulse.probed(&probe(Some(1)), start + seconds(5));
    pulse.sealed(&batch(2), start + seconds(5), start + seconds(5));
    pulse.delivered(
        &batch(1),
        &Outcome::delivered(1, 3),
        start,
        start + seconds(6),
    );
    assert_eq!(lag(6), seconds(2), "the second batch is still open");
    pulse.delivered(
        &batch(2),
        &Outcome::delivered(2, 3),
        start,
        start + seconds(7),
    );
    let vitals = pulse.vitals(start + seconds(9));
    assert_eq!(vitals.lag, seconds(0));
    assert_eq!((vitals.batches, vitals.rows), (2, 6));
    assert_eq!(vitals.delivery_age, Some(seconds(2)));
}

#[test]
fn lag_goes_on_over_a_restart() {
    let (pulse, start) = pulse();
    let start = start + seconds(1000);
    pulse.took_over(start);
    let unfinished = [Unfinished {
        batch: batch(7),
        age: seconds(40),
        blocks_since: 0,
        family_rows: 3,
    }];
    pulse.standing(&unfinished, start);
    assert_eq!(pulse.vitals(start + seconds(2)).lag, seconds(42));
}

#[test]
fn no_metric_is_named_twice_and_names_end_with_their_unit() {
    let mut names: Vec<&str> = crate::metric::ALL.iter().map(|m| m.name).collect();
    for metric in crate::metric::ALL {
        use crate::metric::Kind;
        let is_total = metric.name.ends_with("_total");
        assert_eq!(is_total, metric.kind == Kind::Counter, "{}", metric.name);
        let plain = metric.name.trim_end_matches("_total");
        for unit in ["seconds", "bytes"] {
            assert_eq!(
                plain.ends_with(unit),
                metric.unit == unit,
                "{}",
                metric.name
            );
        }
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), crate::metric::ALL.len());
}
