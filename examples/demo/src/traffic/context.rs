//! Events to publish, with contexts that a careless mover would change.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use pillarbox::RawEvent;
use pillarbox_testkit::oracle::{Content, Published};
use pillarbox_testkit::publish::ODD_CONTEXTS;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use uuid::Uuid;

use crate::record::now_us;

/// Some events happened long before they are published, in another month and partition.
const LATE: Duration = Duration::from_secs(40 * 24 * 3600);

/// The default limit of the outbox is 1 MiB.
const LARGE_BYTES: std::ops::Range<usize> = 100_000..1_000_000;

/// An event, and what the generator knows of it.
pub(crate) struct Made {
    pub(crate) raw: RawEvent,
    pub(crate) published: Published,
}

/// Makes events. Every writer has its own.
pub(crate) struct Maker {
    random: StdRng,
}

impl Maker {
    pub(crate) fn new() -> Self {
        Self {
            random: StdRng::from_rng(&mut rand::rng()),
        }
    }

    pub(crate) fn chance(&mut self, share: f64) -> bool {
        self.random.random_bool(share)
    }

    pub(crate) fn count(&mut self, range: std::ops::Range<usize>) -> usize {
        self.random.random_range(range)
    }

    pub(crate) fn event(&mut self, event_type: &str) -> Result<Made> {
        let context = match self.count(0..4) {
            0 => ODD_CONTEXTS[self.count(0..ODD_CONTEXTS.len())].to_owned(),
            _ => self.order(),
        };
        self.made(event_type, context, now_us())
    }

    pub(crate) fn events(&mut self, event_type: &str, count: usize) -> Result<Vec<Made>> {
        (0..count).map(|_| self.event(event_type)).collect()
    }

    /// An event of 40 days ago.
    pub(crate) fn late(&mut self, event_type: &str) -> Result<Made> {
        let back = i64::try_from(LATE.as_micros())?;
        let context = self.order();
        self.made(event_type, context, now_us() - back)
    }

    /// An event with a context of 100 KB to 1 MB, half of it hard to compress.
    pub(crate) fn large(&mut self, event_type: &str) -> Result<Made> {
        let length = self.random.random_range(LARGE_BYTES);
        let mut text = String::with_capacity(length + 40);
        text.push_str("{\"export\": \"");
        while text.len() < length / 2 {
            text.push_str(&format!("{:016x}", self.random.random::<u64>()));
        }
        text.push_str(&"é—".repeat((length - text.len()) / 5));
        text.push_str("\" }");
        self.made(event_type, text, now_us())
    }

    fn order(&mut self) -> String {
        let (order, cents) = (self.random.random::<u32>(), self.count(100..100_000));
        let items: Vec<String> = (0..self.count(1..6))
            .map(|item| {
                format!(
                    r#"{{"sku":"SKU-{:05}","quantity":{item}}}"#,
                    self.count(0..99_999)
                )
            })
            .collect();
        format!(
            r#"{{"order_id":{order},"total":{}.{:02},"items":[{}]}}"#,
            cents / 100,
            cents % 100,
            items.join(", ")
        )
    }

    fn made(&mut self, event_type: &str, context: String, time_us: i64) -> Result<Made> {
        let event_id = Uuid::now_v7();
        let environment = if self.chance(0.9) {
            "production"
        } else {
            "staging"
        };
        let version = self.random.random_range(0..5_u64);
        let content = Content {
            event_type,
            environment,
            event_context: context.as_bytes(),
            metadata_version: version,
        };
        let published = Published::new(event_id, &content, time_us);
        let time = UNIX_EPOCH + Duration::from_micros(u64::try_from(time_us)?);
        let raw = RawEvent::new(event_type, context)?
            .with_event_id(event_id)
            .with_event_date_time(time)
            .with_environment(environment)
            .with_metadata_version(version);
        Ok(Made { raw, published })
    }
}
