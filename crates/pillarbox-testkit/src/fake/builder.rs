//! How a fake sink is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pillarbox_relay::sink::{Guarantee, Terms};

use super::clock::FakeClock;
use super::destination::Destination;
use super::encoder::{Ask, Fields, Layout};
use super::gauge::Gauge;
use super::sink::{FakeSink, Manners};
use super::view::View;
use super::window::Window;

/// How a [`FakeSink`] is.
#[derive(Clone)]
pub struct FakeSinkBuilder {
    guarantee: Guarantee,
    has_batch_column: bool,
    window: Window,
    views: Vec<View>,
    ignores_tokens: bool,
    never_looks: bool,
    partitions_max: usize,
    deadline: Duration,
    partition: Ask<String>,
    refuse_row: Ask<Option<String>>,
    poison: Ask<bool>,
    clock: Option<FakeClock>,
}

impl fmt::Debug for FakeSinkBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeSinkBuilder")
            .field("guarantee", &self.guarantee)
            .finish_non_exhaustive()
    }
}

impl FakeSinkBuilder {
    /// How it keeps a batch from being written twice; by token unless set.
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.guarantee = guarantee;
        self
    }

    /// Without the column `batch` it cannot look; with it unless called.
    pub fn without_batch_column(mut self) -> Self {
        self.has_batch_column = false;
        self
    }

    /// Tokens that the table remembers; 10,000 unless set.
    pub fn window_blocks(mut self, blocks: usize) -> Self {
        self.window.blocks = blocks;
        self
    }

    /// How long the table remembers a token; for ever unless set.
    pub fn window_lasts(mut self, lasts: Duration) -> Self {
        self.window.lasts = Some(lasts);
        self
    }

    /// A materialized view, whose target remembers so many tokens; none unless called.
    pub fn view(mut self, window_blocks: usize) -> Self {
        self.views.push(View::new(Window {
            blocks: window_blocks,
            lasts: None,
        }));
        self
    }

    /// It claims to remember tokens, and does not look at them: shows what they are for.
    pub fn ignoring_tokens(mut self) -> Self {
        self.ignores_tokens = true;
        self
    }

    /// What is unknown is sent again without a look, however old it is: shows what the look is for.
    pub fn never_looking(mut self) -> Self {
        self.never_looks = true;
        self
    }

    /// Partitions in one batch at most; 32 unless set.
    pub fn partitions_max(mut self, partitions: usize) -> Self {
        self.partitions_max = partitions;
        self
    }

    /// After this long a hanging call answers *unknown*; 5 minutes unless set.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The partition of a row; the month of `event_date_time` unless set.
    pub fn partition_by(
        mut self,
        partition: impl Fn(&Fields<'_>) -> String + Send + Sync + 'static,
    ) -> Self {
        self.partition = Arc::new(partition);
        self
    }

    /// Rows that the encoder cannot represent, with the reason; none unless set.
    pub fn refuse_rows(
        mut self,
        refuse: impl Fn(&Fields<'_>) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.refuse_row = Arc::new(refuse);
        self
    }

    /// Rows for which the destination rejects the block they are in; none unless set.
    pub fn poison(mut self, poison: impl Fn(&Fields<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.poison = Arc::new(poison);
        self
    }

    /// The clock of its deadline; one of its own unless set.
    pub fn clock(mut self, clock: &FakeClock) -> Self {
        self.clock = Some(clock.clone());
        self
    }

    /// The sink.
    pub fn build(self) -> FakeSink {
        let layout = Layout {
            columns: Vec::new(),
            terms: Terms::default(),
            guarantee: self.guarantee,
            partition: self.partition,
            partitions_max: self.partitions_max,
            refuse_row: self.refuse_row,
            batches: Gauge::default(),
        };
        let remembers = self.guarantee == Guarantee::Token;
        let mut destination = Destination::new(remembers.then_some(self.window), self.views);
        destination.ignores_tokens = self.ignores_tokens;
        FakeSink::new(
            Manners {
                guarantee: self.guarantee,
                has_batch_column: self.has_batch_column,
                never_looks: self.never_looks,
                window: self.window,
                deadline: self.deadline,
                layout,
                poison: self.poison,
            },
            self.clock.unwrap_or_default(),
            destination,
        )
    }
}

impl FakeSink {
    /// A sink that remembers tokens and has a partition for each month, unless told otherwise.
    pub fn builder() -> FakeSinkBuilder {
        FakeSinkBuilder {
            guarantee: Guarantee::Token,
            has_batch_column: true,
            window: Window {
                blocks: 10_000,
                lasts: None,
            },
            views: Vec::new(),
            ignores_tokens: false,
            never_looks: false,
            partitions_max: 32,
            deadline: Duration::from_secs(300),
            partition: Arc::new(|fields| fields.month().unwrap_or_default()),
            refuse_row: Arc::new(|_| None),
            poison: Arc::new(|_| false),
            clock: None,
        }
    }
}
