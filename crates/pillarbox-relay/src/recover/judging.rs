//! The judgement: which sink needs which event. Reads, and writes nothing but temporary tables.

use std::collections::HashSet;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::{Destination, Doubtful, Findings, Ledger, RecoverError, Recovery, SinkFindings};
use crate::sink::clickhouse::Sought;

/// Events that are looked for at once: one statement to a sink, and some hundred KB of memory.
const CHUNK: i64 = 4_000;

/// An event that some sink may need.
struct Candidate {
    tx: String,
    id: i64,
    sought: Sought,
    /// One bit for each sink that needs it.
    needed: i64,
}

impl From<&Row> for Candidate {
    fn from(row: &Row) -> Self {
        Self {
            tx: row.get(0),
            id: row.get(1),
            sought: Sought {
                event_id: row.get(2),
                event_type: row.get(3),
                event_date_time_us: row.get(4),
            },
            needed: row.get(5),
        }
    }
}

pub(super) async fn judge(
    recovery: &Recovery<'_>,
    mut progress: impl FnMut(u64, u64) + Send,
) -> Result<Findings, RecoverError> {
    let client = recovery.session.client();
    prepare(client, &recovery.ledgers).await?;
    for ledger in &recovery.ledgers {
        let Destination {
            name, sink, plan, ..
        } = ledger.destination;
        let settled = sink.settle(plan).await;
        settled.map_err(|trouble| RecoverError::Sink((*name).to_owned(), trouble))?;
    }
    let events = count(client, "select count(*) from pillarbox.event").await?;
    let mut sinks = Vec::new();
    for ledger in &recovery.ledgers {
        sinks.push(known(client, ledger).await?);
    }
    let (mut judged, mut published_again) = (0, 0);
    let mut after = ("0".to_owned(), i64::MIN);
    progress(0, events);
    loop {
        let mut chunk = next(client, &after).await?;
        let Some(last) = chunk.last() else { break };
        after = (last.tx.clone(), last.id);
        for (ledger, findings) in recovery.ledgers.iter().zip(&mut sinks) {
            look(ledger, &mut chunk, findings).await?;
        }
        published_again += chunk.iter().filter(|one| one.needed != 0).count() as u64;
        keep(client, &chunk).await?;
        judged += chunk.len() as u64;
        progress(judged, events.max(judged));
    }
    progress(events.max(judged), events.max(judged));
    decide(&recovery.ledgers, &sinks)?;
    Ok(Findings {
        database: recovery.identity().describe(),
        events,
        published_again,
        sinks,
    })
}

/// What the ledger itself says of a sink.
async fn known(client: &Client, ledger: &Ledger<'_>) -> Result<SinkFindings, RecoverError> {
    let proven = format!(
        "select count(*) from recover_event where pillarbox_needed & {} = 0",
        ledger.bit()
    );
    let open_batches = format!(
        "select count(*) from pillarbox.open_batch where sink = {}",
        ledger.sink
    );
    let proven_to = format!(
        "select coalesce(max(number), 0) from recover_sink where place = {}",
        ledger.place
    );
    Ok(SinkFindings {
        sink: ledger.destination.name.to_owned(),
        proven: count(client, &proven).await?,
        open_batches: count(client, &open_batches).await?,
        proven_to: count(client, &proven_to).await?.cast_signed(),
        retried: retried(client, ledger).await?,
        ..SinkFindings::default()
    })
}

