//! What a producer wrote, read as an event. Pure.
//!
//! An entry is a JSON object of the fields below, or the fields of a stream's entry, or a single field
//! that holds the object. Reasons name fields and places, and never quote the entry.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use uuid::Uuid;

/// The fields of an event, in the order of [`Given`].
const FIELDS: [&str; 7] = [
    "event_type",
    "event_context",
    "event_id",
    "event_date_time",
    "environment",
    "metadata_version",
    "trace_parent",
];

/// Characters that the outbox allows in `event_type`, and in `trace_parent`.
const CHARACTERS_MAX: usize = 255;

/// The untouched bytes of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A JSON object, or what should be one.
    Json(Vec<u8>),
    /// The fields of a stream's entry.
    Fields(Vec<(Vec<u8>, Vec<u8>)>),
}

/// An event that the outbox can be offered.
#[derive(Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Identity, where the producer gave one.
    pub event_id: Option<Uuid>,
    /// Type.
    pub event_type: Cow<'a, str>,
    /// When it happened, where the producer said so.
    pub event_date_time: Option<SystemTime>,
    /// Environment, where the producer named one.
    pub environment: Option<Cow<'a, str>>,
    /// JSON, byte for byte.
    pub event_context: &'a str,
    /// Version of the context's shape, where the producer gave one.
    pub metadata_version: Option<i64>,
    /// W3C trace context.
    pub trace_parent: Option<Cow<'a, str>>,
}

/// Why an entry is no event. Holds nothing of the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(pub String);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Body {
    /// How the bytes are to be read: the word in `pillarbox.intake_letter`.
    pub fn format(&self) -> &'static str {
        match self {
            Self::Json(_) => "json",
            Self::Fields(_) => "fields",
        }
    }

    /// Takes up what [`Body::bytes`] wrote.
    pub fn read(format: &str, bytes: Vec<u8>) -> Option<Self> {
        match format {
            "json" => Some(Self::Json(bytes)),
            "fields" => read_fields(&bytes).map(Self::Fields),
            _ => None,
        }
    }

    /// The bytes of the entry: of fields as an array of RESP, which keeps any byte and any order.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Json(bytes) => Cow::Borrowed(bytes),
            Self::Fields(fields) => {
                let mut bytes = format!("*{}\r\n", fields.len() * 2).into_bytes();
                for text in fields.iter().flat_map(|(name, value)| [name, value]) {
                    bytes.extend_from_slice(format!("${}\r\n", text.len()).as_bytes());
                    bytes.extend_from_slice(text);
                    bytes.extend_from_slice(b"\r\n");
                }
                Cow::Owned(bytes)
            }
        }
    }

    /// Reads the event.
    ///
    /// # Errors
    /// The reason why it is none.
    pub fn event(&self) -> Result<Event<'_>, Reason> {
        let fields = match self {
            Self::Json(bytes) => return event_of_json(bytes),
            Self::Fields(fields) => fields,
        };
        if let [(name, value)] = fields.as_slice()
            && place(name).is_none()
        {
            return event_of_json(value);
        }
        let mut given = Given::default();
        for (name, value) in fields {
            let field = place(name).ok_or_else(unknown_field)?;
            let text = utf8(value, FIELDS[field])?;
            if given.0[field].replace(Cow::Borrowed(text)).is_some() {
                return Err(Reason(format!("{} is there twice", FIELDS[field])));
            }
        }
        // Redis knows no null: an empty optional field is one that is not there.
        for value in &mut given.0[2..] {
            value.take_if(|text| text.is_empty());
        }
        let context = match &given.0[1] {
            Some(Cow::Borrowed(text)) => *text,
            _ => return Err(missing("event_context")),
        };
        let is_json = serde_json::from_str::<&RawValue>(context);
        let context = is_json.map_err(|error| not_json("event_context is not json", &error))?;
        given.event(context.get())
    }
}

fn place(name: &[u8]) -> Option<usize> {
    FIELDS.iter().position(|field| field.as_bytes() == name)
}

fn unknown_field() -> Reason {
    Reason(format!(
        "it has a field that no event has; known are {}",
        FIELDS.join(", ")
    ))
}

fn missing(field: &str) -> Reason {
    Reason(format!("{field} is missing"))
}

fn utf8<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, Reason> {
    std::str::from_utf8(bytes).map_err(|error| {
        Reason(format!(
            "{what} is not utf-8, from byte {}",
            error.valid_up_to()
        ))
    })
}

fn not_json(what: &str, error: &serde_json::Error) -> Reason {
    // The error's text may quote the entry.
    let why = match error.classify() {
        serde_json::error::Category::Eof => "it ends too early",
        _ => "it is malformed",
    };
    let (line, column) = (error.line(), error.column());
    Reason(format!("{what}: {why} at line {line}, column {column}"))
}

/// Values by their place in [`FIELDS`].
#[derive(Default)]
struct Given<'a>([Option<Cow<'a, str>>; 7]);

