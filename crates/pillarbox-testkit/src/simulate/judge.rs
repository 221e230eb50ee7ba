//! The end of a run: drained, compared, and looked at while idle.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use pillarbox_relay::batch::NUMBER_BITS;
use pillarbox_relay::clock::Clock as _;
use uuid::Uuid;

use super::world::{Eyes, World};
use crate::fake::{FakeSink, LetterState, StoredRow};

/// Longer than every wait of the spine together, in virtual time.
const PATIENCE: Duration = Duration::from_secs(900);

/// Between two looks at whether everything has arrived.
const LOOK: Duration = Duration::from_secs(2);

/// After this long no insert is on its way any more.
const ZOMBIES: Duration = Duration::from_secs(60);

/// Longer than age, retention and tending of the ring together.
const RING_AT_REST: Duration = Duration::from_secs(120);

/// So long nothing may be written.
const IDLE: Duration = Duration::from_secs(40);

/// Operations of a run at most: beyond it something turns in a circle.
const STEPS_MAX: u64 = 60_000;

/// Events that a verdict names of each kind.
const NAMED_MAX: usize = 10;

/// What a run found wrong: events by the sink where they are wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Committed, and not in the sink.
    pub lost: Vec<(String, Uuid)>,
    /// In the sink, or in a view of it, more than once.
    pub duplicated: Vec<(String, Uuid)>,
    /// In the sink, and not committed.
    pub phantom: Vec<(String, Uuid)>,
    /// In the sink with another content.
    pub altered: Vec<(String, Uuid)>,
    /// Invariants that did not hold.
    pub violations: Vec<String>,
}

impl Verdict {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.is_exact() && self.violations.is_empty()
    }

    /// Whether the sinks hold what was published.
    pub fn is_exact(&self) -> bool {
        let mut all = self.kinds().into_iter();
        all.all(|(_, events)| events.is_empty())
    }

    fn kinds(&self) -> [(&'static str, &Vec<(String, Uuid)>); 4] {
        [
            ("lost", &self.lost),
            ("duplicated", &self.duplicated),
            ("phantom", &self.phantom),
            ("altered", &self.altered),
        ]
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, events) in self.kinds() {
            for (sink, event) in events.iter().take(NAMED_MAX) {
                writeln!(f, "{kind}: {event} in {sink}")?;
            }
        }
        for violation in &self.violations {
            writeln!(f, "violated: {violation}")?;
        }
        let [lost, duplicated, phantom, altered] = self.kinds().map(|(_, events)| events.len());
        write!(
            f,
            "lost={lost} duplicated={duplicated} phantom={phantom} altered={altered}"
        )
    }
}

/// Waits until everything has arrived, and compares.
pub(super) async fn judge(world: &World) -> Verdict {
    let is_drained = drained(world).await;
    world.clock.sleep(ZOMBIES).await;
    world.sinks.iter().for_each(FakeSink::commit_late);
    let mut verdict = Verdict::default();
    for number in 0..world.sinks.len() {
        compare(world, number, &mut verdict);
    }
    order(world, &mut verdict);
    if is_drained {
        idle(world, &mut verdict).await;
    } else {
        let why = "not everything was settled in the end";
        verdict.violations.push(why.to_owned());
    }
    verdict.violations.extend(world.trace.violations());
    verdict
}

/// Whether the sink may stand still for good: the server was promoted without the last seals.
fn is_rightly_stopped(world: &World, number: usize) -> bool {
    let scenario = &world.scenario.sinks[number];
    let name = &scenario.name;
    let Some(reason) = world.database.stopped_reason(name) else {
        return false;
    };
    let last = world
        .database
        .batches(name)
        .last()
        .map(|batch| (batch.origin, batch.number));
    let (origin, last) = last.unwrap_or_default();
    let rows = world.sinks[number].rows();
    let mut ahead = rows.iter().map(split).filter(|(row, _)| *row == origin);
    let is_behind = ahead.any(|(_, number)| number > last);
    world.is_promoted && ((is_behind && reason.contains("promoted")) || !scenario.has_batch_column)
}

async fn drained(world: &World) -> bool {
    let looks = PATIENCE.as_secs() / LOOK.as_secs();
    for _ in 0..looks {
        let mut sinks = 0..world.sinks.len();
        let is_done = |number| is_settled(world, number) || is_rightly_stopped(world, number);
        if sinks.all(is_done) {
            return true;
        }
        if world.trace.steps() > STEPS_MAX {
            return false;
        }
        world.clock.sleep(LOOK).await;
    }
    false
}

fn is_settled(world: &World, number: usize) -> bool {
    let name = &world.scenario.sinks[number].name;
    let standing = world.database.standing(name);
    let stored = ended(&world.eyes, number);
    let published = world.database.published();
    standing.is_some_and(|standing| standing.unfinished.is_empty())
        && published.iter().all(|event| stored.contains_key(event))
}

