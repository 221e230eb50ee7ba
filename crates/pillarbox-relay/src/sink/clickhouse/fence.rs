//! The fence: no earlier attempt of a block is still running anywhere when one looks.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::answer::Fault;
use super::client::Client;
use super::lookup::quoted;
use super::plan::ClickHousePlan;
use super::sql;
use super::verdict::trouble;
use crate::sink::{Insert, Reaction, Trouble};

/// How long a killed insert may take to end.
const FENCE_MAX: Duration = Duration::from_secs(30);
/// Between two looks at the running statements.
const FENCE_POLL: Duration = Duration::from_millis(100);

/// Which replicas have to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fence {
    /// Each: only then is no earlier attempt running.
    OfAll,
    /// Each that can be reached: what an earlier attempt at another one does, the token undoes.
    OfThoseThatAnswer,
}

/// Makes sure that no earlier attempt of the block is still running on any replica.
pub(super) async fn fence(
    client: &Client,
    plan: &ClickHousePlan,
    table: &str,
    insert: &Insert<'_>,
    strictness: Fence,
) -> Result<(), Trouble> {
    let attempts = sql::text(&format!("{}-{}-%", insert.batch.batch_id, insert.ordinal));
    let running = format!(
        "SELECT count() AS running FROM system.processes WHERE query_id LIKE {attempts} FORMAT JSONEachRow"
    );
    let mut unreachable = None;
    let mut reached = 0;
    for replica in 0..client.endpoints() {
        match end(client, replica, table, &attempts, &running).await {
            Ok(()) => {
                sync(client, plan, table, replica).await?;
                reached += 1;
            }
            Err(Unfenced::Unreachable(trouble)) if strictness == Fence::OfThoseThatAnswer => {
                unreachable = Some(trouble);
            }
            Err(Unfenced::Unreachable(trouble) | Unfenced::Running(trouble)) => {
                return Err(trouble);
            }
        }
    }
    match unreachable {
        Some(trouble) if reached == 0 => Err(trouble),
        _ => Ok(()),
    }
}

/// Why earlier attempts may still be running at a replica.
enum Unfenced {
    /// It takes no connection.
    Unreachable(Trouble),
    /// They are, or it does not say.
    Running(Trouble),
}

/// Ends the earlier attempts at one replica.
async fn end(
    client: &Client,
    replica: usize,
    table: &str,
    attempts: &str,
    running: &str,
) -> Result<(), Unfenced> {
    let deadline = Instant::now() + FENCE_MAX;
    loop {
        let answer = client.query_at(replica, running).await;
        let answer = answer.map_err(|fault| {
            let trouble = trouble_at(client, replica, &fault);
            match fault {
                Fault::Unreachable(_) => Unfenced::Unreachable(trouble),
                _ => Unfenced::Running(trouble),
            }
        })?;
        if counted(&answer.body) == Some(0) {
            return Ok(());
        }
        // A server that cannot kill still ends the insert when its connection is closed.
        let kill = format!("KILL QUERY WHERE query_id LIKE {attempts} ASYNC");
        let _ = client.query_at(replica, &kill).await;
        if Instant::now() >= deadline {
            return Err(Unfenced::Running(Trouble {
                code: None,
                reason: format!(
                    "{}: an earlier insert into {table} is still running",
                    client.name(replica)
                ),
                reaction: Reaction::Backoff,
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
    if !plan.0.replicated {
        return Ok(());
    }
    let statement = format!("SYSTEM SYNC REPLICA {table}");
    let synced = client.query_at(replica, &statement).await;
    synced.map_err(|fault| trouble_at(client, replica, &fault))?;
    Ok(())
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
