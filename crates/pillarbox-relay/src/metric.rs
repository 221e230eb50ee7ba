//! The relay's metrics: the one place that knows their names. `docs/metrics.md` explains each; a test
//! compares the two. Every series has the label `sink` or, of an intake,
//! `intake`, and no other.
//!
//! The facade alone is used here: without a recorder, in tests and libraries, all of this does nothing.

use metrics::{Counter, Gauge, Histogram, Label};

use crate::intake::{Waiting, Written};

/// How a metric counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by upper bounds, which are these.
    Histogram(&'static [f64]),
}

impl Kind {
    /// The word in Prometheus and in the documentation.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name, with its base unit last.
    pub name: &'static str,
    /// How it counts.
    pub kind: Kind,
    /// What it counts.
    pub unit: &'static str,
    /// What it means, in a line.
    pub meaning: &'static str,
}

const fn metric(
    name: &'static str,
    kind: Kind,
    unit: &'static str,
    meaning: &'static str,
) -> Metric {
    Metric {
        name,
        kind,
        unit,
        meaning,
    }
}

/// From a batch of a few rows to one of `max_bytes` over a slow link.
const SEAL_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// Up to the default of `insert_timeout`.
const DELIVERY_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

const BATCHES: Metric = metric(
    "pillarbox_delivered_batches_total",
    Kind::Counter,
    "batches",
    "batches delivered and recorded",
);
const ROWS: Metric = metric(
    "pillarbox_delivered_rows_total",
    Kind::Counter,
    "rows",
    "events delivered and recorded",
);
const BYTES: Metric = metric(
    "pillarbox_delivered_bytes_total",
    Kind::Counter,
    "bytes",
    "bytes of the events delivered and recorded, as max_bytes counts them",
);
const DEAD: Metric = metric(
    "pillarbox_dead_letters_total",
    Kind::Counter,
    "rows",
    "events set aside because the sink cannot take them",
);
const INSERTS: Metric = metric(
    "pillarbox_inserts_total",
    Kind::Counter,
    "inserts",
    "inserts sent to the sink, repeated ones included",
);
const UNKNOWN: Metric = metric(
    "pillarbox_unknown_deliveries_total",
    Kind::Counter,
    "inserts",
    "inserts of which nobody knew whether they were applied",
);
const RETRIES: Metric = metric(
    "pillarbox_retries_total",
    Kind::Counter,
    "attempts",
    "inserts and look-ups that failed and are tried again",
);
const SEAL: Metric = metric(
    "pillarbox_seal_duration_seconds",
    Kind::Histogram(SEAL_SECONDS),
    "seconds",
    "time to read, encode and seal a batch",
);
const DELIVERY: Metric = metric(
    "pillarbox_delivery_duration_seconds",
    Kind::Histogram(DELIVERY_SECONDS),
    "seconds",
    "time to deliver a sealed batch, waits between attempts included",
);
const LAG: Metric = metric(
    "pillarbox_lag_seconds",
    Kind::Gauge,
    "seconds",
    "age of the oldest event that is not delivered",
);
const PROGRESS_AGE: Metric = metric(
    "pillarbox_progress_age_seconds",
    Kind::Gauge,
    "seconds",
    "time since the active relay made a step",
);
const IN_FLIGHT: Metric = metric(
    "pillarbox_in_flight_deliveries",
    Kind::Gauge,
    "batches",
    "batches that are being delivered",
);
const OUTBOX_BYTES: Metric = metric(
    "pillarbox_outbox_bytes",
    Kind::Gauge,
    "bytes",
    "bytes that the outbox takes on disk",
);
const ACTIVE: Metric = metric(
    "pillarbox_active",
    Kind::Gauge,
    "0 or 1",
    "whether this process is the sink's active relay",
);
const STOPPED: Metric = metric(
    "pillarbox_stopped",
    Kind::Gauge,
    "0 or 1",
    "whether the sink stands still until somebody mends something",
);
const GUARANTEE: Metric = metric(
    "pillarbox_guarantee",
    Kind::Gauge,
    "mode",
    "2 token, 1 lookup, 0 at-least-once, NaN not known yet",
);

const INTAKE_TAKEN: Metric = metric(
    "pillarbox_intake_taken_total",
    Kind::Counter,
    "entries",
    "entries of a queue that became events",
);
const INTAKE_DEAD: Metric = metric(
    "pillarbox_intake_dead_letters_total",
    Kind::Counter,
    "entries",
    "entries of a queue set aside because they are no events",
);
const INTAKE_RESTORED: Metric = metric(
    "pillarbox_intake_restored_total",
    Kind::Counter,
    "entries",
    "entries that a queue showed again, and that were not taken again",
);
const INTAKE_RETRIES: Metric = metric(
    "pillarbox_intake_retries_total",
    Kind::Counter,
    "attempts",
    "times that an intake lost Redis or PostgreSQL and began anew",
);
const INTAKE_WAITING: Metric = metric(
    "pillarbox_intake_waiting_entries",
    Kind::Gauge,
    "entries",
    "entries of a queue that are not taken yet",
);
const INTAKE_LAG: Metric = metric(
    "pillarbox_intake_lag_seconds",
    Kind::Gauge,
    "seconds",
    "age of the oldest entry that is not taken yet, NaN where the queue does not know it",
);
const INTAKE_ACTIVE: Metric = metric(
    "pillarbox_intake_active",
    Kind::Gauge,
    "0 or 1",
    "whether this process is the one that takes from the queue",
);

