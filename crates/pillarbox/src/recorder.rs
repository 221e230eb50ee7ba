//! The outbox of unit tests.

use serde::de::DeserializeOwned;

use crate::outbox::sealed::Insert;
use crate::outbox::{Outbox, Row};
use crate::{Error, Event, RawEvent};

/// Records published events in memory, for unit tests of business code without a database.
///
/// Business code takes `&mut impl Outbox`; production passes its transaction, a test a recorder. The
/// same checks run, so that an event which is too large fails the test as well.
///
/// ```
/// use pillarbox::{Event, Outbox, Recorder};
///
/// #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
/// struct OrderShipped { order: u64 }
/// impl Event for OrderShipped { const TYPE: &str = "order_shipped"; }
///
/// async fn ship(outbox: &mut impl Outbox, order: u64) -> Result<(), pillarbox::Error> {
///     pillarbox::publish(outbox, &OrderShipped { order }).await?;
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), pillarbox::Error> {
/// let mut recorder = Recorder::new();
/// ship(&mut recorder, 7).await?;
/// assert_eq!(recorder.of::<OrderShipped>(), [OrderShipped { order: 7 }]);
/// assert_eq!(recorder.events()[0].event_context(), r#"{"order":7}"#);
/// # Ok(()) }
/// ```
///
/// Business code that also runs SQL keeps the statements behind a trait of its own, whose
/// test double holds the recorder:
///
/// ```
/// # use pillarbox::{Outbox, Recorder};
/// trait Orders {
///     async fn mark_shipped(&mut self, order: u64);
///     fn outbox(&mut self) -> &mut impl Outbox;
/// }
///
/// struct FakeOrders { shipped: Vec<u64>, recorder: Recorder }
///
/// impl Orders for FakeOrders {
///     async fn mark_shipped(&mut self, order: u64) { self.shipped.push(order) }
///     fn outbox(&mut self) -> &mut impl Outbox { &mut self.recorder }
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    events: Vec<RawEvent>,
}

impl Recorder {
    /// Makes one without events.
    pub const fn new() -> Self {
        Self { events: Vec::new() }
    }

    /// All events, in the order of publishing, with what the publisher added to them.
    pub fn events(&self) -> &[RawEvent] {
        &self.events
    }

    /// The events of one type, read back, in the order of publishing.
    ///
    /// # Panics
    ///
    /// When a context does not read back as `E`.
    #[track_caller]
    pub fn of<E: Event + DeserializeOwned>(&self) -> Vec<E> {
        self.events
            .iter()
            .filter(|event| event.event_type == E::TYPE)
            .map(|event| match serde_json::from_str(&event.event_context) {
                Ok(typed) => typed,
                Err(error) => panic!(
                    "event_context of event type {:?} does not read back: {error}: {}",
                    E::TYPE,
                    event.event_context
                ),
            })
            .collect()
    }

    /// Asserts that exactly one event equal to `expected` was published: same type, same bytes of
    /// context. For event types that cannot be deserialised.
    ///
    /// # Panics
    ///
    /// When none or several were, naming what was published.
    #[track_caller]
    pub fn assert_published<E: Event + ?Sized>(&self, expected: &E) {
        let context = match serde_json::to_string(expected) {
            Ok(context) => context,
            Err(error) => panic!("the expected event cannot be serialised: {error}"),
        };
        let found = self
            .events
            .iter()
            .filter(|event| event.event_type == E::TYPE && event.event_context == context)
            .count();
        assert!(
            found == 1,
            "expected one event {:?} {context}, found {found} in:\n{}",
            E::TYPE,
            self.list()
        );
    }

    /// Asserts that no event was published.
    ///
    /// # Panics
    ///
    /// When one was, naming what was published.
    #[track_caller]
    pub fn assert_nothing_published(&self) {
        assert!(
            self.events.is_empty(),
            "expected no event, found:\n{}",
            self.list()
        );
    }

    /// Takes the events out, for a test in several steps, or to model a rollback.
    pub fn take(&mut self) -> Vec<RawEvent> {
        std::mem::take(&mut self.events)
    }

    fn list(&self) -> String {
        let lines: Vec<_> = self
            .events
            .iter()
            .map(|event| format!("  {:?} {}", event.event_type, event.event_context))
            .collect();
        lines.join("\n")
    }
}

impl Outbox for Recorder {}

impl Insert for Recorder {
    async fn insert(&mut self, rows: &[Row<'_>]) -> Result<(), Error> {
        self.events.extend(rows.iter().map(|row| RawEvent {
            environment: row.environment().map(str::to_owned),
            trace_parent: row.trace_parent().map(str::to_owned),
            ..RawEvent::clone(&row.event)
        }));
        Ok(())
    }
}
