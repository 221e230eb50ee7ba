//! The intake is killed at each of its steps, again and again, under load, with entries in flight.

use anyhow::{Result, ensure};
use pillarbox_testkit::servers::{Persistence, eventually};

use super::queue::{Kind, Load, PATIENCE, Queue};

const STREAM_STEPS: &[&str] = &[
    "intake-locked",
    "intake-read",
    "intake-written",
    "intake-committed",
    "intake-deleted",
];

const LIST_STEPS: &[&str] = &[
    "intake-locked",
    "intake-renamed",
    "intake-recorded",
    "intake-read",
    "intake-written",
    "intake-committed",
    "intake-deleted",
];

const KILLS: usize = 50;

async fn killed(kind: Kind, steps: &[&str]) -> Result<()> {
    let queue = Queue::start(kind, Persistence::AppendAlways).await?;
    let load = Load::start(&queue, 3);
    for kill in 0..KILLS {
        let step = steps[kill % steps.len()];
        // Each comes a little further than the one before; it begins only once.
        let passed = if step == "intake-locked" {
            0
        } else {
            kill / steps.len() % 5
        };
        let failpoints = match passed {
            0 => format!("{step}=return"),
            _ => format!("{step}={passed}*off->return"),
        };
        let intake = queue.spawn(queue.intake("run", &failpoints))?;
        intake.killed(step).await?;
        let in_flight = eventually("entries in flight", PATIENCE, || async {
            Ok((queue.waiting().await? > 0).then_some(()))
        });
        in_flight.await?;
    }
    // By the clock of nobody: somewhere.
    for _ in 0..3 {
        let intake = queue.running()?;
        load.more(50).await?;
        intake.kill().await?;
    }
    let oracle = load.finish(Persistence::AppendAlways).await?;
    queue.drain().await?;
    ensure!(queue.waiting().await? == 0, "the drain left something");
    let published = queue.outbox_holds(&oracle).await?;
    ensure!(published > 500, "{published} events");
    Ok(())
}

#[tokio::test]
async fn inv_14_an_intake_of_a_stream_is_killed_fifty_times() -> Result<()> {
    killed(Kind::Stream, STREAM_STEPS).await
}

#[tokio::test]
async fn inv_14_an_intake_of_a_list_is_killed_fifty_times() -> Result<()> {
    killed(Kind::List, LIST_STEPS).await
}