/// Every metric.
pub const ALL: &[Metric] = &[
    BATCHES,
    ROWS,
    BYTES,
    DEAD,
    INSERTS,
    UNKNOWN,
    RETRIES,
    SEAL,
    DELIVERY,
    LAG,
    PROGRESS_AGE,
    IN_FLIGHT,
    OUTBOX_BYTES,
    ACTIVE,
    STOPPED,
    GUARANTEE,
    INTAKE_TAKEN,
    INTAKE_DEAD,
    INTAKE_RESTORED,
    INTAKE_RETRIES,
    INTAKE_WAITING,
    INTAKE_LAG,
    INTAKE_ACTIVE,
];

/// Gives the installed recorder the meaning of every metric.
pub fn describe() {
    for Metric {
        name,
        kind,
        meaning,
        ..
    } in ALL.iter().copied()
    {
        match kind {
            Kind::Counter => metrics::describe_counter!(name, meaning),
            Kind::Gauge => metrics::describe_gauge!(name, meaning),
            Kind::Histogram(_) => metrics::describe_histogram!(name, meaning),
        }
    }
}

/// The series of one sink. All are there from the start, so that a rate has a zero to start from.
pub(crate) struct Meters {
    pub(crate) batches: Counter,
    pub(crate) rows: Counter,
    pub(crate) bytes: Counter,
    pub(crate) dead: Counter,
    pub(crate) inserts: Counter,
    pub(crate) unknown: Counter,
    pub(crate) retries: Counter,
    pub(crate) seal: Histogram,
    pub(crate) delivery: Histogram,
    pub(crate) lag: Gauge,
    pub(crate) progress_age: Gauge,
    pub(crate) in_flight: Gauge,
    pub(crate) outbox_bytes: Gauge,
    pub(crate) active: Gauge,
    pub(crate) stopped: Gauge,
    pub(crate) guarantee: Gauge,
}

impl Meters {
    /// Registers them with the recorder that is installed by now.
    pub(crate) fn new(sink: &str) -> Self {
        let labels = vec![Label::new("sink", sink.to_owned())];
        let counter = |metric: Metric| metrics::counter!(metric.name, labels.clone());
        let gauge = |metric: Metric| metrics::gauge!(metric.name, labels.clone());
        let histogram = |metric: Metric| metrics::histogram!(metric.name, labels.clone());
        let meters = Self {
            batches: counter(BATCHES),
            rows: counter(ROWS),
            bytes: counter(BYTES),
            dead: counter(DEAD),
            inserts: counter(INSERTS),
            unknown: counter(UNKNOWN),
            retries: counter(RETRIES),
            seal: histogram(SEAL),
            delivery: histogram(DELIVERY),
            lag: gauge(LAG),
            progress_age: gauge(PROGRESS_AGE),
            in_flight: gauge(IN_FLIGHT),
            outbox_bytes: gauge(OUTBOX_BYTES),
            active: gauge(ACTIVE),
            stopped: gauge(STOPPED),
            guarantee: gauge(GUARANTEE),
        };
        meters.guarantee.set(f64::NAN);
        meters
    }
}

/// The series of one intake.
pub(crate) struct IntakeMeters {
    taken: Counter,
    dead: Counter,
    restored: Counter,
    retries: Counter,
    waiting: Gauge,
    lag: Gauge,
    active: Gauge,
}

impl std::fmt::Debug for IntakeMeters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IntakeMeters")
    }
}

impl IntakeMeters {
    /// Registers them with the recorder that is installed by now.
    pub(crate) fn new(intake: &str) -> Self {
        let labels = vec![Label::new("intake", intake.to_owned())];
        let counter = |metric: Metric| metrics::counter!(metric.name, labels.clone());
        let gauge = |metric: Metric| metrics::gauge!(metric.name, labels.clone());
        Self {
            taken: counter(INTAKE_TAKEN),
            dead: counter(INTAKE_DEAD),
            restored: counter(INTAKE_RESTORED),
            retries: counter(INTAKE_RETRIES),
            waiting: gauge(INTAKE_WAITING),
            lag: gauge(INTAKE_LAG),
            active: gauge(INTAKE_ACTIVE),
        }
    }

    pub(crate) fn round(&self, written: Written, restored: u64) {
        self.taken.increment(written.taken);
        self.dead.increment(written.dead);
        self.restored.increment(restored);
    }

    pub(crate) fn failed(&self) {
        self.retries.increment(1);
    }

    pub(crate) fn set_active(&self, is_active: bool) {
        self.active.set(f64::from(u8::from(is_active)));
    }

    pub(crate) fn waiting(&self, waiting: Waiting) {
        self.waiting.set(waiting.entries as f64);
        let lag = match (waiting.entries, waiting.age) {
            (0, _) => 0.0,
            (_, age) => age.map_or(f64::NAN, |age| age.as_secs_f64()),
        };
        self.lag.set(lag);
    }
}
