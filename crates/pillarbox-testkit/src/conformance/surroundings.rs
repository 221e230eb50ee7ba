//! What every sink that remembers tokens does when other writers and materialized views share its table.

use std::collections::BTreeMap;
use std::future::Future;

use anyhow::{Context, Result, ensure};
use pillarbox_relay::sink::{Delivery, Reaction, Resolution, Sink};
use uuid::Uuid;

use super::sink::{FRESH, OLD, Parcel, SinkWorld, events, holds, nth, plan, seal, settle};
use crate::fake::{FakeEvent, outbox_columns};

/// A table on which others work, too.
pub trait SharedWorld: SinkWorld {
    /// Other writers insert so many blocks that no token of ours is remembered.
    fn crowd_out(&self) -> impl Future<Output = Result<()>> + Send;

    /// Puts a materialized view behind the table; its target remembers tokens or not.
    fn add_view(&self, has_window: bool) -> impl Future<Output = Result<()>> + Send;

    /// Makes the view fail, or mends it.
    fn set_view_broken(&self, is_broken: bool) -> impl Future<Output = Result<()>> + Send;

    /// How often the view has each event.
    fn viewed(&self) -> impl Future<Output = Result<BTreeMap<Uuid, u64>>> + Send;
}

/// Runs the suite, each part on a world of its own.
///
/// # Errors
/// What the sink or the world does not do, with the part.
pub async fn surroundings<W, F>(mut factory: F) -> Result<()>
where
    W: SharedWorld,
    F: AsyncFnMut() -> Result<W>,
{
    a_token_is_forgotten(&factory().await?)
        .await
        .context("a token is forgotten")?;
    a_view_counts_a_resend_once(&factory().await?)
        .await
        .context("a view counts a resend once")?;
    a_view_without_a_window_is_refused(&factory().await?)
        .await
        .context("a view without a window is refused")?;
    a_view_that_fails_is_completed(&factory().await?)
        .await
        .context("a view that fails is completed")
}

async fn send<W: SharedWorld>(
    world: &W,
    plan: &<W::Sink as Sink>::Plan,
    parcel: &Parcel,
) -> Delivery {
    world.sink().deliver(plan, &parcel.insert(0), nth(1)).await
}

/// Each event is in the view once, and nothing else.
async fn is_viewed<W: SharedWorld>(world: &W, events: &[FakeEvent]) -> Result<()> {
    let viewed = world.viewed().await?;
    let once: BTreeMap<_, _> = events.iter().map(|event| (event.event_id, 1)).collect();
    ensure!(viewed == once, "the view has {:?}", viewed.values());
    Ok(())
}

async fn a_token_is_forgotten<W: SharedWorld>(world: &W) -> Result<()> {
    let plan = plan(world).await?;
    let sent = events(3, 0);
    let parcel = seal(&plan, 1, &sent)?;
    let first = send(world, &plan, &parcel).await;
    ensure!(matches!(first, Delivery::Delivered(_)), "{first:?}");
    world.crowd_out().await?;
    // Who looks finds it, and nothing is sent.
    let insert = parcel.insert(0);
    let found = world.sink().resolve(&plan, &insert, OLD).await?;
    ensure!(matches!(found, Resolution::Delivered(_)), "{found:?}");
    holds(world, &sent).await?;
    // Who does not look doubles it: that is what the window is about.
    let blind = send(world, &plan, &parcel).await;
    ensure!(matches!(blind, Delivery::Delivered(_)), "{blind:?}");
    let stored = world.stored().await?;
    ensure!(stored.values().all(|(count, _)| *count == 2), "{stored:?}");
    Ok(())
}

async fn a_view_counts_a_resend_once<W: SharedWorld>(world: &W) -> Result<()> {
    world.add_view(true).await?;
    let plan = plan(world).await?;
    let sent = events(3, 0);
    let parcel = seal(&plan, 1, &sent)?;
    for _ in 0..3 {
        let again = send(world, &plan, &parcel).await;
        ensure!(matches!(again, Delivery::Delivered(_)), "{again:?}");
    }
    holds(world, &sent).await?;
    is_viewed(world, &sent).await
}

async fn a_view_without_a_window_is_refused<W: SharedWorld>(world: &W) -> Result<()> {
    world.add_view(false).await?;
    let refused = world.sink().prepare(&outbox_columns()).await;
    let refused = refused.err().context("it is not refused")?;
    ensure!(refused.reaction == Reaction::Stop, "{refused:?}");
    Ok(())
}

async fn a_view_that_fails_is_completed<W: SharedWorld>(world: &W) -> Result<()> {
    world.add_view(true).await?;
    let plan = plan(world).await?;
    let sent = events(3, 0);
    let parcel = seal(&plan, 1, &sent)?;
    world.set_view_broken(true).await?;
    let failed = send(world, &plan, &parcel).await;
    ensure!(matches!(failed, Delivery::Unknown(_)), "{failed:?}");
    ensure!(world.viewed().await?.is_empty(), "the view did not fail");
    // The source may have the rows: the token completes the view, and doubles nothing.
    world.set_view_broken(false).await?;
    let insert = parcel.insert(0);
    let completed = world.sink().resolve(&plan, &insert, FRESH).await?;
    ensure!(matches!(completed, Resolution::Resend), "{completed:?}");
    settle(world, &plan, &insert, false).await?;
    holds(world, &sent).await?;
    is_viewed(world, &sent).await
}
