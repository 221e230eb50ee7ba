//! What the generators know, recorded outside of Pillarbox when COMMIT returned.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use pillarbox_testkit::oracle::{Oracle, Published};
use tokio_postgres::Client;
use uuid::Uuid;

/// Microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// The events of one transaction, before its end is known.
#[derive(Debug)]
pub(crate) struct Draft {
    /// The transaction's row in the business table.
    pub(crate) receipt: Uuid,
    pub(crate) events: Vec<Published>,
    /// Events behind a savepoint that was rolled back.
    pub(crate) undone: Vec<Uuid>,
}

impl Draft {
    pub(crate) fn new() -> Self {
        Self {
            receipt: Uuid::new_v4(),
            events: Vec::new(),
            undone: Vec::new(),
        }
    }
}

/// A request to create a user.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) email: String,
    pub(crate) context: String,
    /// When it was sent and when it was answered: the event's time lies between.
    pub(crate) sent_us: i64,
    pub(crate) answered_us: i64,
    pub(crate) answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// 201, with the user's id.
    Created(i64),
    /// 5xx, or none.
    Unclear,
}

#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) oracle: Oracle,
    /// When COMMIT returned, by event.
    commits: Mutex<Vec<(Uuid, i64)>>,
    /// Transactions whose COMMIT failed or was not answered.
    doubts: Mutex<Vec<Draft>>,
    requests: Mutex<Vec<Request>>,
    committed: AtomicU64,
    undone: AtomicU64,
}

impl Record {
    /// Events known to be committed, while traffic runs.
    pub(crate) fn published(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Events known to be rolled back, while traffic runs.
    pub(crate) fn rolled_back_count(&self) -> u64 {
        self.undone.load(Ordering::Relaxed)
    }

    pub(crate) fn committed(&self, draft: &Draft) {
        let at = now_us();
        let mut commits = lock(&self.commits);
        for event in &draft.events {
            self.oracle.committed(*event);
            commits.push((event.event_id, at));
        }
        self.committed
            .fetch_add(draft.events.len() as u64, Ordering::Relaxed);
        self.undo(&draft.undone);
    }

    pub(crate) fn rolled_back(&self, draft: &Draft) {
        let ids: Vec<Uuid> = draft.events.iter().map(|event| event.event_id).collect();
        self.undo(&ids);
        self.undo(&draft.undone);
    }

    pub(crate) fn unanswered(&self, draft: Draft) {
        for event in &draft.events {
            self.oracle.unanswered(*event);
        }
        self.undo(&draft.undone);
        lock(&self.doubts).push(draft);
    }

    pub(crate) fn request(&self, request: Request) {
        match request.answer {
            Answer::Created(_) => self.committed.fetch_add(1, Ordering::Relaxed),
            Answer::Unclear => self.undone.fetch_add(1, Ordering::Relaxed),
        };
        lock(&self.requests).push(request);
    }

    /// When COMMIT of one event returned, as soon as its id is known.
    pub(crate) fn committed_at(&self, event: Published, at_us: i64) {
        self.oracle.committed(event);
        lock(&self.commits).push((event.event_id, at_us));
    }

    pub(crate) fn commits(&self) -> Vec<(Uuid, i64)> {
        lock(&self.commits).clone()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        lock(&self.requests).clone()
    }

    /// Looks into the business table for what became of unanswered transactions.
    pub(crate) async fn resolve(&self, admin: &Client) -> Result<()> {
        const KEPT: &str = "select exists (select from public.receipts where receipt = $1)";
        let doubts = std::mem::take(&mut *lock(&self.doubts));
        for draft in doubts {
            let kept: bool = admin.query_one(KEPT, &[&draft.receipt]).await?.get(0);
            for event in &draft.events {
                self.oracle.resolve(event.event_id, kept);
            }
        }
        Ok(())
    }

    fn undo(&self, ids: &[Uuid]) {
        for id in ids {
            self.oracle.rolled_back(*id);
        }
        self.undone.fetch_add(ids.len() as u64, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
