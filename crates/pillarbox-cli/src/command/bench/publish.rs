//! What publishing costs: transactions per second into an ordinary table, into the outbox, and through the
//! function, in turns that take each other's place, so that each meets the disk at its fast and slow times.

use std::time::Duration;

use futures_util::future::try_join_all;
use pillarbox_relay::postgres::Session;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use tokio_postgres::Statement;
use tokio_postgres::types::Json;
use tokio_util::sync::CancellationToken;

use super::report::median;
use super::site::Site;
use super::{go_on, step};
use crate::exit::Failure;
use crate::output;

/// Each way of publishing.
const WAYS: [&str; 3] = [
    include_str!("sql/publish_heap.sql"),
    include_str!("sql/publish_insert.sql"),
    include_str!("sql/publish_function.sql"),
];
const TURN: Duration = Duration::from_secs(1);
const WARM_UP: Duration = Duration::from_millis(250);

/// Events that publishers take in turn.
const EVENTS: i64 = 64;

/// Transactions per second, and what ours reach of the ordinary table, round by round.
#[derive(Debug, Serialize)]
pub(super) struct Publish {
    pub(super) clients: u32,
    pub(super) seconds: u32,
    pub(super) bytes: u32,
    pub(super) heap_tps: f64,
    pub(super) insert_tps: f64,
    pub(super) function_tps: f64,
    pub(super) insert_of_heap: f64,
    pub(super) function_of_heap: f64,
}

/// Type and context.
pub(super) type Event = (String, Box<RawValue>);

/// A connection that publishes.
struct Publisher {
    session: Session,
    ways: Vec<Statement>,
}

pub(super) async fn measure(
    site: &Site,
    clients: u32,
    seconds: u32,
    bytes: u32,
    stop: &CancellationToken,
) -> Result<Publish, Failure> {
    step(&format!(
        "publish: three ways, {clients} clients, {seconds} s for each"
    ));
    let control = site.session().await?;
    let events = events(&control, bytes).await?;
    let publishers = try_join_all((0..clients).map(|_| Publisher::connect(site))).await?;
    let bar = output::bar(
        Some(u64::from(seconds) * WAYS.len() as u64),
        "{bar:40} {pos}/{len} turns, {eta} left",
    );
    for way in 0..WAYS.len() {
        turn(&control, &publishers, way, &events, WARM_UP).await?;
    }
    let mut rates: [Vec<f64>; WAYS.len()] = Default::default();
    for round in 0..seconds as usize {
        for place in 0..WAYS.len() {
            go_on(stop)?;
            let way = (round + place) % WAYS.len();
            rates[way].push(turn(&control, &publishers, way, &events, TURN).await?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let [heap, insert, function] = &rates;
    let of_heap = |ours: &[f64]| {
        let rounds = ours.iter().zip(heap);
        median(rounds.map(|(ours, heap)| ours / heap).collect())
    };
    Ok(Publish {
        clients,
        seconds,
        bytes,
        insert_of_heap: of_heap(insert),
        function_of_heap: of_heap(function),
        heap_tps: median(heap.clone()),
        insert_tps: median(insert.clone()),
        function_tps: median(function.clone()),
    })
}

/// Some events of the benchmark.
pub(super) async fn events(session: &Session, bytes: u32) -> Result<Vec<Event>, Failure> {
    const SOME: &str = include_str!("sql/events.sql");
    let given: &[&(dyn tokio_postgres::types::ToSql + Sync)] = &[&EVENTS, &bytes.cast_signed()];
    let rows = session.client().query(SOME, given).await?;
    let event = |row: &tokio_postgres::Row| -> Result<Event, Failure> {
        Ok((row.get(0), RawValue::from_string(row.get(1))?))
    };
    rows.iter().map(event).collect()
}

/// Has all publishers publish one way for some time; gives transactions per second.
async fn turn(
    control: &Session,
    publishers: &[Publisher],
    way: usize,
    events: &[Event],
    time: Duration,
) -> Result<f64, Failure> {
    let began = Instant::now();
    let all = publishers.iter();
    let done = try_join_all(all.map(|one| one.publish(way, events, began + time))).await?;
    let took = began.elapsed();
    // What grew is no part of what comes next.
    let empty = include_str!("sql/empty.sql");
    control.client().batch_execute(empty).await?;
    Ok(f64::from(done.iter().sum::<u32>()) / took.as_secs_f64())
}

impl Publisher {
    async fn connect(site: &Site) -> Result<Self, Failure> {
        let session = site.session().await?;
        let client = session.client();
        // An application has the settings of its server, not those of a relay.
        client.batch_execute("reset all").await?;
        let ways = try_join_all(WAYS.map(|way| client.prepare(way))).await?;
        Ok(Self { session, ways })
    }

    /// Publishes until then, each event in a transaction of its own; gives how many.
    async fn publish(&self, way: usize, events: &[Event], until: Instant) -> Result<u32, Failure> {
        let mut done = 0;
        for (event_type, context) in events.iter().cycle() {
            if Instant::now() >= until {
                break;
            }
            let given: &[&(dyn tokio_postgres::types::ToSql + Sync)] =
                &[event_type, &Json(context)];
            let client = self.session.client();
            client.execute(&self.ways[way], given).await?;
            done += 1;
        }
        Ok(done)
    }
}
