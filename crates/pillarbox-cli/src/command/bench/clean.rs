//! `pillarbox bench --clean`: drops what killed benchmarks left.

use std::time::{Duration, SystemTime};

use pillarbox_relay::postgres;
use serde::Serialize;
use tokio_postgres::{Client, Config};

use super::name;
use super::rights::drop_roles;
use super::site::{Sessions, drop_database, drop_table_by_hand};
use crate::destination::Destination;
use crate::exit::{Exit, Failure, Outcome};
use crate::{APPLICATION_NAME, Place, output};

/// A table without a database here may be that of a benchmark with another PostgreSQL. The longest one takes
/// some hours.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3_600);

/// Something that a benchmark made.
#[derive(Debug, Serialize)]
struct Leftover {
    /// Of what: `database` or `table`.
    kind: &'static str,
    name: String,
    /// Why it stays; `None` when it is to be dropped.
    kept: Option<&'static str>,
    is_dropped: bool,
}

pub(super) async fn run(place: &Place, home: &Config, destination: &Destination) -> Outcome {
    postgres::check_direct(home, APPLICATION_NAME).await?;
    let session = postgres::connect(home, APPLICATION_NAME).await?;
    let client = session.client();
    let mut leftovers = list(client, destination).await?;
    if !place.json {
        show(&leftovers, destination)?;
    }
    let mut left = Vec::new();
    let mut tables_left: Vec<String> = Vec::new();
    for leftover in &mut leftovers {
        let name = &leftover.name;
        // A database tells of its table, which therefore goes first.
        if leftover.kept.is_some() || tables_left.contains(name) {
            continue;
        }
        let dropped = match leftover.kind {
            TABLE => {
                let dropped = destination.sink.drop_scratch(name).await;
                dropped.map_err(|trouble| drop_table_by_hand(destination, name, &trouble))
            }
            _ => drop_database(home, name, Sessions::Spare).await,
        };
        leftover.is_dropped = dropped.is_ok();
        if dropped.is_err() && leftover.kind == TABLE {
            tables_left.push(name.clone());
        }
        left.extend(dropped.err());
    }
    // Those of a benchmark that was killed before it made its database.
    drop_roles(client, "").await?;
    if place.json {
        output::json(&leftovers)?;
    } else {
        let dropped = leftovers.iter().filter(|leftover| leftover.is_dropped);
        output::line(format!(
            "dropped {} of {}",
            dropped.count(),
            leftovers.len()
        ))?;
    }
    for remains in &left {
        output::next(remains);
    }
    Ok(match left.is_empty() {
        true => Exit::Done,
        false => Exit::Failed,
    })
}

const DATABASE: &str = "database";
const TABLE: &str = "table";

/// Tables, then databases.
async fn list(client: &Client, destination: &Destination) -> Result<Vec<Leftover>, Failure> {
    const DATABASES: &str = include_str!("sql/databases.sql");
    // Before the databases: a benchmark makes its database before its table.
    let tables = destination.sink.tables().await;
    let tables = tables.map_err(|trouble| destination.blame(trouble))?;
    let databases = client.query(DATABASES, &[]).await?;
    let databases: Vec<Leftover> = databases
        .iter()
        .map(|row| Leftover {
            kind: DATABASE,
            name: row.get(0),
            kept: row.get::<_, bool>(1).then_some("somebody uses it"),
            is_dropped: false,
        })
        .collect();
    let now = SystemTime::now();
    let table = |table: String| {
        let began = name::began(&table)?;
        let database = databases.iter().find(|database| database.name == table);
        let is_old = now
            .duration_since(began)
            .is_ok_and(|age| age > ABANDONED_AFTER);
        let kept = match database {
            Some(database) => database.kept,
            None if is_old => None,
            None => Some("its database is not here, and it is not a day old"),
        };
        Some(Leftover {
            kind: TABLE,
            name: table,
            kept,
            is_dropped: false,
        })
    };
    let tables: Vec<Leftover> = tables.into_iter().filter_map(table).collect();
    Ok(tables.into_iter().chain(databases).collect())
}

fn show(leftovers: &[Leftover], destination: &Destination) -> Result<(), Failure> {
    if leftovers.is_empty() {
        return output::line(format!(
            "no benchmark left anything on postgresql or in {}",
            destination.config.database
        ));
    }
    let mut table = output::table(&["left", "name", "what becomes of it"]);
    for leftover in leftovers {
        let fate = match leftover.kept {
            Some(reason) => format!("stays: {reason}"),
            None => "dropped".to_owned(),
        };
        table.add_row([leftover.kind, &leftover.name, &fate]);
    }
    output::show(&table)
}
