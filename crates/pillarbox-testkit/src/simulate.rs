//! The real spine on the fakes, under everything at once, from one seed (FoundationDB's way).
//!
//! One thread, paused time, every random decision from the seed: publishers, several sinks, relays that
//! are killed and frozen, a database that crashes and fails over, a destination that fails in every way.
//! At the end everything is mended and drained, and what was published is compared with what is there.
//! The same seed gives the same run, operation by operation.

mod gate;
mod judge;
mod protection;
mod publishing;
mod record;
mod relays;
mod scenario;
mod session;
mod trace;
mod weather;
mod world;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;

pub use judge::Verdict;
pub use protection::Protection;

/// What a run showed.
#[derive(Clone, Debug)]
pub struct Run {
    /// All that is needed to see it again.
    pub seed: u64,
    /// The protection that was taken out.
    pub without: Option<Protection>,
    /// Operations of the spine and events of the world.
    pub steps: u64,
    /// Events that were committed.
    pub published: u64,
    /// How often the run met what: kills, crashes, stops.
    pub counts: BTreeMap<&'static str, u64>,
    /// Hash of the whole trace.
    pub hash: u64,
    /// What is wrong at the end.
    pub verdict: Verdict,
    /// What the world was like.
    pub world: String,
    /// The last operations.
    pub trace: Vec<String>,
}

impl Run {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.verdict.is_clean()
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "SIM_SEED={} (steps {})", self.seed, self.steps)?;
        if let Some(without) = self.without {
            writeln!(f, "without: {}", without.as_str())?;
        }
        writeln!(f, "world: {}", self.world)?;
        for line in &self.trace {
            writeln!(f, "  {line}")?;
        }
        write!(f, "{}", self.verdict)
    }
}

/// Runs one world to its end, and compares what was published with what is there.
///
/// # Errors
/// When the machine has no room for a runtime.
pub fn run_and_judge(seed: u64, without: Option<Protection>) -> Result<Run> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    let run = runtime.block_on(async {
        let mut world = world::World::new(seed, without);
        world.live().await;
        world.heal().await;
        let mut verdict = judge::judge(&world).await;
        for slot in std::mem::take(&mut world.slots) {
            let name = slot.name.clone();
            if !slot.end().await {
                verdict.violations.push(format!("{name} panicked"));
            }
        }
        let (steps, hash, trace) = world.trace.ended();
        Run {
            seed,
            without,
            steps,
            published: world.database.published().len() as u64,
            counts: world.trace.counts(),
            hash,
            verdict,
            world: world.scenario.to_string(),
            trace,
        }
    });
    Ok(run)
}