async fn prepare(client: &Client, ledgers: &[Ledger<'_>]) -> Result<(), RecoverError> {
    const PREPARE: &str = include_str!("sql/prepare.sql");
    const POSITION: &str = include_str!("sql/sink_position.sql");
    client.batch_execute(PREPARE).await?;
    for ledger in ledgers {
        let given: &[&(dyn ToSql + Sync)] = &[
            &ledger.place,
            &ledger.sink,
            &ledger.identity.has_continuous_ids(),
        ];
        client.execute(POSITION, given).await?;
    }
    Ok(())
}

async fn count(client: &Client, statement: &str) -> Result<u64, RecoverError> {
    let row = client.query_one(statement, &[]).await?;
    Ok(row.get::<_, i64>(0).cast_unsigned())
}

/// The next events that some ledger does not prove to be settled.
async fn next(client: &Client, after: &(String, i64)) -> Result<Vec<Candidate>, RecoverError> {
    const UNPROVEN: &str = include_str!("sql/unproven.sql");
    let given: &[&(dyn ToSql + Sync)] = &[&after.0, &after.1, &CHUNK];
    let rows = client.query(UNPROVEN, given).await?;
    Ok(rows.iter().map(Candidate::from).collect())
}

/// Looks for the events of the chunk that the sink may need, and takes its bit from those it holds.
async fn look(
    ledger: &Ledger<'_>,
    chunk: &mut [Candidate],
    findings: &mut SinkFindings,
) -> Result<(), RecoverError> {
    let destination = ledger.destination;
    let (sink, plan, bit) = (destination.sink, destination.plan, ledger.bit());
    let blame = |trouble| RecoverError::Sink(destination.name.to_owned(), trouble);
    let wanted = |chunk: &[Candidate], held: &HashSet<Uuid>| -> Vec<Sought> {
        let wanted = chunk.iter().filter(|one| one.needed & bit != 0);
        let wanted = wanted.map(|one| one.sought.clone());
        wanted
            .filter(|sought| !held.contains(&sought.event_id))
            .collect()
    };
    let sought = wanted(chunk, &HashSet::new());
    if sought.is_empty() {
        return Ok(());
    }
    let mut held = HashSet::new();
    let mut is_doubtful = true;
    if sink.keeps_identities(plan) {
        held = sink.holds(plan, &sought).await.map_err(blame)?;
        let missing = wanted(chunk, &held);
        is_doubtful = sink.unidentified(plan, &missing).await.map_err(blame)? > 0;
    }
    for one in chunk.iter_mut().filter(|one| one.needed & bit != 0) {
        if held.contains(&one.sought.event_id) {
            findings.found += 1;
            one.needed &= !bit;
            continue;
        }
        findings.doubtful += u64::from(is_doubtful);
        if is_doubtful && destination.doubtful == Doubtful::Skip {
            one.needed &= !bit;
        } else {
            findings.missing += 1;
        }
    }
    Ok(())
}

/// The dead letters that were being retried and have arrived. Without identities nobody can tell; they
/// stay dead, and a person decides.
async fn retried(client: &Client, ledger: &Ledger<'_>) -> Result<Vec<Uuid>, RecoverError> {
    const RETRYING: &str = "
        select
            l.event_id, l.event_type, (extract(epoch from l.event_date_time) * 1000000)::bigint
        from pillarbox.dead_letter l
        where l.sink = $1 and l.state = 'retrying'";
    let Destination {
        name, sink, plan, ..
    } = ledger.destination;
    let rows = client.query(RETRYING, &[&ledger.sink]).await?;
    if rows.is_empty() || !sink.keeps_identities(plan) {
        return Ok(Vec::new());
    }
    let sought: Vec<Sought> = rows
        .iter()
        .map(|row| Sought {
            event_id: row.get(0),
            event_type: row.get(1),
            event_date_time_us: row.get(2),
        })
        .collect();
    let held = sink.holds(plan, &sought).await;
    let held = held.map_err(|trouble| RecoverError::Sink((*name).to_owned(), trouble))?;
    Ok(held.into_iter().collect())
}

async fn keep(client: &Client, chunk: &[Candidate]) -> Result<(), RecoverError> {
    const JUDGED: &str = include_str!("sql/judged.sql");
    let txs: Vec<&str> = chunk.iter().map(|one| one.tx.as_str()).collect();
    let ids: Vec<i64> = chunk.iter().map(|one| one.id).collect();
    let needed: Vec<i64> = chunk.iter().map(|one| one.needed).collect();
    let given: &[&(dyn ToSql + Sync)] = &[&txs, &ids, &needed];
    client.execute(JUDGED, given).await?;
    Ok(())
}

/// Leaves it to a person when nobody can tell.
fn decide(ledgers: &[Ledger<'_>], sinks: &[SinkFindings]) -> Result<(), RecoverError> {
    for (ledger, findings) in ledgers.iter().zip(sinks) {
        let destination = ledger.destination;
        if findings.doubtful == 0 || destination.doubtful != Doubtful::Refuse {
            continue;
        }
        let why = match destination.sink.keeps_identities(destination.plan) {
            true => {
                "rows without an event_id lie among them, from before the table had that column"
            }
            false => "the table does not keep the column event_id",
        };
        return Err(RecoverError::Refused(format!(
            "nobody can tell whether the table of the sink {} holds {}: {why}; look yourself, then say \
             what to do: --doubtful deliver (what is there will be there twice) or --doubtful skip \
             (what is not will never be)",
            destination.name,
            match findings.doubtful {
                1 => "1 event".to_owned(),
                events => format!("{events} events"),
            }
        )));
    }
    Ok(())
}
