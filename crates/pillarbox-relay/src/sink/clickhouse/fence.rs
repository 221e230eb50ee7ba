//! The fence: no earlier attempt of a block is still running anywhere when one looks, and where one
//! may look.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::answer::Fault;
use super::client::Client;
use super::code;
use super::lookup::quoted;
use super::plan::ClickHousePlan;
use super::sql;
use super::verdict::trouble;
use crate::sink::{Insert, Reaction, Trouble};

/// How long a killed insert may take to end.
const FENCE_MAX: Duration = Duration::from_secs(30);
/// Between two looks at the running statements.
const FENCE_POLL: Duration = Duration::from_millis(100);

/// A replica that may be passed over answers, and catches up with the others, within this time.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Which replicas have to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fence {
    /// Each: only then is no earlier attempt running.
    OfAll,
    /// Each that answers: what an earlier attempt at another one does, the token undoes.
    OfThoseThatAnswer,
}

impl Fence {
    fn waits(self, client: &Client) -> Duration {
        match self {
            Self::OfAll => client.query_timeout(),
            Self::OfThoseThatAnswer => client.query_timeout().min(ANSWERS_WITHIN),
        }
    }
}

/// What a look behind the fence can be asked of.
#[derive(Debug)]
pub(super) struct Fenced {
    /// The replicas that were reached, those first that have what any replica had committed.
    pub(super) replicas: Vec<usize>,
    /// Whether they have what any replica had committed, but for the gap.
    pub(super) is_synced: bool,
    /// Why rows that none of them has may still be somewhere; always `None` behind [`Fence::OfAll`].
    pub(super) gap: Option<Trouble>,
}

impl Fenced {
    /// No earlier attempt is in doubt: any replica will do, the one that answered last before all.
    pub(super) fn not_needed(client: &Client) -> Self {
        Self {
            replicas: client.in_order(),
            is_synced: false,
            gap: None,
        }
    }
}

/// Makes sure that no earlier attempt of the block is still running on any replica.
pub(super) async fn fence(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    insert: &Insert<'_>,
    strictness: Fence,
) -> Result<Fenced, Trouble> {
    let waits = strictness.waits(client);
    let mut gap = None;
    let mut pass_over = |unfenced: Unfenced| match unfenced {
        Unfenced::Silent(trouble) | Unfenced::Behind(trouble)
            if strictness == Fence::OfThoseThatAnswer =>
        {
            let (batch, block) = (insert.batch.number, insert.ordinal);
            let error: &dyn std::error::Error = &trouble;
            tracing::warn!(batch, block, error, "a replica is not waited for");
            gap = Some(trouble);
            Ok(())
        }
        unfenced => Err(unfenced.into_trouble()),
    };
    let mut reached = Vec::new();
    for replica in 0..client.endpoints() {
        match end(client, replica, table, insert, waits).await {
            Ok(()) => reached.push(replica),
            Err(unfenced) => pass_over(unfenced)?,
        }
    }
    let (mut replicas, mut behind) = (Vec::new(), Vec::new());
    for replica in reached {
        match catch_up(client, plan, table, replica, waits).await {
            Ok(()) => replicas.push(replica),
            Err(unfenced) => {
                let is_reached = matches!(unfenced, Unfenced::Behind(_));
                pass_over(unfenced)?;
                behind.extend(is_reached.then_some(replica));
            }
        }
    }
    replicas.append(&mut behind);
    match gap {
        Some(gap) if replicas.is_empty() => Err(gap),
        gap => Ok(Fenced {
            replicas,
            is_synced: true,
            gap,
        }),
    }
}

/// Why a look may miss what a replica has, or will have.
enum Unfenced {
    /// It takes no connection, or does not answer.
    Silent(Trouble),
    /// It has not got what another one has.
    Behind(Trouble),
    /// Earlier attempts are running there, or it refuses to say.
    Running(Trouble),
}

