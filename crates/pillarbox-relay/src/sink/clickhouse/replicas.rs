//! Several urls must be the replicas of one table: only then do they share rows and tokens. Each has to
//! say what it knows of its own parts.

use serde::Deserialize;

use super::answer::Fault;
use super::client::Client;
use super::fence::trouble_at;
use super::sql;
use super::table::Table;
use super::verdict::refuse;
use crate::sink::Trouble;

/// The table as one replica sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Replica {
    /// The url, without secrets.
    url: String,
    engine: String,
    /// Its path in the keeper and its name there, where `system.replicas` has them.
    place: Option<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Place {
    zookeeper_path: String,
    replica_name: String,
}

/// Asks every replica for the table. Gives a warning for each that cannot be reached.
pub(super) async fn check(client: &Client, table: &Table) -> Result<Vec<String>, Trouble> {
    let mut replicas = Vec::new();
    let mut warnings = Vec::new();
    if client.endpoints() < 2 && table.in_replicas().is_none() {
        return Ok(warnings);
    }
    for index in 0..client.endpoints() {
        match ask(client, index, table).await {
            Ok(replica) => replicas.push(replica),
            Err(fault) if fault.is_silence() => {
                let url = client.name(index);
                warnings.push(format!(
                    "{url}: {fault}; whether it is a replica of {} was not checked; a block whose \
                     outcome is unknown waits for it, unless a token that the table surely remembers \
                     decides; start it, or leave its url out if it stays away",
                    table.shown()
                ));
            }
            Err(fault) => return Err(trouble_at(client, index, &fault)),
        }
    }
    compare(&replicas, &table.shown()).map_err(refuse)?;
    Ok(warnings)
}

async fn ask(client: &Client, index: usize, table: &Table) -> Result<Replica, Fault> {
    #[derive(Deserialize)]
    struct Engine {
        engine: String,
    }
    let (database, name) = (sql::text(&table.database), sql::text(&table.name));
    let engine =
        format!("SELECT engine FROM system.tables WHERE database = {database} AND name = {name}");
    let engine = client.rows_at::<Engine>(index, &engine).await?;
    let place = format!(
        "SELECT zookeeper_path, replica_name FROM system.replicas \
         WHERE database = {database} AND table = {name}"
    );
    let place = client.rows_at::<Place>(index, &place).await?;
    Ok(Replica {
        url: client.name(index).to_owned(),
        engine: engine
            .into_iter()
            .next()
            .map(|row| row.engine)
            .unwrap_or_default(),
        place: place.into_iter().next(),
    })
}

/// Whether all are replicas of one table; else what is wrong, with the remedy.
fn compare(replicas: &[Replica], table: &str) -> Result<(), String> {
    let Some((first, others)) = replicas.split_first() else {
        return Ok(());
    };
    for replica in replicas {
        let (url, engine) = (&replica.url, &replica.engine);
        if engine.is_empty() {
            return Err(format!(
                "{url} has no table {table}; create the replica there, or leave the url out"
            ));
        }
        if engine.starts_with("Replicated") && replica.place.is_none() {
            return Err(format!(
                "{url} does not show {table} in system.replicas; GRANT SELECT ON system.replicas to \
                 the sink's user"
            ));
        }
    }
    for other in others {
        if other.engine != first.engine {
            return Err(format!(
                "{table} has the engine {} on {}, but {} on {}; use the urls of one table's replicas",
                first.engine, first.url, other.engine, other.url
            ));
        }
    }
    for (at, one) in replicas.iter().enumerate() {
        for other in &replicas[at + 1..] {
            let (Some(here), Some(there)) = (&one.place, &other.place) else {
                continue;
            };
            if here.zookeeper_path != there.zookeeper_path {
                return Err(format!(
                    "{table} is {} on {}, but {} on {}: two tables, which share neither rows nor \
                     tokens; use the urls of one table's replicas",
                    here.zookeeper_path, one.url, there.zookeeper_path, other.url
                ));
            }
            if here.replica_name == there.replica_name {
                return Err(format!(
                    "{} and {} are the same replica {} of {table}; leave one of the urls out",
                    one.url, other.url, here.replica_name
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(url: &str, engine: &str, place: Option<(&str, &str)>) -> Replica {
        Replica {
            url: url.to_owned(),
            engine: engine.to_owned(),
            place: place.map(|(path, name)| Place {
                zookeeper_path: path.to_owned(),
                replica_name: name.to_owned(),
            }),
        }
    }

    #[test]
    fn urls_are_replicas_of_one_table() {
        let engine = "ReplicatedMergeTree";
        let first = replica("http://a", engine, Some(("/t", "1")));
        let with = |other: Replica| compare(&[first.clone(), other], "d.t");
        assert_eq!(with(replica("http://b", engine, Some(("/t", "2")))), Ok(()));
        assert_eq!(compare(&[], "d.t"), Ok(()));
        for (other, named) in [
            (replica("http://b", engine, Some(("/u", "2"))), "two tables"),
            (
                replica("http://b", engine, Some(("/t", "1"))),
                "same replica",
            ),
            (replica("http://b", engine, None), "GRANT SELECT"),
            (
                replica("http://b", "MergeTree", None),
                "but MergeTree on http://b",
            ),
            (replica("http://b", "", None), "http://b has no table d.t"),
        ] {
            let refused = with(other).unwrap_err();
            assert!(refused.contains(named), "{refused}");
        }
        let shared = replica("http://c", "SharedMergeTree", None);
        assert_eq!(compare(&[shared.clone(), shared], "d.t"), Ok(()));
    }
}
