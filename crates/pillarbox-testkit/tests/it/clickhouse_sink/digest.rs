//! The digest of the relay is the one that both engines compute: for every type that it may cover, every
//! length and odd values (INV-13).

use super::*;

/// Integer types, each with its first and its last value that a bigint has too.
const INTEGERS: [(&str, i64, i64); 10] = [
    ("UInt8", 0, 0xFF),
    ("UInt16", 0, 0xFFFF),
    ("UInt32", 0, 0xFFFF_FFFF),
    ("UInt64", 0, i64::MAX),
    ("Int8", -0x80, 0x7F),
    ("Int16", -0x8000, 0x7FFF),
    ("Int32", -0x8000_0000, 0x7FFF_FFFF),
    ("Int64", i64::MIN, i64::MAX),
    ("Nullable(UInt16)", 0, 0xFFFF),
    ("Nullable(Int64)", i64::MIN, i64::MAX),
];
const TIMES: [&str; 2] = ["DateTime", "DateTime('Asia/Tokyo')"];
/// Types that 18.16 does not have.
const FINE_TIMES: [&str; 8] = [
    "Nullable(DateTime('America/New_York'))",
    "DateTime64(0)",
    "DateTime64(1, 'UTC')",
    "DateTime64(3)",
    "DateTime64(6, 'UTC')",
    "DateTime64(7, 'Asia/Kolkata')",
    "DateTime64(9, 'Asia/Tokyo')",
    "Nullable(DateTime64(4, 'UTC'))",
];
const IDENTITIES: [&str; 4] = ["UUID", "String", "Nullable(UUID)", "Nullable(String)"];
const TEXTS: [&str; 4] = [
    "String",
    "Nullable(String)",
    "LowCardinality(String)",
    "LowCardinality(Nullable(String))",
];
/// Texts that look like something else.
const ODD: [&str; 8] = ["", "~", "0:", "1:a", ":", "\0", "null", "\u{10FFFF}"];

struct Random(u64);

impl Random {
    /// Of this process; printed, so that a failure can be repeated.
    fn new() -> Self {
        let seed = u64::from(std::process::id());
        println!("seed {seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 16) % limit
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }

    fn text(&mut self) -> String {
        if self.below(4) == 0 {
            return ODD[self.below(8) as usize].to_owned();
        }
        let character = |n: u64| char::from_u32(n as u32).unwrap_or('?');
        let length = self.below(40);
        (0..length).map(|_| character(self.below(0x300))).collect()
    }

    fn event(&mut self, first: i64, last: i64) -> Event {
        let version = match self.below(8) {
            0 => first,
            1 => last,
            2 => 0,
            // As many digits as can be.
            _ => (self.0.cast_signed() >> self.below(64)).clamp(first, last),
        };
        let length = self.below(100) as usize;
        Event {
            event_id: Uuid::from_u64_pair(self.below(u64::MAX), self.below(u64::MAX)),
            event_context: self.bytes(length),
            event_type: self.text(),
            environment: self.text(),
            metadata_version: version,
            ..Event::at(self.below(4_294_967_295_000_000) as i64)
        }
    }
}

/// Delivers the events; the digest of the table must be the one that was sealed.
async fn agrees(server: &Server, table: &str, events: &[Event]) -> Result<()> {
    let sink = sink(server, table)?;
    let plan = sink.prepare(&outbox()).await?;
    let (batch, blocks) = seal(&plan, 1, events)?;
    deliver(&sink, &plan, &batch, &blocks).await?;
    let held = held(&sink, &plan, &batch).await?;
    let shown = server.query(&format!("describe table {table}")).await?;
    assert_eq!(held, (batch.rows, batch.digest), "{shown}");
    Ok(())
}

#[tokio::test]
async fn inv_13_digests_are_the_servers_for_every_type() -> Result<()> {
    let mut random = Random::new();
    for flavour in Flavour::ALL {
        let is_fine = flavour == Flavour::V26;
        let times: Vec<&str> = match is_fine {
            true => TIMES.into_iter().chain(FINE_TIMES).collect(),
            false => TIMES.to_vec(),
        };
        let texts = if is_fine { &TEXTS[..] } else { &TEXTS[..2] };
        let published_at = times[times.len() - 1];
        let server = Server::start(flavour).await?;
        for (nth, (version, first, last)) in INTEGERS.into_iter().enumerate() {
            let (time, id) = (times[nth % times.len()], IDENTITIES[nth % 4]);
            let (text, other) = (texts[nth % texts.len()], texts[(nth + 1) % texts.len()]);
            let table = format!("digest{nth}");
            let columns = format!(
                "event_id {id}, event_type {text}, event_date_time {time}, environment {other}, \
                 event_context {other}, metadata_version {version}, trace_parent Nullable(String), \
                 published_at {published_at}, batch UInt64"
            );
            server
                .query(&format!(
                    "create table {table} ({columns}) engine = MergeTree order by tuple() {}",
                    window(flavour)
                ))
                .await?;
            let mut events: Vec<Event> = (0..200).map(|_| random.event(first, last)).collect();
            events[0].at = 0;
            events[1].event_id = Uuid::nil();
            if time.contains("DateTime64") {
                events[2].at = -1;
                events[3].at = -25_567 * DAY_US;
            }
            agrees(&server, &table, &events).await?;
        }
    }
    Ok(())
}

/// The hash treats texts of up to 16, 32 and 64 bytes and longer ones in four ways.
#[tokio::test]
async fn inv_13_digests_are_the_servers_at_every_length() -> Result<()> {
    const LARGE: [usize; 8] = [
        1_023, 4_096, 65_535, 65_537, 1_048_575, 1_048_576, 1_048_577, 3_000_001,
    ];
    let mut random = Random::new();
    for flavour in Flavour::ALL {
        let server = Server::start(flavour).await?;
        let windows = window(flavour);
        server
            .query(&format!(
                "create table five ({FIVE_COLUMNS}, batch UInt64) engine = MergeTree order by tuple() {windows}"
            ))
            .await?;
        // As little as can be beside the context.
        let event = |length: usize| Event {
            event_type: String::new(),
            environment: String::new(),
            event_context: random.bytes(length),
            ..Event::at(0)
        };
        let events: Vec<Event> = (0..=300).chain(LARGE).map(event).collect();
        agrees(&server, "five", &events).await?;
    }
    Ok(())
}
