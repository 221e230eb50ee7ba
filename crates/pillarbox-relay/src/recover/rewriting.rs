//! The rewriting: one transaction, behind an exclusive lock, that leaves in the outbox what some sink
//! lacks and starts every ledger anew. It ends with the session: what is not committed is rolled back.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use super::{Doubtful, Findings, Ledger, RecoverError, Recovery, SinkFindings};
use crate::failpoint::step;
use crate::schema::LOCK_CLASS;
use crate::schema::registry::random_origin;
use crate::snapshot::Snapshot;

/// Behind a lock that waits publishers queue, so it waits briefly, and asks again later.
const LOCK: &str = "
    begin isolation level read committed;
    set local lock_timeout = '1s';
    select pg_catalog.pg_advisory_xact_lock({class}, 0);
    lock table pillarbox.event in access exclusive mode;
    set local lock_timeout = 0";

/// Between two attempts to take the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(500);

/// Half a minute in all: business transactions end in that time.
const LOCK_ATTEMPTS: u32 = 20;

/// Events that the same sinks need.
struct Group {
    /// One bit for each of these sinks.
    needed: i64,
    /// A transaction of this cluster that wrote nothing in the outbox, and has finished.
    tx: u64,
}

pub(super) async fn rewrite(
    recovery: &Recovery<'_>,
    findings: &Findings,
) -> Result<u64, RecoverError> {
    let (session, ledgers) = (&recovery.session, &recovery.ledgers);
    let client = session.client();
    let groups = number_groups(client, ledgers).await?;
    lock(client).await?;
    step!("recover-locked");
    check_sinks(client, ledgers).await?;
    let now = client
        .query_one("select pg_catalog.pg_current_snapshot()::text", &[])
        .await?;
    let now: Snapshot = read(now.get(0))?;
    let published_again = publish_again(client).await?;
    step!("recover-published");
    for (ledger, found) in ledgers.iter().zip(&findings.sinks) {
        let undone = groups
            .iter()
            .filter(|group| group.needed & ledger.bit() != 0);
        let genesis = now.with_running(undone.map(|group| group.tx));
        begin_again(client, ledger, &genesis, found).await?;
    }
    step!("recover-written");
    session.warnings().take();
    client.batch_execute("commit").await?;
    step!("recover-committed");
    match session.warnings().take() {
        None => Ok(published_again),
        Some(warning) => Err(RecoverError::Refused(format!(
            "the outbox is recovered, but that is not durable yet: {warning}; start no relay before \
             the synchronous standby has it"
        ))),
    }
}

/// Gives each set of sinks that needs events a transaction id of its own: the genesis of a sink names
/// as running those of the events that it needs, so that it reads them and no others.
async fn number_groups(
    client: &Client,
    ledgers: &[Ledger<'_>],
) -> Result<Vec<Group>, RecoverError> {
    const NEEDED: &str = "select distinct j.needed from recover_judged j where j.needed <> 0";
    const NUMBER: &str = "
        insert into recover_group values ($1, pg_catalog.pg_current_xact_id()) returning tx::text";
    client.batch_execute("analyze recover_judged").await?;
    let rows = client.query(NEEDED, &[]).await?;
    let mut wanted: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    // What is published until the lock is there, all of them need.
    wanted.insert(ledgers.iter().map(Ledger::bit).sum());
    let mut groups = Vec::new();
    for needed in wanted {
        let row = client.query_one(NUMBER, &[&needed]).await?;
        let tx = read(row.get(0))?;
        groups.push(Group { needed, tx });
    }
    Ok(groups)
}

/// Begins the transaction with the lock of the ring, which registrations take too, and that of the
/// outbox.
async fn lock(client: &Client) -> Result<(), RecoverError> {
    let lock = LOCK.replace("{class}", &LOCK_CLASS.to_string());
    let mut attempt = 1;
    loop {
        match client.batch_execute(&lock).await {
            Ok(()) => return Ok(()),
            Err(error) if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                return Err(error.into());
            }
            Err(_) => client.batch_execute("rollback").await?,
        }
        if attempt == LOCK_ATTEMPTS {
            return Err(RecoverError::Refused(
                "the outbox is in use by a transaction that stays open, or is prepared; end it, then \
                 try again"
                    .to_owned(),
            ));
        }
        attempt += 1;
        tokio::time::sleep(LOCK_PAUSE).await;
    }
}

