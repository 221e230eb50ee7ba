//! What is published: a Rust type that is an [`Event`], or a [`RawEvent`] made at run time.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::Error;

/// Something that happened and is worth a row.
///
/// The value is serialised to compact JSON, its fields in the order of their declaration, and
/// arrives in the destination with exactly these bytes.
///
/// ```
/// #[derive(serde::Serialize)]
/// struct UserCreated { email: String, first_name: String, last_name: String }
///
/// impl pillarbox::Event for UserCreated { const TYPE: &str = "user_created"; }
/// ```
///
/// For a type with a lifetime the compiler wants `const TYPE: &'static str`.
pub trait Event: Serialize {
    /// The event type, 1 to 255 characters. It is what readers filter on: do not change it with the
    /// name of the Rust type.
    const TYPE: &'static str;

    /// The version of the context's shape. Raise it when a reader must tell old rows from new ones.
    const METADATA_VERSION: u64 = 1;

    /// When it happened, kept to the microsecond. `None`: when the row is written.
    fn event_date_time(&self) -> Option<SystemTime> {
        None
    }

    /// The identity of the event, for an event that comes with one of its own. `None`: a new UUID,
    /// version 7.
    fn event_id(&self) -> Option<Uuid> {
        None
    }
}

/// An event whose type and context are known only at run time, ready to be published.
///
/// The context is JSON text and kept byte for byte: spaces, key order and number formats stay. Also
/// the way to put events of different types into one [`publish_all`](crate::publish_all).
///
/// ```
/// # fn main() -> Result<(), pillarbox::Error> {
/// use pillarbox::RawEvent;
/// let event = RawEvent::new("invoice_paid", r#"{"amount": 12.50}"#)?.with_metadata_version(2);
/// assert_eq!(event.event_context(), r#"{"amount": 12.50}"#);
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct RawEvent {
    pub(crate) event_id: Uuid,
    pub(crate) event_type: String,
    pub(crate) event_context: String,
    pub(crate) event_date_time: Option<SystemTime>,
    pub(crate) environment: Option<String>,
    pub(crate) metadata_version: u64,
    pub(crate) trace_parent: Option<String>,
}

impl RawEvent {
    /// Makes an event of JSON text.
    ///
    /// # Errors
    ///
    /// [`Error::NotJson`] if `event_context` is not one complete JSON value.
    pub fn new(
        event_type: impl Into<String>,
        event_context: impl Into<String>,
    ) -> Result<Self, Error> {
        let (event_type, event_context) = (event_type.into(), event_context.into());
        match serde_json::from_str::<&RawValue>(&event_context) {
            Ok(_) => Ok(Self::unchecked(event_type, event_context)),
            Err(source) => Err(Error::NotJson { event_type, source }),
        }
    }

    /// Makes an event of a [`RawValue`], which is known to be JSON. Copies nothing.
    pub fn from_raw_value(event_type: impl Into<String>, event_context: Box<RawValue>) -> Self {
        Self::unchecked(event_type.into(), Box::<str>::from(event_context).into())
    }

    /// Serialises a typed event.
    ///
    /// # Errors
    ///
    /// [`Error::Serialize`] if the event's `Serialize` fails.
    pub fn from_event<E: Event + ?Sized>(event: &E) -> Result<Self, Error> {
        let event_context = serde_json::to_string(event).map_err(|source| Error::Serialize {
            event_type: E::TYPE.to_owned(),
            source,
        })?;
        Ok(Self {
            event_id: event.event_id().unwrap_or_else(Uuid::now_v7),
            event_date_time: event.event_date_time(),
            metadata_version: E::METADATA_VERSION,
            ..Self::unchecked(E::TYPE.to_owned(), event_context)
        })
    }

    fn unchecked(event_type: String, event_context: String) -> Self {
        Self {
            event_id: Uuid::now_v7(),
            event_type,
            event_context,
            event_date_time: None,
            environment: None,
            metadata_version: 1,
            trace_parent: None,
        }
    }

    /// Sets the identity, for an event that comes with one of its own.
    #[must_use]
    pub fn with_event_id(self, event_id: Uuid) -> Self {
        Self { event_id, ..self }
    }

    /// Sets when it happened, kept to the microsecond; otherwise when the row is written.
    #[must_use]
    pub fn with_event_date_time(self, event_date_time: SystemTime) -> Self {
        Self {
            event_date_time: Some(event_date_time),
            ..self
        }
    }

    /// Sets the environment, before the one of the [`Publisher`](crate::Publisher).
    #[must_use]
    pub fn with_environment(self, environment: impl Into<String>) -> Self {
        Self {
            environment: Some(environment.into()),
            ..self
        }
    }

    /// Sets the version of the context's shape; otherwise 1.
    #[must_use]
    pub fn with_metadata_version(self, metadata_version: u64) -> Self {
        Self {
            metadata_version,
            ..self
        }
    }

    /// Sets the [W3C `traceparent`](https://www.w3.org/TR/trace-context/#traceparent-header), before
    /// the one of the current span.
    #[must_use]
    pub fn with_trace_parent(self, trace_parent: impl Into<String>) -> Self {
        Self {
            trace_parent: Some(trace_parent.into()),
            ..self
        }
    }

    /// The identity, which [`publish`](crate::publish) will return.
    pub fn event_id(&self) -> Uuid {
        self.event_id
    }

    /// The type.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The context: JSON text.
    pub fn event_context(&self) -> &str {
        &self.event_context
    }

    /// When it happened, if set.
    pub fn event_date_time(&self) -> Option<SystemTime> {
        self.event_date_time
    }

    /// The environment, if set.
    pub fn environment(&self) -> Option<&str> {
        self.environment.as_deref()
    }

    /// The version of the context's shape.
    pub fn metadata_version(&self) -> u64 {
        self.metadata_version
    }

    /// The W3C trace context, if set.
    pub fn trace_parent(&self) -> Option<&str> {
        self.trace_parent.as_deref()
    }
}

/// Without the context, which must not reach a log.
impl fmt::Debug for RawEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawEvent")
            .field("event_id", &self.event_id)
            .field("event_type", &self.event_type)
            .field("event_context_bytes", &self.event_context.len())
            .field("event_date_time", &self.event_date_time)
            .field("environment", &self.environment)
            .field("metadata_version", &self.metadata_version)
            .field("trace_parent", &self.trace_parent)
            .finish()
    }
}

/// What can be published: every [`Event`], and [`RawEvent`]. Sealed.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event",
    label = "implement `pillarbox::Event` for it, or publish a `pillarbox::RawEvent`"
)]
pub trait Publishable: sealed::ToRaw {}

impl<E: Event + ?Sized> Publishable for E {}
impl Publishable for RawEvent {}

pub(crate) mod sealed {
    use super::{Cow, Error, Event, RawEvent};

    pub trait ToRaw {
        fn to_raw(&self) -> Result<Cow<'_, RawEvent>, Error>;
    }

    impl<E: Event + ?Sized> ToRaw for E {
        fn to_raw(&self) -> Result<Cow<'_, RawEvent>, Error> {
            RawEvent::from_event(self).map(Cow::Owned)
        }
    }

    impl ToRaw for RawEvent {
        fn to_raw(&self) -> Result<Cow<'_, RawEvent>, Error> {
            Ok(Cow::Borrowed(self))
        }
    }
}
