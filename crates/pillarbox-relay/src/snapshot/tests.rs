use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What happens on a server, drawn at random.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A transaction takes its id and writes this many events.
    Begin(u8),
    /// One of the running transactions ends.
    End(usize),
    /// The relay takes a snapshot, and cuts its batches after this many events.
    Look(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0_u8..4).prop_map(Step::Begin),
        3 => any::<usize>().prop_map(Step::End),
        2 => (1_usize..5).prop_map(Step::Look),
    ];
    vec(step, 1..120)
}

/// A server as far as snapshots go.
#[derive(Default)]
struct Server {
    last: u64,
    latest_ended: u64,
    running: Vec<u64>,
    events: Vec<Cut>,
}

impl Server {
    fn begin(&mut self, events: u8) {
        self.last += 1;
        self.running.push(self.last);
        // Ids do not follow the order of transactions.
        let ids = (0..events).map(|n| i64::from(n) * 1000 - (self.last as i64 * 37 % 500));
        self.events.extend(ids.map(|id| Cut { tx: self.last, id }));
    }

    fn end(&mut self, which: usize) {
        if !self.running.is_empty() {
            let tx = self.running.swap_remove(which % self.running.len());
            self.latest_ended = self.latest_ended.max(tx);
        }
    }

    fn snapshot(&self) -> Snapshot {
        let xmax = self.latest_ended + 1;
        let mut xip: Vec<u64> = self.running.clone();
        xip.retain(|tx| *tx < xmax);
        xip.sort_unstable();
        Snapshot {
            xmin: xip.first().copied().unwrap_or(xmax),
            xmax,
            xip,
        }
    }

    /// What a read of the span sees, in the order of `(tx, id)`.
    fn read(&self, span: &Span) -> Vec<Cut> {
        let finished = |at: &&Cut| !self.running.contains(&at.tx);
        let seen = self.events.iter().filter(finished);
        let mut rows: Vec<Cut> = seen.copied().filter(|at| span.contains(*at)).collect();
        rows.sort_unstable();
        rows
    }
}

/// What `singles` and `range` read of the span, in their order.
fn scanned(server: &Server, span: &Span) -> Vec<Cut> {
    let until = |at: &Cut| span.until.is_none_or(|until| *at <= until);
    let mut events: Vec<Cut> = server.events.clone();
    events.retain(|at| !server.running.contains(&at.tx) && until(at));
    events.sort_unstable();
    let mut rows = Vec::new();
    for (tx, after) in span.singles() {
        let of_tx = events.iter().filter(|at| at.tx == tx);
        rows.extend(of_tx.filter(|at| at.id > after).copied());
    }
    let range = span.range();
    let above = events.iter().filter(|at| range.contains(&at.tx));
    rows.extend(above.filter(|at| span.to.sees(at.tx)).copied());
    rows
}

proptest! {
    #[test]
    fn a_snapshot_survives_its_text(start in 0_u64..1 << 63, gaps in vec(1_u64..1000, 0..30)) {
        let mut xip: Vec<u64> = Vec::new();
        for gap in gaps {
            xip.push(xip.last().map_or(start, |last| last + gap));
        }
        let xmax = xip.last().map_or(start, |last| last + 1);
        let snapshot = Snapshot { xmin: start, xmax, xip };
        prop_assert_eq!(snapshot.to_string().parse::<Snapshot>().unwrap(), snapshot);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[0-9:,]{0,40}|.{0,20}") {
        if let Ok(snapshot) = text.parse::<Snapshot>() {
            prop_assert!(snapshot.xip.is_sorted());
            prop_assert!(snapshot.xip.iter().all(|tx| *tx < snapshot.xmax));
        }
    }

    /// INV-2 in small: along a chain of windows and cuts each event is in exactly one batch.
    #[test]
    fn inv_2_each_visible_event_is_in_exactly_one_batch(steps in steps(), from_now in any::<bool>()) {
        let mut server = Server::default();
        server.begin(2);
        let start = if from_now { server.snapshot() } else { Snapshot::origin() };
        let mut position = Position::genesis(start.clone());
        let mut sealed: Vec<Cut> = Vec::new();
        let mut spans: Vec<Span> = Vec::new();
        for step in steps {
            match step {
                Step::Begin(events) => server.begin(events),
                Step::End(which) => server.end(which),
                Step::Look(room) => {
                    let mut span = position.next_span(server.snapshot());
                    let rows = server.read(&span);
                    prop_assert_eq!(&scanned(&server, &span), &rows, "span {:?}", span);
                    if rows.is_empty() {
                        prop_assert!(span.after.is_none(), "the rest of a cut window is gone");
                        continue;
                    }
                    if rows.len() > room {
                        span.until = Some(rows[room - 1]);
                    }
                    let taken = &rows[..rows.len().min(room)];
                    prop_assert_eq!(server.read(&span), taken);
                    prop_assert_eq!(scanned(&server, &span), taken);
                    sealed.extend(taken);
                    position = Position::from(&span);
                    spans.push(span);
                }
            }
            let done: BTreeSet<Cut> = sealed.iter().copied().collect();
            prop_assert_eq!(done.len(), sealed.len(), "an event is in two batches");
            for at in &server.events {
                let expected = done.contains(at) || start.sees(at.tx);
                prop_assert_eq!(position.is_done(*at), expected, "{:?} at {:?}", at, position);
            }
        }
        // A sealed span stays what it was, whatever commits later (INV-3).
        let again: Vec<Cut> = spans.iter().flat_map(|span| server.read(span)).collect();
        prop_assert_eq!(again, sealed);
    }

    #[test]
    fn singles_ascend_and_lie_below_the_range(steps in steps(), cut in any::<Option<(u8, i64)>>()) {
        let mut server = Server::default();
        let mut from = Snapshot::origin();
        for step in steps {
            match step {
                Step::Begin(events) => server.begin(events),
                Step::End(which) => server.end(which),
                Step::Look(_) => {
                    let to = server.snapshot();
                    let after = cut.map(|(tx, id)| Cut { tx: u64::from(tx), id });
                    let after = after.filter(|after| to.sees(after.tx) && !from.sees(after.tx));
                    let span = Span { from: from.clone(), to: to.clone(), after, until: None };
                    let singles = span.singles();
                    prop_assert!(singles.is_sorted_by(|a, b| a.0 < b.0));
                    prop_assert!(singles.iter().all(|(tx, _)| *tx < span.range().start));
                    from = to;
                }
            }
        }
    }
}

#[test]
fn texts_that_are_not_snapshots_are_refused() {
    for text in [
        "",
        "1",
        "1:2",
        "2:1:",
        "1:5:5",
        "1:5:0",
        "1:5:3,2",
        "1:5:2,2",
        "-1:2:",
        "a:b:",
        "1:2:3:4",
        "1:99999999999999999999:",
    ] {
        assert!(text.parse::<Snapshot>().is_err(), "{text:?}");
    }
}
