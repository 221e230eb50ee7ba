//! An installed outbox on a real server, and a drain of it step by step, without a sink: what the
//! tests of the PostgreSQL side stand on.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use pillarbox_relay::batch::{Batch, Block, Kind, Row, Selection};
use pillarbox_relay::postgres;
use pillarbox_relay::schema::registry::{self, Start};
use pillarbox_relay::schema::{self, Migrated};
use pillarbox_relay::sink::{Pushed, RowError};
use pillarbox_relay::snapshot::{Cut, Position, Snapshot, Span};
use pillarbox_relay::source::postgres::{PostgresSession, PostgresSource};
use pillarbox_relay::source::{Outcome, Rows, Session, Source, SourceError, Standby};
use pillarbox_testkit::servers::{PgVersion, Postgres, eventually};
use tokio_postgres::Client;
use uuid::Uuid;

/// The oldest and the newest version that the tests run.
pub(crate) const VERSIONS: [PgVersion; 2] = [PgVersion::V15, PgVersion::V18];

/// Bound of every wait for a signal.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The sink that every outbox of the tests has.
pub(crate) const SINK: &str = "main";

/// How long a relay of the tests may be silent; long, so that only the tests about it see it.
const TAKEOVER_AFTER: Duration = Duration::from_secs(600);

/// A server with the schema and one sink.
pub(crate) struct Outbox {
    pub(crate) server: Postgres,
    pub(crate) admin: Client,
}

impl Outbox {
    /// On a fresh server with default settings; nothing is retained after its delivery.
    pub(crate) async fn start(version: PgVersion) -> Result<Self> {
        Self::on(Postgres::start(version).await?).await
    }

    /// On this server.
    pub(crate) async fn on(server: Postgres) -> Result<Self> {
        let mut admin = server.connect().await?;
        let migrated = schema::migrate(&mut admin).await?;
        assert_eq!(migrated, Migrated::Installed);
        registry::register(&admin, SINK, "test", Start::Outbox).await?;
        let now = "update pillarbox.settings set retention = '0'";
        admin.batch_execute(now).await?;
        Ok(Self { server, admin })
    }

    /// The source of a sink.
    pub(crate) fn source(&self, sink: &str) -> Result<PostgresSource> {
        let config = postgres::parse_url(self.server.url())?;
        Ok(PostgresSource::new(config, sink, TAKEOVER_AFTER))
    }

    /// Takes over a sink as soon as the last tenure's sessions are gone.
    pub(crate) async fn drain(&self, sink: &str) -> Result<Drain> {
        let source = self.source(sink)?;
        eventually("the sink's lock", DEADLINE, || async {
            Ok(Drain::try_open(&source).await?)
        })
        .await
    }

    /// Publishes `count` events in one transaction; gives their ids.
    pub(crate) async fn publish(&self, count: i32) -> Result<Vec<Uuid>> {
        publish(&self.admin, count).await
    }

