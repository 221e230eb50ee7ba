//! Random faults of all kinds on real servers under load, then every event compared.
//!
//! Two relays deliver what several publishers commit, through proxies; processes, network and sessions
//! break at the same time, in an order that the seed decides. In the end all is healed, drained and
//! compared row by row (INV-1, INV-2), dead letters too (INV-9), and proven batch by batch (INV-13).

mod config;
mod fault;
mod kind;
mod load;
mod outcome;
mod poison;
mod stage;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{Instant, sleep, sleep_until};

pub use config::Config;
use fault::Hand;
use kind::{Lane, Tally};
use load::Load;
pub use outcome::Outcome;
use poison::Letters;
use stage::Stage;

use crate::oracle::{Oracle, read_clickhouse, read_dead_letters};

/// How much longer than planned faults may go on until each kind happened often enough.
const OVERTIME: Duration = Duration::from_secs(90);

/// How long everything may take to arrive when nothing breaks any more, beside the length of the run: so
/// much may have been left behind.
const ARRIVAL_MAX: Duration = Duration::from_secs(180);

/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// How often a relay that ended by itself is looked for, as a supervisor does.
const SUPERVISE_EVERY: Duration = Duration::from_millis(250);

/// Below this length of a run, faults are shorter too, and the relays need not catch up by themselves.
const FULL_SECONDS: f64 = 60.0;

/// Runs the whole: an error where the laboratory itself fails, else what was found.
///
/// Dropping the future ends everything that was started.
pub async fn run(config: &Config) -> Result<Outcome> {
    let stage = Stage::start(config).await?;
    stage.say(&format!(
        "chaos: seed {}, {} s, {:?}",
        config.seed,
        config.duration.as_secs(),
        config.flavour
    ));
    for relay in &stage.relays {
        relay.start()?;
    }
    let mut load = Load::start(&stage, config.seed, poison::every(config.duration)).await?;
    let tally = Tally::new(config.flavour, config.duration);
    let oracle = Arc::clone(&load.oracle);
    let began = Instant::now();
    let broken = tokio::select! {
        broken = break_things(config, &stage, &tally, &oracle) => broken,
        failed = load.failed() => failed,
        failed = supervise(&stage) => failed,
        never = progress(&stage, &tally, &oracle) => never,
        never = poison::retry_now_and_then(&stage, config.duration / 2) => never,
    };
    broken.map_err(|error| error.context(tails(&stage)))?;
    let broke_for = began.elapsed();
    stage.heal().await?;
    let takeovers = stage.takeovers().await?;
    stage.say("healed; waiting until everything has arrived");
    let oracle = load.finish(&stage.postgres).await?;
    let is_full = config.duration.as_secs_f64() >= FULL_SECONDS;
    let arrival_max = ARRIVAL_MAX + config.duration;
    let is_late = is_full && !arrive(&stage, &oracle, arrival_max).await?;
    stage.stop_relays().await?;
    stage.drain().await?;
    if poison::retry_the_rest(&stage).await? {
        stage.drain().await?;
    }
    let found = read_clickhouse(&stage.clickhouse, stage::TABLE, stage.precision()).await?;
    let dead = read_dead_letters(&stage.postgres).await?;
    let endings = stage
        .relays
        .iter()
        .map(|relay| relay.endings.load(Ordering::Relaxed));
    Ok(Outcome {
        seed: config.seed,
        broke_for,
        faults: tally.total(),
        missing: tally.missing(),
        unknown: stage.unknown(),
        resent: stage.resent(),
        takeovers,
        relays_ended: endings.sum(),
        is_late,
        letters: Letters::count(&stage.postgres).await?,
        proof: stage.prove().await?,
        verdict: oracle.verdict(&found, &dead),
    })
}

/// All lanes at once, until the time is over and each kind has happened often enough.
async fn break_things(
    config: &Config,
    stage: &Stage,
    tally: &Tally,
    oracle: &Oracle,
) -> Result<()> {
    let [processes, network, sessions] = Lane::ALL;
    tokio::try_join!(
        lane(processes, config, stage, tally, oracle),
        lane(network, config, stage, tally, oracle),
        lane(sessions, config, stage, tally, oracle),
    )?;
    Ok(())
}

async fn lane(
    lane: Lane,
    config: &Config,
    stage: &Stage,
    tally: &Tally,
    oracle: &Oracle,
) -> Result<()> {
    let began = Instant::now();
    let end = began + config.duration;
    let seconds = config.duration.as_secs_f64();
    let mut hand = Hand {
        stage,
        oracle,
        random: StdRng::seed_from_u64(config.seed.wrapping_add(lane as u64)),
        scale: (seconds / FULL_SECONDS).clamp(0.3, 1.0),
        poison_every: poison::every(config.duration),
        is_long: seconds > 2.0 * FULL_SECONDS,
    };
    // Between them the relays work: what is always broken hides what breaks.
    let slot = config.duration / tally.planned(lane, config.flavour);
    for number in 0_u32.. {
        let jitter = slot.mul_f64(hand.random.random_range(0.0..0.5));
        let is_enough = tally.is_enough(lane, config.flavour);
        let due = began + slot * number + jitter;
        let over = if is_enough { end } else { end + OVERTIME };
        if due.max(Instant::now()) >= over {
            break;
        }
        sleep_until(due).await;
        let kind = tally.next(lane, config.flavour, &mut hand.random);
        if is_enough && Instant::now() + kind.lasts() > end {
            continue;
        }
        let inflicted = hand.inflict(kind).await;
        if let Some(text) = inflicted.with_context(|| kind.to_string())? {
            tally.happened(kind);
            stage.say(&format!("{kind} ({text})"));
        }
    }
    Ok(())
}

/// Starts a relay again that has ended by itself, as a supervisor does.
async fn supervise(stage: &Stage) -> Result<()> {
    loop {
        sleep(SUPERVISE_EVERY).await;
        for relay in &stage.relays {
            let Ok(_down) = relay.down.try_lock() else {
                continue;
            };
            if let Err(ended) = relay.program.check_alive() {
                relay.endings.fetch_add(1, Ordering::Relaxed);
                stage.say(&format!("relay {}: {ended:#}", relay.name));
                relay.start()?;
            }
        }
    }
}

async fn progress(stage: &Stage, tally: &Tally, oracle: &Oracle) -> Result<()> {
    loop {
        sleep(PROGRESS_EVERY).await;
        let active = stage.active().map_or("none", |relay| relay.name);
        stage.say(&format!(
            "… published {}, faults {}, unknown {}, resent {}, active: {active}",
            oracle.published(),
            tally.total(),
            stage.unknown(),
            stage.resent(),
        ));
    }
}

/// Waits until the table holds as many rows as events were published, but for the dead letters; says
/// whether it came to that.
async fn arrive(stage: &Stage, oracle: &Oracle, arrival_max: Duration) -> Result<bool> {
    let (published, began) = (oracle.published(), Instant::now());
    while began.elapsed() < arrival_max {
        let dead = read_dead_letters(&stage.postgres).await?.len() as u64;
        if stage.rows().await? + dead >= published {
            return Ok(true);
        }
        sleep(PROGRESS_EVERY / 10).await;
    }
    Ok(false)
}

fn tails(stage: &Stage) -> String {
    let tails = stage.relays.iter().map(|relay| relay.program.log_tail());
    tails.collect::<Vec<_>>().join("\n")
}
