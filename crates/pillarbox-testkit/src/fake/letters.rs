//! The dead letters of the fake database, and what people want to be delivered again. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use pillarbox_relay::batch::{Kind, Selection};
use pillarbox_relay::snapshot::Cut;
use pillarbox_relay::source::DeadLetter;
use uuid::Uuid;

use super::ring::OutboxRow;

/// An hour, the time over which poison is counted.
const LATELY: Duration = Duration::from_secs(3600);

/// Where a dead letter is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterState {
    /// Set aside.
    Dead,
    /// Somebody wants it to be retried.
    Requested,
    /// The batch of this number retries it.
    Retrying(i64),
    /// A retry delivered it.
    Delivered,
}

/// An event that was set aside.
#[derive(Clone, Debug)]
pub struct FakeLetter {
    /// Its identity.
    pub event_id: Uuid,
    /// Why, and from which batch.
    pub letter: DeadLetter,
    /// Where it is in its life.
    pub state: LetterState,
    pub(super) row: OutboxRow,
    at: SystemTime,
}

/// A wish for a replay.
#[derive(Clone, Debug)]
pub struct FakeReplay {
    /// Its number.
    pub replay: i64,
    /// The batch to deliver again.
    pub parent: i64,
    /// The batch that answers it.
    pub number: Option<i64>,
    /// Why it cannot be.
    pub refused: Option<String>,
    pub(super) kind: Kind,
    pub(super) selection: Selection,
}

impl FakeReplay {
    pub(super) fn is_open(&self) -> bool {
        self.number.is_none() && self.refused.is_none()
    }
}

/// `pillarbox.dead_letter` and `pillarbox.replay` of all sinks.
#[derive(Clone, Debug, Default)]
pub(super) struct Letters {
    letters: BTreeMap<(i32, Cut), FakeLetter>,
    pub(super) replays: BTreeMap<i32, Vec<FakeReplay>>,
}

impl Letters {
    pub(super) fn of(&self, sink: i32) -> impl Iterator<Item = &FakeLetter> {
        let all = self.letters.iter();
        all.filter(move |((of, _), _)| *of == sink)
            .map(|(_, letter)| letter)
    }

    fn of_mut(&mut self, sink: i32) -> impl Iterator<Item = &mut FakeLetter> {
        let all = self.letters.iter_mut();
        all.filter(move |((of, _), _)| *of == sink)
            .map(|(_, letter)| letter)
    }

    /// Sets an event aside, for the first time or again; it is dead since the first time.
    pub(super) fn add(&mut self, sink: i32, letter: &DeadLetter, row: OutboxRow, now: SystemTime) {
        let before = self.letters.get(&(sink, letter.at));
        let at = before.map_or(now, |before| before.at);
        let added = FakeLetter {
            event_id: row.event.event_id,
            letter: letter.clone(),
            state: LetterState::Dead,
            row,
            at,
        };
        self.letters.insert((sink, letter.at), added);
    }

    pub(super) fn get(&self, sink: i32, at: Cut) -> Option<&FakeLetter> {
        self.letters.get(&(sink, at))
    }

    pub(super) fn lately(&self, sink: i32, now: SystemTime) -> u64 {
        let since = now.checked_sub(LATELY).unwrap_or(SystemTime::UNIX_EPOCH);
        self.of(sink).filter(|letter| letter.at > since).count() as u64
    }

    pub(super) fn request(&mut self, sink: i32) {
        for letter in self.of_mut(sink) {
            if letter.state == LetterState::Dead {
                letter.state = LetterState::Requested;
            }
        }
    }

    pub(super) fn retrying(&mut self, sink: i32, at: Cut, number: i64) {
        if let Some(letter) = self.letters.get_mut(&(sink, at)) {
            letter.state = LetterState::Retrying(number);
        }
    }

    pub(super) fn retried(&mut self, sink: i32, number: i64) {
        for letter in self.of_mut(sink) {
            if letter.state == LetterState::Retrying(number) {
                letter.state = LetterState::Delivered;
            }
        }
    }

    pub(super) fn replay(&mut self, sink: i32, replay: i64) -> Option<&mut FakeReplay> {
        let replays = self.replays.entry(sink).or_default();
        replays.iter_mut().find(|wish| wish.replay == replay)
    }

    pub(super) fn has_requests(&self, sink: i32) -> bool {
        let replays = self.replays.get(&sink).into_iter().flatten();
        let mut letters = self.of(sink);
        letters.any(|letter| letter.state == LetterState::Requested)
            || replays.into_iter().any(FakeReplay::is_open)
    }
}
