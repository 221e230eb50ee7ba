//! How the fake sink settles what is unknown: by the rules of the ClickHouse sink.

use pillarbox_relay::batch::Batch;
use pillarbox_relay::sink::{Delivery, Doubt, Guarantee, Look, Reaction, Trouble};

use super::destination::{Effect, Parcel};
use super::fault::trouble;
use super::sink::{FakeSink, SERVER};

/// A view that failed so often on one block stops the sink.
const VIEW_FAILURES_MAX: u32 = 5;

/// A block whose outcome was unknown and that is not delivered yet.
#[derive(Debug, Default)]
pub(super) struct Doubted {
    pub(super) view_failures: u32,
    /// Its resend was answered with success and its rows were not there.
    pub(super) was_absent: bool,
}

impl FakeSink {
    /// Writes a block, and says what a server and a look at a block in doubt say.
    pub(super) fn written(&self, parcel: &Parcel) -> Delivery {
        let token = parcel.batch.token(parcel.ordinal);
        if !self.write(parcel, Effect::Whole) {
            return self.failed_in_view(&token);
        }
        let is_doubted = self.state().doubts.contains_key(&token);
        let can_look = self.shared.manners.has_batch_column && !self.shared.manners.never_looks;
        if is_doubted && can_look && self.shared.manners.guarantee != Guarantee::AtLeastOnce {
            match self.look_at(&parcel.batch, parcel.ordinal, true) {
                Look::Nothing => {
                    self.state().doubts.entry(token).or_default().was_absent = true;
                    return Delivery::Unknown(absent());
                }
                Look::Other(other) => return Delivery::Unknown(other),
                _ => {}
            }
        }
        self.state().doubts.remove(&token);
        Delivery::Delivered(SERVER.to_owned())
    }

    pub(super) fn failed_in_view(&self, token: &str) -> Delivery {
        let mut state = self.state();
        let doubted = state.doubts.entry(token.to_owned()).or_default();
        doubted.view_failures += 1;
        Delivery::Unknown(trouble("while pushing to view", Reaction::Backoff))
    }

    /// Whether the block's token is surely remembered, by the rule of the ClickHouse sink.
    pub(super) fn is_remembered(&self, batch: &Batch, doubt: Doubt) -> bool {
        let window = self.shared.manners.window;
        let later = doubt.blocks_since.saturating_add(batch.blocks.len() as u64);
        let in_count = later.saturating_add(doubt.age.as_secs()) < window.blocks as u64 / 2;
        let in_time = window.lasts.is_none_or(|lasts| doubt.age < lasts / 2);
        self.shared.manners.guarantee == Guarantee::Token && in_count && in_time
    }

    pub(super) fn look_at(&self, batch: &Batch, ordinal: usize, is_fenced: bool) -> Look {
        let Some(block) = batch.blocks.get(ordinal) else {
            return Look::Blind;
        };
        let mut state = self.state();
        if is_fenced {
            state.destination.fence(&batch.token(ordinal));
        }
        match state.destination.look(batch.sink_value(), block) {
            (0, _) => Look::Nothing,
            found if found == (block.rows, block.digest) => Look::All(SERVER.to_owned()),
            _ => Look::Other(other()),
        }
    }

    pub(super) fn take_view_failures(&self, token: &str) -> bool {
        let mut state = self.state();
        let doubted = state.doubts.entry(token.to_owned()).or_default();
        let is_reached = doubted.view_failures >= VIEW_FAILURES_MAX;
        if is_reached {
            doubted.view_failures = 0;
        }
        is_reached
    }

    /// Refuses what the ClickHouse sink refuses.
    pub(super) fn preflight(&self) -> Result<(), Trouble> {
        let manners = &self.shared.manners;
        let mut views = self.state().destination.views.clone().into_iter();
        let has_windows = manners.window.blocks > 0 && views.all(|view| view.has_window());
        match manners.guarantee == Guarantee::Token && !has_windows {
            true => Err(trouble(
                "the table or the target of a view remembers no token",
                Reaction::Stop,
            )),
            false => Ok(()),
        }
    }
}

pub(super) fn absent() -> Trouble {
    trouble(
        "its token is remembered, its rows are not there",
        Reaction::Stop,
    )
}

fn other() -> Trouble {
    trouble("some of the rows are there, or others", Reaction::Stop)
}