/// A sink that was registered or retired meanwhile was not judged.
async fn check_sinks(client: &Client, ledgers: &[Ledger<'_>]) -> Result<(), RecoverError> {
    const SINKS: &str = "select sink from pillarbox.sink where retired_at is null order by sink";
    let rows = client.query(SINKS, &[]).await?;
    let sinks = rows.iter().map(|row| row.get::<_, i32>(0));
    if sinks.eq(ledgers.iter().map(|ledger| ledger.sink)) {
        return Ok(());
    }
    Err(RecoverError::Refused(
        "a sink was registered or retired meanwhile; try again".to_owned(),
    ))
}

/// Leaves in the outbox what some sink needs, in the order in which it was published.
async fn publish_again(client: &Client) -> Result<u64, RecoverError> {
    const GATHER: &str = include_str!("sql/gather.sql");
    const COLUMNS: &str = include_str!("sql/columns.sql");
    const REINSERT: &str = include_str!("sql/reinsert.sql");
    let gathered = client.execute(GATHER, &[]).await?;
    let rows = client.query(COLUMNS, &[]).await?;
    let columns: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    let kept: Vec<String> = columns.iter().map(|column| format!("k.{column}")).collect();
    let reinsert = REINSERT
        .replace("{columns}", &columns.join(", "))
        .replace("{kept}", &kept.join(", "));
    client
        .batch_execute("truncate table pillarbox.event")
        .await?;
    client
        .batch_execute(include_str!("sql/open_gate.sql"))
        .await?;
    let published = client.execute(&reinsert, &[]).await?;
    client
        .batch_execute(include_str!("sql/close_gate.sql"))
        .await?;
    if published != gathered {
        return Err(RecoverError::Refused(format!(
            "{gathered} events are needed, but {published} could be published again: the outbox \
             changed meanwhile; nothing was changed, try again"
        )));
    }
    Ok(published)
}

/// Settles what the ledger had open, and writes the genesis.
async fn begin_again(
    client: &Client,
    ledger: &Ledger<'_>,
    genesis: &Snapshot,
    found: &SinkFindings,
) -> Result<(), RecoverError> {
    const SETTLE: &str = include_str!("sql/settle.sql");
    const GENESIS: &str = include_str!("sql/genesis.sql");
    const RETRIES: &str = include_str!("sql/retries.sql");
    const REPLAYS: &str = include_str!("sql/replays.sql");
    client.execute(SETTLE, &[&ledger.sink]).await?;
    let retries: &[&(dyn ToSql + Sync)] = &[&ledger.sink, &found.retried];
    client.execute(RETRIES, retries).await?;
    client.execute(REPLAYS, &[&ledger.sink]).await?;
    // What is skipped is in the sink on somebody's word.
    let held = match ledger.destination.doubtful {
        Doubtful::Skip => found.found + found.doubtful,
        Doubtful::Deliver | Doubtful::Refuse => found.found,
    };
    let given: &[&(dyn ToSql + Sync)] = &[
        &ledger.sink,
        &random_origin(),
        &genesis.to_string(),
        &held.cast_signed(),
        &found.proven_to,
    ];
    client.execute(GENESIS, given).await?;
    Ok(())
}

fn read<T: std::str::FromStr>(text: &str) -> Result<T, RecoverError> {
    text.parse()
        .map_err(|_| RecoverError::Refused(format!("postgresql answered {text:?}")))
}
