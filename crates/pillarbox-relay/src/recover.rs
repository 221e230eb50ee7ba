//! `pillarbox recover`: makes an outbox deliverable again whose ledger no longer tells what the sinks
//! hold: restored, copied, set back, or promoted without its last seals.
//!
//! First the judgement, beside publishers: every event that a ledger does not prove delivered is looked
//! for in the sink by its identity. Then, in one transaction behind an exclusive lock on the outbox,
//! what some sink lacks is published again in the order in which it was, the rest is truncated, and each
//! sink gets a new genesis under a new origin. Until that commits nothing has changed.
//!
//! The outbox is shared, so all sinks are recovered together, and no relay of any may be active.

mod judging;
mod rewriting;

use std::collections::BTreeMap;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config};
use uuid::Uuid;

use crate::identity::{Identity, identify};
use crate::postgres::{self, ConnectError, Session, check_server};
use crate::schema::{self, LOCK_CLASS, SchemaError};
use crate::sink::Trouble;
use crate::sink::clickhouse::{ClickHouse, ClickHousePlan};
use crate::source::postgres::holder::Holder;

/// Under which name the recovery's session shows up; a relay's stand-by does not displace it.
const APPLICATION_NAME: &str = "pillarbox recover";

/// Sinks at most: each is a bit of a signed number.
const SINKS_MAX: usize = 62;

/// A registered sink and where it is.
#[derive(Debug)]
pub struct Destination<'a> {
    /// Its name.
    pub name: &'a str,
    /// What the registry must hold for it.
    pub fingerprint: &'a str,
    /// Where its events are.
    pub sink: &'a ClickHouse,
    /// What the preflight found.
    pub plan: &'a ClickHousePlan,
    /// What to do about events of which nobody can tell whether the sink holds them.
    pub doubtful: Doubtful,
}

/// What becomes of events of which nobody can tell whether a sink holds them: its table does not keep
/// their identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubtful {
    /// A person has to decide.
    Refuse,
    /// The sink gets them; some may be there twice afterwards.
    Deliver,
    /// The sink does not get them; some may be missing afterwards.
    Skip,
}

/// What a recovery found, sink by sink, and would do.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Findings {
    /// What happened to the database, for people.
    pub database: &'static str,
    /// Events that the outbox holds.
    pub events: u64,
    /// Of these, those that some sink lacks: they are published again, the others are truncated.
    pub published_again: u64,
    /// For each sink.
    pub sinks: Vec<SinkFindings>,
}

/// What a recovery found about a sink.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct SinkFindings {
    /// Its name.
    pub sink: String,
    /// Events that its ledger proves to be settled.
    pub proven: u64,
    /// Events that were looked for and are in its table.
    pub found: u64,
    /// Events that are not, and will be delivered.
    pub missing: u64,
    /// Events of which nobody can tell; of `missing` when they are delivered.
    pub doubtful: u64,
    /// Sealed batches that had no outcome.
    pub open_batches: u64,
    /// The last batch such that it and all before it are proven.
    #[serde(skip)]
    pub(crate) proven_to: i64,
    /// Dead letters that were being retried, and are in its table.
    #[serde(skip)]
    pub(crate) retried: Vec<Uuid>,
}

/// Why an outbox could not be recovered. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Something has to be mended or decided first.
    #[error("{0}")]
    Refused(String),
    /// The database.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A sink.
    #[error("sink {0}")]
    Sink(String, #[source] Trouble),
}

impl From<tokio_postgres::Error> for RecoverError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Schema(error.into())
    }
}

impl From<ConnectError> for RecoverError {
    fn from(error: ConnectError) -> Self {
        Self::Schema(error.into())
    }
}

/// A sink under recovery.
#[derive(Debug)]
struct Ledger<'a> {
    sink: i32,
    /// Its bit.
    place: i16,
    identity: Identity,
    destination: &'a Destination<'a>,
}

impl Ledger<'_> {
    fn bit(&self) -> i64 {
        1 << self.place
    }
}

/// An outbox with the locks of all its sinks: no relay is active until this is dropped.
#[derive(Debug)]
pub struct Recovery<'a> {
    session: Session,
    ledgers: Vec<Ledger<'a>>,
}