impl<'a> Given<'a> {
    fn event(self, event_context: &'a str) -> Result<Event<'a>, Reason> {
        let [event_type, _, id, time, environment, version, trace] = self.0;
        let event_type = event_type.ok_or_else(|| missing("event_type"))?;
        let characters = event_type.chars().count();
        if characters == 0 || characters > CHARACTERS_MAX {
            return Err(Reason(format!(
                "event_type has {characters} characters; give it 1 to {CHARACTERS_MAX}"
            )));
        }
        let trace_parent = trace.filter(|text| !text.is_empty());
        if trace_parent
            .as_ref()
            .is_some_and(|text| text.chars().count() > CHARACTERS_MAX)
        {
            return Err(Reason(format!(
                "trace_parent has more than {CHARACTERS_MAX} characters"
            )));
        }
        let texts = [
            (FIELDS[0], Some(&event_type)),
            (FIELDS[4], environment.as_ref()),
            (FIELDS[6], trace_parent.as_ref()),
        ];
        for (name, text) in texts {
            if text.is_some_and(|text| text.contains('\0')) {
                return Err(Reason(format!(
                    "{name} holds a NUL, which postgresql cannot"
                )));
            }
        }
        Ok(Event {
            event_id: id.as_deref().map(uuid).transpose()?,
            event_type,
            event_date_time: time.as_deref().map(instant).transpose()?,
            environment,
            event_context,
            metadata_version: version.as_deref().map(version_of).transpose()?,
            trace_parent,
        })
    }
}

fn uuid(text: &str) -> Result<Uuid, Reason> {
    Uuid::try_parse(text).map_err(|_| Reason("event_id is not a uuid".to_owned()))
}

fn instant(text: &str) -> Result<SystemTime, Reason> {
    let read: Result<jiff::Timestamp, _> = text.parse();
    read.map(SystemTime::from).map_err(|_| {
        Reason(
            "event_date_time is not a time with an offset, such as 2026-01-31T23:59:59.123456Z"
                .to_owned(),
        )
    })
}

fn version_of(text: &str) -> Result<i64, Reason> {
    let read: Result<i64, _> = text.parse();
    read.ok()
        .filter(|version| *version >= 0)
        .ok_or_else(|| Reason("metadata_version is not a number from 0 to 2^63 - 1".to_owned()))
}

fn event_of_json(bytes: &[u8]) -> Result<Event<'_>, Reason> {
    let text = utf8(bytes, "it")?;
    if !text.trim_start().starts_with('{') {
        return Err(Reason("it is not a json object".to_owned()));
    }
    let object: Object<'_> = serde_json::from_str(text).map_err(|error| {
        if error.is_data() {
            // Made below, of nothing but names of ours and a place.
            return Reason(error.to_string());
        }
        not_json("it is not json", &error)
    })?;
    let context = object.0[1].ok_or_else(|| missing("event_context"))?;
    let mut given = Given::default();
    for (field, value) in object.0.iter().enumerate() {
        if let Some(value) = value.filter(|_| field != 1) {
            given.0[field] = scalar(field, value)?;
        }
    }
    given.event(context.get())
}

/// A string or, for `metadata_version` only, a number; null is what is not there.
fn scalar<'a>(field: usize, value: &'a RawValue) -> Result<Option<Cow<'a, str>>, Reason> {
    let (name, raw) = (FIELDS[field], value.get());
    match raw.as_bytes().first() {
        Some(b'n') => Ok(None),
        Some(b'"') if name != "metadata_version" => {
            let text: Result<String, _> = serde_json::from_str(raw);
            let text = text.map_err(|_| Reason(format!("{name} is not a valid json string")))?;
            Ok(Some(Cow::Owned(text)))
        }
        Some(b'0'..=b'9' | b'-') if name == "metadata_version" => Ok(Some(Cow::Borrowed(raw))),
        _ if name == "metadata_version" => Err(Reason(format!("{name} is not a number"))),
        _ => Err(Reason(format!("{name} is not a string"))),
    }
}

/// The values of a JSON object by their place in [`FIELDS`], not read yet.
struct Object<'a>([Option<&'a RawValue>; 7]);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut object = Object([None; 7]);
                while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                    let field =
                        place(name.as_bytes()).ok_or_else(|| A::Error::custom(unknown_field()))?;
                    if object.0[field].replace(map.next_value()?).is_some() {
                        return Err(A::Error::custom(format!(
                            "{} is there twice",
                            FIELDS[field]
                        )));
                    }
                }
                Ok(object)
            }
        }
        from.deserialize_map(Fields)
    }
}

fn read_fields(bytes: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    fn number(bytes: &[u8], mark: u8) -> Option<(usize, &[u8])> {
        let rest = bytes.strip_prefix(&[mark])?;
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let number = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
        Some((number, &rest[end + 2..]))
    }
    let (count, mut rest) = number(bytes, b'*')?;
    let mut texts = Vec::new();
    for _ in 0..count {
        let (length, after) = number(rest, b'$')?;
        texts.push(after.get(..length)?.to_vec());
        rest = after.get(length..)?.strip_prefix(b"\r\n")?;
    }
    let pairs = texts.chunks_exact(2);
    let is_whole = rest.is_empty() && pairs.remainder().is_empty();
    is_whole.then(|| {
        pairs
            .map(|pair| (pair[0].clone(), pair[1].clone()))
            .collect()
    })
}

#[cfg(test)]
mod tests;
