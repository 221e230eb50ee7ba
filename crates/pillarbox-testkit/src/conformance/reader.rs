//! Collects what a session reads, and seals it without a sink.

use std::time::SystemTime;

use anyhow::{Context, Result};
use pillarbox_relay::batch::{Batch, Block, Kind, Row, Selection};
use pillarbox_relay::sink::{Pushed, RowError};
use pillarbox_relay::snapshot::{Cut, Position, Span};
use pillarbox_relay::source::{Outcome, Rows, Session};
use uuid::Uuid;

/// The columns that the suites read.
pub const COLUMNS: [&str; 3] = ["event_id", "event_context", "trace_parent"];

/// Takes rows until its room is used up.
#[derive(Debug)]
pub struct Collector {
    room: u64,
    is_full: bool,
    /// What it took, in order.
    pub rows: Vec<(Cut, Uuid, Vec<u8>)>,
}

impl Collector {
    /// For `room` rows.
    pub fn new(room: u64) -> Self {
        Self {
            room,
            is_full: false,
            rows: Vec::new(),
        }
    }

    /// Where the batch is cut, if it is.
    pub fn cut(&self) -> Option<Cut> {
        let last = self.rows.last().map(|(at, ..)| *at);
        last.filter(|_| self.is_full)
    }

    /// The events, in order.
    pub fn events(&self) -> Vec<Uuid> {
        self.rows.iter().map(|(_, event, _)| *event).collect()
    }

    /// The places of the rows are ascending.
    pub fn is_in_order(&self) -> bool {
        self.rows.is_sorted_by(|a, b| a.0 < b.0)
    }
}

impl Rows for Collector {
    fn push(&mut self, row: &Row<'_>) -> Result<Pushed, RowError> {
        if self.rows.len() as u64 >= self.room {
            self.is_full = true;
            return Ok(Pushed::NoRoom);
        }
        let field = |index: usize| row.fields.get(index).copied().flatten().unwrap_or_default();
        let event = Uuid::from_slice(field(0)).map_err(|error| RowError {
            tx: row.at.tx,
            id: row.at.id,
            column: "event_id".to_owned(),
            reason: error.to_string(),
        })?;
        self.rows.push((row.at, event, field(1).to_vec()));
        Ok(Pushed::Taken)
    }
}

/// Reads a span, as far as there is room.
///
/// # Errors
/// When the session fails.
pub async fn read<S: Session>(
    session: &S,
    span: &Span,
    rows_max: u64,
    room: u64,
) -> Result<Collector> {
    let mut collector = Collector::new(room);
    let columns = COLUMNS.map(str::to_owned);
    session
        .read(span, &columns, rows_max, &mut collector)
        .await?;
    Ok(collector)
}

/// A batch over `span`, with a block map of two lines.
pub fn batch(number: i64, origin: u32, span: Span, rows: u64) -> Batch {
    let block = Block {
        partition: "p".to_owned(),
        rows,
        digest: u64::MAX - 5,
        is_numbered: true,
    };
    Batch {
        number,
        batch_id: Uuid::new_v4(),
        origin,
        kind: Kind::Window,
        parent: None,
        root: None,
        selection: Selection::default(),
        terms: None,
        span,
        rows,
        bytes: rows * 100,
        digest: u64::MAX - 5,
        blocks: vec![block.clone(), Block { rows: 0, ..block }],
        sealed_at: SystemTime::UNIX_EPOCH,
    }
}

/// An outcome for a batch.
pub fn outcome(number: i64, server: &str) -> Outcome {
    Outcome {
        attempts: 1,
        server: server.to_owned(),
        ..Outcome::delivered(number, 1)
    }
}

/// Does what the spine does between a probe and a seal, one step at a time.
#[derive(Debug)]
pub struct Sealer {
    /// Where sealing stands.
    pub position: Position,
    /// Number of the last batch.
    pub last_number: i64,
    /// Origin of the registration.
    pub origin: u32,
    /// Every event sealed so far, in order.
    pub events: Vec<Uuid>,
}

impl Sealer {
    /// From where the ledger stands.
    ///
    /// # Errors
    /// When the session fails.
    pub async fn open<S: Session>(session: &S) -> Result<Self> {
        let standing = session.standing().await?;
        Ok(Self {
            position: standing.position,
            last_number: standing.last_number,
            origin: standing.origin,
            events: Vec::new(),
        })
    }

    /// Seals the next batch of at most `room` rows; `None` when there is nothing to seal.
    ///
    /// # Errors
    /// When the session fails, or rows come out of order.
    pub async fn seal<S: Session>(&mut self, session: &S, room: u64) -> Result<Option<Batch>> {
        let now = session.probe(&self.position).await?.snapshot;
        let mut span = self.position.next_span(now);
        let collector = read(session, &span, room, room).await?;
        anyhow::ensure!(collector.is_in_order(), "rows are out of order");
        if collector.rows.is_empty() {
            return Ok(None);
        }
        span.until = collector.cut();
        let rows = collector.rows.len() as u64;
        let mut batch = batch(self.last_number + 1, self.origin, span, rows);
        session.seal(&mut batch).await.context("sealing")?;
        self.position = Position::from(&batch.span);
        self.last_number = batch.number;
        self.events.extend(collector.events());
        Ok(Some(batch))
    }

    /// Seals until there is nothing left.
    ///
    /// # Errors
    /// When the session fails, or rows come out of order.
    pub async fn seal_all<S: Session>(&mut self, session: &S, room: u64) -> Result<Vec<Batch>> {
        let mut batches = Vec::new();
        while let Some(batch) = self.seal(session, room).await? {
            batches.push(batch);
        }
        Ok(batches)
    }
}