impl<'a> Recovery<'a> {
    /// Takes the locks of all sinks. Nothing is changed; dropping it gives them back.
    ///
    /// # Errors
    /// When a relay is active, a registered sink is not among the destinations, or rights are missing.
    pub async fn begin(
        config: &Config,
        destinations: &'a [Destination<'a>],
    ) -> Result<Self, RecoverError> {
        let session = postgres::connect(config, APPLICATION_NAME).await?;
        let client = session.client();
        check_server(client).await?;
        schema::check_version(client).await?;
        act_as_owner(client).await?;
        let mut ledgers = lock(client, destinations).await?;
        for ledger in &mut ledgers {
            ledger.identity = identify(client, ledger.sink).await?;
        }
        Ok(Self { session, ledgers })
    }

    /// What happened to the database.
    pub fn identity(&self) -> Identity {
        let identities = || self.ledgers.iter().map(|ledger| ledger.identity);
        let severe = [Identity::Restored, Identity::Copied, Identity::Upgraded];
        let mut severe = severe.into_iter();
        severe
            .find(|one| identities().any(|identity| identity == *one))
            .unwrap_or(Identity::Same)
    }

    /// Finds out which sink needs which event. Publishers go on meanwhile. Tells `progress` how many
    /// events were judged, of how many.
    ///
    /// # Errors
    /// When a sink cannot be asked, or somebody has to decide about events that are in doubt.
    pub async fn judge(
        &self,
        progress: impl FnMut(u64, u64) + Send,
    ) -> Result<Findings, RecoverError> {
        judging::judge(self, progress).await
    }

    /// Rewrites the outbox and the ledgers as `findings` say. Publishers wait while it does. Dropping
    /// the future leaves all as it was, or all done. Returns how many events were published again.
    ///
    /// # Errors
    /// When the outbox stays in use, or the database refuses. Nothing has changed then.
    pub async fn rewrite(self, findings: &Findings) -> Result<u64, RecoverError> {
        rewriting::rewrite(&self, findings).await
    }
}

/// Lets the session do what only the owner of the schema may, and plan as any session does.
async fn act_as_owner(client: &Client) -> Result<(), RecoverError> {
    const OWNER: &str = "
        set role pillarbox_owner;
        reset enable_seqscan; reset enable_bitmapscan; reset enable_hashjoin;
        reset enable_mergejoin; reset enable_sort; reset enable_incremental_sort;
        reset plan_cache_mode";
    match client.batch_execute(OWNER).await {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            Err(RecoverError::Refused(
                "recovering rewrites the outbox, which only a member of pillarbox_owner may; connect \
                 as the user that ran pillarbox migrate, or: grant pillarbox_owner to USER"
                    .to_owned(),
            ))
        }
        other => Ok(other?),
    }
}

/// Takes the lock of every sink that was not retired.
async fn lock<'a>(
    client: &Client,
    destinations: &'a [Destination<'a>],
) -> Result<Vec<Ledger<'a>>, RecoverError> {
    const SINKS: &str = include_str!("recover/sql/sinks.sql");
    let known: BTreeMap<&str, &Destination<'_>> = destinations
        .iter()
        .map(|destination| (destination.name, destination))
        .collect();
    let rows = client.query(SINKS, &[&LOCK_CLASS]).await?;
    if rows.is_empty() {
        return Err(RecoverError::Refused(
            "no sink is registered, so no ledger is there to recover; run: pillarbox sink create"
                .to_owned(),
        ));
    }
    if rows.len() > SINKS_MAX {
        return Err(RecoverError::Refused(format!(
            "{} sinks are registered; recovering works on {SINKS_MAX} at most",
            rows.len()
        )));
    }
    let mut ledgers = Vec::new();
    for (row, place) in rows.iter().zip(0..) {
        let (sink, name): (i32, &str) = (row.get(0), row.get(1));
        let destination = known.get(name).copied().ok_or_else(|| {
            RecoverError::Refused(format!(
                "the sink {name} reads the same outbox, but the configuration does not say where it \
                 is; add [sinks.{name}], or retire it with: pillarbox sink retire {name}"
            ))
        })?;
        if row.get::<_, &str>(2) != destination.fingerprint {
            return Err(RecoverError::Refused(format!(
                "the sink {name} is registered for {}, but the configuration says {}",
                row.get::<_, &str>(2),
                destination.fingerprint
            )));
        }
        if !row.get::<_, bool>(3) {
            let holder = Holder::of(client, sink).await?;
            let holder = holder.map_or_else(|| "another session".to_owned(), |h| h.to_string());
            return Err(RecoverError::Refused(format!(
                "the sink {name} is in use by {holder}; stop its relays, stand-bys too, then try again"
            )));
        }
        ledgers.push(Ledger {
            sink,
            place,
            identity: Identity::Same,
            destination,
        });
    }
    Ok(ledgers)
}