impl Unfenced {
    fn of(client: &Client, replica: usize, fault: &Fault) -> Self {
        let trouble = trouble_at(client, replica, fault);
        if !fault.is_silence() {
            return Self::Running(trouble);
        }
        Self::Silent(Trouble {
            reason: format!(
                "{}; what it holds is not known; start it, or leave its url out if it stays away",
                trouble.reason
            ),
            ..trouble
        })
    }

    fn into_trouble(self) -> Trouble {
        match self {
            Self::Silent(trouble) | Self::Behind(trouble) | Self::Running(trouble) => trouble,
        }
    }
}

/// Ends the earlier attempts at one replica, which gives each answer in time.
async fn end(
    client: &Client,
    replica: usize,
    table: &str,
    insert: &Insert<'_>,
    waits: Duration,
) -> Result<(), Unfenced> {
    let attempts = sql::text(&format!("{}-{}-%", insert.batch.batch_id, insert.ordinal));
    let running = format!(
        "SELECT count() AS running FROM system.processes WHERE query_id LIKE {attempts} FORMAT JSONEachRow"
    );
    let deadline = Instant::now() + FENCE_MAX;
    loop {
        let answer = client.query_within(replica, &running, &[], waits).await;
        let answer = answer.map_err(|fault| Unfenced::of(client, replica, &fault))?;
        if counted(&answer.body) == Some(0) {
            return Ok(());
        }
        // A server that cannot kill still ends the insert when its connection is closed.
        let kill = format!("KILL QUERY WHERE query_id LIKE {attempts} ASYNC");
        let _ = client.query_within(replica, &kill, &[], waits).await;
        if Instant::now() >= deadline {
            return Err(Unfenced::Running(Trouble {
                code: None,
                reason: format!(
                    "{}: an earlier insert into {table} is still running",
                    client.name(replica)
                ),
                reaction: Reaction::Soon,
                source: None,
            }));
        }
        tokio::time::sleep(FENCE_POLL).await;
    }
}

/// What another replica committed must be here before one looks.
pub(super) async fn sync(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    replica: usize,
) -> Result<(), Trouble> {
    let synced = catch_up(client, plan, table, replica, client.query_timeout()).await;
    synced.map_err(Unfenced::into_trouble)
}

/// Waits until a replica has what another one committed. It waits in vain for a part that only a dead
/// replica has.
async fn catch_up(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    replica: usize,
    waits: Duration,
) -> Result<(), Unfenced> {
    if !plan.0.replicated {
        return Ok(());
    }
    let statement = format!("SYSTEM SYNC REPLICA {table}");
    // Otherwise the server goes on waiting when nobody does any more.
    let seconds = waits.as_secs().max(1).to_string();
    let settings = [("receive_timeout", seconds.as_str())];
    let synced = client
        .query_within(replica, &statement, &settings, waits)
        .await;
    match synced {
        Ok(_) => Ok(()),
        Err(fault) if is_too_late(&fault) => {
            let trouble = trouble_at(client, replica, &fault);
            Err(Unfenced::Behind(Trouble {
                reason: format!(
                    "{}; it has not caught up with the other replicas of {table}: start the one that \
                     it fetches from, or look at system.replication_queue there",
                    trouble.reason
                ),
                reaction: Reaction::Soon,
                ..trouble
            }))
        }
        Err(fault) => Err(Unfenced::of(client, replica, &fault)),
    }
}

fn is_too_late(fault: &Fault) -> bool {
    matches!(fault, Fault::Overdue(_)) || fault.code() == Some(code::TIMEOUT_EXCEEDED)
}

/// Trouble that says which replica it is about.
pub(super) fn trouble_at(client: &Client, replica: usize, fault: &Fault) -> Trouble {
    let trouble = trouble(fault);
    Trouble {
        reason: format!("{}: {}", client.name(replica), trouble.reason),
        ..trouble
    }
}

fn counted(body: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Running {
        #[serde(deserialize_with = "quoted")]
        running: u64,
    }
    serde_json::from_slice::<Running>(body)
        .ok()
        .map(|row| row.running)
}