    /// The ids of all committed events.
    pub(crate) async fn event_ids(&self) -> Result<Vec<Uuid>> {
        let sql = "select event_id from pillarbox.event order by tx, id";
        let rows = self.admin.query(sql, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Reconnects after the server was restarted.
    pub(crate) async fn reconnect(&mut self) -> Result<()> {
        self.admin = self.server.connect().await?;
        Ok(())
    }

    /// One value of one row, as superuser.
    pub(crate) async fn value<T: for<'a> tokio_postgres::types::FromSql<'a>>(
        &self,
        sql: &str,
    ) -> Result<T> {
        value(&self.admin, sql).await
    }

    /// Whether the leaf has no bytes.
    pub(crate) async fn is_empty(&self, slot: i16) -> Result<bool> {
        let sql = format!("select pg_relation_size('pillarbox.event_{slot}') = 0");
        self.value(&sql).await
    }

    /// Where the ring stands.
    pub(crate) async fn slot(&self) -> Result<i16> {
        self.value("select pillarbox.ring_slot()").await
    }

    /// Moves the ring by hand, as `tend` does when a leaf is due.
    pub(crate) async fn turn_to(&self, slot: i16) -> Result<()> {
        let sql = format!("select setval('pillarbox.ring_position', {slot})");
        self.admin.query(&sql, &[]).await?;
        Ok(())
    }
}

/// One value of one row.
pub(crate) async fn value<T: for<'a> tokio_postgres::types::FromSql<'a>>(
    client: &Client,
    sql: &str,
) -> Result<T> {
    let row = client.query_one(sql, &[]).await;
    Ok(row.with_context(|| sql.to_owned())?.try_get(0)?)
}

/// Publishes `count` events in one statement; gives their ids in order.
pub(crate) async fn publish(client: &Client, count: i32) -> Result<Vec<Uuid>> {
    let sql = "select pillarbox.publish_batch(
                   array(select 'test' from generate_series(1, $1::integer)),
                   array(select json_build_object('n', n) from generate_series(1, $1) n))";
    let rows = client.query(sql, &[&count]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The id of the session's server process.
pub(crate) async fn backend(client: &Client) -> Result<i32> {
    value(client, "select pg_backend_pid()").await
}

/// A sealed batch and the events in it, in order.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) batch: Batch,
    pub(crate) events: Vec<(Cut, Uuid)>,
}

impl Sealed {
    pub(crate) fn ids(&self) -> Vec<Uuid> {
        self.events.iter().map(|(_, id)| *id).collect()
    }
}

/// Does what the spine does between a probe and a confirmation, one step at a time.
#[derive(Debug)]
pub(crate) struct Drain {
    pub(crate) session: PostgresSession,
    pub(crate) origin: u32,
    pub(crate) last_number: i64,
    pub(crate) position: Position,
    pub(crate) unfinished: Vec<Batch>,
    pub(crate) timeline_changed: bool,
}

impl Drain {
    /// A tenure; `None` where another relay is active.
    pub(crate) async fn try_open(source: &PostgresSource) -> Result<Option<Self>, SourceError> {
        let Some(session) = source.take_over(Standby::Leave).await? else {
            return Ok(None);
        };
        Self::of(session).await.map(Some)
    }

    /// A tenure that begins with what the ledger says.
    pub(crate) async fn of(session: PostgresSession) -> Result<Self, SourceError> {
        let standing = session.standing().await?;
        Ok(Self {
            session,
            origin: standing.origin,
            last_number: standing.last_number,
            position: standing.position,
            unfinished: standing.unfinished.into_iter().map(|u| u.batch).collect(),
            timeline_changed: standing.timeline_changed,
        })
    }

    /// The snapshot with which the next window would end.
    pub(crate) async fn look(&self) -> Result<Snapshot, SourceError> {
        Ok(self.session.probe(&self.position).await?.snapshot)
    }

    /// Seals the next batch of at most `rows_max` rows; `None` when there is nothing.
    pub(crate) async fn seal(&mut self, rows_max: u64) -> Result<Option<Sealed>, SourceError> {
        let now = self.look().await?;
        let span = self.position.next_span(now);
        self.seal_span(span, rows_max).await
    }

    /// Seals what `span` holds, cut after `rows_max` rows.
    pub(crate) async fn seal_span(
        &mut self,
        span: Span,
        rows_max: u64,
    ) -> Result<Option<Sealed>, SourceError> {
        let Some((mut batch, events)) = self.draft(span, rows_max).await? else {
            return Ok(None);
        };
        self.session.seal(&mut batch).await?;
        self.position = Position::from(&batch.span);
        self.last_number = batch.number;
        Ok(Some(Sealed { batch, events }))
    }

    /// Reads the next batch without sealing it.
    pub(crate) async fn draft(
        &self,
        mut span: Span,
        rows_max: u64,
    ) -> Result<Option<(Batch, Vec<(Cut, Uuid)>)>, SourceError> {
        let read = self.read(&span, rows_max).await?;
        if read.events.is_empty() {
            return Ok(None);
        }
        span.until = read.cut();
        let digest = read.digest();
        let rows = read.events.len() as u64;
        let batch = Batch {
            number: self.last_number + 1,
            batch_id: Uuid::new_v4(),
            origin: self.origin,
            kind: Kind::Window,
            parent: None,
            root: None,
            selection: Selection::default(),
            terms: None,
            span,
            rows,
            bytes: rows * 16,
            digest,
            blocks: vec![Block {
                partition: String::new(),
                rows,
                digest,
                is_numbered: true,
            }],
            sealed_at: SystemTime::UNIX_EPOCH,
        };
        Ok(Some((batch, read.events)))
    }

    pub(crate) async fn read(&self, span: &Span, rows_max: u64) -> Result<Read, SourceError> {
        let mut read = Read::new(rows_max);
        let columns = ["event_id".to_owned()];
        self.session
            .read(span, &columns, rows_max, &mut read)
            .await?;
        Ok(read)
    }

    /// Reads a sealed batch again, as after a restart.
    pub(crate) async fn read_again(&self, batch: &Batch) -> Result<Read, SourceError> {
        self.read(&batch.span, batch.rows + 1).await
    }

    pub(crate) async fn confirm(&self, batch: &Batch) -> Result<(), SourceError> {
        let outcome = Outcome {
            attempts: 1,
            server: "test".to_owned(),
            ..Outcome::delivered(batch.number, batch.rows)
        };
        self.session.confirm(&outcome).await
    }

    /// Seals and confirms until nothing is left; gives the ids of each batch.
    pub(crate) async fn all(&mut self, rows_max: u64) -> Result<Vec<Vec<Uuid>>> {
        let mut batches = Vec::new();
        for batch in std::mem::take(&mut self.unfinished) {
            let read = self.read_again(&batch).await?;
            if (read.events.len() as u64, read.digest()) != (batch.rows, batch.digest) {
                bail!("batch {} does not come out as it was sealed", batch.number);
            }
            batches.push(read.events.iter().map(|(_, id)| *id).collect());
            self.confirm(&batch).await?;
        }
        while let Some(sealed) = self.seal(rows_max).await? {
            self.confirm(&sealed.batch).await?;
            batches.push(sealed.ids());
        }
        Ok(batches)
    }
}

/// The rows of a read.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) events: Vec<(Cut, Uuid)>,
    rows_max: usize,
    is_full: bool,
}

impl Read {
    pub(crate) fn new(rows_max: u64) -> Self {
        Self {
            events: Vec::new(),
            rows_max: usize::try_from(rows_max).unwrap_or(usize::MAX),
            is_full: false,
        }
    }

