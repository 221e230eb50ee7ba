//! What a server says of itself beside the preflight, for `pillarbox doctor`: nothing of it keeps a
//! sink from working today, some of it will tomorrow.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::answer::Fault;
use super::client::Client;
use super::config::ClickHouseConfig;
use super::sql;
use super::table::Table;
use super::verdict::trouble;
use crate::sink::Trouble;

/// A server and a table of it. What the server does not know or show is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Its version.
    pub version: String,
    /// Its time zone.
    pub zone: String,
    /// Its clock when it answered, to the second, in UTC.
    pub now: SystemTime,
    /// Largest memory of one statement in bytes; zero for no limit.
    pub memory_max: Option<u64>,
    /// Its disks.
    pub disks: Option<Vec<Disk>>,
    /// Parts of the table.
    pub parts: Option<Parts>,
    /// The table as a replica.
    pub replica: Option<Replica>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its name.
    pub name: String,
    /// Bytes that are free.
    pub free: u64,
    /// All its bytes.
    pub total: u64,
}

/// How near a table is to refusing inserts with "too many parts".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Active parts of the partition that has most of them.
    pub most: u64,
    /// From so many on, inserts are slowed down.
    pub delay_at: u64,
    /// From so many on, inserts are refused.
    pub refuse_at: u64,
}

/// A replica of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Whether it takes no inserts, because it has lost its keeper.
    pub is_readonly: bool,
    /// How far it is behind the others.
    pub delay: Duration,
    /// What it still has to do.
    pub queue: u64,
    /// Replicas that are up.
    pub active: u64,
    /// All replicas.
    pub total: u64,
    /// Parts of which it does not know yet whether they stay.
    pub to_check: u64,
}

/// Asks the server.
pub(super) async fn ask(client: &Client, config: &ClickHouseConfig) -> Result<Health, Trouble> {
    const ABOUT: &str = "SELECT version() AS version, timezone() AS zone, \
                         toString(toUInt64(toUnixTimestamp(now()))) AS seconds";
    let abouts: Vec<About> = client.rows(ABOUT).await.map_err(|fault| trouble(&fault))?;
    let about = abouts.into_iter().next().unwrap_or_default();
    let found = Table::find(client, &config.database, &config.table).await;
    let table = found.map_err(|fault| trouble(&fault))?;
    let memory = "SELECT name, toString(value) AS value FROM system.settings \
                  WHERE name = 'max_memory_usage'";
    let memory: Option<Vec<Named>> = optional(client.rows(memory).await)?;
    let (parts, replica) = match &table {
        Some(table) if table.is_merge_tree() => {
            (parts(client, table).await?, replica(client, table).await?)
        }
        _ => (None, None),
    };
    Ok(Health {
        version: about.version,
        zone: about.zone,
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(number(&about.seconds)),
        memory_max: memory
            .and_then(|rows| rows.into_iter().next())
            .map(|row| number(&row.value)),
        disks: disks(client).await?,
        parts,
        replica,
    })
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct About {
    version: String,
    zone: String,
    seconds: String,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    value: String,
}

async fn disks(client: &Client) -> Result<Option<Vec<Disk>>, Trouble> {
    #[derive(Deserialize)]
    struct Row {
        name: String,
        free: String,
        total: String,
    }
    const DISKS: &str = "SELECT name, toString(free_space) AS free, toString(total_space) AS total \
                         FROM system.disks";
    let rows: Option<Vec<Row>> = optional(client.rows(DISKS).await)?;
    let disk = |row: Row| Disk {
        name: row.name,
        free: number(&row.free),
        total: number(&row.total),
    };
    Ok(rows.map(|rows| rows.into_iter().map(disk).collect()))
}

async fn parts(client: &Client, table: &Table) -> Result<Option<Parts>, Trouble> {
    let most = format!(
        "SELECT 'most' AS name, toString(max(parts)) AS value FROM (SELECT count() AS parts \
         FROM system.parts WHERE database = {} AND table = {} AND active GROUP BY partition)",
        sql::text(&table.database),
        sql::text(&table.name)
    );
    let Some(most) = optional(client.rows::<Named>(&most).await)? else {
        return Ok(None);
    };
    let limits = "SELECT name, toString(value) AS value FROM system.merge_tree_settings \
                  WHERE name IN ('parts_to_delay_insert', 'parts_to_throw_insert')";
    let Some(limits) = optional(client.rows::<Named>(limits).await)? else {
        return Ok(None);
    };
    let limit = |name: &str| {
        let own = table.own_setting(name);
        let own = own.or_else(|| {
            let default = limits.iter().find(|limit| limit.name == name);
            default.map(|limit| limit.value.clone())
        });
        own.map_or(u64::MAX, |value| number(&value))
    };
    Ok(Some(Parts {
        most: most.first().map_or(0, |row| number(&row.value)),
        delay_at: limit("parts_to_delay_insert"),
        refuse_at: limit("parts_to_throw_insert"),
    }))
}

async fn replica(client: &Client, table: &Table) -> Result<Option<Replica>, Trouble> {
    #[derive(Deserialize)]
    struct Row {
        readonly: String,
        delay: String,
        queue: String,
        active: String,
        total: String,
        to_check: String,
    }
    let statement = format!(
        "SELECT toString(is_readonly) AS readonly, toString(absolute_delay) AS delay, \
         toString(queue_size) AS queue, toString(active_replicas) AS active, \
         toString(total_replicas) AS total, toString(parts_to_check) AS to_check \
         FROM system.replicas \
         WHERE database = {} AND table = {}",
        sql::text(&table.database),
        sql::text(&table.name)
    );
    let rows: Option<Vec<Row>> = optional(client.rows(&statement).await)?;
    let row = rows.and_then(|rows| rows.into_iter().next());
    Ok(row.map(|row| Replica {
        is_readonly: row.readonly != "0",
        delay: Duration::from_secs(number(&row.delay)),
        queue: number(&row.queue),
        active: number(&row.active),
        total: number(&row.total),
        to_check: number(&row.to_check),
    }))
}

/// What the server has no table or no right for is left out.
fn optional<T>(answer: Result<T, Fault>) -> Result<Option<T>, Trouble> {
    match answer {
        Ok(rows) => Ok(Some(rows)),
        Err(Fault::Answered(_)) => Ok(None),
        Err(fault) => Err(trouble(&fault)),
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}