fn compare(world: &World, number: usize, verdict: &mut Verdict) {
    let name = &world.scenario.sinks[number].name;
    let sink = &world.sinks[number];
    let is_stopped = is_rightly_stopped(world, number);
    let published = world.database.published();
    if is_stopped {
        world.trace.count("rightly stopped");
    }
    let (stored, rows) = (ended(&world.eyes, number), sink.rows());
    let named = |event: &Uuid| (name.clone(), *event);
    let twice = |counts: &BTreeMap<Uuid, u64>| -> Vec<(String, Uuid)> {
        let twice = counts.iter().filter(|(_, count)| **count > 1);
        twice.map(|(event, _)| named(event)).collect()
    };
    verdict.duplicated.extend(twice(&stored));
    let lost = published.iter().filter(|event| !stored.contains_key(event));
    let phantom = stored.keys().filter(|event| !published.contains(event));
    if !is_stopped {
        verdict.lost.extend(lost.map(named));
        verdict.phantom.extend(phantom.map(named));
    }
    let is_altered = |row: &&StoredRow| {
        let said = world.eyes.record.get(row.event_id);
        said.is_none_or(|said| said.content != row.content)
    };
    let altered = rows.iter().filter(is_altered);
    verdict
        .altered
        .extend(altered.map(|row| named(&row.event_id)));
    for view in sink.views().iter().filter(|_| !is_stopped) {
        verdict.duplicated.extend(twice(view));
        let arrived = sink.events();
        let missing = arrived.keys().filter(|event| !view.contains_key(event));
        verdict.lost.extend(missing.map(named));
    }
}

/// INV-10: what committed before another one's transaction began is not in a later batch.
fn order(world: &World, verdict: &mut Verdict) {
    // A failover takes back numbers that were given.
    if world.is_promoted {
        return;
    }
    for (number, sink) in world.sinks.iter().enumerate() {
        let name = &world.scenario.sinks[number].name;
        let mut begins = Vec::new();
        let mut commits = Vec::new();
        for row in sink.rows() {
            let said = world.eyes.record.get(row.event_id);
            if let Some((said, committed)) = said.and_then(|said| Some((said, said.committed?))) {
                // A child stands where the batch stood that it was split from.
                let sealed = world.database.batch(name, split(&row).1);
                let number = sealed.map_or(0, |batch| batch.family());
                begins.push((said.began, number));
                commits.push((committed, number));
            }
        }
        begins.sort_unstable();
        commits.sort_unstable();
        let (mut before, mut latest) = (commits.iter().peekable(), 0);
        for (began, batch) in begins {
            while let Some((_, earlier)) = before.next_if(|(committed, _)| *committed < began) {
                latest = latest.max(*earlier);
            }
            if batch < latest {
                verdict.violations.push(format!(
                    "INV-10: {name}: an event of batch {batch} began after one of batch {latest} \
                     had committed"
                ));
                break;
            }
        }
    }
}

/// INV-11: with nothing to do, nothing is written.
async fn idle(world: &World, verdict: &mut Verdict) {
    if world.scenario.lock_is_shared {
        // Two relays report about one sink.
        return;
    }
    world.clock.sleep(RING_AT_REST).await;
    let before = world.database.writes();
    world.clock.sleep(IDLE).await;
    let written = world.database.writes() - before;
    if written > 0 {
        verdict
            .violations
            .push(format!("INV-11: {written} writes in {IDLE:?} of idleness"));
    }
}

/// INV-8: what the outbox does not hold any more is in every sink.
pub(super) fn nothing_needed_is_gone(eyes: &Eyes) {
    let held = eyes.database.held();
    let published = eyes.database.published();
    let gone: BTreeSet<&Uuid> = published.difference(&held).collect();
    for number in 0..eyes.sinks.len() {
        let stored = ended(eyes, number);
        let mut missing = gone.iter().filter(|event| !stored.contains_key(**event));
        if let Some(event) = missing.next() {
            eyes.trace.violated(format!(
                "INV-8: {event} was truncated and is not in sink {number}"
            ));
        }
    }
}

/// How often each event is in a sink, or set aside from it.
fn ended(eyes: &Eyes, number: usize) -> BTreeMap<Uuid, u64> {
    let (Some(sink), Some(name)) = (eyes.sinks.get(number), eyes.names.get(number)) else {
        return BTreeMap::new();
    };
    let mut events = sink.events();
    for letter in eyes.database.dead_letters(name) {
        if letter.state != LetterState::Delivered {
            *events.entry(letter.event_id).or_default() += 1;
        }
    }
    events
}

/// Origin and number of the batch of a row.
fn split(row: &StoredRow) -> (u32, i64) {
    let number = row.batch & ((1 << NUMBER_BITS) - 1);
    let origin = u32::try_from(row.batch >> NUMBER_BITS).unwrap_or_default();
    (origin, number.cast_signed())
}