    pub(crate) fn cut(&self) -> Option<Cut> {
        self.events.last().map(|e| e.0).filter(|_| self.is_full)
    }

    pub(crate) fn digest(&self) -> u64 {
        let half = |(_, id): &(Cut, Uuid)| id.as_u64_pair().1;
        self.events.iter().map(half).fold(0, u64::wrapping_add)
    }
}

impl Rows for Read {
    fn push(&mut self, row: &Row<'_>) -> Result<Pushed, RowError> {
        if self.events.len() >= self.rows_max {
            self.is_full = true;
            return Ok(Pushed::NoRoom);
        }
        let bytes = row.fields.first().copied().flatten().unwrap_or_default();
        let id = Uuid::from_slice(bytes).unwrap_or_default();
        self.events.push((row.at, id));
        Ok(Pushed::Taken)
    }
}

/// How often each id was delivered.
pub(crate) fn counts<'a>(batches: impl IntoIterator<Item = &'a Vec<Uuid>>) -> BTreeMap<Uuid, u32> {
    let mut counts = BTreeMap::new();
    for id in batches.into_iter().flatten() {
        *counts.entry(*id).or_insert(0) += 1;
    }
    counts
}

/// Fails unless each committed event was delivered once, and nothing else was.
pub(crate) fn exactly_once(committed: &[Uuid], batches: &[Vec<Uuid>]) {
    let counts = counts(batches);
    let lost: Vec<_> = committed
        .iter()
        .filter(|id| !counts.contains_key(id))
        .collect();
    let doubled: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(
        lost.is_empty() && doubled.is_empty() && counts.len() == committed.len(),
        "{} committed, {} delivered, {} lost, {} doubled, {} never committed",
        committed.len(),
        counts.len(),
        lost.len(),
        doubled.len(),
        (counts.len() + lost.len()).saturating_sub(committed.len())
    );
}
